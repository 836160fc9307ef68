"""Figures that describe the columns of a snapshot."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from everloop.records import Json

_COUNTABLE = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Time, pl.Duration)


def column_statistics(frame: pl.DataFrame) -> dict[str, dict[str, Json]]:
    """By column: `nulls`, and where the type has them `distinct`, `min`, `max`, `mean` and `std`.

    NaN counts as no value. Times are ISO 8601, durations seconds, decimals text.
    """
    schema = frame.schema
    asked: list[pl.Expr] = []
    for index, (name, dtype) in enumerate(schema.items()):
        column = pl.col(name)
        asked.append(column.null_count().alias(f"{index} nulls"))
        if dtype.is_float():
            column = column.fill_nan(None)
        if dtype.is_numeric() or isinstance(dtype, _COUNTABLE):
            asked.append(column.drop_nulls().n_unique().alias(f"{index} distinct"))
        if dtype.is_numeric() or dtype.is_temporal():
            asked += [column.min().alias(f"{index} min"), column.max().alias(f"{index} max")]
        if dtype.is_numeric():
            # One infinity would leave no mean and no spread.
            value = column.cast(pl.Float64)
            value = value.filter(value.is_finite())
            asked += [value.mean().alias(f"{index} mean"), value.std().alias(f"{index} std")]
    row = frame.lazy().select(asked).collect().row(0, named=True)
    found: dict[str, dict[str, Json]] = {name: {} for name in schema}
    names = list(schema)
    for label, value in row.items():
        index_text, _, figure = label.partition(" ")
        if value is not None:
            found[names[int(index_text)]][figure] = as_json(value)
    return found


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
