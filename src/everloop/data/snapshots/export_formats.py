"""Refuse to export a column to a file format that would return other values when the file is read.

| format | refuses |
|---|---|
| `.parquet`, `.arrow` | nothing |
| `.csv` | binary, durations, lists, arrays, structs, columns of no type; NaN, far years; nulls in the only column |
| `.jsonl` | binary, durations, times of day, decimals, numbers of 128 bits; NaN, infinities, far years |

Text files have no types. A csv or json file can contain a column if reading it with the column's type gives the same
values: `el.read("file.csv", schema={"x": pl.Int8})`.
"""

from __future__ import annotations

import polars as pl

from everloop.data.sources.nested_types import leaf_types, leaves
from everloop.data.table_inputs import as_eager, type_name
from everloop.errors import UsageError

_OTHER_FORMATS = ".parquet and .arrow support every type."
_NOT_IN_CSV = (pl.Binary, pl.Duration, pl.List, pl.Array, pl.Struct, pl.Null, pl.BaseExtension)
_NOT_IN_JSON = (pl.Binary, pl.Duration, pl.Time, pl.Decimal, pl.Int128, pl.UInt128, pl.BaseExtension)


def check_exportable(frame: pl.LazyFrame, suffix: str, called: str) -> None:
    """Raise UsageError if a file with this suffix cannot contain a column of the table.

    Args:
        called: the name of the table in messages.
    """
    schema = frame.collect_schema()
    if suffix == ".csv":
        _refuse_in_csv(frame, schema, called)
    elif suffix == ".jsonl":
        _refuse_in_json(frame, schema, called)


def _refuse_in_csv(frame: pl.LazyFrame, schema: pl.Schema, called: str) -> None:
    for name, dtype in schema.items():
        if isinstance(dtype, _NOT_IN_CSV):
            raise _unsupported(called, name, dtype, ".csv")
        if dtype.is_float() and as_eager(frame.select(pl.col(name).is_nan().any())).item():
            raise UsageError(
                f"'{name}' of '{called}' contains NaN, which reads as a missing value in csv.",
                help=f"Convert NaN to null with fill_nan(None), or use another format: {_OTHER_FORMATS}",
            )
        if isinstance(dtype, pl.Date | pl.Datetime):
            _refuse_far_years(as_eager(frame.select(name)).to_series(), name, called)
        if not name:
            raise UsageError(f"A column of '{called}' has no name, but csv needs one.", help="Rename it.")
    if len(schema) == 1:
        (name,) = schema
        if nulls := as_eager(frame.select(pl.col(name).null_count())).item():
            raise UsageError(
                f"'{name}', the only column of '{called}', is null in {nulls} rows, which would be blank lines in csv.",
                help=f"Use another format: {_OTHER_FORMATS}",
            )


def _refuse_in_json(frame: pl.LazyFrame, schema: pl.Schema, called: str) -> None:
    for name, dtype in schema.items():
        inside = list(leaf_types(dtype))
        if any(isinstance(leaf, _NOT_IN_JSON) for leaf in inside):
            raise _unsupported(called, name, dtype, ".jsonl")
        if not any(leaf.is_float() or isinstance(leaf, pl.Date | pl.Datetime) for leaf in inside):
            continue
        for leaf in leaves(as_eager(frame.select(name)).to_series()):
            if leaf.dtype.is_float() and not leaf.is_finite().all():
                raise UsageError(
                    f"'{name}' of '{called}' contains NaN or infinities, which json would turn into null.",
                    help=f"Fill them, or use another format: {_OTHER_FORMATS}",
                )
            if isinstance(leaf.dtype, pl.Date | pl.Datetime):
                _refuse_far_years(leaf, name, called)


def _refuse_far_years(values: pl.Series, name: str, called: str) -> None:
    if not values.drop_nulls().dt.year().is_between(1, 9999).all():
        raise UsageError(
            f"'{name}' of '{called}' contains dates outside of the years 1 to 9999, which cannot be read back from "
            f"text.",
            help=f"Use another format: {_OTHER_FORMATS}",
        )


def _unsupported(called: str, name: str, dtype: pl.DataType, suffix: str) -> UsageError:
    return UsageError(
        f"'{name}' of '{called}' is {type_name(dtype)}, which cannot be written as {suffix} and read back unchanged.",
        help=f"Cast it, or use another format: {_OTHER_FORMATS}",
    )
