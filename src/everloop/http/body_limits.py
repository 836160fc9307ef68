"""Limits for a request's body: while it arrives (length, time, completeness) and when it is decompressed.

A limit counts decompressed bytes and applies before memory is allocated for them, because a kilobyte can decompress to
a gigabyte.
"""

from __future__ import annotations

import asyncio
import zlib
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class BodyLimits(Protocol):
    """The operator's settings. Sizes in bytes, times in seconds."""

    @property
    def json_bytes(self) -> int:
        """The longest body that is read into memory."""
        ...

    @property
    def upload_bytes(self) -> int:
        """The longest body that is streamed."""
        ...

    @property
    def stall_s(self) -> float:
        """The longest silence in the middle of a body."""
        ...

    @property
    def body_s(self) -> float:
        """How long a body that is read into memory may take to arrive."""
        ...

    @property
    def least_upload_bytes_per_s(self) -> int:
        """The slowest upload that is accepted, on average after the first `body_s`."""
        ...


class BodyError(Exception):
    """A body that is refused: too long (413), too slow (408), cut off or damaged (400), or of an unknown encoding
    (415). The connection closes after the response."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.detail = detail


class BodyWatch:
    """Wraps an ASGI `receive`. A route that streams raises the limit before it reads; see `allow_upload`."""

    def __init__(self, receive: Callable[[], Awaitable[Any]], options: BodyLimits, declared: int | None) -> None:
        self._receive = receive
        self._options = options
        self._declared = declared
        self._limit = options.json_bytes
        self._upload = False
        self._size = 0
        self._began = 0.0
        self._complete = False

    def allow_upload(self) -> None:
        """Accept as much as the operator allows for uploads."""
        self._limit = self._options.upload_bytes
        self._upload = True

    def limit_to(self, size_bytes: int) -> None:
        """Accept at most this much, even if more is allowed."""
        self._limit = min(self._limit, size_bytes)

    @property
    def too_long(self) -> bool:
        """Whether the declared length exceeds the limit."""
        return (self._declared or 0) > self._limit

    async def swallow(self, size_bytes: int, seconds: float) -> None:
        """Read and drop the body of a refused request, up to this size and time."""
        left = size_bytes
        try:
            async with asyncio.timeout(seconds):
                while left > 0:
                    event: Any = await self._receive()
                    if event["type"] == "http.disconnect" or not event.get("more_body", False):
                        return
                    left -= len(event.get("body", b""))
        except TimeoutError:
            return

    async def receive(self) -> Any:
        """One ASGI event of the body.

        Raises:
            BodyError: 413, 408 or 400.
        """
        if self._complete:
            return await self._receive()
        self._check_length(self._declared or 0)
        try:
            async with asyncio.timeout(self._left_s()):
                event: Any = await self._receive()
        except TimeoutError:
            raise BodyError(408, f"The body stopped arriving after {self._size} bytes.") from None
        if event["type"] == "http.disconnect":
            raise BodyError(400, f"The body was cut off after {self._size} bytes.")
        self._size += len(event.get("body", b""))
        self._check_length(self._size)
        self._complete = not event.get("more_body", False)
        return event

    def _check_length(self, size: int) -> None:
        if size > self._limit:
            raise BodyError(413, f"The body is longer than the limit of {self._limit} bytes.")

    def _left_s(self) -> float:
        """How long to wait for the next event."""
        options, now = self._options, monotonic()
        self._began = self._began or now
        allowed = options.body_s
        if self._upload:
            allowed += self._size / options.least_upload_bytes_per_s
        return max(0.0, min(options.stall_s, self._began + allowed - now))


def declared_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """The length in `Content-Length`; None if there is none, or it is not a number."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else None
    return None


def unpacked(encoding: str, body: bytes, most_bytes: int) -> bytes:
    """A body without its `Content-Encoding`: `gzip` or `deflate`, once.

    Never decompresses more than `most_bytes`.

    Raises:
        BodyError: another encoding or several (415), damaged or cut off (400), too long when decompressed (413).
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise BodyError(415, f"The content encoding '{encoding[:50]}' is not supported. Send gzip, deflate or none.")
    try:
        # 47 detects gzip or zlib by its header. Some clients send the raw format as `deflate`.
        raw = name == "deflate" and (body[:1] or b"\x78")[0] & 0x0F != 8
        decompressor = zlib.decompressobj(wbits=-15 if raw else 47 if name != "deflate" else 15)
        data = decompressor.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise BodyError(400, f"The body is not {name}: {error}.") from None
    if len(data) > most_bytes:
        raise BodyError(413, f"The body is longer than {most_bytes} bytes when decompressed.")
    if not decompressor.eof:
        raise BodyError(400, f"The {name} body is cut off.")
    if decompressor.unused_data:
        raise BodyError(400, f"There are bytes after the end of the {name} body.")
    return data
