"""Threads that run the handlers, so that the event loop only does network I/O.

Short handlers run one after the other in a single thread. They take fractions of a millisecond and share the metric
buffer. Handlers that may read a lot run in a separate pool, which uploads do not use either. So a search never delays a
request that logs a metric.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

SEARCHES = 4
SHORT_WAIT_S = 60.0
T = TypeVar("T")


class WorkerThreads:
    """Thread pools for handlers, used by one event loop at a time. They end with this object or the process."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, thread_name_prefix="everloop-mlflow")
        self._long = ThreadPoolExecutor(SEARCHES, thread_name_prefix="everloop-search")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def short(self, work: Callable[[], T]) -> T:
        """Run a function that takes fractions of a millisecond."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._short, work)

    async def long(self, work: Callable[[], T]) -> T:
        """Run a function that may take longer."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._long, work)

    def short_now(self, work: Callable[[], T]) -> T:
        """Like `short`, for a function that runs in a thread of `long`. Blocks until the work is done."""
        return self._short.submit(work).result(timeout=SHORT_WAIT_S)

    def later(self, seconds: float, work: Callable[[], object]) -> None:
        """Run a short function after a delay. May be called from any thread. Dropped if the event loop ends before."""
        loop = self._loop
        if loop is None or loop.is_closed():
            work()
            return
        loop.call_soon_threadsafe(loop.call_later, seconds, self._submit, work)

    def _submit(self, work: Callable[[], object]) -> None:
        self._short.submit(work)
