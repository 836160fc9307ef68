"""Binding a socket, running a server on it, and stopping it cleanly."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from everloop.errors import UsageError
from everloop.http.connection import LimitedHttp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from litestar.types import ASGIApp

STOP_S = 3
"""How long requests in flight may take when the server stops."""


class ControlServer(uvicorn.Server):
    """A server that stops on SIGINT and SIGTERM and then returns to its caller.

    uvicorn's server raises the signal again after it has stopped, which kills the process before the caller can stop
    its child processes.
    """

    def __init__(self, app: ASGIApp, *, ready: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=LimitedHttp,
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
    """A bound socket that does not listen yet.

    Raises:
        UsageError: the address does not belong to this machine, or the port is in use.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"'{host}' is not an address of this machine.", help="Choose one with --host.") from error
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except (OSError, OverflowError) as error:
        bound.close()
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"Cannot listen on port {port} of {host}: {why}.", help="Choose another with --port, or 0 for any."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The URL of a bound socket."""
    address: Any = bound.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
