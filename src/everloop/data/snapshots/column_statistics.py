"""Compute statistics of the columns of a snapshot."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from everloop.records import Json

COUNTED_ROWS = 5_000_000
"""Distinct values are not counted in larger tables, because the count alone would need all of the memory."""
_MOST_DAYS = 999_999_999
_COUNTABLE = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Time, pl.Duration)


def column_statistics(frame: pl.DataFrame | pl.LazyFrame, rows: int) -> dict[str, dict[str, Json]]:
    """By column: `nulls`, and if the type has them `distinct`, `min`, `max`, `mean` and `std`.

    NaN counts as missing. Times are in ISO 8601, durations in seconds, decimals as text. A lazy frame is collected
    column by column, so that memory holds the values of one column at most.
    """
    if isinstance(frame, pl.DataFrame):
        return _statistics(frame.lazy(), frame.schema, rows)
    found: dict[str, dict[str, Json]] = {}
    for name, dtype in frame.collect_schema().items():
        found |= _statistics(frame.select(name), pl.Schema({name: dtype}), rows)
    return found


def _statistics(frame: pl.LazyFrame, schema: pl.Schema, rows: int) -> dict[str, dict[str, Json]]:
    expressions: list[pl.Expr] = []
    for index, (name, dtype) in enumerate(schema.items()):
        column = pl.col(name)
        expressions.append(column.null_count().alias(f"{index} nulls"))
        if dtype.is_float():
            column = column.fill_nan(None)
        if (dtype.is_numeric() or isinstance(dtype, _COUNTABLE)) and rows <= COUNTED_ROWS:
            expressions.append(column.drop_nulls().n_unique().alias(f"{index} distinct"))
        if dtype.is_numeric() or dtype.is_temporal():
            expressions += [_in_python_range(column.min(), dtype).alias(f"{index} min")]
            expressions += [_in_python_range(column.max(), dtype).alias(f"{index} max")]
        if dtype.is_numeric():
            # A single infinity would leave no finite mean or standard deviation.
            value = column.cast(pl.Float64)
            value = value.filter(value.is_finite())
            expressions += [value.mean().alias(f"{index} mean"), value.std().alias(f"{index} std")]
    row = frame.select(expressions).collect(engine="streaming").row(0, named=True)
    found: dict[str, dict[str, Json]] = {name: {} for name in schema}
    names = list(schema)
    for label, value in row.items():
        index_text, _, figure = label.partition(" ")
        if value is not None:
            found[names[int(index_text)]][figure] = as_json(value)
    return found


def _in_python_range(figure: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The figure, or null if Python cannot represent it."""
    if isinstance(dtype, pl.Date | pl.Datetime):
        return pl.when(figure.dt.year().is_between(1, 9999)).then(figure)
    if isinstance(dtype, pl.Duration):
        return pl.when(figure.dt.total_days().abs() < _MOST_DAYS).then(figure)
    return figure


def as_json(value: Any) -> Json:
    """A value as JSON."""
    match value:
        case bool() | str() | float() | None:
            return value
        case int():
            # JSON readers disagree about numbers beyond 64 bits.
            return value if -(1 << 63) <= value < 1 << 63 else str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
    raise TypeError(f"{value!r} cannot be written as JSON")
