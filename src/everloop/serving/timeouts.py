"""Time limits for what nearly always takes no time.

A timer a request costs more than the request's model. Here whatever is there at once is taken without one, and only
what has to be waited for is timed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

T = TypeVar("T")


async def limit(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What `work` returns.

    Raises:
        TimeoutError: it waited for longer than `seconds`.
    """
    try:
        first = work.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    async with asyncio.timeout(seconds):
        later: T = await _Begun(work, first)
        return later


class _Begun:
    """A coroutine that has been started and waits for its first future."""

    def __init__(self, work: Coroutine[Any, Any, Any], first: Any) -> None:
        self._work = work
        self._first = first

    def __await__(self) -> Generator[Any, Any, Any]:
        waiting = self._first
        while True:
            try:
                try:
                    given = yield waiting
                except BaseException as error:
                    waiting = self._work.throw(error)
                else:
                    waiting = self._work.send(given)
            except StopIteration as done:
                return done.value


__all__ = ["limit"]
