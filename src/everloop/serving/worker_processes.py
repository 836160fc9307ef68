"""More processes behind one port: they share the listening socket, and one that dies is started again.

The process that starts them loads no model and answers nobody: it holds the endpoint's lock and its socket, tells of
its state, and ends with all of them. So whichever process that answers dies, the others go on. Each writes a prediction
log of its own, and none waits for another.
"""

from __future__ import annotations

import json
import logging
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

# A worker that dies at once would otherwise be started as fast as the machine can.
_PAUSE_S = 0.5
_START_S = 60.0
_STOP_S = 24
"""A worker waits 9 seconds for its requests and ships its log for 12; platforms give a container 30."""


@dataclass(frozen=True)
class WorkerIdentity:
    """Where an endpoint answers beside its listener, under which names, and how many processes do."""

    host: str
    grpc_port: int | None = None
    workers: int = 1
    allowed_hosts: tuple[str, ...] = ()
    contained: bool = False
    """Whether it listens in a container, without a token: what stands in front checks who asks."""


class Workers:
    """The processes that answer at a listener. For one thread."""

    def __init__(self, name: str, store: Store, listener: socket.socket, place: WorkerIdentity, folder: Path) -> None:
        """Prepare.

        Args:
            folder: where workers say that they answer.
        """
        self._listener = listener
        self._folder = folder
        self._count = place.workers
        self._command = [
            *(sys.executable, "-m", "everloop.serving", name, "--home", str(store.home), "--project", store.project),
            *("--listener", str(listener.fileno()), "--host", place.host, "--workers", str(place.workers)),
        ]
        if place.grpc_port is not None:
            self._command += ["--grpc-port", str(place.grpc_port)]
        for name in place.allowed_hosts:
            self._command += ["--allowed-host", name]
        if place.contained:
            self._command.append("--contained")
        self._running: list[subprocess.Popen[bytes]] = []
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._born: list[float] = []

    def start(self, stopping: threading.Event) -> bool:
        """Start all and wait until they answer; False: it was to stop before.

        Raises:
            EverloopError: of the class that kept the first of them from answering.
        """
        said = [self._spawn() for _ in range(self._count)]
        until = monotonic() + _START_S
        for place, path in enumerate(said):
            while not path.exists():
                if stopping.is_set():
                    return False
                if self._running[place].poll() is not None or monotonic() > until:
                    raise UnavailableError(f"A worker did not come up; it ended with {self._running[place].poll()}.")
                sleep(0.005)
            told = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            if "message" in told:
                raise _error(told["type"], told["message"])
        return True

    def scale(self, count: int) -> None:
        """Come to so many; those that are too many finish what is on its way."""
        while len(self._running) < count:
            self._spawn()
        for worker in self._running[count:]:
            worker.terminate()
            self._leaving.append(worker)
        del self._running[count:], self._born[count:]

    def look(self) -> None:
        """Start again whichever has died."""
        self._leaving = [worker for worker in self._leaving if worker.poll() is None]
        for place, worker in enumerate(self._running):
            if worker.poll() is None or monotonic() < self._born[place] + _PAUSE_S:
                continue
            _log.warning("Worker %s ended with %s; it is started again.", worker.pid, worker.returncode)
            self._spawn(place)

    def stop(self) -> None:
        """Ask all to finish what is on its way, and wait for them."""
        for worker in self._running:
            worker.terminate()
        for worker in (*self._running, *self._leaving):
            try:
                worker.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _spawn(self, place: int | None = None) -> Path:
        said = self._folder / f"worker-{secrets.token_hex(8)}"
        worker = subprocess.Popen(
            [*self._command, "--port-file", str(said)],
            pass_fds=[self._listener.fileno()],
            stdin=subprocess.DEVNULL,
        )
        if place is None:
            self._running.append(worker)
            self._born.append(monotonic())
        else:
            self._running[place] = worker
            self._born[place] = monotonic()
        return said


def _error(kind: str, message: str) -> EverloopError:
    found = getattr(errors, kind, None)
    return found(message) if isinstance(found, type) and issubclass(found, EverloopError) else UnavailableError(message)


__all__ = ["WorkerIdentity", "Workers"]
