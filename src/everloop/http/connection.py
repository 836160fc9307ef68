"""One HTTP/1.1 connection whose client may be slow, endless or silent: uvicorn's protocol with limits of its own.

uvicorn has none for headers, for what stands between a body's pieces, and for clients that do not read their answer.
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
"""How long a client may read nothing of an answer that waits for it."""
MOST_PIPELINED = 256
"""Requests of one connection that may wait behind one which is being answered. Each takes some kilobytes."""
HEALTH = b"/health"
WHOLE = "everloop.whole"
"""In the scope of a request whose body has arrived to its end: reading it waits for nobody."""
FRAMING = 8
"""Bytes of framing (lengths of pieces, extensions, trailers) that may come with each byte of a body."""


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol, with an end to headers, to framing and to waiting for readers."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._waiting: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._in_head = False
        self._in_body = False
        self._arrived = 0
        """Bytes that may belong to the headers that are being read."""
        self._framing = 0
        """Bytes of the body's framing, less those that its content allows for."""
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

    # -- what the parser finds

    def on_message_begin(self) -> None:
        self._in_head, self._in_body = True, False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            # A trailer. What has been checked before the body came is not changed behind it.
            return
        # As uvicorn's own, without the call: it is one for each header of each request.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.check_head()
        self.check_pipeline()
        limit = self.limit_concurrency
        if self.url == HEALTH:
            # Whether the server lives is told also where it has too many connections.
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
            # uvicorn reads on after each answer, also while earlier requests wait, which a client can keep up for ever.
            self.flow.pause_reading()

    def check_pipeline(self) -> None:
        """Refuse a request behind which too many others wait already. To be called before it joins them."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self._refused = 429
            # The parser ends with this, and `send_400_response` is called.
            raise ValueError("too many requests wait")

    def check_head(self) -> None:
        """Refuse headers that are too many or too long. To be called once they are there."""
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
            # The parser ends with this, and `send_400_response` is called.
            raise ValueError("headers too long")
        self._arrived = 0
        if not self.url.startswith(b"/"):
            self._take_named_host()

    def _take_named_host(self) -> None:
        """Where the first line names a host, that one counts, whatever `Host` says (RFC 9112, section 3.2.2)."""
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
        self._reading = self.loop.call_later(UNREAD_S, self._look_at_reader, unread)

    def _look_at_reader(self, unread: int) -> None:
        self._reading = None
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._watch_reader(left)

    def timeout_keep_alive_handler(self) -> None:
        if not self.transport.is_closing() and self.transport.get_write_buffer_size():
            # It would stay open until the client has read what it does not read.
            self.transport.abort()
            return
        super().timeout_keep_alive_handler()
