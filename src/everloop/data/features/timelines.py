"""From rows as they happened to what was known at each moment.

A timeline has one row per entity and moment at which the answer changes: the entity's columns, `known_at` (when both
the event had happened and the row had arrived), `event_at`, and the features. Looking up a moment is then one backward
search on `known_at`, and can by construction not see what came later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.frames import Frame, as_lazy, as_utc
from everloop.errors import DataError
from everloop.stores.durations import parse_duration
from everloop.stores.tables import EVENT_AT

if TYPE_CHECKING:
    from everloop.data.features.views import FeatureView, Window

KNOWN_AT = "known_at"
_COUNT, _SUM, _SQUARES = "__count", "__sum", "__squares"


def timeline(view: FeatureView, rows: Frame) -> pl.DataFrame:
    """The timeline of a view, sorted by `known_at`.

    Raises:
        DataError: an entity or a time is null.
        UsageError: a declared column is missing.
    """
    frame = as_lazy(rows)
    schema = frame.collect_schema()
    features = view.feature_names(schema.names())
    event = as_utc(view.time, schema[view.time])
    arrival = as_utc(view.arrival, schema[view.arrival]) if view.arrival is not None else event
    used = features if not view.windows else view.window_columns()
    # Features may be called like our own columns; entities are kept by name.
    table = frame.select(
        *view.keys, event.alias(EVENT_AT), arrival.alias("__arrived"), *(pl.col(name) for name in used)
    ).collect()
    for name in (*view.keys, EVENT_AT, "__arrived"):
        if nulls := table[name].null_count():
            called = {EVENT_AT: view.time, "__arrived": view.arrival}.get(name, name)
            raise DataError(f"'{called}' is null in {nulls} rows of '{view.name}'.", help="Drop those rows.")
    table = table.with_columns(pl.max_horizontal(EVENT_AT, "__arrived").alias(KNOWN_AT))
    made = _windows(view, table) if view.windows else _latest(view, table)
    return made.select(*view.keys, KNOWN_AT, EVENT_AT, *features).sort(KNOWN_AT)


def _latest(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """Without the rows that never were the latest: those that arrived after a later event was already known."""
    # Of rows of one event that arrived at once, the one that stands last counts.
    ordered = table.sort(KNOWN_AT, EVENT_AT, "__arrived", maintain_order=True)
    newest = pl.col(EVENT_AT).cum_max().over(*view.keys)
    kept = ordered.filter(pl.col(EVENT_AT) == newest)
    # Rows of an entity stand by the time at which they were known: one that the next replaces at once never counted.
    replaced = pl.col(KNOWN_AT) == pl.col(KNOWN_AT).shift(-1).over(*view.keys)
    return kept.filter(~replaced.fill_null(value=False))


def _windows(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """Each row comes in when it is known and goes out `length` after its event; between, running totals stand still."""
    changes = [
        pl.concat([_moments(view, table, window), _ends(view, table, window)]).select(*view.keys, KNOWN_AT)
        for window in view.windows
    ]
    made = pl.concat(changes).unique([*view.keys, KNOWN_AT]).sort(KNOWN_AT)
    for window in view.windows:
        totals = _totals(view, table, window)
        made = made.join_asof(totals, on=KNOWN_AT, by=list(view.keys), check_sortedness=False)
        counts = [name for name, (_, how) in window.aggregates.items() if how == "count"]
        made = made.with_columns(pl.col(name).fill_null(0) for name in counts)
    return made.with_columns(pl.col(KNOWN_AT).alias(EVENT_AT))


def _moments(view: FeatureView, table: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The rows that ever count: one that arrives after its window has passed never does."""
    return table.filter(pl.col(EVENT_AT) + parse_duration(window.length) > pl.col(KNOWN_AT))


def _ends(view: FeatureView, table: pl.DataFrame, window: Window) -> pl.DataFrame:
    length = parse_duration(window.length)
    return _moments(view, table, window).with_columns((pl.col(EVENT_AT) + length).alias(KNOWN_AT))


def _totals(view: FeatureView, table: pl.DataFrame, window: Window) -> pl.DataFrame:
    columns = list(dict.fromkeys(column for column, _ in window.aggregates.values()))
    steps = []
    for sign, rows in ((1, _moments(view, table, window)), (-1, _ends(view, table, window))):
        parts: list[pl.Expr] = []
        for column in columns:
            # Deviations from the column's mean: sums of squares of large values would lose their digits.
            value = _number(view, table, column) - _center(table, column)
            parts.append((value.is_not_null().cast(pl.Int64) * sign).alias(_COUNT + column))
            parts.append((value.fill_null(0) * sign).alias(_SUM + column))
            parts.append((value.fill_null(0) ** 2 * sign).alias(_SQUARES + column))
        steps.append(rows.select(*view.keys, KNOWN_AT, *parts))
    names = [name for name in steps[0].columns if name not in (*view.keys, KNOWN_AT)]
    per_moment = pl.concat(steps).group_by(*view.keys, KNOWN_AT).agg(pl.col(names).sum()).sort(KNOWN_AT)
    running = per_moment.with_columns(pl.col(names).cum_sum().over(*view.keys))
    made = [
        _aggregate(column, how, _center(table, column)).alias(name) for name, (column, how) in window.aggregates.items()
    ]
    return running.select(*view.keys, KNOWN_AT, *made)


def _number(view: FeatureView, table: pl.DataFrame, column: str) -> pl.Expr:
    dtype = table.schema[column]
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null)):
        raise DataError(f"'{column}' of '{view.name}' holds {dtype}; windows aggregate numbers and booleans.")
    if dtype.is_float() and table[column].is_infinite().any():
        raise DataError(f"'{column}' of '{view.name}' holds an infinity, which no running total survives.")
    # NaN is a missing value here: once added, it could not be taken away again.
    return pl.col(column).cast(pl.Float64).fill_nan(None)


def _center(table: pl.DataFrame, column: str) -> float:
    mean = table[column].cast(pl.Float64).fill_nan(None).mean()
    return float(mean) if isinstance(mean, float | int) else 0.0


def _aggregate(column: str, how: str, center: float) -> pl.Expr:
    count, total = pl.col(_COUNT + column), pl.col(_SUM + column)
    if how == "count":
        return count
    if how == "sum":
        return pl.when(count > 0).then(total + count * center).otherwise(0.0)
    if how == "mean":
        return pl.when(count > 0).then(total / count + center)
    spread = (pl.col(_SQUARES + column) - total**2 / count) / (count - 1)
    return pl.when(count > 1).then(spread.clip(0).sqrt())
