"""The process that speaks to Ray for a run.

Ray ends the process that is connected to a cluster when the cluster's head is gone, takes over its signal handlers and
prints to its output. So a run does not connect to Ray itself. It starts this process, and exchanges pickled tuples with
it over a socket:

    to the gateway     (number, name, spec, options)
    to the run         ("ready", nodes)   ("failed", text)   ("done", number, reply)   ("lost", number, kind, text)
                       ("progress", [(name, progress), …])

If the run's process ends in any way, the socket closes, this process ends, and Ray stops the run's workers.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from multiprocessing.connection import Connection
from typing import Any

_POLL_S = 0.5
_FIRST_ANSWER_S = 10
CLIENT_PORT = 10001
"""Ray's default port for clients outside of the cluster. At any other port, a head is tried first."""


class RayGateway:
    """Submits jobs to Ray and sends their ends back. `serve` returns when the run's process closes the socket."""

    def __init__(self, connection: Connection, address: str) -> None:
        self.connection = connection
        self.address = address
        self._ray: Any = None
        self._tasks: dict[int, Any] = {}
        self._nodes: dict[int, set[str]] = {}
        """Number of a job to the nodes that were alive when it was submitted."""
        self._sending = threading.Lock()
        self._functions: dict[str, Any] = {}
        self._board: Any = None
        self._board_name = ""

    def serve(self) -> None:
        try:
            import ray
        except ImportError:
            self._send("failed", "missing")
            return
        self._ray = ray
        try:
            self._connect()
        except Exception as error:
            # Ray raises its own errors, those of gRPC and plain ones.
            self._send("failed", f"{type(error).__name__}: {error}")
            return
        self._send("ready", self._alive())
        threading.Thread(target=self._forward_progress, daemon=True).start()
        while True:
            try:
                job = self.connection.recv()
            except (EOFError, OSError):
                break
            self._submit(*job)
        # Ray also stops the workers of a driver that is gone, but only once it has noticed. Not `ray.shutdown`, which
        # waits for a head that may be gone as well.
        cancelling = threading.Thread(target=self._cancel_all, daemon=True)
        cancelling.start()
        cancelling.join(timeout=1)
        os._exit(0)

    def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            self._ray.cancel(task, force=True)
        if tasks:
            # The requests are sent in the background.
            time.sleep(0.5)

    def _connect(self) -> None:
        options: dict[str, Any] = {"logging_level": "error", "log_to_driver": True, "namespace": "everloop"}
        host, _, port = self.address.rpartition(":")
        if host:
            # Ray itself tries for half a minute, and ends this process then.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_FIRST_ANSWER_S).close()
        if not self.address:
            self._ray.init(address="auto", **options)
        elif port == str(CLIENT_PORT) or ":" not in self.address:
            self._connect_as_client()
        else:
            try:
                self._ray.init(address=self.address, **options)
            except ConnectionError:
                # What answers there is not a head. It may be a Ray Client server at an unusual port.
                self._connect_as_client()
        self._start_board()

    def _connect_as_client(self) -> None:
        address = self.address if ":" in self.address else f"{self.address}:{CLIENT_PORT}"
        self._ray.init(address=f"ray://{address}", logging_level="error", namespace="everloop")

    def _start_board(self) -> None:
        """Start the actor that collects progress. Tasks get its name and not its handle.

        Ray counts references to a handle in every task that it is passed to, and workers were seen to abort in that
        code while many short tasks ran. Most steps report no progress, and never look the actor up.
        """
        self._board_name = f"everloop-progress-{uuid.uuid4().hex}"
        self._board = self._ray.remote(num_cpus=0)(ProgressBoard).options(name=self._board_name).remote()

    def _submit(self, number: int, name: str, spec: bytes, options: dict[str, Any]) -> None:
        key = repr(sorted(options.items()))
        try:
            function = self._functions.get(key)
            if function is None:
                function = self._ray.remote(max_retries=0, **options)(run_on_node)
                self._functions[key] = function
            self._nodes[number] = set(self._alive())
            task = function.options(name=f"everloop:{name}").remote(spec, self._board_name)
            self._tasks[number] = task
            task.future().add_done_callback(lambda future: self._finish(number, future))
        except Exception as error:
            # The run waits for an end of this job, whatever has happened here.
            self._send("lost", number, "failed", f"{type(error).__name__}: {error}")

    def _finish(self, number: int, future: Any) -> None:
        """Called in a thread of Ray's when a job has ended in any way."""
        self._tasks.pop(number, None)
        before = self._nodes.pop(number, set())
        error = future.exception()
        if error is None:
            self._send("done", number, future.result())
            return
        # Waiting for the state of the cluster would hold up the other callbacks.
        threading.Thread(target=self._explain, args=(number, error, before), daemon=True).start()

    def _explain(self, number: int, error: BaseException, before: set[str]) -> None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        cause = getattr(error, "cause", None)
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        if kinds & {"NodeDiedError", "LocalRayletDiedError", "ObjectLostError"}:
            kind = "node"
        elif "OutOfMemoryError" in kinds:
            kind = "memory"
        elif "WorkerCrashedError" in kinds:
            # Ray may see the end of a worker before it notices that the whole node has gone.
            kind = "node" if self._has_lost_node(before) else "worker"
        else:
            kind = "failed"
        self._send("lost", number, kind, f"{type(error).__name__}: {error}")

    def _has_lost_node(self, before: set[str]) -> bool:
        for _ in range(4):
            if before - self._alive().keys():
                return True
            time.sleep(0.5)
        return False

    def _alive(self) -> dict[str, dict[str, float]]:
        """Id of each node that is alive to its resources, read at most once a second."""
        now = time.monotonic()
        if now - self._asked > 1.0:
            self._asked = now
            self._known = {node["NodeID"]: dict(node["Resources"]) for node in self._ray.nodes() if node["Alive"]}
        return self._known

    _asked = -1000.0
    _known: dict[str, dict[str, float]] = {}  # noqa: RUF012 - replaced, never changed

    def _forward_progress(self) -> None:
        while True:
            time.sleep(_POLL_S)
            if not self._tasks:
                continue
            try:
                found = self._ray.get(self._board.take.remote(), timeout=5)
            except TimeoutError:
                continue  # the actor is still starting, and keeps what is sent to it
            except Exception:
                # Its node may be gone. Jobs that run lose their progress, later ones report to a new board.
                time.sleep(5)
                self._start_board()
                continue
            if found:
                self._send("progress", found)

    def _send(self, *message: Any) -> None:
        with self._sending:
            try:
                self.connection.send(message)
            except OSError:
                os._exit(0)


class ProgressBoard:
    """An actor that holds the latest progress of each step until the gateway takes it."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}

    def put(self, name: str, progress: Any) -> None:
        self._latest[name] = progress

    def take(self) -> list[tuple[str, Any]]:
        found, self._latest = list(self._latest.items()), {}
        return found


def run_on_node(spec: bytes, board: str) -> bytes:
    """The task that Ray runs on a node. `board` is the name of the `ProgressBoard`."""
    from everloop.pipeline.executors.ray_calls import RayCalls
    from everloop.pipeline.executors.ray_worker import run_spec

    return run_spec(spec, lambda name, progress: _report(board, name, progress), RayCalls())


_boards: dict[str, Any] = {}


def _report(board: str, name: str, progress: Any) -> None:
    import ray

    if board not in _boards:
        try:
            _boards[board] = ray.get_actor(board)
        except ValueError:
            return  # its node is gone, and the next board has another name
    _boards[board].put.remote(name, progress)


def main() -> None:
    """Serve the run at the socket and for the cluster that the command line names."""
    RayGateway(Connection(int(sys.argv[1])), sys.argv[2]).serve()
