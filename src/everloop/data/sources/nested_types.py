"""Walk through the types and values inside lists, arrays and structs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator


def instance(dtype: object) -> pl.DataType:
    """A type as an instance: Polars allows `Int64` instead of `Int64()` for types without parameters."""
    found: pl.DataType = dtype() if isinstance(dtype, type) else dtype  # type: ignore[assignment]
    return found


def leaf_types(dtype: pl.DataType) -> Iterator[pl.DataType]:
    """The innermost types; a struct without fields counts as one."""
    match dtype:
        case pl.List() | pl.Array():
            yield from leaf_types(instance(dtype.inner))
        case pl.Struct(fields=fields) if fields:
            for field in fields:
                yield from leaf_types(instance(field.dtype))
        case _:
            yield dtype


def leaves(column: pl.Series) -> Iterator[pl.Series]:
    """The innermost values without nulls, one series for each of `leaf_types`."""
    match column.dtype:
        case pl.List() | pl.Array():
            yield from leaves(column.drop_nulls().explode())
        case pl.Struct(fields=fields) if fields:
            for field in column.struct.fields:
                yield from leaves(column.struct.field(field))
        case _:
            yield column.drop_nulls()
