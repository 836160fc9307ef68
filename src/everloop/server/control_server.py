"""The HTTP server of the control plane, which stops cleanly."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from everloop.http.connection import LimitedHttp

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from everloop.server.middleware import AccessMiddleware

STOP_S = 3
"""How long requests in flight may take when the server stops."""


class ControlServer(uvicorn.Server):
    """A server that stops on SIGINT and SIGTERM and then returns to its caller.

    uvicorn's server raises the signal again after it has stopped, which kills the process before the caller can stop
    its child processes.
    """

    def __init__(self, app: AccessMiddleware, *, ready: Callable[[], None] | None = None) -> None:
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
        self._events = app.events

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # An open page's stream of events would otherwise delay the end until the time for requests in flight is over.
        if self._events is not None:
            await self._events.close()
        await super().shutdown(sockets)

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
