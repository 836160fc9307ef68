"""Queue of password checks, fair between client addresses.

A check takes a quarter of a second of one core and 16 MiB, on purpose. So at most half of the cores check passwords, in
separate threads. Further attempts wait, and the waiting addresses are served in turn, so a flood from one address
cannot hold up the others. If too many attempts wait, one of the address with the most waiting attempts is refused.
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
"""The queue of credentials that were valid before; it is served before all others."""
T = TypeVar("T")


class HashQueueFullError(Exception):
    """Too many attempts are waiting, most of them from this address."""


class HashQueue:
    """Runs password checks, a few at a time. Belongs to one event loop."""

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self.at_once = at_once
        self.most_waiting = most_waiting
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="everloop-passwords")
        self._running = 0
        self._waiting = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, queue: str, check: Callable[[], T]) -> T:
        """Run a check when it is its turn.

        Args:
            queue: the client's address, or `FIRST`.

        Raises:
            HashQueueFullError: too many checks of this address are waiting.
        """
        if self._running < self.at_once:
            self._running += 1
        else:
            await self._wait(queue)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, check)
        finally:
            self._next()

    async def _wait(self, queue: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._queues.setdefault(queue, deque()).append(waiter)
        self._waiting += 1
        if self._waiting > self.most_waiting:
            self._refuse_one()
        try:
            # The task that wakes this one hands its free slot over.
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._next()
            else:
                self._remove(queue, waiter)
            raise

    def _refuse_one(self) -> None:
        longest = max(
            (queue for queue in self._queues if queue != FIRST),
            key=lambda queue: len(self._queues[queue]),
            default=FIRST,
        )
        waiter = self._queues[longest][-1]
        self._remove(longest, waiter)
        if not waiter.done():
            waiter.set_exception(HashQueueFullError())

    def _remove(self, queue: str, waiter: asyncio.Future[None]) -> None:
        others = self._queues.get(queue)
        if others is not None and waiter in others:
            others.remove(waiter)
            self._waiting -= 1
            if not others:
                del self._queues[queue]

    def _next(self) -> None:
        while self._queues:
            queue = FIRST if FIRST in self._queues else next(iter(self._queues))
            waiter = self._queues[queue][0]
            self._remove(queue, waiter)
            if queue in self._queues:
                # The next check of this address comes after those of the other addresses.
                self._queues.move_to_end(queue)
            if not waiter.done():
                waiter.set_result(None)
                return
        self._running -= 1
