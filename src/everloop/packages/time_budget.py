"""The time budget for proving and measuring a model, and what was left out when it ran out.

Without it, saving a slow model could take many minutes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

PROOF_S = 10.0
"""Seconds for proving and measuring, after the model's first prediction."""
FIRST_ROWS = 256
MOST_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagingProgress:
    """Progress of saving a model."""

    stage: str
    """The current work, in words."""
    done: int
    total: int
    seconds: float
    """Since saving started."""


class TimeBudget:
    """The time that is left. A started step is finished, so a slow model may exceed the budget by one call.

    Args:
        seconds: time after the model's first prediction.
        progress: called with a `PackagingProgress` at every step.
    """

    def __init__(self, seconds: float = PROOF_S, progress: Callable[[PackagingProgress], None] | None = None) -> None:
        self.seconds = seconds
        self.began = perf_counter()
        self._end = self.began + seconds
        self._progress = progress
        self._sizes: dict[tuple[str, int, int], int] = {}
        self.not_tried: list[str] = []
        """Descriptions of what was left out."""

    def start(self) -> None:
        """Start the time, once the model has predicted for the first time."""
        self._end = perf_counter() + self.seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - perf_counter())

    @property
    def over(self) -> bool:
        return perf_counter() >= self._end

    def leave_out(self, what: str) -> None:
        """Note something that was not tried."""
        if what not in self.not_tried:
            self.not_tried.append(what)

    def report(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            seconds = perf_counter() - self.began
            self._progress(PackagingProgress(stage=stage, done=done, total=total, seconds=seconds))

    @staticmethod
    def first_piece(frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows that `pieces` yields first, however little time is left."""
        import numpy as np

        if frame.height <= FIRST_ROWS:
            return frame
        return frame[np.sort(np.random.default_rng(0).permutation(frame.height)[:FIRST_ROWS])]

    def pieces(self, frame: pl.DataFrame, what: str) -> Iterator[pl.DataFrame]:
        """Yield the rows of a frame in pieces until the time is up, but at least one piece.

        Each piece is spread over the whole frame.

        Args:
            what: description of the rows, for progress and for the note of what was left out.
        """
        import numpy as np

        order = np.random.default_rng(0).permutation(frame.height)
        at, size = 0, FIRST_ROWS
        while at < frame.height:
            if at and self.over:
                self.leave_out(f"{frame.height - at:,} of {frame.height:,} {what}")
                return
            self.report(what, at, frame.height)
            began = perf_counter()
            yield frame[np.sort(order[at : at + size])] if at else self.first_piece(frame)
            taken = perf_counter() - began
            # The next piece should take a third of the time that is left, at the speed of this one. Each call has some
            # overhead, so a few large pieces are faster than many small ones.
            at, more = at + size, int(size / max(1e-6, taken) * self.left_s / 3)
            # The same rows are always cut in the same way, so that `CachedModel` recognizes the pieces.
            size = self._sizes.setdefault((what, frame.height, at), min(max(FIRST_ROWS, more), MOST_ROWS))
        self.report(what, frame.height, frame.height)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit numeric libraries to one thread: the rows are few, and on a busy machine threads wait for each other.

    Needs threadpoolctl, which scikit-learn installs; without it nothing changes.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(limits=1):
        yield


__all__ = ["PROOF_S", "PackagingProgress", "TimeBudget", "one_thread"]
