"""How long proving and measuring a model may take, and what was left out when the time was up.

A model that answers slowly would otherwise be asked for minutes before its version exists.
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
"""Seconds of proving and measuring, beyond the model's first answer."""
FIRST_ROWS = 256
MOST_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagingProgress:
    """How far saving a model has come."""

    stage: str
    """What is being done, in words."""
    done: int
    total: int
    seconds: float
    """Since saving began."""


class TimeBudget:
    """The time that is left. What was begun is finished, so a model that is asked once more may exceed it.

    Args:
        seconds: beyond the model's first answer.
        progress: called with a `PackagingProgress` at every step.
    """

    def __init__(self, seconds: float = PROOF_S, progress: Callable[[PackagingProgress], None] | None = None) -> None:
        self.seconds = seconds
        self.began = perf_counter()
        self._end = self.began + seconds
        self._progress = progress
        self._sizes: dict[tuple[str, int, int], int] = {}
        self.not_tried: list[str] = []
        """What was left out, in words."""

    def start(self) -> None:
        """Count from now on: the model has answered for the first time."""
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

    def tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            seconds = perf_counter() - self.began
            self._progress(PackagingProgress(stage=stage, done=done, total=total, seconds=seconds))

    @staticmethod
    def first_piece(frame: pl.DataFrame) -> pl.DataFrame:
        """The rows that come first in `pieces`, whatever the time."""
        import numpy as np

        if frame.height <= FIRST_ROWS:
            return frame
        return frame[np.sort(np.random.default_rng(0).permutation(frame.height)[:FIRST_ROWS])]

    def pieces(self, frame: pl.DataFrame, what: str) -> Iterator[pl.DataFrame]:
        """The rows of a frame in pieces, each spread over all of it, until the time is up; at least one piece.

        Args:
            what: the rows, in words, for the note of what was left out.
        """
        import numpy as np

        order = np.random.default_rng(0).permutation(frame.height)
        at, size = 0, FIRST_ROWS
        while at < frame.height:
            if at and self.over:
                self.leave_out(f"{frame.height - at:,} of {frame.height:,} {what}")
                return
            self.tell(what, at, frame.height)
            began = perf_counter()
            yield frame[np.sort(order[at : at + size])] if at else self.first_piece(frame)
            taken = perf_counter() - began
            # As many more as a third of the time is enough for, if every row takes as long as those did: a call costs
            # something as well, so few large pieces are quicker than many small ones.
            at, more = at + size, int(size / max(1e-6, taken) * self.left_s / 3)
            # The same rows are cut in the same way again, so that what is known of them need not be asked.
            size = self._sizes.setdefault((what, frame.height, at), min(max(FIRST_ROWS, more), MOST_ROWS))
        self.tell(what, frame.height, frame.height)


@contextmanager
def one_thread() -> Iterator[None]:
    """Ask models with one thread: the rows are few, and on a busy machine threads mostly wait for each other.

    Only where threadpoolctl is installed, as it is with scikit-learn, and only as long as the block.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(limits=1):
        yield


__all__ = ["PROOF_S", "PackagingProgress", "TimeBudget", "one_thread"]
