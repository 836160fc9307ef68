"""Keeping a loop turning: the control plane here, endpoints and the user's code in child processes.

this process     control plane: API and status page
├── endpoint     one process for each endpoint that has a champion
└── worker       ticks the project's loops and takes their turns; imports loop.py, as nobody else does
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.records import EndpointRecord
from everloop.server.control_plane import ControlPlane
from everloop.server.endpoint_ports import EndpointPorts
from everloop.server.server_settings import ServerSettings

if TYPE_CHECKING:
    from everloop.serving import EndpointProcess
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

LOOK_EVERY_S = 0.5
RESTART_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""How long a child that died stays down: longer each time, from the start again once it has lived a minute."""


@dataclass
class _Restarts:
    """When one child may be started, by the monotonic clock."""

    born: float | None = None
    deaths: int = 0
    not_before: float = 0.0

    def may_start(self, now: float) -> bool:
        """Asked only while the child is not alive."""
        if self.born is not None:
            if now - self.born > RESTART_AFTER_S[-1]:
                self.deaths = 0
            self.not_before = now + RESTART_AFTER_S[min(self.deaths, len(RESTART_AFTER_S) - 1)]
            self.deaths += 1
            self.born = None
        if now < self.not_before:
            return False
        self.born = now
        return True


class Supervisor:
    """Starts the children, starts them again when they die, and stops them all.

    `serve` blocks until a signal; everything that it started is stopped when it returns.
    """

    def __init__(
        self,
        store: Store,
        folder: Path | None,
        *,
        settings: ServerSettings | None = None,
        every_s: float = 10.0,
    ) -> None:
        self.store = store
        self.folder = folder
        self.every_s = every_s
        said = settings or ServerSettings()
        self.control = ControlPlane(store, host=said.host, port=said.port, options=said.options, auth=said.auth)
        self.url = self.control.url
        self.moved: dict[str, tuple[int, int]] = {}
        """The endpoints whose kept port was taken: the kept and the new one, by name."""
        self._ports = EndpointPorts(store)
        self._stopping = threading.Event()
        self._endpoints: dict[str, EndpointProcess] = {}
        self._worker: subprocess.Popen[bytes] | None = None
        self._restarts: dict[str, _Restarts] = {}

    def serve(self, ready: threading.Event | None = None) -> None:
        """Run until SIGINT or SIGTERM."""
        watcher = threading.Thread(target=self._watch, name="everloop-supervisor", daemon=True)
        try:
            watcher.start()
            if ready is not None:
                ready.set()
            self.control.serve()
        finally:
            self._stopping.set()
            watcher.join(timeout=60)
            self._stop_children()
            self.control.close()

    def address_of(self, name: str) -> str:
        """The stable address of an endpoint, below which all of its routes are."""
        return f"{(self.control.options.public_url or self.url).rstrip('/')}/endpoints/{name}"

    def wait_for_endpoints(self, timeout_s: float = 60.0) -> dict[str, str]:
        """Addresses by endpoint, once every endpoint that has a champion answers."""
        deadline = monotonic() + timeout_s
        while True:
            places = [place for place in self.store.records.find(EndpointRecord) if place.routes]
            if places and all(place.state == "ready" and place.url for place in places):
                return {place.name: str(place.url) for place in places}
            if monotonic() > deadline or self._stopping.wait(0.1):
                return {place.name: place.url for place in places if place.url}

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except EverloopError as error:
                _log.warning("%s", error)
            self._stopping.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        from everloop.serving import EndpointProcess, is_served

        for place in self.store.records.find(EndpointRecord):
            known = self._endpoints.get(place.name)
            if known is not None and known.alive:
                continue
            served_elsewhere = known is None and is_served(self.store, place.name)
            if not place.routes or served_elsewhere or not self._may_start(place.name):
                continue
            process = EndpointProcess(self.store, place.name, port=self._ports.choose(place.name))
            self._endpoints[place.name] = process
            self._start(process)
        if self.folder is not None and (self._worker is None or self._worker.poll() is not None):
            if not self._may_start("worker"):
                return
            log_path = self.store.home / "logs" / "worker.log"
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("ab") as log:
                self._worker = subprocess.Popen(
                    [
                        sys.executable, "-m", "everloop.loop", str(self.folder), "--home", str(self.store.home),
                        "--project", self.store.project, "--every", str(self.every_s),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )  # fmt: skip

    def _start(self, process: EndpointProcess) -> None:
        url = process.start()
        port = int(url.rpartition(":")[2])
        before = self._ports.keep(process.name, port)
        if before is not None:
            self.moved[process.name] = (before, port)
            _log.warning("Port %d of the endpoint '%s' is taken; it is at %d now.", before, process.name, port)

    def _may_start(self, name: str) -> bool:
        return self._restarts.setdefault(name, _Restarts()).may_start(monotonic())

    def _stop_children(self) -> None:
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(signal.SIGTERM)
            try:
                self._worker.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
        for process in self._endpoints.values():
            process.stop()
