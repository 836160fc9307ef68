"""Listening: a socket, a patient but not endlessly patient HTTP/1.1 protocol, and a clean end."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from everloop.errors import UsageError

if TYPE_CHECKING:
    from litestar.types import ASGIApp

HEADERS_S = 15.0
"""How long a request's first line and headers may take."""
HEADERS_BYTES = 64 * 1024
STOP_S = 3
"""How long requests under way may take once the server is told to stop."""


class WatchedHttp(HttpToolsProtocol):
    """uvicorn's protocol, with an end to headers: in time and in size. It has none itself."""

    _waiting: asyncio.TimerHandle | None = None
    _unfinished = 0
    _in_request = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_request:
            self._unfinished += len(data)
            if self._waiting is None:
                self._wait()
        super().data_received(data)
        if not self._in_request and self._unfinished > HEADERS_BYTES:
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_request = True
        self._unfinished = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_request = False
        super().on_message_complete()

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(HEADERS_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()


class ControlServer(uvicorn.Server):
    """A server that ends on SIGINT and SIGTERM and gives the control back to its caller.

    uvicorn's own raises the signal again once it has stopped, which kills the process before the caller can stop
    its children.
    """

    def __init__(self, app: ASGIApp, *, ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=WatchedHttp,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=STOP_S,
                limit_concurrency=2000,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready is not None and self.started:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens nowhere yet.

    Raises:
        UsageError: the address is not this machine's, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"'{host}' is no address of this machine.", help="Give one with --host.") from error
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"Port {port} of {host} cannot be used: {why}.", help="Choose another with --port, 0 for any."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where people reach it."""
    address: Any = bound.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
