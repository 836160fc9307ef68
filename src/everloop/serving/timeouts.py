"""Time limits for work that is nearly always done at once.

A timer for each request costs more than scoring it. So the work first runs without a timer, and only if it has to wait
is it timed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

T = TypeVar("T")


async def limit(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`.

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
                    value = yield waiting
                except BaseException as error:
                    waiting = self._work.throw(error)
                else:
                    waiting = self._work.send(value)
            except StopIteration as done:
                return done.value


__all__ = ["limit"]
