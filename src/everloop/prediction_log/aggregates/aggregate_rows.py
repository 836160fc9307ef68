"""The rows of the table `aggregates/<endpoint>`, and which of them count.

    event_at          the beginning of an hour, in UTC
    version, role     whose predictions of this hour the row is about
    kind              `inputs`: a `HourlyCell`; `labels`: a sketch of scores and labels
    bins              digest of the bins, or of how labels are matched
    source            id of the table of predictions
    after, upto       the row counts what the commits `after < commit <= upto` have added to the table of predictions. A
                      row of labels replaces everything before: its `after` is -1, and `upto` grows with each of them
    generation        random, the same for all rows of one write
    arrived_from, arrived_at    when the first and the last counted row arrived. For labels the first is 1970, because a
                      row of labels does not show what was known before a correction
    payload           the encoded cell

No row is ever changed. A row that covers the commits of another replaces it, such as the sum of many rows, or a count
with the bins of a newer baseline. So whatever a killed process has left, the rows that count are well defined.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from everloop.prediction_log.aggregates.hourly_cells import CellKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import polars as pl

Kind = Literal["inputs", "labels"]
AGGREGATES = "aggregates"


@dataclass(frozen=True, slots=True)
class AggregateRow:
    """One row of the table; see above."""

    key: CellKey
    kind: Kind
    bins: str
    source: str
    after: int
    upto: int
    generation: str
    arrived_from: datetime
    arrived_at: datetime
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows of one cell that count. If the cell is `stale`, they do not tell all, and its hour must be read."""

    rows: list[AggregateRow]
    stale: bool


def choose_rows(rows: Iterable[AggregateRow], bins: str, as_of: datetime | None = None) -> Chosen:
    """Choose the rows of one cell and kind that together count every prediction once.

    Args:
        bins: only rows with this digest can be used.
        as_of: only what had arrived by then counts. None: everything.
    """
    chosen: list[AggregateRow] = []
    others: list[AggregateRow] = []
    stale = False
    for row in sorted(rows, key=lambda row: (row.after, -row.upto, row.generation)):
        if row.bins != bins:
            others.append(row)
        elif not chosen or row.after >= chosen[-1].upto:
            chosen.append(row)
        elif _write_of(row) == _write_of(chosen[-1]):
            # One write may have several rows for a cell, so that its memory is bounded.
            chosen.append(row)
        elif row.upto > chosen[-1].upto:
            # Two processes have counted at once, and none of the two rows covers the other.
            stale = True
    stale = stale or any(not any(_covers(row, other) for row in chosen) for other in others)
    if as_of is not None:
        stale = stale or any(row.arrived_from <= as_of < row.arrived_at for row in chosen)
        chosen = [row for row in chosen if row.arrived_at <= as_of]
    return Chosen(chosen, stale)


def by_cell(rows: Iterable[AggregateRow]) -> dict[tuple[CellKey, Kind], list[AggregateRow]]:
    """Group rows by the cell and kind that they are about."""
    found: dict[tuple[CellKey, Kind], list[AggregateRow]] = defaultdict(list)
    for row in rows:
        found[row.key, row.kind].append(row)
    return found


def new_generation() -> str:
    """A random text that marks the rows of one write."""
    return uuid.uuid4().hex[:16]


def to_frame(rows: Sequence[AggregateRow]) -> pl.DataFrame:
    """The rows as they are stored."""
    import polars as pl

    columns: Mapping[str, list[Any]] = {
        "event_at": [row.key.hour for row in rows],
        "arrived_at": [row.arrived_at for row in rows],
        "arrived_from": [row.arrived_from for row in rows],
        "version": [row.key.version for row in rows],
        "role": [row.key.role for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in _AS_THEY_ARE},
    }
    return pl.DataFrame(columns, schema=_schema())


def from_frame(frame: pl.DataFrame) -> list[AggregateRow]:
    """The rows of a frame. Without the column `payload`, their payloads are empty."""
    return [
        AggregateRow(
            key=CellKey(row["version"], row["role"], row["event_at"]),
            arrived_from=row["arrived_from"],
            arrived_at=row["arrived_at"],
            **{name: row[name] for name in _AS_THEY_ARE if name in row},
        )
        for row in frame.iter_rows(named=True)
    ]


_AS_THEY_ARE = ("kind", "bins", "source", "after", "upto", "generation", "payload")


def _covers(row: AggregateRow, other: AggregateRow) -> bool:
    return row.after <= other.after and other.upto <= row.upto


def _write_of(row: AggregateRow) -> tuple[int, int, str]:
    return row.after, row.upto, row.generation


def _schema() -> dict[str, Any]:
    import polars as pl

    moment = pl.Datetime("us", "UTC")
    return {
        "event_at": moment,
        "arrived_at": moment,
        "arrived_from": moment,
        "version": pl.String,
        "role": pl.String,
        "kind": pl.String,
        "bins": pl.String,
        "source": pl.String,
        "after": pl.Int64,
        "upto": pl.Int64,
        "generation": pl.String,
        "payload": pl.Binary,
    }


__all__ = [
    "AGGREGATES",
    "AggregateRow",
    "Chosen",
    "Kind",
    "by_cell",
    "choose_rows",
    "from_frame",
    "new_generation",
    "to_frame",
]
