"""One endpoint's server process: its socket, its record's state, and a stop that loses nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from everloop.errors import ConflictError, UsageError
from everloop.records import Endpoint
from everloop.serving.app import EndpointApp
from everloop.serving.endpoints import check_endpoint_name, lock_name, set_state
from everloop.serving.following import Follower
from everloop.serving.tokens import token_digests
from everloop.serving.workers import Workers
from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_WORKERS = 64
GRACE_S = 9
"""How long a stopping server waits for requests on their way."""


def serve_endpoint(
    name: str,
    home: Path | str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    project: str | None = None,
    port_file: Path | str | None = None,
    with_parent: bool = False,
    workers: int = 1,
    exposed: bool = False,
) -> None:
    """Serve an endpoint until SIGTERM or SIGINT; then finish the requests on their way and return.

    Call it in the main thread of a process of its own (`python -m everloop.serving`).

    Args:
        name: of an `Endpoint` record; one without routes answers 503 until its first version is released.
        port: 0 takes a free one.
        port_file: gets `{"port", "pid", "url"}` once the endpoint answers.
        with_parent: stop when the process that started this one is gone.
        workers: processes that answer, this one included; each counts its own `/metrics`.
        exposed: listen on any `host` without a token: what stands in front, a platform, checks who asks.

    Raises:
        NotFoundError: there is no such endpoint, or a version of it is missing.
        ConflictError: it is being served already, or the port is taken.
        UsageError: `host` is an address that other machines can reach, and the endpoint has no token.
    """
    check_endpoint_name(name)
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"{workers} workers cannot serve.", help=f"Give 1 to {MOST_WORKERS}, about one a core.")
    with open_store(home, project=project, create=False) as store:
        record = store.records.get(Endpoint, name)
        if host not in LOOPBACK and not exposed and not token_digests(record.options):
            raise UsageError(
                f"The endpoint '{name}' has no login, so it does not listen on '{host}'.",
                help=f"Make a token first: everloop endpoints token {name}. Or use one of {', '.join(LOOPBACK)}.",
            )
        with store.lock(lock_name(store, name), block=False) as held:
            if not held:
                url = store.records.get(Endpoint, name).url
                raise ConflictError(
                    f"The endpoint '{name}' is being served already{f' at {url}' if url else ''}.",
                    help="Stop that process first.",
                )
            listener = bind(host, port)
            others = Workers(workers - 1, name, store.home, store.project, listener)

            def tell(url: str) -> None:
                others.start()
                if port_file is not None:
                    found = {"port": listener.getsockname()[1], "pid": os.getpid(), "url": url}
                    _write_whole(Path(port_file), found)

            try:
                _serve(store, name, listener, with_parent, lambda url: set_state(store, name, "ready", url), tell)
            finally:
                others.stop()
                listener.close()
                if port_file is not None:
                    Path(port_file).unlink(missing_ok=True)
                set_state(store, name, "stopped", None)


def serve_listener(name: str, home: Path | str | None, number: int, *, project: str | None = None) -> None:
    """Answer at a socket that the parent process holds, until it ends or says so."""
    with open_store(home, project=project, create=False) as store, socket.socket(fileno=number) as listener:
        _serve(store, name, listener, with_parent=True)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConflictError: the port is taken.
        UsageError: the address cannot be bound here.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is no port.", help="Ports go from 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"'{host}:{port}' is no address to serve at: {error}.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(f"Port {port} on {host} is taken.", help="Use another, or 0 for a free one.") from error
        raise UsageError(f"Cannot serve at {host}:{port}: {error.strerror}.") from error
    return listener


def _serve(
    store: Store,
    name: str,
    listener: socket.socket,
    with_parent: bool,
    ready: Callable[[str], object] | None = None,
    tell: Callable[[str], None] | None = None,
) -> None:
    options = store.records.get(Endpoint, name).options
    limits: dict[str, Any] = {
        limit: kind(options[limit])
        for limit, kind in (("max_body_bytes", int), ("max_in_flight", int), ("request_timeout_s", float))
        if limit in options
    }
    app = EndpointApp(store, name, **limits)
    url = _url(listener)
    config = uvicorn.Config(
        app,
        http="httptools",
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

    def announce() -> None:
        if ready is not None:
            ready(url)
        # The write has made a revision of its own; it is served before anybody hears of it.
        follower.look()
        follower.start()
        if tell is not None:
            tell(url)

    server = _AnnouncingServer(config, app, announce)

    def stop() -> None:
        server.should_exit = True

    def on_signal(number: int, frame: object) -> None:
        stop()

    follower = Follower(store, app, orphaned=stop if with_parent else None)
    # uvicorn takes these signals while it serves and raises them again when it is done; then they have been obeyed.
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        # A version that cannot be loaded shall fail before anything says that the endpoint is up.
        follower.load()
        if not server.should_exit:
            server.run(sockets=[listener])
    finally:
        follower.stop()
        app.close()


class _AnnouncingServer(uvicorn.Server):
    """Tells when it listens, and lets the app know when it stops listening."""

    def __init__(self, config: uvicorn.Config, app: EndpointApp, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.draining = True
        await super().shutdown(sockets=sockets)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - how to reach it from here
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _write_whole(path: Path, content: object) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)
