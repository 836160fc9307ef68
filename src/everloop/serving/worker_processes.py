"""Starts several processes behind one port. They share the listening socket, and those that die are restarted.

The parent process loads no model and answers no request. It holds the endpoint's lock and socket, keeps its record's
state, and ends together with the workers. So if a worker dies, the others continue. Each worker writes its own
prediction log, and none waits for another.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

from everloop import errors
from everloop.errors import EverloopError, UnavailableError

if TYPE_CHECKING:
    import socket
    import threading
    from pathlib import Path

    from everloop.stores import Store

_log = logging.getLogger("everloop.serving")

# Otherwise a worker that dies at once would be restarted as fast as the machine can.
_PAUSE_S = 0.5
_START_S = 60.0
_STOP_S = 24
"""A worker waits 9 seconds for its requests and ships its log for up to 12; platforms give a container 30."""


@dataclass(frozen=True)
class WorkerIdentity:
    """How the processes of an endpoint answer: addresses beside the listener, host names, and their number."""

    host: str
    grpc_port: int | None = None
    workers: int = 1
    allowed_hosts: tuple[str, ...] = ()
    contained: bool = False
    """Whether it listens in a container without tokens, because a platform in front checks the clients."""


class Workers:
    """The worker processes of one listener. Not thread-safe."""

    def __init__(
        self, name: str, store: Store, listener: socket.socket, identity: WorkerIdentity, folder: Path
    ) -> None:
        """Prepare.

        Args:
            folder: where workers write a file once they answer.
        """
        self._listener = listener
        self._folder = folder
        self._count = identity.workers
        self._command = [
            *(sys.executable, "-m", "everloop.serving", name, "--home", str(store.home), "--project", store.project),
            *("--listener", str(listener.fileno()), "--host", identity.host, "--workers", str(identity.workers)),
        ]
        if identity.grpc_port is not None:
            self._command += ["--grpc-port", str(identity.grpc_port)]
        for name in identity.allowed_hosts:
            self._command += ["--allowed-host", name]
        if identity.contained:
            self._command.append("--contained")
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping: list[subprocess.Popen[bytes]] = []
        self._started_at: list[float] = []

    def start(self, stopping: threading.Event) -> bool:
        """Start all workers and wait until they answer; False: `stopping` was set before.

        Raises:
            EverloopError: of the class that the first worker that failed to start met.
        """
        ready_files = [self._spawn() for _ in range(self._count)]
        until = monotonic() + _START_S
        for index, path in enumerate(ready_files):
            while not path.exists():
                if stopping.is_set():
                    return False
                if self._running[index].poll() is not None or monotonic() > until:
                    raise UnavailableError(f"A worker did not start; its exit status is {self._running[index].poll()}.")
                sleep(0.005)
            message = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            if "message" in message:
                raise _error(message["type"], message["message"])
        return True

    def scale(self, count: int) -> None:
        """Run this number of workers. Surplus ones finish their requests and stop."""
        while len(self._running) < count:
            self._spawn()
        for worker in self._running[count:]:
            worker.terminate()
            self._stopping.append(worker)
        del self._running[count:], self._started_at[count:]

    def restart_dead(self) -> None:
        """Restart the workers that have died."""
        self._stopping = [worker for worker in self._stopping if worker.poll() is None]
        for index, worker in enumerate(self._running):
            if worker.poll() is None or monotonic() < self._started_at[index] + _PAUSE_S:
                continue
            _log.warning("Worker %s ended with status %s; restarting it.", worker.pid, worker.returncode)
            self._spawn(index)

    def stop(self) -> None:
        """Let all workers finish their requests, and wait for them."""
        for worker in self._running:
            worker.terminate()
        for worker in (*self._running, *self._stopping):
            try:
                worker.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _spawn(self, index: int | None = None) -> Path:
        ready_file = self._folder / f"worker-{secrets.token_hex(8)}"
        worker = subprocess.Popen(
            [*self._command, "--port-file", str(ready_file), "--parent", str(os.getpid())],
            pass_fds=[self._listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
        if index is None:
            self._running.append(worker)
            self._started_at.append(monotonic())
        else:
            self._running[index] = worker
            self._started_at[index] = monotonic()
        return ready_file


def _error(kind: str, message: str) -> EverloopError:
    found = getattr(errors, kind, None)
    return found(message) if isinstance(found, type) and issubclass(found, EverloopError) else UnavailableError(message)


__all__ = ["WorkerIdentity", "Workers"]
