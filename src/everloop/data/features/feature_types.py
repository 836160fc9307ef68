"""The types that a feature view supports, and how its table and its record store them.

A Delta table has fewer types than a frame: no unsigned numbers, times of day, durations or categories. Such a column is
stored in a type that can hold all of its values, and is converted back when it is read:

| column | stored as |
|---|---|
| uint8, uint16, uint32 | the next wider signed integer |
| uint64 | decimal of 20 digits |
| int128, uint128 | text |
| float16 | float32 |
| time, duration | int64 |
| timestamp[ms], timestamp[ns] | timestamp in µs |
| timestamp in a zone | timestamp in µs, UTC |
| categorical, enum | text |
| null | bool |
| array | list |

Values that Python, and therefore serving, cannot represent are refused by name: times finer than a microsecond, dates
outside of the years 1 to 9999, and Python objects.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import polars as pl

from everloop.data.sources.nested_types import instance, leaf_types, leaves
from everloop.data.table_inputs import type_name
from everloop.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIMPLE: dict[str, pl.DataType] = {
    str(kind()).lower(): kind()
    for kind in (
        *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.UInt128),
        *(pl.Float16, pl.Float32, pl.Float64, pl.String, pl.Binary, pl.Date, pl.Time, pl.Null),
    )
} | {"bool": pl.Boolean(), "categorical": pl.Categorical()}
_STORED: dict[str, pl.DataType] = {
    "uint8": pl.Int16(),
    "uint16": pl.Int32(),
    "uint32": pl.Int64(),
    "uint64": pl.Decimal(20, 0),
    "int128": pl.String(),
    "uint128": pl.String(),
    "float16": pl.Float32(),
    "time": pl.Int64(),
    "categorical": pl.String(),
    "null": pl.Boolean(),
}
_PLAIN_NAME = re.compile(r"\w+")
_US = pl.Datetime("us")


def write_type(dtype: pl.DataType) -> str:
    """The type as a text for `read_type`. It equals that of `type_name`, except that an enum lists its categories."""
    match dtype:
        case pl.Enum():
            return f"enum{json.dumps(dtype.categories.to_list(), ensure_ascii=False)}"
        case pl.List(inner=inner):
            return f"list[{write_type(instance(inner))}]"
        case pl.Array(size=size):
            return f"array[{write_type(instance(dtype.inner))}, {size}]"
        case pl.Struct(fields=fields):
            parts = (f"{_field_name(field.name)}: {write_type(instance(field.dtype))}" for field in fields)
            return f"struct[{', '.join(parts)}]"
    return type_name(dtype)


def read_type(text: str) -> pl.DataType | None:
    """The type described by a text; None if there is none, such as for an `enum` without its categories."""
    try:
        dtype, rest = _parsed(text)
    except (ValueError, IndexError):
        return None
    return None if rest else dtype


def stored_type(dtype: pl.DataType) -> pl.DataType:
    """The type in which a table stores a column of this type."""
    match dtype:
        case pl.Enum():
            return pl.String()
        case pl.Duration():
            return pl.Int64()
        case pl.Datetime(time_zone=zone):
            return pl.Datetime("us", "UTC") if zone else _US
        case pl.List() | pl.Array():
            return pl.List(stored_type(instance(dtype.inner)))
        case pl.Struct(fields=fields):
            return pl.Struct({field.name: stored_type(instance(field.dtype)) for field in fields})
    return _STORED.get(type_name(dtype), dtype)


def to_stored(table: pl.DataFrame, view: str) -> pl.DataFrame:
    """Convert a table to its stored types, and check that each column can be converted back unchanged.

    Raises:
        DataError: a column cannot.
    """
    columns = []
    for column in table.get_columns():
        dtype = stored_type(column.dtype)
        if dtype != column.dtype:
            try:
                converted = column.cast(dtype)
                same = converted.cast(column.dtype).equals(column, null_equal=True)
            except pl.exceptions.PolarsError as error:
                raise _not_storable(column, view, str(error).splitlines()[0]) from error
            if not same:
                raise _not_storable(column, view, f"some values change when they are stored as {type_name(dtype)}")
            columns.append(converted)
        else:
            columns.append(column)
    return pl.DataFrame(columns)


def from_stored(rows: pl.LazyFrame, types: Mapping[str, pl.DataType | None]) -> pl.LazyFrame:
    """Convert the columns of a stored table back to their original types, if these are known."""
    return rows.with_columns(_restored(name, dtype) for name, dtype in types.items() if dtype is not None)


def _restored(name: str, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_nested() and any(isinstance(leaf, pl.Null) for leaf in leaf_types(dtype)):
        # A cast does not change the type of lists of nulls.
        return pl.col(name).map_batches(lambda values: _rebuilt(values, dtype), return_dtype=dtype)
    return pl.col(name).cast(dtype)


def _rebuilt(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    return pl.Series(values.name, values.to_list(), dtype=dtype)


def refuse_type(view: str, name: str, dtype: pl.DataType) -> None:
    """Raise DataError for a type that a feature view does not support."""
    empty = any(isinstance(leaf, pl.Struct) for leaf in leaf_types(dtype))
    # The names of objects and extension types cannot be read back.
    if empty or read_type(write_type(dtype)) != dtype:
        raise DataError(
            f"'{name}' of '{view}' is {type_name(dtype)}, which feature views do not support.",
            help="Cast it, or leave it out with features=.",
        )


def refuse_values(view: str, column: pl.Series) -> None:
    """Raise DataError for times that Python, and therefore serving, would round or cannot represent."""
    for leaf in leaves(column):
        match leaf.dtype:
            case pl.Datetime(time_unit="ns") | pl.Duration(time_unit="ns") | pl.Time():
                if (leaf.cast(pl.Int64) % 1_000 != 0).any():
                    raise DataError(
                        f"'{column.name}' of '{view}' contains times finer than a microsecond, which serving would "
                        "round.",
                        help=f"Round it with pl.col('{column.name}').dt.truncate('1us'), or store it as a number.",
                    )
        if isinstance(leaf.dtype, pl.Date | pl.Datetime) and not leaf.dt.year().is_between(1, 9999).all():
            raise DataError(
                f"'{column.name}' of '{view}' contains dates outside of the years 1 to 9999.",
                help="Drop those rows, or leave out the column with features=.",
            )
        if isinstance(leaf.dtype, pl.Duration):
            per_day = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}[leaf.dtype.time_unit]
            if (leaf.cast(pl.Int64).cast(pl.Int128).abs() // per_day >= 999_999_999).any():
                raise DataError(
                    f"'{column.name}' of '{view}' contains durations of more than 999999999 days.",
                    help="Drop those rows, or leave out the column with features=.",
                )


def _not_storable(column: pl.Series, view: str, why: str) -> DataError:
    return DataError(
        f"'{column.name}' of '{view}' is {type_name(column.dtype)}, which cannot be stored in its table: {why}.",
        help="Cast it, or leave it out with features=.",
    )


def _field_name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _parsed(text: str) -> tuple[pl.DataType, str]:
    """The type at the beginning of the text, and the rest of the text."""
    if text.startswith("enum["):
        categories, end = json.JSONDecoder().raw_decode(text, len("enum"))
        return pl.Enum(categories), text[end:]
    word = re.match(r"\w+", text)
    if word is None:
        raise ValueError(text)
    name, rest = word.group(), text[word.end() :]
    if name in _SIMPLE:
        return _SIMPLE[name], rest
    if not rest.startswith("["):
        raise ValueError(text)
    rest = rest[1:]
    match name:
        case "list":
            inner, rest = _parsed(rest)
            return pl.List(inner), _after("]", rest)
        case "array":
            inner, rest = _parsed(rest)
            size, _, rest = _after(", ", rest).partition("]")
            return pl.Array(inner, int(size)), rest
        case "struct":
            return _parsed_struct(rest)
    inside, _, rest = rest.partition("]")
    parts = inside.split(", ")
    match name, parts:
        case "timestamp", [unit] if unit in ("ms", "us", "ns"):
            return pl.Datetime(unit), rest  # type: ignore[arg-type]
        case "timestamp", [unit, zone] if unit in ("ms", "us", "ns"):
            return pl.Datetime(unit, zone), rest  # type: ignore[arg-type]
        case "duration", [unit] if unit in ("ms", "us", "ns"):
            return pl.Duration(unit), rest  # type: ignore[arg-type]
        case "decimal", [precision, scale]:
            return pl.Decimal(int(precision), int(scale)), rest
    raise ValueError(text)


def _parsed_struct(rest: str) -> tuple[pl.DataType, str]:
    fields: list[pl.Field] = []
    while not rest.startswith("]"):
        if fields:
            rest = _after(", ", rest)
        if rest.startswith('"'):
            name, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            name, rest = rest.split(":", 1)
            rest = ":" + rest
        inner, rest = _parsed(_after(": ", rest))
        fields.append(pl.Field(name, inner))
    return pl.Struct(fields), rest[1:]


def _after(mark: str, text: str) -> str:
    if not text.startswith(mark):
        raise ValueError(text)
    return text[len(mark) :]
