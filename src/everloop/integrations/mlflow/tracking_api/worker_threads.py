"""The threads in which requests are answered, so that the event loop only reads and sends.

Short handlers run one after the other in one thread: they take fractions of a millisecond, share what has been logged
and is not yet in the records, and cost one way to that thread and back. Handlers that may read much run in threads of
their own, and never in those of the uploads: a search takes nothing from a request that logs a metric.
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
    """Belongs to one event loop at a time. The threads end with this object, or with the process."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(1, thread_name_prefix="everloop-mlflow")
        self._long = ThreadPoolExecutor(SEARCHES, thread_name_prefix="everloop-search")
        self._loop: asyncio.AbstractEventLoop | None = None

    async def short(self, work: Callable[[], T]) -> T:
        """Run what takes fractions of a millisecond."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._short, work)

    async def long(self, work: Callable[[], T]) -> T:
        """Run what may take longer."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._long, work)

    def short_now(self, work: Callable[[], T]) -> T:
        """The same as `short`, for a caller in a thread of `long`, who waits."""
        return self._short.submit(work).result(timeout=SHORT_WAIT_S)

    def later(self, seconds: float, work: Callable[[], object]) -> None:
        """Run something short after a while. From any thread; forgotten where the loop has ended by then."""
        loop = self._loop
        if loop is None or loop.is_closed():
            work()
            return
        loop.call_soon_threadsafe(loop.call_later, seconds, self._submit, work)

    def _submit(self, work: Callable[[], object]) -> None:
        self._short.submit(work)
