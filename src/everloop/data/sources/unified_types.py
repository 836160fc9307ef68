"""Find one type for a column whose type differs between files, such that no value changes.

| in one file | in another | common type |
|---|---|---|
| only nulls | any type | that type |
| integers | integers of another width | the wider one; `int64` or wider if one is unsigned |
| integers, fractions | fractions | `float64`, if it holds every integer exactly |
| categories | text | text |
| categories | other categories | categories |
| times | times of another unit | the finer unit |
| decimals | decimals of the same scale | the greater precision |
| lists, structs | lists, structs | the common type of what they contain |
"""

from __future__ import annotations

from typing import Any

import polars as pl

from everloop.data.sources.nested_types import instance

_UNITS = ("ms", "us", "ns")
_SIGNED: dict[int, pl.DataType] = {8: pl.Int8(), 16: pl.Int16(), 32: pl.Int32(), 64: pl.Int64(), 128: pl.Int128()}
_UNSIGNED: dict[int, pl.DataType] = {
    8: pl.UInt8(),
    16: pl.UInt16(),
    32: pl.UInt32(),
    64: pl.UInt64(),
    128: pl.UInt128(),
}


def unified(one: pl.DataType, other: pl.DataType, *, open_structs: bool = False) -> pl.DataType | None:
    """The type that holds the values of both, or None if there is none.

    Args:
        open_structs: structs may have different fields; missing fields become null.
    """
    if one == other or isinstance(other, pl.Null):
        return one
    if isinstance(one, pl.Null):
        return other
    if one.is_integer() and other.is_integer():
        return _whole(one, other)
    if one.is_numeric() and other.is_numeric() and not one.is_decimal() and not other.is_decimal():
        return pl.Float64()
    if isinstance(one, _NAMED) and isinstance(other, _NAMED):
        return pl.String() if isinstance(one, pl.String) or isinstance(other, pl.String) else pl.Categorical()
    match one, other:
        case pl.Datetime(), pl.Datetime() if one.time_zone == other.time_zone:
            return pl.Datetime(_finer(one, other), one.time_zone)
        case pl.Duration(), pl.Duration():
            return pl.Duration(_finer(one, other))
        case pl.Decimal(), pl.Decimal() if one.scale == other.scale:
            return pl.Decimal(max(one.precision, other.precision), one.scale)
        case (pl.List(), pl.List()):
            inner = unified(instance(one.inner), instance(other.inner), open_structs=open_structs)
            return None if inner is None else pl.List(inner)
        case (pl.Array(), pl.Array()) if one.shape == other.shape:
            inner = unified(instance(one.inner), instance(other.inner), open_structs=open_structs)
            return None if inner is None else pl.Array(inner, one.size)
        case pl.Struct(), pl.Struct():
            return _struct(one, other, open_structs=open_structs)
    return None


_NAMED = (pl.String, pl.Categorical, pl.Enum)


def _whole(one: pl.DataType, other: pl.DataType) -> pl.DataType:
    width = max(_width(one), _width(other))
    if one.is_signed_integer() and other.is_signed_integer():
        return _SIGNED[width]
    if one.is_unsigned_integer() and other.is_unsigned_integer():
        return _UNSIGNED[width]
    return _SIGNED[max(64, width)]


def _width(dtype: pl.DataType) -> int:
    return int(str(dtype).lstrip("UInt"))


def _finer(one: Any, other: Any) -> Any:
    return max(one.time_unit, other.time_unit, key=_UNITS.index)


def _struct(one: pl.Struct, other: pl.Struct, *, open_structs: bool) -> pl.DataType | None:
    mine = {field.name: instance(field.dtype) for field in one.fields}
    theirs = {field.name: instance(field.dtype) for field in other.fields}
    if mine.keys() != theirs.keys() and not open_structs:
        return None
    fields: dict[str, pl.DataType] = {}
    for name in {**mine, **theirs}:
        both = [side[name] for side in (mine, theirs) if name in side]
        dtype = unified(both[0], both[-1], open_structs=open_structs)
        if dtype is None:
            return None
        fields[name] = dtype
    return pl.Struct(fields)
