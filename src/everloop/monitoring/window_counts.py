"""Counts of consecutive windows by subject: what drift is judged from. Rows are not needed any more."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.block_counts import count_blocks
from everloop.data.sketches.derived_columns import derive
from everloop.data.sketches.pair_correlations import correlate_blocks
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
        correlations: of the baseline's pairs, shape (windows, pairs), NaN where they are not known; None if no window
            has them.
    """

    starts: list[datetime]
    span: timedelta
    rows: Array
    counts: Mapping[str, Array]
    correlations: Array | None = None

    def seconds(self) -> Array:
        return np.array([seconds_of(start) for start in self.starts])


def subject_of(name: str, baseline: Baseline) -> str:
    """Return a feature's name as a subject. A feature may have the same name as the score."""
    return f"input_{name}" if name == PREDICTION and baseline.score is not None else name


def centres_of(baseline: Baseline) -> dict[str, Sketch]:
    """Return what windows are compared with, by subject: the reference, or what has been accepted since."""
    found = {subject_of(name, baseline): sketch for name, sketch in baseline.features.sketches.items()}
    if baseline.score is not None:
        found[PREDICTION] = baseline.score.sketches[PREDICTION]
    return found | {subject: one.sketch for subject, one in baseline.accepted.items()}


def count_frame(
    baseline: Baseline, frame: pl.DataFrame, moments: pl.Series, grid: TimeGrid, *, score: str | None = None
) -> WindowCounts:
    """Count the rows of a frame by window.

    Args:
        frame: columns named like the baseline's columns; those that are absent count as missing in every row.
        moments: the time of each row in microseconds since 1970.
        grid: the windows.
        score: the column with the score, if it is monitored.
    """
    number = grid.number_of(moments)
    rows = np.bincount(number[number >= 0], minlength=grid.number).astype(np.float64)
    frame = derive(frame, baseline.derived)
    found = count_blocks(frame, baseline.bins, number, grid.number)
    counts = {subject_of(name, baseline): cells for name, cells in found.items()}
    if baseline.score is not None and score is not None and score in frame.columns:
        bins = {PREDICTION: baseline.score.sketches[PREDICTION].bins}
        counts |= count_blocks(frame, bins, number, grid.number, columns={PREDICTION: score})
    correlations = None
    if baseline.pairs is not None:
        sketches, names = baseline.features.sketches, baseline.pairs.names
        correlations = correlate_blocks(frame, sketches, names, number, grid.number).correlations()
    return WindowCounts(grid.starts(), grid.span, rows, counts, correlations)


def pack_window_counts(counts: Mapping[str, Array]) -> str:
    """Return the counts of one window as text: zlib and base64 of 32-bit integers, subject by subject."""
    flat = np.concatenate([counts[subject].astype("<i4").ravel() for subject in sorted(counts)] or [np.zeros(0, "<i4")])
    return b64encode(zlib.compress(flat.tobytes())).decode()


def unpack_window_counts(text: str, cells: Mapping[str, int]) -> dict[str, Array] | None:
    """Return the counts of one window that `pack_window_counts` wrote; None if they have other subjects or cells.

    Args:
        cells: number of cells by subject.
    """
    flat = np.frombuffer(zlib.decompress(b64decode(text)), dtype="<i4").astype(np.float64)
    if len(flat) != sum(cells.values()):
        return None
    found: dict[str, Array] = {}
    at = 0
    for subject in sorted(cells):
        found[subject] = flat[at : at + cells[subject]]
        at += cells[subject]
    return found


def pack_correlations(correlations: Array | None) -> str | None:
    """Return Fisher-transformed correlations as text: base64 of 32-bit floats."""
    return None if correlations is None else b64encode(correlations.astype("<f4").tobytes()).decode()


def unpack_correlations(text: str | None) -> Array | None:
    """Return the correlations that `pack_correlations` wrote."""
    return None if text is None else np.frombuffer(b64decode(text), dtype="<f4").astype(np.float64)


def join_windows(
    starts: Sequence[datetime],
    span: timedelta,
    windows: Sequence[Mapping[str, Array] | None],
    correlations: Sequence[Array | None] = (),
) -> WindowCounts:
    """Put the counts of windows side by side. A window that is None has no rows; the last one has."""
    last = windows[-1] or {}
    counts = {
        subject: np.stack([(window or {}).get(subject, np.zeros(len(cells))) for window in windows])
        for subject, cells in last.items()
    }
    rows = np.max([table.sum(axis=1) for table in counts.values()], axis=0) if counts else np.zeros(len(starts))
    known = next((found for found in reversed(correlations) if found is not None), None)
    table = None
    if known is not None:
        unknown = np.full(len(known), np.nan)
        table = np.stack(
            [found if found is not None and len(found) == len(known) else unknown for found in correlations]
        )
    return WindowCounts(list(starts), span, rows, counts, table)


def counts_of(baseline: Baseline, features: Mapping[str, Sketch], score: Sketch | None) -> dict[str, Array]:
    """Return the counts of one window by subject, from its sketches. Subjects that the baseline lacks are left out."""
    counts = {
        subject_of(name, baseline): np.asarray(features[name].counts, dtype=np.float64)
        for name in baseline.bins
        if name in features
    }
    if baseline.score is not None and score is not None:
        counts[PREDICTION] = np.asarray(score.counts, dtype=np.float64)
    return counts
