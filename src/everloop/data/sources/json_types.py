"""Read the keys of a JSON file as the types that the user names.

Polars' JSON reader supports only some types and panics on others. Keys of other types are read as a wider type or as
text, and then cast. A value that does not fit is an error and is never changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.table_inputs import type_name
from everloop.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SMALL = (pl.Int8, pl.Int16, pl.UInt8, pl.UInt16)
_NONE = (pl.Duration, pl.Binary, pl.Object)


def readable(name: str, dtype: pl.DataType) -> pl.DataType:
    """The type to read a key as: `dtype` itself if the reader supports it.

    Raises:
        UsageError: JSON cannot contain values of this type.
    """
    if isinstance(dtype, _SMALL):
        return pl.Int64()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_nested(name, dtype.inner))
    if isinstance(dtype, pl.Struct):
        return pl.Struct({field.name: _nested(name, field.dtype) for field in dtype.fields})
    if isinstance(dtype, pl.Time | pl.Decimal):
        return pl.String()
    if isinstance(dtype, _NONE):
        raise _unsupported(name, dtype)
    return dtype


def cast_to(scan: pl.LazyFrame, types: Mapping[str, pl.DataType], file: str) -> pl.LazyFrame:
    """Cast columns that were read as their `readable` type to `types`.

    Raises:
        SourceError: a decimal has more digits after the point than its type.
    """
    schema = scan.collect_schema()
    wanted = {name: dtype for name, dtype in types.items() if name in schema and schema[name] != dtype}
    for name, dtype in wanted.items():
        if isinstance(dtype, pl.Decimal):
            finer = pl.col(name).str.contains(rf"\.\d{{{dtype.scale}}}\d*[1-9]|[eE]")
            odd = scan.filter(finer).select(name).head(1).collect()
            if odd.height:
                raise SourceError(
                    f"{type_name(dtype)} cannot hold '{odd.item()}', a value of '{name}' in '{file}', exactly.",
                    help="Name a type with more digits after the point, or string.",
                )
    return scan.with_columns(
        pl.col(name).str.to_time() if isinstance(dtype, pl.Time) else pl.col(name).cast(dtype)
        for name, dtype in wanted.items()
    )


def _nested(name: str, dtype: Any) -> pl.DataType:
    inner: pl.DataType = dtype if isinstance(dtype, pl.DataType) else dtype()
    if isinstance(inner, pl.Time | pl.Decimal):
        raise _unsupported(name, inner, "inside a list or an object ")
    return readable(name, inner)


def _unsupported(name: str, dtype: pl.DataType, where: str = "") -> UsageError:
    return UsageError(
        f"'{name}' cannot be read as {type_name(dtype)} {where}from JSON.",
        help="Read it as string, int64 or float64, and convert it in a step.",
    )
