"""Answers small, complete requests to fixed paths as soon as their bytes arrive, without uvicorn's request cycle.

uvicorn creates a scope, a task and two coroutine calls for every request, which costs more than scoring a row. This
protocol answers a simple request at once. Everything else (an incomplete body, a large one, a path with parameters,
another HTTP version, an upgrade, a pipelined request behind an unfinished one) takes the slow path: uvicorn handles it
from its first byte. Both paths end in `EndpointApp.respond` and `sent`, so they answer alike.

The answers of one pass of the event loop are sent together at its end. So requests that arrive together are answered
together, and a client with many connections wakes up once for all of them.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from everloop.http.connection import FRAMING, LimitedHttp
from everloop.serving.endpoint_app import SLOW_REQUEST, EndpointApp
from everloop.serving.protocols.protocol import JSON, TABLE_MARKS, Request
from everloop.serving.request_executor import LARGE_BODY_BYTES
from everloop.serving.responses import head_of

if TYPE_CHECKING:
    from asyncio import Transport

    from everloop.serving.protocols.protocol import Response

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_MOST_AT_ONCE = 256
"""Requests of one connection that are answered in one pass of the event loop, so others get their share."""
_PLAIN = re.compile(rb"/[A-Za-z0-9_.:/-]*")


class FastPathProtocol(LimitedHttp):
    """One connection. In the event loop's thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.config.app
        self._endpoint: EndpointApp = app
        self._body: list[bytes] | None = None
        """The pieces of the body so far; None: the request takes the slow path."""
        self._active_at = 0.0
        self._answered = 0
        """Requests answered in this pass of the event loop."""
        self._accepted: tuple[str, list[tuple[bytes, bytes]]] | None = None
        """The method and headers that the guard accepted last. Most clients send the same again and again."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._answered = 0
        super().data_received(data)
        if self._body is not None and self.parser is not None:
            # The rest of the body has not arrived yet.
            self._use_slow_path()

    def _unset_keepalive_if_required(self) -> None:
        # One timer checks the connection now and then. Setting one for each request would cost too much.
        return

    def on_response_complete(self) -> None:
        if self.timeout_keep_alive_task is not None:
            # uvicorn sets its own timer, which serves as well.
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        self._active_at = monotonic()
        super().on_response_complete()
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._watch()

    def _watch(self) -> None:
        self._active_at = monotonic()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.is_closing():
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        left = self._active_at + self.timeout_keep_alive - monotonic()
        if busy or left > 0:
            later = self.timeout_keep_alive if busy else left + 0.01
            self.timeout_keep_alive_task = self.loop.call_later(later, self.timeout_keep_alive_handler)
            return
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        # Scored answers are logged, so they are sent, even if the server stops in the same pass of the event loop.
        _send_all(self._endpoint.outbox)
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        self._in_head, self._in_body = True, False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._body = None

    def on_headers_complete(self) -> None:
        self.check_head()
        self._body = []
        method = self.parser.get_method().decode("ascii")
        if (
            self.expect_100_continue
            # uvicorn's path sends the refusal.
            or not self._may_pass(method)
            or (self.cycle is not None and not self.cycle.response_complete)
            or self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
            or not _PLAIN.fullmatch(self.url)
            or (method, self.url.decode("ascii")) not in self._endpoint.routes.exact
        ):
            self._use_slow_path()

    def _may_pass(self, method: str) -> bool:
        head = (method, self.headers)
        if head == self._accepted:
            return True
        if self._endpoint.guard.refusal(method, self.headers, self.server[0] if self.server else None) is not None:
            return False
        self._accepted = head
        return True

    def on_body(self, body: bytes) -> None:
        if self._body is None:
            super().on_body(body)
            return
        self._framing -= FRAMING * len(body)
        self._body.append(body)

    def on_message_complete(self) -> None:
        pieces = self._body
        if pieces is None:
            super().on_message_complete()
            return
        self._in_body = False
        endpoint = self._endpoint
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if (
            len(body) > LARGE_BODY_BYTES
            or body[:4] in TABLE_MARKS
            or self.flow.write_paused
            or endpoint.metrics.in_flight.value >= endpoint.most
            or self._answered >= _MOST_AT_ONCE
        ):
            self._use_slow_path()
            super().on_message_complete()
            return
        request = Request(
            self.parser.get_method().decode("ascii"), self.url.decode("ascii"), body, perf_counter(), self.headers
        )
        response = endpoint.attempt(request)
        if response is None:
            # It takes longer than an instant, so a thread answers it while this connection's task waits.
            self._use_slow_path(request)
            super().on_message_complete()
            return
        self._body = None
        self._answered += 1
        self._answer(request, response)

    def _answer(self, request: Request, response: Response) -> None:
        endpoint = self._endpoint
        stays = self.parser.should_keep_alive()
        content = response.body
        if endpoint.extra_headers:
            response.headers = [*response.headers, *endpoint.extra_headers]
        if response.content_type is JSON and not response.headers and response.status == 200:
            identity = b""
            if response.version is not None and response.result is not None:
                names = (response.version.encode("ascii", "replace"), response.result.request_id.encode())
                identity = b"x-everloop-version: %b\r\nx-everloop-request: %b\r\n" % names
            head = b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b" % (
                _LINES[200],
                len(content),
                identity,
            )
        else:
            lines = b"".join([b"%b: %b\r\n" % header for header in head_of(response)])
            head = _LINES[response.status] + lines
        if request.method == "HEAD":
            content = b""
        outbox = endpoint.outbox
        if not outbox:
            self.loop.call_soon(_send_all, outbox)
        end = b"\r\n" if stays else b"connection: close\r\n\r\n"
        outbox.append((self.transport, b"".join((head, end, content)), stays))
        self._active_at = monotonic()
        self.server_state.total_requests += 1
        endpoint.sent(request, response)

    def _use_slow_path(self, request: Request | None = None) -> None:
        """Hand the request over to uvicorn, with the body so far, and with the request if it is complete."""
        pieces, self._body = self._body, None
        self.check_pipeline()
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        if request is not None:
            self.scope[SLOW_REQUEST] = request  # type: ignore[literal-required]
        HttpToolsProtocol.on_headers_complete(self)
        for piece in pieces or ():
            HttpToolsProtocol.on_body(self, piece)


def _send_all(outbox: list[tuple[Any, bytes, bool]]) -> None:
    for transport, data, stays in outbox:
        if transport.is_closing():
            continue
        transport.write(data)
        if not stays:
            transport.close()
    outbox.clear()


__all__ = ["FastPathProtocol"]
