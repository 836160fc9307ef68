"""Where a request is worked on: in the event loop's own thread if that takes an instant, else in a worker thread.

Handing a small request to another thread costs more than scoring it. Large bodies, and whatever is expected to take
longer than a few milliseconds (see `throughput`), go to worker threads, so a health check never waits for a
prediction.

A request in a worker thread is either answered or given up at its deadline, never both: the thread claims it before it
logs, and a request that the deadline claimed first is not logged.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from everloop.errors import UnavailableError
from everloop.serving.protocols.protocol import late

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.protocols.protocol import Request

T = TypeVar("T")

LARGE_BODY_BYTES = 64 << 10
"""Larger bodies are decoded and scored in a worker thread."""


class RequestExecutor:
    """Runs work for requests, in the event loop's thread or in worker threads.

    Attributes:
        threads: the worker threads.
    """

    def __init__(self, threads: int) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="everloop-scoring")
        self._queued = 0
        self._inline: tuple[int, Request] | None = None
        """The event loop's thread, and the request that it is working on."""
        self._working = threading.local()

    def close(self) -> None:
        """Drop what waits, finish what has begun, and end the threads."""
        self.threads.shutdown(wait=True, cancel_futures=True)

    def inline_request(self) -> Request | None:
        """The request that this thread works on, if it is the event loop's thread, which must not be held up."""
        inline = self._inline
        return inline[1] if inline is not None and inline[0] == threading.get_ident() else None

    def thread_request(self) -> Request | None:
        """The request that this thread works on, if it is a worker thread."""
        found: Request | None = getattr(self._working, "request", None)
        return found

    def run_inline(self, request: Request, work: Callable[[], T]) -> T:
        """Do the work for a request in the event loop's thread.

        Raises:
            TakesLong: the work would hold up the event loop; nothing has been done.
        """
        self._inline = (threading.get_ident(), request)
        try:
            return work()
        finally:
            self._inline = None

    async def run_in_thread(
        self, request: Request, work: Callable[[], T], limits: EndpointSettings, *, large: bool = False
    ) -> T:
        """Do the work for a request in a worker thread, until the request's deadline or the endpoint's.

        Args:
            large: counts against `max_queued`.

        Raises:
            UnavailableError: too many large requests wait.
            DeadlineError: the time ran out first; what the thread still does for the request is not logged.
        """
        if large and self._queued >= limits.max_queued:
            raise UnavailableError("The endpoint is busy.")
        until = request.began + limits.request_timeout_s
        if request.deadline is not None:
            until = min(until, request.deadline)
        decided: dict[str, str] = {}
        request.decided = decided

        def run() -> T:
            self._working.request = request
            try:
                return work()
            finally:
                self._working.request = None

        working = self.threads.submit(run)
        waiting = asyncio.wrap_future(working)
        if large:
            self._queued += 1
            waiting.add_done_callback(self._leave_queue)
        done, _ = await asyncio.wait((waiting,), timeout=max(0.0, until - perf_counter()))
        if not done and (working.cancel() or decided.setdefault("by", "deadline") == "deadline"):
            waiting.add_done_callback(_ignore_result)
            raise late()
        return await waiting

    def _leave_queue(self, _: object) -> None:
        self._queued -= 1


def _ignore_result(waiting: asyncio.Future[Any]) -> None:
    """Retrieve the outcome of work that was given up, so that asyncio does not warn about it."""
    if not waiting.cancelled():
        waiting.exception()


__all__ = ["LARGE_BODY_BYTES", "RequestExecutor"]
