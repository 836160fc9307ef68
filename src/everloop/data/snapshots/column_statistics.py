"""Figures that describe the columns of a snapshot."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from everloop.records import Json

COUNTED_ROWS = 5_000_000
"""Distinct values are counted up to so many rows: beyond, the count alone would need all of memory."""
_MOST_DAYS = 999_999_999
_COUNTABLE = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Time, pl.Duration)


def column_statistics(frame: pl.DataFrame | pl.LazyFrame, rows: int) -> dict[str, dict[str, Json]]:
    """By column: `nulls`, and where the type has them `distinct`, `min`, `max`, `mean` and `std`.

    NaN counts as no value. Times are ISO 8601, durations seconds, decimals text. A query is run column by column, so
    that one column's values at most are in memory.
    """
    if isinstance(frame, pl.DataFrame):
        return _figures(frame.lazy(), frame.schema, rows)
    found: dict[str, dict[str, Json]] = {}
    for name, dtype in frame.collect_schema().items():
        found |= _figures(frame.select(name), pl.Schema({name: dtype}), rows)
    return found


def _figures(frame: pl.LazyFrame, schema: pl.Schema, rows: int) -> dict[str, dict[str, Json]]:
    asked: list[pl.Expr] = []
    for index, (name, dtype) in enumerate(schema.items()):
        column = pl.col(name)
        asked.append(column.null_count().alias(f"{index} nulls"))
        if dtype.is_float():
            column = column.fill_nan(None)
        if (dtype.is_numeric() or isinstance(dtype, _COUNTABLE)) and rows <= COUNTED_ROWS:
            asked.append(column.drop_nulls().n_unique().alias(f"{index} distinct"))
        if dtype.is_numeric() or dtype.is_temporal():
            asked += [_sayable(column.min(), dtype).alias(f"{index} min")]
            asked += [_sayable(column.max(), dtype).alias(f"{index} max")]
        if dtype.is_numeric():
            # One infinity would leave no mean and no spread.
            value = column.cast(pl.Float64)
            value = value.filter(value.is_finite())
            asked += [value.mean().alias(f"{index} mean"), value.std().alias(f"{index} std")]
    row = frame.select(asked).collect(engine="streaming").row(0, named=True)
    found: dict[str, dict[str, Json]] = {name: {} for name in schema}
    names = list(schema)
    for label, value in row.items():
        index_text, _, figure = label.partition(" ")
        if value is not None:
            found[names[int(index_text)]][figure] = as_json(value)
    return found


def _sayable(figure: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The figure, or null where Python has no value for it."""
    if isinstance(dtype, pl.Date | pl.Datetime):
        return pl.when(figure.dt.year().is_between(1, 9999)).then(figure)
    if isinstance(dtype, pl.Duration):
        return pl.when(figure.dt.total_days().abs() < _MOST_DAYS).then(figure)
    return figure


def as_json(value: Any) -> Json:
    """A figure as JSON can hold it."""
    match value:
        case bool() | str() | float() | None:
            return value
        case int():
            # Beyond 64 bits JSON readers disagree.
            return value if -(1 << 63) <= value < 1 << 63 else str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
    raise TypeError(f"{value!r} is no figure")
