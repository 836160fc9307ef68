"""Counts of consecutive windows by subject: what drift is judged from. Rows are not needed any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.block_counts import count_blocks
from everloop.monitoring.baseline import PREDICTION, Baseline
from everloop.monitoring.noise.reference_seasons import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.data.sketches.time_blocks import TimeGrid

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """Several windows in a row.

    Attributes:
        starts: start of each window.
        span: length of each window.
        rows: rows of each window, shape (windows,).
        counts: by subject as `subject_of` names it, shape (windows, cells).
    """

    starts: list[datetime]
    span: timedelta
    rows: Array
    counts: Mapping[str, Array]

    def seconds(self) -> Array:
        return np.array([seconds_of(start) for start in self.starts])


def subject_of(name: str, baseline: Baseline) -> str:
    """Return a feature's name as a subject. A feature may have the same name as the score."""
    return f"input_{name}" if name == PREDICTION and baseline.score is not None else name


def count_frame(
    baseline: Baseline, frame: pl.DataFrame, moments: pl.Series, grid: TimeGrid, *, score: str | None = None
) -> WindowCounts:
    """Count the rows of a frame by window.

    Args:
        frame: columns named like the baseline's features; those that are absent count as missing in every row.
        moments: the time of each row in microseconds since 1970.
        grid: the windows.
        score: the column with the score, if it is monitored.
    """
    number = grid.number_of(moments)
    rows = np.bincount(number[number >= 0], minlength=grid.number).astype(np.float64)
    found = count_blocks(frame, baseline.bins, number, grid.number)
    counts = {subject_of(name, baseline): cells for name, cells in found.items()}
    if baseline.score is not None and score is not None and score in frame.columns:
        bins = {PREDICTION: baseline.score.sketches[PREDICTION].bins}
        counts |= count_blocks(frame, bins, number, grid.number, columns={PREDICTION: score})
    return WindowCounts(grid.starts(), grid.span, rows, counts)


def stack_windows(
    baseline: Baseline,
    starts: Sequence[datetime],
    span: timedelta,
    features: Sequence[Mapping[str, Sketch] | None],
    scores: Sequence[Sketch | None],
) -> WindowCounts:
    """Put sketches of windows side by side. A window that is None has no rows."""
    counts: dict[str, Array] = {}
    rows = np.zeros(len(starts))
    for name, bins in baseline.bins.items():
        table = np.zeros((len(starts), bins.cells))
        for index, window in enumerate(features):
            if window is not None and name in window:
                table[index] = window[name].counts
        counts[subject_of(name, baseline)] = table
        rows = np.maximum(rows, table.sum(axis=1))
    if baseline.score is not None and any(score is not None for score in scores):
        table = np.zeros((len(starts), baseline.score.sketches[PREDICTION].bins.cells))
        for index, score in enumerate(scores):
            if score is not None:
                table[index] = score.counts
        counts[PREDICTION] = table
        rows = np.maximum(rows, table.sum(axis=1))
    return WindowCounts(list(starts), span, rows, counts)
