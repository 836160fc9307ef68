"""Checking passwords a few at a time, in threads of their own, in an order that a flood from one address cannot hold.

A check takes a quarter of a second of one core and 16 MiB, on purpose. So at most half of the cores check at once;
further attempts wait, and the addresses that wait are served in turn. Where too many wait, an attempt of the address
that has most of them is refused, so nobody else is.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = max(1, (os.cpu_count() or 1) // 2)
MOST_WAITING = 64
FIRST = "known"
"""The line of credentials that were good before; it is served before all others."""
T = TypeVar("T")


class HashQueueFullError(Exception):
    """Too many attempts wait, most of them from this address."""


class HashQueue:
    """Belongs to one event loop."""

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self.at_once = at_once
        self.most_waiting = most_waiting
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="everloop-passwords")
        self._running = 0
        self._waiting = 0
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, line: str, check: Callable[[], T]) -> T:
        """Run a check when it is its turn.

        Args:
            line: the address, or `FIRST`.

        Raises:
            HashQueueFullError: there are too many others in this line.
        """
        if self._running < self.at_once:
            self._running += 1
        else:
            await self._wait(line)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, check)
        finally:
            self._next()

    async def _wait(self, line: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._lines.setdefault(line, deque()).append(waiter)
        self._waiting += 1
        if self._waiting > self.most_waiting:
            self._refuse_one()
        try:
            # Whoever wakes this one leaves it the place that has become free.
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._next()
            else:
                self._leave(line, waiter)
            raise

    def _refuse_one(self) -> None:
        longest = max(
            (line for line in self._lines if line != FIRST), key=lambda line: len(self._lines[line]), default=FIRST
        )
        waiter = self._lines[longest][-1]
        self._leave(longest, waiter)
        if not waiter.done():
            waiter.set_exception(HashQueueFullError())

    def _leave(self, line: str, waiter: asyncio.Future[None]) -> None:
        others = self._lines.get(line)
        if others is not None and waiter in others:
            others.remove(waiter)
            self._waiting -= 1
            if not others:
                del self._lines[line]

    def _next(self) -> None:
        while self._lines:
            line = FIRST if FIRST in self._lines else next(iter(self._lines))
            waiter = self._lines[line][0]
            self._leave(line, waiter)
            if line in self._lines:
                # The others of this address come after those of each other address.
                self._lines.move_to_end(line)
            if not waiter.done():
                waiter.set_result(None)
                return
        self._running -= 1
