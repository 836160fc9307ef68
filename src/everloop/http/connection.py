"""uvicorn's HTTP/1.1 protocol with limits against clients that are slow, silent or never stop sending.

uvicorn itself has no limits for headers, for the framing of chunked bodies, or for clients that do not read responses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from everloop.http.request_guard import MOST_HEADERS

if TYPE_CHECKING:
    import asyncio

HEADERS_S = 15.0
"""How long a request's first line and headers may take, and the first request of a connection to begin."""
HEADERS_BYTES = 64 * 1024
UNREAD_S = 30.0
"""How long a client may leave a response unread."""
MOST_PIPELINED = 256
"""Pipelined requests of one connection that may wait behind the current one. Each takes some kilobytes."""
HEALTH = b"/health"
WHOLE = "everloop.whole"
"""Key in the scope of a request whose body has arrived completely, so reading it does not wait."""
FRAMING = 8
"""Bytes of framing (chunk lengths, extensions, trailers) allowed for each byte of a body."""


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol with limits for headers, framing and unread responses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._arrived = 0
        """Bytes received that may belong to the current headers."""
        self._framing = 0
        """Bytes of the body's framing, minus those that its content allows."""
        self._refused = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_body:
            self._framing += len(data)
        else:
            self._arrived += len(data)
        super().data_received(data)
        if self._in_head:
            if self._arrived > HEADERS_BYTES:
                self._refuse(431)
            elif self._waiting is None:
                self._wait()
        elif self._in_body:
            if self._framing > HEADERS_BYTES:
                self._refuse(400)
        else:
            self._arrived = 0

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        self._in_head, self._in_body = True, False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            # A trailer. It must not change headers that were checked before the body came.
            return
        # The same as in uvicorn, inlined: a call for each header of each request costs too much.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.check_head()
        self.check_pipeline()
        limit = self.limit_concurrency
        if self.url == HEALTH:
            # The health check is answered also when there are too many connections.
            self.limit_concurrency = None
        super().on_headers_complete()
        self.limit_concurrency = limit

    def on_body(self, body: bytes) -> None:
        self._framing -= FRAMING * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        # A key of our own, which uvicorn's type does not have.
        self.scope[WHOLE] = True  # type: ignore[literal-required]
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.pipeline and not self.transport.is_closing():
            # uvicorn resumes reading after each response even while requests wait. A client can keep that up for ever.
            self.flow.pause_reading()

    def check_pipeline(self) -> None:
        """Refuse a request if too many are pipelined already. Call it before the request joins them."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refused = 429
            # This stops the parser, and uvicorn calls `send_400_response`.
            raise ValueError("too many requests wait")

    def check_head(self) -> None:
        """Refuse headers that are too many or too long. Call it when they have arrived."""
        self._in_head, self._in_body = False, True
        self._framing = 0
        if self._waiting is not None:
            self._stop_waiting()
        headers = self.headers
        if len(headers) > MOST_HEADERS or (
            self._arrived > HEADERS_BYTES
            and len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers) > HEADERS_BYTES
        ):
            self._refused = 431
            # This stops the parser, and uvicorn calls `send_400_response`.
            raise ValueError("headers too long")
        self._arrived = 0
        if not self.url.startswith(b"/"):
            self._use_request_line_host()

    def _use_request_line_host(self) -> None:
        """A host in the request line takes precedence over the `Host` header (RFC 9112, section 3.2.2)."""
        scheme, found, rest = self.url.partition(b"://")
        if found and scheme.lower() in (b"http", b"https"):
            host = rest.partition(b"/")[0]
            self.headers = [(name, host if name == b"host" else value) for name, value in self.headers]

    def send_400_response(self, msg: str) -> None:
        if self._refused:
            self._refuse(self._refused)
        else:
            self._refused = 400
            super().send_400_response(msg)

    def _refuse(self, status: int) -> None:
        self._refused = status
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(STATUS_LINE[status] + b"connection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    # -- waiting for headers

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

    # -- waiting for the client to read

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    def _watch_reader(self, unread: int) -> None:
        self._reading = self.loop.call_later(UNREAD_S, self._check_reader, unread)

    def _check_reader(self, unread: int) -> None:
        self._reading = None
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._watch_reader(left)

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            # A graceful close would wait for ever for a client that does not read.
            self.transport.abort()
            return
        super().timeout_keep_alive_handler()
