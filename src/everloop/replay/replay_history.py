"""A history: rows with the time of their event, and the time at which their label became known.

A replay reads rows only through `known_at`, `between` and `labels_between`, so a policy can never see a row whose event
or label lies after its clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from everloop.errors import DataError, UsageError
from everloop.stores.clock import micros

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    Micros = NDArray[np.int64]

EVENT = "__replay_event"
"""Internal column: time of the event, µs since 1970."""
KNOWN = "__replay_known"
"""Internal column: when the label became known, µs since 1970; null if it never did."""
ENTITY = "__replay_entity"
"""Internal column: a unique text for each row, which joins predictions and labels."""
LEAST_ROWS = 100
"""A history with fewer rows cannot be replayed."""


@dataclass(frozen=True, eq=False)
class ReplayHistory:
    """Rows in the order of their events. Build one with `build_history`.

    Attributes:
        table: the rows with the internal columns `EVENT`, `KNOWN` and `ENTITY`.
        target: the column to predict.
        time: the column with the time of each row's event.
        key: the column that identifies a row, if there is one.
    """

    table: pl.DataFrame
    target: str
    time: str
    key: str | None = None

    @cached_property
    def events(self) -> Micros:
        """Time of each row's event, µs since 1970; ascending."""
        return self.table[EVENT].to_numpy()

    @cached_property
    def known(self) -> Micros:
        """When each row's label became known, µs since 1970; the largest integer if it never did."""
        return self.table[KNOWN].fill_null(2**63 - 1).to_numpy()

    @property
    def names(self) -> list[str]:
        """The user's columns."""
        return [name for name in self.table.columns if name not in (EVENT, KNOWN, ENTITY)]

    @cached_property
    def draws(self) -> NDArray[np.float64]:
        """A number in [0, 1) for each row, from a hash of its entity, so it is always the same."""
        import polars as pl

        return self.table.select(pl.col(ENTITY).hash(seed=2026) / 2.0**64).to_series().to_numpy()

    def known_at(
        self,
        moment: datetime,
        *,
        window: timedelta | None = None,
        most: int | None = None,
    ) -> pl.DataFrame:
        """Return the rows whose event and label were known at a moment, with the user's columns.

        Args:
            moment: the present time of the replay.
            window: leave out rows whose event is older than this. Default: all rows.
            most: keep at most this many rows, drawn at random. Default: all rows.
        """
        import numpy as np
        import polars as pl

        now = micros(moment)
        mask = (self.events <= now) & (self.known <= now)
        if window is not None:
            mask &= self.events > micros(moment - window)
        found = int(mask.sum())
        if most is not None and found > most:
            mask &= self.draws <= np.partition(self.draws[mask], most - 1)[most - 1]
        return self.table.filter(pl.Series(mask)).select(self.names)

    def between(self, since: datetime, until: datetime) -> tuple[int, int]:
        """Return the positions `[first, last)` of the rows with `since <= event < until`."""
        import numpy as np

        first, last = np.searchsorted(self.events, [micros(since), micros(until)], side="left")
        return int(first), int(last)

    def labels_between(self, since: datetime, until: datetime) -> pl.DataFrame:
        """Return the internal columns and the target of the rows whose label became known in `(since, until]`."""
        import polars as pl

        mask = (self.known > micros(since)) & (self.known <= micros(until))
        return self.table.filter(pl.Series(mask)).select(ENTITY, EVENT, KNOWN, self.target)


def build_history(
    table: pl.DataFrame,
    *,
    target: str,
    time: str,
    key: str | None = None,
    labels_after: timedelta = timedelta(0),
    arrival: str | None = None,
) -> ReplayHistory:
    """Order a table by time, and work out when each label became known.

    Args:
        table: rows with the columns `target` and `time`, and `key` and `arrival` if they are given.
        target: the column to predict. Rows without a value are requests whose label never arrives.
        time: a column of dates or times. Times without a zone count as UTC.
        key: a column that identifies a row. Default: the row's number.
        labels_after: how long after its event a row's label became known.
        arrival: a column with the time at which the row's label became known, instead of `labels_after`.

    Raises:
        DataError: a column is missing or is not a time, a time is missing, or the rows are too few.
        UsageError: `labels_after` is negative.
    """
    import polars as pl

    for role, name in (("target", target), ("time", time), ("key", key), ("arrival", arrival)):
        if name is not None and name not in table.columns:
            raise DataError(
                f"The table has no column '{name}' for {role}.", help=f"Its columns: {', '.join(table.columns)}"
            )
    if labels_after < timedelta(0):
        raise UsageError(f"Labels cannot arrive {-labels_after} before their events.", help="For example: 7d")
    check_row_count(table)
    event = _micros_of(table[time])
    known = (
        event + labels_after // timedelta(microseconds=1) if arrival is None else _micros_of(table[arrival], null=True)
    )
    labelled = table[target].is_not_null()
    if table.schema[target].is_float():
        labelled &= table[target].is_not_nan().fill_null(value=False)
    # A label without a time of arrival never arrives.
    labelled &= known.is_not_null()
    # A label becomes known after its event. Otherwise a training at this moment would learn a row that it answers.
    known = pl.select(pl.when(labelled).then(pl.max_horizontal(known, event + 1))).to_series()
    entity = pl.int_range(table.height, eager=True).cast(pl.String)
    if key is not None and table[key].null_count() == 0 and table[key].n_unique() == table.height:
        entity = table[key].cast(pl.String)
    ordered = table.with_columns(event.alias(EVENT), known.alias(KNOWN), entity.alias(ENTITY)).sort(
        EVENT, maintain_order=True
    )
    return ReplayHistory(ordered, target, time, key)


def check_row_count(table: pl.DataFrame) -> None:
    """Raise a DataError if the rows are too few to replay."""
    if table.height < LEAST_ROWS:
        rows = f"{table.height} row{'' if table.height == 1 else 's'}"
        raise DataError(
            f"The table has {rows}. That is too few to replay.", help=f"A replay needs at least {LEAST_ROWS} rows."
        )


def thin(history: ReplayHistory, rows: int, every: timedelta) -> ReplayHistory:
    """Keep at most `rows` rows of each period, chosen by a hash of their entity, so always the same ones."""
    import polars as pl

    step = every // timedelta(microseconds=1)
    place = pl.col(ENTITY).hash(seed=2013).rank("ordinal").over(pl.col(EVENT) // step)
    kept = history.table.filter(place <= rows)
    return (
        history
        if kept.height == history.table.height
        else ReplayHistory(kept, history.target, history.time, history.key)
    )


def _micros_of(values: pl.Series, *, null: bool = False) -> pl.Series:
    import polars as pl

    kind = values.dtype
    if kind == pl.Date:
        values = values.cast(pl.Datetime("us", "UTC"))
    elif not isinstance(kind, pl.Datetime):
        raise DataError(
            f"The column '{values.name}' holds values of type {kind}, not dates or times.",
            help="Name a column with dates or times, or convert it first.",
        )
    elif values.null_count() and not null:
        raise DataError(
            f"{values.null_count():,} rows have no time in '{values.name}'.", help="Remove them from the table."
        )
    return values.dt.cast_time_unit("us").cast(pl.Int64)
