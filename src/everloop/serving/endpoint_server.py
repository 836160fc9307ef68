"""The server process of an endpoint: its socket, its record's state, and a stop that loses no request."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import socket
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from everloop.errors import ConflictError, EverloopError, LeaseLostError, UsageError
from everloop.http.connection import LimitedHttp
from everloop.http.host_names import allowed_hosts as configured_hosts, is_loopback, rule_for
from everloop.http.listening import bind, url_of
from everloop.http.request_guard import RequestGuard
from everloop.records import EndpointRecord
from everloop.serving.access.endpoint_tokens import token_digests
from everloop.serving.endpoint_app import EndpointApp
from everloop.serving.endpoint_settings import MOST_WORKERS, settings_of
from everloop.serving.endpoint_state import check_endpoint_name, lock_name, set_state
from everloop.serving.fast_path import FastPathProtocol
from everloop.serving.multi_endpoint import MultiEndpointApp
from everloop.serving.observability.metrics_aggregation import MetricsAggregation
from everloop.serving.observability.telemetry import observers
from everloop.serving.reloader import EndpointReloader
from everloop.serving.worker_processes import WorkerIdentity, Workers
from everloop.stores import Store, open_store
from everloop.stores.leases import fenced_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from everloop.serving.protocols.grpc import InferencePort

logger = logging.getLogger("everloop.serving")

BACKLOG = 2048
LOOK_S = 0.1
GRACE_S = 9
"""How long a stopping server waits for requests in flight."""


def serve_endpoint(
    name: str,
    home: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    project: str | None = None,
    port_file: Path | str | None = None,
    parent: int | None = None,
    workers: int = 1,
    exposed: bool = False,
    grpc_port: int | None = None,
    allowed_hosts: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
    lease: tuple[str, int] | None = None,
) -> None:
    """Serve an endpoint until SIGTERM or SIGINT, then finish the requests in flight and return.

    Call it in the main thread of a separate process (`python -m everloop.serving`).

    Args:
        name: the endpoint's. Without routes it answers 503 until its first version is released.
        port: 0 picks a free one.
        port_file: receives `{"port", "pid", "url", "grpc_port"}` once the endpoint answers.
        parent: id of the parent process, which passes it because it may die before this process can look; stop when it
            has ended. None: serve without a parent.
        exposed: listen on any `host` without tokens, because a platform in front checks the clients.
        workers: processes that answer. With one, it is this process; with more, this process starts and watches them.
        grpc_port: the port of the Open Inference Protocol over gRPC; 0 picks a free one, None: no gRPC.
        allowed_hosts: further host names to accept; if empty, see `http/host_names.py`.
        on_ready: called with the URL once the server answers.
        lease: name and fencing number of the parent's lease of this endpoint. The endpoint's state is not written after
            another process has taken the lease over.

    Raises:
        NotFoundError: the endpoint or one of its versions does not exist.
        ConflictError: the endpoint is already being served, or a port is in use.
        LeaseLostError: another process had taken the lease over before the endpoint was ready.
        UsageError: other machines can reach `host`, and the endpoint has no token.
    """
    check_endpoint_name(name)
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"Cannot serve with {workers} workers.", help=f"Use 1 to {MOST_WORKERS}, about one per core.")
    with open_store(home, project=project, create=False) as store:
        record = store.records.get(EndpointRecord, name)
        fenced = store if lease is None else fenced_by(store, *lease)
        if not is_loopback(host) and not exposed and not token_digests(record.options):
            raise UsageError(
                f"The endpoint '{name}' has no token, so it does not listen on '{host}', where others can reach it.",
                help=f"Create a token: everloop endpoints token {name}. Or listen on 127.0.0.1, localhost or ::1.",
            )
        with store.lock(lock_name(store, name), block=False) as locked:
            if not locked:
                url = store.records.get(EndpointRecord, name).url
                raise ConflictError(
                    f"The endpoint '{name}' is already being served{f' at {url}' if url else ''}.",
                    help="Stop that process first.",
                )
            listener = bind(host, port)
            workers = settings_of(record.options).workers or workers
            grpc = None if grpc_port is None else bind(host, grpc_port, shared=workers > 1)
            port_of_grpc = None if grpc is None else grpc.getsockname()[1]
            identity = WorkerIdentity(host, port_of_grpc, workers, configured_hosts(allowed_hosts), exposed)

            def announce_url(url: str) -> None:
                if port_file is not None:
                    found = {"port": listener.getsockname()[1], "pid": os.getpid(), "url": url}
                    _write_json(Path(port_file), {**found, "grpc_port": identity.grpc_port})
                if on_ready is not None:
                    on_ready(url)

            try:
                if workers > 1:
                    _watch(store, fenced, name, listener, identity, parent, announce_url)
                else:
                    if grpc is not None:
                        grpc.close()
                    ready = partial(set_state, fenced, name, "ready")
                    _serve(store, name, listener, identity, parent, ready, announce_url)
            finally:
                listener.close()
                if grpc is not None:
                    grpc.close()
                if port_file is not None:
                    Path(port_file).unlink(missing_ok=True)
                # If the lease was taken over, the record describes the process of the new holder.
                with suppress(LeaseLostError):
                    set_state(fenced, name, "stopped", None)


def serve_endpoints(
    home: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    project: str | None = None,
    memory_bytes: int | None = None,
    port_file: Path | str | None = None,
    allowed_hosts: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve every endpoint of a project at one port until SIGTERM or SIGINT; see `MultiEndpointApp`.

    Args:
        allowed_hosts: further host names to accept; if empty, see `http/host_names.py`.
        on_ready: called with the URL once the server answers.

    Raises:
        ConflictError: the port is in use.
    """
    with open_store(home, project=project, create=False) as store, bind(host, port) as listener:
        # On other addresses than loopback, only endpoints with tokens are served.
        guard = RequestGuard(rule_for(host, configured_hosts(allowed_hosts), asks_token=True))
        app = MultiEndpointApp(store, memory_bytes=memory_bytes, open_to_all=is_loopback(host), guard=guard)
        app.start()

        def announce() -> None:
            if port_file is not None:
                content = {"port": listener.getsockname()[1], "pid": os.getpid(), "url": url_of(listener)}
                _write_json(Path(port_file), content)
            if on_ready is not None:
                on_ready(url_of(listener))

        config = _config(app, LimitedHttp)
        server = _AnnouncingServer(config, app, announce)
        _stop_on_signals(server)
        try:
            server.run(sockets=[listener])
        finally:
            app.close()


