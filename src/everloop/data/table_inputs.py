"""Convert tables of other libraries to Polars, and describe their columns and types in messages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.nested_types import instance
from everloop.errors import DataError, UsageError
from everloop.stores.tables.foreign_frames import read_frame

if TYPE_CHECKING:
    from collections.abc import Iterable

Frame = Any
"""A Polars DataFrame or LazyFrame, or anything with `__arrow_c_stream__`: pandas, pyarrow, DuckDB, …"""


def as_lazy(frame: Frame) -> pl.LazyFrame:
    """`frame` as a LazyFrame.

    Raises:
        UsageError: `frame` is not a table.
        DataError: see `as_eager`.
    """
    if isinstance(frame, pl.LazyFrame):
        return frame
    return as_eager(frame).lazy()


def as_eager(frame: Frame) -> pl.DataFrame:
    """`frame` as a DataFrame. A LazyFrame is collected.

    Raises:
        UsageError: `frame` is not a table.
        DataError: a column or an index cannot be converted; see `stores/tables/pandas_frames.py` for the rules.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        collected = frame.collect(engine="streaming")
        return collected if isinstance(collected, pl.DataFrame) else collected.fetch_blocking()
    converted = read_frame(frame)
    if converted is None:
        raise UsageError(
            f"A table was expected, not {_described(frame)}.",
            help="Pass a Polars frame, or a table of pandas, pyarrow, DuckDB or another library that exports Arrow.",
        )
    return converted


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a message: the names most similar to `name`, or else a list of all names."""
    names = list(known)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(item) for item in close)}?"
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"There are: {listed}." if names else "There are none."


def require_column(name: str, schema: Iterable[str], what: str) -> None:
    """Raise DataError, with the most similar columns, unless there is a column `name`."""
    names = list(schema)
    if name not in names:
        raise DataError(f"There is no column '{name}' to use as the {what}.", help=nearest(name, names))


def type_name(dtype: pl.DataType) -> str:
    """The Arrow name of a type: `int64`, `timestamp[us, UTC]`, `list[string]`, …"""
    match dtype:
        case pl.Datetime(time_unit=unit, time_zone=zone):
            return f"timestamp[{unit}, {zone}]" if zone else f"timestamp[{unit}]"
        case pl.Duration(time_unit=unit):
            return f"duration[{unit}]"
        case pl.Decimal(precision=precision, scale=scale):
            return f"decimal[{precision}, {scale}]"
        case pl.Categorical():
            return "categorical"
        case pl.Enum():
            return "enum"
        case pl.List(inner=inner):
            return f"list[{type_name(instance(inner))}]"
        case pl.Array(inner=inner, size=size):
            return f"array[{type_name(instance(inner))}, {size}]"
        case pl.Struct(fields=fields):
            return f"struct[{', '.join(f'{field.name}: {type_name(instance(field.dtype))}' for field in fields)}]"
        case pl.Boolean():
            return "bool"
    # int8 … uint64, int128, float32, float64, string, binary, date, time, null
    return str(dtype).lower()


def is_moment(dtype: pl.DataType) -> bool:
    """Whether values of this type are points in time: dates and datetimes."""
    return isinstance(dtype, pl.Date | pl.Datetime)


def as_utc(name: str, dtype: pl.DataType) -> pl.Expr:
    """The column as UTC with microseconds. Times without a time zone are taken as UTC.

    Raises:
        DataError: the column is not temporal.
    """
    column = pl.col(name)
    match dtype:
        case pl.Datetime(time_zone=None):
            return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        case pl.Datetime():
            return column.dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        case pl.Date():
            return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise DataError(
        f"The time column '{name}' is {type_name(dtype)}, but must contain times.",
        help=f"Convert it to a datetime, for example with pl.col('{name}').str.to_datetime().",
    )


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
