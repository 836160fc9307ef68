"""The aggregate of the predictions of one version, role and hour: counts that can be added.

A cell of twenty inputs takes about a kilobyte. Its bytes are compressed msgpack: the counts and moments in the order of
the version's bins, which are not repeated.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.data.sketches.bins import NumericBins
from everloop.data.sketches.column_sketches import UNSEEN, Sketch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

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
        score = self.score + other.score if self.score and other.score else self.score or other.score
        inputs = {name: sketch + other.inputs[name] for name, sketch in self.inputs.items()}
        return HourlyCell(self.rows + other.rows, self.seconds + other.seconds, inputs, score)

    def encode(self) -> bytes:
        """Return the bytes of the cell, without its bins. Of values that the baseline lacks, the most frequent stay."""
        subjects = [self.seconds, *self.inputs.values(), *([] if self.score is None else [self.score])]
        return zlib.compress(msgspec.msgpack.encode([self.rows, [_plain(sketch) for sketch in subjects]]), 6)

    @classmethod
    def decode(cls, data: bytes, bins: VersionBins) -> HourlyCell:
        """Restore a cell that was encoded with the same bins."""
        rows, plain = msgspec.msgpack.decode(zlib.decompress(data))
        seconds, *others = [
            Sketch.from_json(item, cells) for item, cells in zip(plain, _cells(bins).values(), strict=True)
        ]
        score = others.pop() if bins.score is not None else None
        return cls(rows, seconds, dict(zip(bins.inputs, others, strict=True)), score)


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
        inputs = ordered.select(name for name in ordered.columns if name in logged).rename(logged, strict=False)
    # Inputs may have any name, also that of the score, so that the subjects are numbered.
    columns = {name: inputs[name] for name in bins.inputs if name in inputs.columns}
    columns |= {_SCORE_COLUMN: ordered["score"], _SECONDS_COLUMN: ordered["seconds"]}
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
    """Add cells of one version; at least one."""
    total, *others = cells
    for cell in others:
        total = total + cell
    return total


_SECONDS_COLUMN = "\0seconds"
_SCORE_COLUMN = "\0score"


def _cells(bins: VersionBins) -> dict[str, Bins]:
    """The subjects of a cell in the order in which they are stored."""
    score = {} if bins.score is None else {_SCORE_COLUMN: bins.score}
    return {_SECONDS_COLUMN: LATENCY, **bins.inputs, **score}


def _plain(sketch: Sketch) -> Mapping[str, Any]:
    data = sketch.counted()
    if len(sketch.unseen) > UNSEEN:
        ranked = sorted(sketch.unseen.items(), key=lambda item: (-item[1], item[0]))
        data["unseen"] = dict(ranked[:UNSEEN])
    return data


__all__ = ["LATENCY", "CellKey", "HourlyCell", "add_cells", "cells_of"]
