"""A small HTTP/1.1 client that sends requests to an endpoint's process and streams the responses.

Connections are reused. There is backpressure in both directions: a slow side pauses the other one, so a large body is
never held in memory as a whole. Everything here belongs to one event loop and never blocks it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECT_S = 5.0
IDLE_S = 60.0
"""Shorter than the idle timeout of an endpoint, so that idle connections are almost always still open."""
MOST_IDLE = 64
"""Most idle connections to one endpoint."""
HELD_BYTES = 256 * 1024
"""How many bytes of a response may wait here to be read."""


class UpstreamError(Exception):
    """The endpoint did not respond. `sent`: whether it may have received the request."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Upstream(asyncio.Protocol):
    """One connection to an endpoint, with one request at a time."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.used_at = 0.0
        self._transport: Any = None
        self._parser: Any = None
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._head = asyncio.Event()
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._complete = False
        self._bodiless = False
        self._until_end = False
        self._stays = False
        self._lost: str | None = None

    # -- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            # No request is open, so this cannot be a response.
            self.close("The endpoint sent bytes without a request.")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.close("The endpoint tried to change the protocol.")
        except httptools.HttpParserError as error:
            self.close(f"The endpoint sent an invalid HTTP response: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head.is_set() and self._until_end and exc is None:
            self._complete = True
        self._fail("The endpoint closed the connection." if exc is None else f"The connection broke: {exc}")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        if self._complete:
            # The parser turns this into its own error, which closes the connection.
            raise ValueError("a second response to one request")
        self.status, self.headers = 0, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.status = status
        named = {name for name, _ in self.headers}
        self._stays = self._parser.should_keep_alive()
        self._until_end = b"content-length" not in named and b"transfer-encoding" not in named
        if self._bodiless or status in (204, 304):
            self._complete = True
        self._head.set()
        self._more.set()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._held += len(body)
        if self._held > HELD_BYTES and not self._paused and not self._transport.is_closing():
            self._transport.pause_reading()
            self._paused = True
        self._more.set()

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._complete = True
            self._more.set()

    # -- one request

    def begin(self, head: bytes, *, bodiless: bool) -> None:
        """Send a request's head.

        Args:
            bodiless: the response has no body whatever its headers say, as for HEAD.
        """
        self._parser = httptools.HttpResponseParser(self)
        # Nothing of the previous response may be taken for a response to this request.
        self.status, self.headers = 0, []
        self._head.clear()
        self._more.clear()
        self._complete = False
        self._bodiless = bodiless
        self._transport.write(head)

    async def write(self, data: bytes) -> None:
        """Send more of the body, once the connection accepts it.

        Raises:
            UpstreamError: the connection is gone.
        """
        await self._writable.wait()
        if self._lost is not None and not self._head.is_set():
            raise UpstreamError(self._lost, sent=True)
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def answered(self) -> bool:
        """Whether the head of the response has been received."""
        return self._head.is_set() and self.status != 0

    async def wait_for_head(self) -> None:
        """Wait for the head of the response.

        Raises:
            UpstreamError: the connection ended before it.
        """
        await self._head.wait()
        if self.status == 0:
            raise UpstreamError(self._lost or "The endpoint closed the connection.", sent=True)

    async def body(self) -> AsyncIterator[tuple[bytes, bool]]:
        """Yield the pieces of the response's body, each with whether more follow; one empty piece if it has no body.

        Raises:
            UpstreamError: the connection ended in the middle of the body.
        """
        while True:
            await self._more.wait()
            self._more.clear()
            if self._chunks:
                piece = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._held = 0
                if self._paused and not self._transport.is_closing():
                    self._transport.resume_reading()
                    self._paused = False
                # The end often arrives together with the last piece; then nothing else wakes this loop.
                yield piece, not self._complete
                if self._complete:
                    return
            elif self._complete:
                yield b"", False
                return
            elif self._lost is not None:
                raise UpstreamError(self._lost, sent=True)
            if self._lost is not None:
                self._more.set()

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on this connection."""
        return (
            self._complete
            and self._stays
            and self._lost is None
            and not self._bodiless
            and not self._until_end
            and not self._transport.is_closing()
        )

    @property
    def closed(self) -> bool:
        return self._lost is not None or self._transport.is_closing()

    def reset(self) -> None:
        """Drop the response, so that the connection can wait for the next request."""
        self._parser = None
        self._chunks.clear()
        self._held = 0
        self.used_at = monotonic()

    def close(self, why: str = "The connection was closed.") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()
        self._fail(why)

    def _fail(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
        self._head.set()
        self._more.set()
        self._writable.set()


class Pool:
    """Idle connections, by address. Belongs to one event loop."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[Upstream]] = {}

    def idle(self, address: tuple[str, int]) -> Upstream | None:
        """Return an idle connection that is still open, the most recently used first."""
        connections = self._idle.get(address)
        while connections:
            upstream = connections.pop()
            if not upstream.closed and monotonic() - upstream.used_at < IDLE_S:
                return upstream
            upstream.close()
        return None

    async def connect(self, address: tuple[str, int]) -> Upstream:
        """Open a new connection.

        Raises:
            UpstreamError: nothing listens there, or it does not respond in time.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, upstream = await loop.create_connection(Upstream, *address)
        except (OSError, TimeoutError) as error:
            why = (
                "nothing listens there" if isinstance(error, ConnectionRefusedError) else (str(error) or "no response")
            )
            raise UpstreamError(f"{address[0]}:{address[1]}: {why}", sent=False) from error
        return upstream

    def give_back(self, address: tuple[str, int], upstream: Upstream) -> None:
        """Keep a connection whose response has been read for the next request, or close it."""
        connections = self._idle.setdefault(address, [])
        if not upstream.reusable or len(connections) >= MOST_IDLE:
            upstream.close()
            return
        upstream.reset()
        connections.append(upstream)

    def keep_only(self, addresses: set[tuple[str, int]]) -> None:
        """Close the connections to all other addresses, which no endpoint uses any more."""
        for address in set(self._idle) - addresses:
            for upstream in self._idle.pop(address):
                upstream.close()

    def close(self) -> None:
        self.keep_only(set())


__all__ = ["Pool", "Upstream", "UpstreamError"]
