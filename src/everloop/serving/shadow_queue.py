"""Shadows score in one thread of their own, after the answers have been sent."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from everloop.serving import scoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.serving.observability.endpoint_metrics import Metrics
    from everloop.serving.score_request import ShadowOutcome

logger = logging.getLogger("everloop.serving")

MOST_WAITING_SHADOWS = 1_000
"""Requests that may wait for their shadows. Shadows skip what comes beyond that, and `/metrics` counts it."""


class ShadowQueue:
    """The requests that shadows still have to score. `submit` is called by one thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="everloop-shadow")
        self._waiting = 0

    def submit(self, shadow: Callable[[], ShadowOutcome]) -> Future[None] | None:
        """Queue a request; None: it is skipped because too many wait."""
        if self._waiting >= MOST_WAITING_SHADOWS:
            self._metrics.shadow_skipped.add()
            return None
        self._waiting += 1
        return self._thread.submit(self._score, shadow)

    def close(self) -> None:
        """Score what waits, and end the thread."""
        self._thread.shutdown(wait=True)

    def _score(self, shadow: Callable[[], ShadowOutcome]) -> None:
        # No other thread writes these counters.
        try:
            scoring.count_shadows(self._metrics, shadow())
        except Exception:
            logger.exception("The shadows of the endpoint '%s' failed", self._metrics.endpoint)
        finally:
            self._waiting -= 1


__all__ = ["ShadowQueue"]
