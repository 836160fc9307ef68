"""Supervisor of a running loop: serves the control plane, and starts endpoints and the user's code as child processes.

this process     control plane: API and web page
├── endpoint     one process for each endpoint that has a champion
├── reconciler   folds, watches, decides releases and requests runs; imports loop.py
└── runner       takes requested runs, and starts a process for each, which imports loop.py

Two supervisors on one store share the work by leases: each endpoint, loop and run belongs to one of them, and passes to
the other when it dies.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, LeaseLostError
from everloop.records import EndpointRecord
from everloop.server.child_processes import ChildProcess, Restarts
from everloop.server.control_plane import ControlPlane
from everloop.server.endpoint_ports import EndpointPorts
from everloop.server.server_settings import ServerSettings
from everloop.stores.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.records import Event
    from everloop.serving import EndpointProcess
    from everloop.stores import Store
    from everloop.stores.leases import HeldLease

_log = logging.getLogger("everloop.server")

CHECK_EVERY_S = 0.5
EVENT_KINDS = ("loop", "queued_run", "runner", "endpoint", "release")
"""Kinds of events that are shown while the loop runs."""


def endpoint_lease(name: str) -> str:
    """The name of the lease that the supervisor holds that runs an endpoint's process."""
    return f"endpoint:{name}"


class Supervisor:
    """Starts the child processes, restarts them when they die, and stops them all in the end.

    `serve` blocks until a signal. When it returns, all child processes have stopped.

    Args:
        folder: project folder; None serves without a loop.
        every_s: seconds between two ticks of a loop.
        runners: number of runners, which is the number of runs that can be in progress here at once. 0 leaves the runs
            to runners elsewhere.
        on_event: called for each event of loops, runs and releases, in a thread.
    """

    def __init__(
        self,
        store: Store,
        folder: Path | None,
        *,
        settings: ServerSettings | None = None,
        every_s: float = 10.0,
        runners: int = 1,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.store = store
        self.folder = folder
        settings = settings or ServerSettings()
        options = replace(settings.options, project_folder=folder)
        self.control = ControlPlane(store, host=settings.host, port=settings.port, options=options, auth=settings.auth)
        self.url = self.control.url
        self.moved: dict[str, tuple[int, int]] = {}
        """Endpoint name to (former port, new port), for endpoints whose port another program has taken."""
        self._ports = EndpointPorts(store)
        self._stopping = threading.Event()
        self._endpoints: dict[str, EndpointProcess] = {}
        self._children = [] if folder is None else _loop_processes(store, folder, every_s=every_s, runners=runners)
        self._restarts: dict[str, Restarts] = {}
        self._leases = Leases(store)
        self._held: dict[str, HeldLease] = {}
        self._on_event = on_event
        self._shown_event = store.records.last_event()

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
            for check in (self._start_children, self._start_endpoints, self._show_events):
                try:
                    check()
                except EverloopError as error:
                    _log.warning("%s", error)
            self._stopping.wait(CHECK_EVERY_S)

    def _start_children(self) -> None:
        for child in self._children:
            child.keep_running(monotonic())

    def _start_endpoints(self) -> None:
        from everloop.serving import EndpointProcess, is_served

        for endpoint in self.store.records.find(EndpointRecord):
            held = self._held.get(endpoint.name)
            if held is not None and held.lost.is_set():
                self._give_up(endpoint.name)
                continue
            known = self._endpoints.get(endpoint.name)
            if known is not None and known.alive:
                continue
            if not endpoint.routes or (known is None and is_served(self.store, endpoint.name)):
                continue
            if held is None:
                held = self._leases.acquire(endpoint_lease(endpoint.name))
                if held is None:
                    # Another supervisor runs it.
                    continue
                held.start_heartbeat()
                self._held[endpoint.name] = held
            if not self._may_start(endpoint.name):
                continue
            process = EndpointProcess(
                self.store, endpoint.name, port=self._ports.choose(endpoint.name), lease=held.lease
            )
            self._endpoints[endpoint.name] = process
            self._start(process)

    def _give_up(self, name: str) -> None:
        """Stop an endpoint that another supervisor has taken over, for example while this process was stopped."""
        _log.warning("Another 'everloop up' runs the endpoint '%s' now, so this one stops it.", name)
        del self._held[name]
        process = self._endpoints.pop(name, None)
        if process is not None:
            _stop_endpoint(process)

    def _show_events(self) -> None:
        if self._on_event is None:
            return
        for event in self.store.records.events_since(self._shown_event, kinds=EVENT_KINDS):
            self._shown_event = event.seq
            self._on_event(event)

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
        return self._restarts.setdefault(name, Restarts()).may_start(monotonic())

    def _stop_children(self) -> None:
        for child in self._children:
            child.ask_to_stop()
        for child in self._children:
            child.stop()
        for process in self._endpoints.values():
            _stop_endpoint(process)
        for held in self._held.values():
            held.release()


def _stop_endpoint(process: EndpointProcess) -> None:
    try:
        process.stop()
    except LeaseLostError as error:
        # The record describes the other supervisor's process by now.
        _log.warning("%s", error)


def _loop_processes(store: Store, folder: Path, *, every_s: float, runners: int) -> list[ChildProcess]:
    options = [str(folder), "--home", str(store.home), "--project", store.project, "--parent", str(os.getpid())]
    logs = store.home / "logs"
    start = [sys.executable, "-m", "everloop.loop"]
    reconciler = [*start, "reconcile", *options, "--every", str(every_s)]
    return [
        ChildProcess("reconciler", reconciler, logs / "reconciler.log"),
        *(ChildProcess(f"runner {n}", [*start, "run", *options], logs / "runner.log") for n in range(1, runners + 1)),
    ]
