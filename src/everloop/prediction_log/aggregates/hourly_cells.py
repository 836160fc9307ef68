"""The aggregate of the predictions of one version, role and hour: counts that can be added.

A cell of twenty inputs takes about a kilobyte. Its bytes are compressed msgpack: the counts and moments in the order of
the version's bins, which are not repeated.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from everloop.data.sketches.bins import NumericBins
from everloop.data.sketches.column_sketches import UNSEEN, Moments, Sketch, add_sketches
from everloop.data.sketches.score_sketches import pack_counts, unpack_counts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy.typing as npt
    import polars as pl

    from everloop.data.sketches.bins import Bins
    from everloop.prediction_log.aggregates.version_bins import VersionBins

LATENCY = NumericBins(tuple(10.0 ** (step / 10) for step in range(-50, 21)))
"""Cells of the time that an answer took, in seconds: ten for each power of ten, from 10 µs to 100 s."""


@dataclass(frozen=True, slots=True, order=True)
class CellKey:
    """Which predictions a cell counts. `hour`: the beginning of the hour of `event_at`, in UTC."""

    version: str
    role: str
    hour: datetime


@dataclass(frozen=True, slots=True)
class HourlyCell:
    """Counts of some predictions.

    Attributes:
        rows: number of predictions.
        seconds: distribution of the time that the answers took.
        inputs: sketches by input, with the bins of the version's baseline.
        score: sketch of the score; None if the baseline has no scores.
    """

    rows: int
    seconds: Sketch
    inputs: dict[str, Sketch] = field(default_factory=dict)
    score: Sketch | None = None

    def __add__(self, other: HourlyCell) -> HourlyCell:
        """Return the cell of the predictions of both.

        Raises:
            UsageError: they have different bins.
        """
        return add_cells([self, other])

    def encode(self) -> bytes:
        """Return the bytes of the cell, without its bins. Of values that the baseline lacks, the most frequent stay."""
        subjects = [self.seconds, *self.inputs.values(), *([] if self.score is None else [self.score])]
        counts = np.concatenate([np.asarray(sketch.counts, dtype=np.int64) for sketch in subjects])
        moments = np.asarray([_numbers(sketch.moments) for sketch in subjects], dtype="<f8")
        unseen = {at: _most_frequent(sketch.unseen) for at, sketch in enumerate(subjects) if sketch.unseen}
        content = [self.rows, pack_counts(counts), moments.tobytes(), unseen]
        return zlib.compress(msgspec.msgpack.encode(content), 6)


def decode_sum(payloads: Sequence[bytes], bins: VersionBins) -> HourlyCell:
    """Decode cells that were encoded with the same bins, and add them up; at least one."""
    contents = [msgspec.msgpack.decode(zlib.decompress(data)) for data in payloads]
    subjects = list(_cells(bins).values())
    counts = np.zeros(sum(cells.cells for cells in subjects), dtype=np.int64)
    unseen: dict[int, Counter[str]] = defaultdict(Counter)
    for _, packed, _, named in contents:
        counts += unpack_counts(packed)
        for at, values in named.items():
            unseen[at].update(values)
    moments = _sum_moments(np.stack([np.frombuffer(data, dtype="<f8").reshape(-1, 5) for _, _, data, _ in contents]))
    limits = np.cumsum([cells.cells for cells in subjects])[:-1]
    parts = zip(subjects, np.split(counts, limits), moments, strict=True)
    seconds, *others = [
        Sketch(cells, tuple(part.tolist()), known, dict(sorted(unseen[at].items())))
        for at, (cells, part, known) in enumerate(parts)
    ]
    score = others.pop() if bins.score is not None else None
    rows = sum(content[0] for content in contents)
    return HourlyCell(rows, seconds, dict(zip(bins.inputs, others, strict=True)), score)


def cells_of(
    rows: pl.DataFrame, version: str, bins: VersionBins
) -> dict[CellKey, tuple[HourlyCell, datetime, datetime]]:
    """Count the predictions of one version by role and hour.

    Args:
        rows: columns `event_at`, `arrived_at`, `role`, `score`, `seconds` and the logged inputs.

    Returns:
        For each role and hour with rows, the cell and the times when its first and its last row arrived.
    """
    import polars as pl

    from everloop.data.sketches.derived_columns import derive
    from everloop.data.sketches.grouped_sketches import sketch_groups
    from everloop.prediction_log.log_reading import read_inputs
    from everloop.prediction_log.prediction_log import input_column

    ordered = rows.with_columns(pl.col("event_at").dt.truncate("1h").alias("_hour")).sort(
        "role", "_hour", maintain_order=True
    )
    groups = ordered.group_by("role", "_hour", maintain_order=True).agg(
        pl.len().alias("rows"), pl.col("arrived_at").min().alias("first"), pl.col("arrived_at").max().alias("last")
    )
    if bins.signature is not None:
        inputs = read_inputs(ordered, bins.signature)
    else:
        logged = {input_column(name): name for name in bins.inputs}
        logged |= {input_column(name): name for name in bins.derived}
        inputs = ordered.select(name for name in ordered.columns if name in logged).rename(logged, strict=False)
    inputs = derive(inputs, bins.derived)
    # Inputs may have any name, also that of the score, so that the subjects are numbered.
    columns = {name: inputs[name] for name in bins.inputs if name in inputs.columns}
    columns[_SCORE_COLUMN] = ordered["score"]
    if "seconds" in ordered.columns:
        # A log that another system has written may not have the time that an answer took.
        columns[_SECONDS_COLUMN] = ordered["seconds"]
    subjects = _cells(bins)
    numbered = pl.DataFrame([columns[name].rename(f"{at}") for at, name in enumerate(subjects) if name in columns])
    by_number = {f"{at}": cells for at, cells in enumerate(subjects.values())}
    found = {}
    for group, sketches in zip(
        groups.iter_rows(named=True), sketch_groups(numbered, groups["rows"].to_list(), by_number), strict=True
    ):
        seconds, *others = sketches.values()
        score = others.pop() if bins.score is not None else None
        cell = HourlyCell(group["rows"], seconds, dict(zip(bins.inputs, others, strict=True)), score)
        found[CellKey(version, group["role"], group["_hour"])] = (cell, group["first"], group["last"])
    return found


def add_cells(cells: Sequence[HourlyCell]) -> HourlyCell:
    """Add cells with the same bins; at least one."""
    if len(cells) == 1:
        return cells[0]
    scores = [cell.score for cell in cells if cell.score is not None]
    return HourlyCell(
        sum(cell.rows for cell in cells),
        add_sketches([cell.seconds for cell in cells]),
        {name: add_sketches([cell.inputs[name] for cell in cells]) for name in cells[0].inputs},
        add_sketches(scores) if scores else None,
    )


_SECONDS_COLUMN = "\0seconds"
_SCORE_COLUMN = "\0score"


def _cells(bins: VersionBins) -> dict[str, Bins]:
    """The subjects of a cell in the order in which they are stored."""
    score = {} if bins.score is None else {_SCORE_COLUMN: bins.score}
    return {_SECONDS_COLUMN: LATENCY, **bins.inputs, **score}


def _most_frequent(unseen: dict[str, int]) -> dict[str, int]:
    return dict(sorted(unseen.items(), key=lambda item: (-item[1], item[0]))[:UNSEEN])


def _numbers(moments: Moments | None) -> tuple[float, ...]:
    if moments is None:
        return (0.0, math.nan, math.nan, math.nan, math.nan)
    return (moments.count, moments.mean, moments.m2, moments.low, moments.high)


def _sum_moments(moments: npt.NDArray[np.float64]) -> list[Moments | None]:
    """Add moments of many cells, shape (cells, subjects, 5), by subject."""
    count, mean, squares, low, high = np.moveaxis(moments, 2, 0)
    known = count > 0
    total = count.sum(axis=0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        centre = np.where(known, count * mean, 0.0).sum(axis=0) / total
        gaps = np.where(known, mean - centre, 0.0)
        spread = np.where(known, squares, 0.0).sum(axis=0) + (count * gaps * gaps).sum(axis=0)
    least, most = np.where(known, low, np.inf).min(axis=0), np.where(known, high, -np.inf).max(axis=0)
    columns = (column.tolist() for column in (total, centre, spread, least, most))
    return [Moments(int(rows), *others) if rows else None for rows, *others in zip(*columns, strict=True)]


__all__ = ["LATENCY", "CellKey", "HourlyCell", "add_cells", "cells_of", "decode_sum"]