def serve_listener(
    name: str,
    home: Path | str | None,
    number: int,
    identity: WorkerIdentity,
    *,
    project: str | None = None,
    port_file: Path,
    parent: int | None,
) -> None:
    """Answer at a socket that the parent process holds, until the parent ends or sends a signal.

    Args:
        port_file: receives `{"pid"}` once this process answers, or `{"type", "message"}` of the error if it cannot.
    """
    try:
        with open_store(home, project=project, create=False) as store, socket.socket(fileno=number) as listener:
            _serve(
                store,
                name,
                listener,
                identity,
                parent=parent,
                announce_url=lambda url: _write_json(port_file, {"pid": os.getpid()}),
            )
    except EverloopError as error:
        _write_json(port_file, {"type": type(error).__name__, "message": str(error)})
        raise


def _watch(
    store: Store,
    fenced: Store,
    name: str,
    listener: socket.socket,
    identity: WorkerIdentity,
    parent: int | None,
    announce_url: Callable[[str], None],
) -> None:
    """Start the workers, announce the endpoint when all answer, and restart those that die, until a signal."""
    stopping = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    counts = _counters_folder(store, name)
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir(parents=True)
    worker_processes = Workers(name, store, listener, identity, counts)
    try:
        if worker_processes.start(stopping):
            set_state(fenced, name, "ready", url_of(listener))
            announce_url(url_of(listener))
        seen = -1
        while not stopping.wait(LOOK_S):
            if parent is not None and os.getppid() != parent:
                return
            try:
                last = store.records.last_event()
                if last != seen:
                    options = store.records.get(EndpointRecord, name).options
                    worker_processes.scale(settings_of(options).workers or identity.workers)
                    seen = last
            except EverloopError as error:
                # The store does not answer, or a setting is invalid: keep the present workers.
                logger.warning("The endpoint '%s' cannot read its record: %s", name, error)
            worker_processes.restart_dead()
    finally:
        worker_processes.stop()
        shutil.rmtree(counts, ignore_errors=True)


def _counters_folder(store: Store, name: str) -> Path:
    return store.home / "run" / f"counters-{store.project}-{name}"


def _serve(
    store: Store,
    name: str,
    listener: socket.socket,
    identity: WorkerIdentity,
    parent: int | None,
    ready: Callable[[str], object] | None = None,
    announce_url: Callable[[str], None] | None = None,
) -> None:
    # On other addresses than loopback an endpoint requires a token, unless it runs in a container.
    rule = rule_for(
        identity.host, identity.allowed_hosts, asks_token=not identity.contained, contained=identity.contained
    )
    aggregation = MetricsAggregation(_counters_folder(store, name)) if identity.workers > 1 else None
    app = EndpointApp(store, name, workers=identity.workers, guard=RequestGuard(rule), aggregation=aggregation)
    app.observers += observers(name)
    url = url_of(listener)
    config = _config(app, FastPathProtocol)

    failed: list[EverloopError] = []

    def announce() -> None:
        try:
            if ready is not None:
                ready(url)
        except EverloopError as error:
            # An exception here would leave the server half started. It is raised once the server has stopped.
            failed.append(error)
            server.should_exit = True
            return
        # The write made a new revision. It is loaded before the endpoint is announced.
        reloader.reload()
        reloader.start()
        if aggregation is not None:
            aggregation.publish()
        # Loaded models stay. Scanning them for garbage again and again would slow every request down.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        if announce_url is not None:
            announce_url(url)

    server = _AnnouncingServer(config, app, announce, identity)

    def stop() -> None:
        server.should_exit = True

    reloader = EndpointReloader(store, app, parent=parent, orphaned=stop)
    _stop_on_signals(server)
    try:
        # A version that cannot be loaded must fail before the endpoint is announced.
        reloader.load()
        if not server.should_exit:
            server.run(sockets=[listener])
        if failed:
            raise failed[0]
    finally:
        reloader.stop()
        app.close()


def _config(app: EndpointApp | MultiEndpointApp, http: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_S,
    )


def _stop_on_signals(server: uvicorn.Server) -> None:
    def on_signal(number: int, frame: object) -> None:
        server.should_exit = True

    # uvicorn handles these signals while it serves, and raises them again afterwards. By then they have been obeyed.
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


class _AnnouncingServer(uvicorn.Server):
    """Announces when it listens, and tells the app to drain when it stops. Its gRPC port opens and closes with it."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: EndpointApp | MultiEndpointApp,
        announce: Callable[[], None],
        identity: WorkerIdentity | None = None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce
        self._identity = identity
        self._inference: InferencePort | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self._identity is not None and self._identity.grpc_port is not None and isinstance(self._app, EndpointApp):
            from everloop.serving.protocols.grpc import InferencePort

            self._inference = InferencePort(self._app, self._identity.host, self._identity.grpc_port)
            await self._inference.start()
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.drain()
        if self._inference is not None:
            await self._inference.stop()
        await super().shutdown(sockets=sockets)


def _write_json(path: Path, content: object) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)
