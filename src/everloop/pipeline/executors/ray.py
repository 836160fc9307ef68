"""The Ray executor: steps run on the nodes of a Ray cluster.

    everloop run --on ray                    the cluster of this machine, or of RAY_ADDRESS
    everloop run --on ray://10.0.0.5:6379    the cluster with this head
    everloop run --on ray://10.0.0.5:10001   the same, from a machine that is not one of its nodes (Ray Client)

A job is sent as a `JobSpec`. Inputs and outputs do not pass through this process: nodes read and write the store.
A job whose node is lost is sent to another node. Outcomes are recorded by the scheduler only, so nothing is recorded
twice, whatever a lost node may still do.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from everloop.errors import MissingExtraError, StepError, UnavailableError, UsageError, WorkerLostError
from everloop.pipeline.code.code_bundles import collect_bundle
from everloop.pipeline.executors.executor import FileElsewhereError
from everloop.pipeline.executors.job_specs import SpecWriter, make_spec
from everloop.pipeline.executors.ray_worker import MissingFile, Unreachable
from everloop.pipeline.executors.step_pickles import pickle_for_worker
from everloop.pipeline.executors.worker import Failed, Stale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from everloop.pipeline.executors.executor import LogWriter
    from everloop.pipeline.graph_plan import Plan, PlanNode
    from everloop.pipeline.job import Job, JobOutcome
    from everloop.pipeline.step_progress import StepProgress
    from everloop.stores import Store

_log = logging.getLogger("everloop.pipeline")

MOST_MOVES = 5
"""How often a job moves to another node because its node was lost. This does not count as a retry of its step."""
MOST_CRASHES = 1
"""How often a job is sent again because its worker crashed. A worker can crash for reasons of its own, so one crash
does not prove that the step causes it. This does not count as a retry either."""
_CONNECT_S = 90
_MOST_SLOTS = 256
_ATTEMPTS = 5
"""How often Ray tries to find a head at an address, once a second. If a Ray Client server listens there, it is tried
after that."""
_RECONNECT_S = 15
"""How long Ray tries to reach a head that does not answer, before the run ends."""
_ADDRESS = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9a-fA-F:]+\]:\d{1,5}")
_OWN_RESOURCES = {"cpu": "CPU", "gpu": "GPU", "memory": "memory"}


class RayExecutor:
    """Runs steps on a Ray cluster.

    Args:
        address: `HOST:PORT` of the cluster's head, with or without `ray://`. Default: `RAY_ADDRESS`, or the cluster
            that this machine is a node of.

    Raises:
        UsageError: the address is malformed.
    """

    isolates = True
    remote = True
    capacity: Mapping[str, float] = {}
    """Empty: Ray itself counts resources, over all of its nodes and drivers."""

    def __init__(self, address: str | None = None) -> None:
        address = (address or "").removeprefix("ray://")
        if address and not _ADDRESS.fullmatch(address):
            raise UsageError(
                f"'{address}' is not the address of a Ray cluster.", help="Write ray://HOST:PORT, or ray alone."
            )
        self.address = address
        self.slots = 1
        self._connection: _GatewayConnection | None = None
        self._bundle = ""
        self._files: dict[str, str] = {}
        self._key = ""
        self._writers: dict[tuple[str, bool], SpecWriter] = {}

    def prepare(self, plan: Plan, store: Store) -> None:
        from everloop.stores import trust

        connection = self._connected()
        cpus = sum(node.get("CPU", 0.0) for node in connection.nodes.values())
        # A few jobs more than there are CPUs wait inside Ray, so that no CPU waits for this process.
        self.slots = max(8, min(_MOST_SLOTS, int(4 * cpus)))
        for node in plan.nodes:
            if not node.on_driver:
                _check_resources(node, connection.nodes)
        self._writers.clear()
        self._key = trust.Keyring().public_key()
        bundle, self._files = collect_bundle(name for node in plan.nodes for name in node.modules)
        self._bundle = store.objects.add(bundle.to_bytes())

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        future: Future[JobOutcome] = Future()
        future.set_running_or_notify_cancel()
        self._send(_RemoteJob(job, store, log, future))
        return future

    def take_progress(self) -> list[tuple[str, StepProgress]]:
        return self._connection.take_progress() if self._connection is not None else []

    def close(self, *, kill: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> _GatewayConnection:
        if self._connection is None or self._connection.closed:
            self._connection = _GatewayConnection(self.address)
        return self._connection

    def _send(self, remote: _RemoteJob) -> None:
        job = remote.job
        try:
            spec = self._writer(remote).to_json(job, remote.store)
            options = ray_options(job.node)
            self._connected().submit(job.name, spec, options, lambda *message: self._receive(remote, *message))
        except Exception as error:
            # The caller expects all errors of a job in its future.
            remote.future.set_exception(error)

    def _writer(self, remote: _RemoteJob) -> SpecWriter:
        """Writes the specs of a step, whose code is stored once per run."""
        job, store, by_value = remote.job, remote.store, remote.by_value
        key = (job.node.name, by_value)
        if key not in self._writers:
            spec = make_spec(
                job,
                store,
                function=store.objects.add(pickle_for_worker(job.step, job, by_value=by_value)),
                by_name=not by_value and job.node.module != "__main__",
                bundle=self._bundle,
                modules=self._files,
                key=self._key,
            )
            self._writers[key] = SpecWriter(spec)
        return self._writers[key]

    def _receive(self, remote: _RemoteJob, kind: str, *content: Any) -> None:
        """Called in the thread of the connection when a job has ended in any way."""
        try:
            error = self._lost(remote, *content) if kind == "lost" else self._done(remote, *content)
        except Exception as unexpected:
            # An error that is not set on the future is lost, and the run would hang.
            error = StepError(f"The reply of step '{remote.job.name}' cannot be used: {unexpected}")
            error.__cause__ = unexpected
        if error is not None:
            remote.future.set_exception(error)

    def _done(self, remote: _RemoteJob, data: bytes) -> BaseException | None:
        reply = pickle.loads(data)  # noqa: S301 - from our own job, through our own cluster
        job = remote.job
        if isinstance(reply, Stale):
            if remote.by_value:
                return StepError(f"The nodes cannot import the code of step '{job.name}'.")
            # The code here differs from its files, or a node has imported files that were edited since.
            remote.by_value = True
            self._send(remote)
            return None
        if isinstance(reply, Unreachable):
            where = _shown(remote.store, reply.part)
            return UsageError(
                f"The Ray node '{reply.node}' cannot reach the store: its {reply.part} ({where}) {reply.reason}.",
                help=f"Give the {reply.part} a URL that all nodes reach, in everloop.toml: [store] {reply.part} = "
                f'"{_EXAMPLES[reply.part]}"',
            )
        if isinstance(reply, MissingFile):
            return FileElsewhereError(reply.text)
        if isinstance(reply, Failed):
            return reply.error(job.name)
        for metrics, step in reply.logged:
            remote.log(metrics, step)
        remote.future.set_result(_signed_here(reply))
        return None

    def _lost(self, remote: _RemoteJob, kind: str, text: str) -> BaseException | None:
        name = remote.job.name
        if kind == "node" and remote.moves < MOST_MOVES:
            remote.moves += 1
            _log.warning("The Ray node of step '%s' was lost. The step runs again on another node.", name)
            self._send(remote)
            return None
        if kind == "worker" and remote.crashes < MOST_CRASHES:
            remote.crashes += 1
            _log.warning("The Ray worker of step '%s' crashed. The step runs again in another worker.", name)
            self._send(remote)
            return None
        if kind == "node":
            return WorkerLostError(
                f"Step '{name}' lost its Ray node {remote.moves + 1} times.",
                help='Nodes may run out of memory. Declare what the step needs: @step(resources={"memory": …}).',
            )
        if kind == "head":
            return WorkerLostError(
                f"The connection to the Ray cluster{self._where()} was lost while step '{name}' ran. {text}",
                help="Start the cluster, then start the run again: the steps that have finished are kept.",
            )
        if kind in ("worker", "memory"):
            return WorkerLostError(
                f"The Ray worker of step '{name}' died: {_first_line(text)}",
                help="The system kills processes when memory runs out. Declare what the step needs: "
                '@step(resources={"memory": …}).',
            )
        if "No module named 'everloop" in text:
            return UsageError(
                f"A Ray node cannot import everloop, so step '{name}' did not run there.",
                help="Install it on each node, in the environment of Ray: pip install 'everloop[ray]'",
            )
        return StepError(f"Ray could not run step '{name}': {_first_line(text)}", help="See the logs of Ray.")

    def _where(self) -> str:
        return f" at {self.address}" if self.address else ""


class _RemoteJob:
    """A job on its way, and how it has to be sent."""

    def __init__(self, job: Job, store: Store, log: LogWriter, future: Future[JobOutcome]) -> None:
        self.job = job
        self.store = store
        self.log = log
        self.future = future
        self.by_value = False
        self.moves = 0
        self.crashes = 0


class _GatewayConnection:
    """A gateway process, and a thread that receives from it."""

    def __init__(self, address: str) -> None:
        self.closed = False
        self.nodes: dict[str, dict[str, float]] = {}
        self._receivers: dict[int, Callable[..., None]] = {}
        self._progress: dict[str, StepProgress] = {}
        self._guard = threading.Lock()
        self._number = 0
        ours, theirs = socket.socketpair()
        environment = {
            "RAY_NUM_REDIS_GET_RETRIES": str(_ATTEMPTS),
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RECONNECT_S),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **os.environ,
        }
        # Not `-m`: nodes have to find the gateway's classes in a module, not in `__main__`.
        start = "from everloop.pipeline.executors.ray_gateway import main; main()"
        command = [sys.executable, "-c", start, str(theirs.fileno()), address]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=(theirs.fileno(),),
            env=environment,
            # Ctrl-C reaches every process of the terminal's group; only the run decides what it means.
            start_new_session=True,
        )
        theirs.close()
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))
        self._wait_until_ready(address)
        threading.Thread(target=self._receive_all, daemon=True).start()

    def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
        with self._guard:
            self._number += 1
            number = self._number
            self._receivers[number] = receiver
            try:
                self._connection.send((number, name, spec, options))
                return
            except OSError:
                self._receivers.pop(number, None)
        receiver("lost", "head", "")

    def take_progress(self) -> list[tuple[str, StepProgress]]:
        with self._guard:
            found, self._progress = list(self._progress.items()), {}
        return found

    def close(self) -> None:
        """End the gateway; Ray then stops all of its jobs."""
        self.closed = True
        # Unlike closing it, this also ends a `recv` of another thread.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self, address: str) -> None:
        text = f"it did not answer within {_CONNECT_S} s"
        try:
            if self._connection.poll(_CONNECT_S):
                kind, content = self._connection.recv()
                if kind == "ready":
                    self.nodes = content
                    return
                text = content
        except (EOFError, OSError):
            text = "the connection was closed"
        self.close()
        if text == "missing":
            raise MissingExtraError.of("RayExecutor", "ray", "ray")
        raise UnavailableError(
            f"Cannot connect to the Ray cluster{f' at {address}' if address else ' of this machine'}: "
            f"{_first_line(text)}",
            help="Start one: ray start --head, or name its head: --on ray://HOST:PORT",
        )

    def _receive_all(self) -> None:
        while True:
            try:
                kind, *content = self._connection.recv()
            except (EOFError, OSError):
                break
            if kind == "progress":
                with self._guard:
                    self._progress.update(content[0])
                continue
            number, *rest = content
            with self._guard:
                receiver = self._receivers.pop(number, None)
            if receiver is not None:
                receiver(kind, *rest)
        was_closed, self.closed = self.closed, True
        self._connection.close()
        with self._guard:
            receivers, self._receivers = list(self._receivers.values()), {}
        text = "The run was stopped."
        if not was_closed:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            text = (
                "Its head does not answer any more, or the process that speaks to Ray has died "
                f"(exit code {self._process.returncode})."
            )
        for receiver in receivers:
            receiver("lost", "head", text)


def ray_options(node: PlanNode) -> dict[str, Any]:
    """The options of a Ray task that give a step its resources and its environment."""
    resources = dict(node.resources)
    options: dict[str, Any] = {"num_cpus": resources.pop("cpu", 1.0)}
    if "gpu" in resources:
        options["num_gpus"] = resources.pop("gpu")
    if "memory" in resources:
        options["memory"] = int(resources.pop("memory"))
    if resources:
        options["resources"] = resources
    if node.environment:
        options["runtime_env"] = {"pip": list(node.environment)}
    return options


def _check_resources(node: PlanNode, nodes: Mapping[str, Mapping[str, float]]) -> None:
    """Raise UsageError if no node of the cluster could ever run a step; Ray would wait forever."""
    needs = {"cpu": 1.0, **node.resources}
    for resource, amount in needs.items():
        name = _OWN_RESOURCES.get(resource, resource)
        most = max((found.get(name, 0.0) for found in nodes.values()), default=0.0)
        if amount > most:
            raise UsageError(
                f"Step '{node.name}' needs {amount:g} of '{resource}', but no node of the Ray cluster has more than "
                f"{most:g}.",
                help="Start a node that has it (ray start --address=… --resources=…), or declare less.",
            )
    if all(any(found.get(_OWN_RESOURCES.get(r, r), 0.0) < a for r, a in needs.items()) for found in nodes.values()):
        raise UsageError(
            f"No single node of the Ray cluster has all that step '{node.name}' needs: "
            f"{', '.join(f'{amount:g} of {name}' for name, amount in needs.items())}.",
            help="Add a node that has it, or declare less.",
        )


def _signed_here(outcome: JobOutcome) -> JobOutcome:
    """The outcome with this machine's signatures: a node that signs with its own key has run this run's code."""
    from everloop.stores import trust

    if all(stored.signature is None for stored in outcome.outputs.values()):
        return outcome
    ring = trust.Keyring()
    known = ring.trusted()
    outputs = {
        name: stored
        if stored.signature is None or stored.signature.get("key") in known
        else replace(stored, signature=ring.sign(stored.digest))
        for name, stored in outcome.outputs.items()
    }
    return replace(outcome, outputs=outputs)


def _shown(store: Store, part: str) -> str:
    from everloop.stores.store_urls import mask_url

    return mask_url(str(getattr(store.urls, part)))


_EXAMPLES = {"records": "postgresql://…", "objects": "s3://…", "tables": "s3://…"}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")


__all__ = ["MOST_CRASHES", "MOST_MOVES", "RayExecutor", "ray_options"]
