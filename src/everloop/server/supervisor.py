"""Supervisor of a running loop: serves the control plane, and starts endpoints and the user's code as child processes.

this process     control plane: API and status page
├── endpoint     one process for each endpoint that has a champion
└── worker       checks the project's triggers and runs its loops; the only process that imports loop.py
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

CHECK_EVERY_S = 0.5
RESTART_AFTER_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Delay before a child that died is started again. It grows with each death, and resets once the child has run for a
minute."""


@dataclass
class _Restarts:
    """Decides when a child may be started, by the monotonic clock."""

    started_at: float | None = None
    deaths: int = 0
    not_before: float = 0.0

    def may_start(self, now: float) -> bool:
        """Whether the child may be started now. Called only while it is not alive."""
        if self.started_at is not None:
            if now - self.started_at > RESTART_AFTER_S[-1]:
                self.deaths = 0
            self.not_before = now + RESTART_AFTER_S[min(self.deaths, len(RESTART_AFTER_S) - 1)]
            self.deaths += 1
            self.started_at = None
        if now < self.not_before:
            return False
        self.started_at = now
        return True


class Supervisor:
    """Starts the child processes, restarts them when they die, and stops them all in the end.

    `serve` blocks until a signal. When it returns, all child processes have stopped.
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
        settings = settings or ServerSettings()
        self.control = ControlPlane(
            store, host=settings.host, port=settings.port, options=settings.options, auth=settings.auth
        )
        self.url = self.control.url
        self.moved: dict[str, tuple[int, int]] = {}
        """Endpoint name to (former port, new port), for endpoints whose port another program has taken."""
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
        """Return the stable URL of an endpoint; all of its routes are below it."""
        return f"{(self.control.options.public_url or self.url).rstrip('/')}/endpoints/{name}"

    def wait_for_endpoints(self, timeout_s: float = 60.0) -> dict[str, str]:
        """Wait until every endpoint that has a champion is ready; returns the URL of each by name."""
        deadline = monotonic() + timeout_s
        while True:
            endpoints = [endpoint for endpoint in self.store.records.find(EndpointRecord) if endpoint.routes]
            if endpoints and all(endpoint.state == "ready" and endpoint.url for endpoint in endpoints):
                return {endpoint.name: str(endpoint.url) for endpoint in endpoints}
            if monotonic() > deadline or self._stopping.wait(0.1):
                return {endpoint.name: endpoint.url for endpoint in endpoints if endpoint.url}

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._start_missing()
            except EverloopError as error:
                _log.warning("%s", error)
            self._stopping.wait(CHECK_EVERY_S)

    def _start_missing(self) -> None:
        from everloop.serving import EndpointProcess, is_served

        for endpoint in self.store.records.find(EndpointRecord):
            known = self._endpoints.get(endpoint.name)
            if known is not None and known.alive:
                continue
            served_elsewhere = known is None and is_served(self.store, endpoint.name)
            if not endpoint.routes or served_elsewhere or not self._may_start(endpoint.name):
                continue
            process = EndpointProcess(self.store, endpoint.name, port=self._ports.choose(endpoint.name))
            self._endpoints[endpoint.name] = process
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
            _log.warning(
                "Another program has taken the port %d of the endpoint '%s'; it listens on %d now.",
                before,
                process.name,
                port,
            )

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
