"""Which columns a file format can hold: one that would come back as something else is refused by name.

| format | refuses |
|---|---|
| `.parquet`, `.arrow` | nothing |
| `.csv` | binary, durations, lists, arrays, structs, columns of no type; NaN, far years; nulls in the only column |
| `.jsonl` | binary, durations, times of day, decimals, numbers of 128 bits; NaN, infinities, far years |

Text has no types. A csv or json file holds a column when reading it with the column's type gives the same values:
`el.read("file.csv", schema={"x": pl.Int8})`.
"""

from __future__ import annotations

import polars as pl

from everloop.data.sources.nested_types import leaf_types, leaves
from everloop.data.table_inputs import as_eager, type_name
from everloop.errors import UsageError

_WHOLE = ".parquet and .arrow hold every type."
_NOT_IN_CSV = (pl.Binary, pl.Duration, pl.List, pl.Array, pl.Struct, pl.Null, pl.BaseExtension)
_NOT_IN_JSON = (pl.Binary, pl.Duration, pl.Time, pl.Decimal, pl.Int128, pl.UInt128, pl.BaseExtension)


def refuse_unheld(frame: pl.LazyFrame, suffix: str, called: str) -> None:
    """Raise UsageError for a column of `called` that a file of this suffix would not hold."""
    schema = frame.collect_schema()
    if suffix == ".csv":
        _refuse_in_csv(frame, schema, called)
    elif suffix == ".jsonl":
        _refuse_in_json(frame, schema, called)


def _refuse_in_csv(frame: pl.LazyFrame, schema: pl.Schema, called: str) -> None:
    for name, dtype in schema.items():
        if isinstance(dtype, _NOT_IN_CSV):
            raise _unheld(called, name, dtype, ".csv")
        if dtype.is_float() and as_eager(frame.select(pl.col(name).is_nan().any())).item():
            raise UsageError(
                f"'{name}' of '{called}' holds NaN, which in csv is a missing value like null.",
                help=f"Make it null: fill_nan(None), or write it as another format: {_WHOLE}",
            )
        if isinstance(dtype, pl.Date | pl.Datetime):
            _refuse_far_years(as_eager(frame.select(name)).to_series(), name, called)
        if not name:
            raise UsageError(f"A column of '{called}' has no name, and csv needs one.", help="Rename it.")
    if len(schema) == 1:
        (name,) = schema
        if nulls := as_eager(frame.select(pl.col(name).null_count())).item():
            raise UsageError(
                f"'{name}', the only column of '{called}', is null in {nulls} rows: in csv these would be blank lines.",
                help=f"Write it as another format: {_WHOLE}",
            )


def _refuse_in_json(frame: pl.LazyFrame, schema: pl.Schema, called: str) -> None:
    for name, dtype in schema.items():
        inside = list(leaf_types(dtype))
        if any(isinstance(leaf, _NOT_IN_JSON) for leaf in inside):
            raise _unheld(called, name, dtype, ".jsonl")
        if not any(leaf.is_float() or isinstance(leaf, pl.Date | pl.Datetime) for leaf in inside):
            continue
        for leaf in leaves(as_eager(frame.select(name)).to_series()):
            if leaf.dtype.is_float() and not leaf.is_finite().all():
                raise UsageError(
                    f"'{name}' of '{called}' holds NaN or infinities, which json would turn into null.",
                    help=f"Fill them, or write it as another format: {_WHOLE}",
                )
            if isinstance(leaf.dtype, pl.Date | pl.Datetime):
                _refuse_far_years(leaf, name, called)


def _refuse_far_years(values: pl.Series, name: str, called: str) -> None:
    if not values.drop_nulls().dt.year().is_between(1, 9999).all():
        raise UsageError(
            f"'{name}' of '{called}' holds dates outside of the years 1 to 9999, which have no text that is read back.",
            help=f"Write it as another format: {_WHOLE}",
        )


def _unheld(called: str, name: str, dtype: pl.DataType, suffix: str) -> UsageError:
    return UsageError(
        f"'{name}' of '{called}' holds {type_name(dtype)}, which cannot be written as {suffix} and read back the same.",
        help=f"Cast it, or write it as another format: {_WHOLE}",
    )
