"""Watching a request's body while it arrives: not too long, not too slow, and whole."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from litestar.exceptions import HTTPException

if TYPE_CHECKING:
    from litestar.types import Receive

    from everloop.server.options import ServerOptions


class BodyError(HTTPException):
    """A body that is too long (413), too slow (408) or cut off (400). The connection closes with the answer."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail=detail, status_code=status_code, headers={"connection": "close"})


class BodyWatch:
    """Stands before `receive`. A route that streams lifts the limit before it reads, see `allow_upload`."""

    def __init__(self, receive: Receive, options: ServerOptions, declared: int | None) -> None:
        self._receive = receive
        self._options = options
        self._declared = declared
        self._limit = options.json_bytes
        self._upload = False
        self._size = 0
        self._began = 0.0
        self._whole = False

    def allow_upload(self) -> None:
        """Take as much as the operator allows for uploads."""
        self._limit = self._options.upload_bytes
        self._upload = True

    def limit_to(self, size_bytes: int) -> None:
        """Take no longer body than this, whatever else is allowed."""
        self._limit = min(self._limit, size_bytes)

    @property
    def too_long(self) -> bool:
        """Whether the announced length is more than is taken."""
        return (self._declared or 0) > self._limit

    async def swallow(self, size_bytes: int, seconds: float) -> None:
        """Read and drop the body of a request that is refused, at most this much of it and for so long."""
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
        if self._whole:
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
        self._whole = not event.get("more_body", False)
        return event

    def _check_length(self, size: int) -> None:
        if size > self._limit:
            raise BodyError(413, f"A body of more than {self._limit} bytes is not taken here.")

    def _left_s(self) -> float:
        """How long to wait for the next event."""
        options, now = self._options, monotonic()
        self._began = self._began or now
        allowed = options.body_s
        if self._upload:
            allowed += self._size / options.least_upload_bytes_per_s
        return max(0.0, min(options.stall_s, self._began + allowed - now))
