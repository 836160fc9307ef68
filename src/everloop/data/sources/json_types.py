"""Types that a person may name for a key of a JSON file, and what they are read as.

The reader of JSON knows some types only, and ends its thread on others. What it does not know is read as a wider type
or as text, and then cast: a value that does not fit is an error, never changed.
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
    """The type as which a key is read: `dtype` itself where the reader knows it.

    Raises:
        UsageError: no JSON holds values of this type.
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
        raise _unheld(name, dtype)
    return dtype


def cast_to(scan: pl.LazyFrame, types: Mapping[str, pl.DataType], place: str) -> pl.LazyFrame:
    """The frame with its columns in `types`, each of which was read as `readable` says.

    Raises:
        SourceError: a decimal has more digits behind its point than its type.
    """
    held = scan.collect_schema()
    wanted = {name: dtype for name, dtype in types.items() if name in held and held[name] != dtype}
    for name, dtype in wanted.items():
        if isinstance(dtype, pl.Decimal):
            finer = pl.col(name).str.contains(rf"\.\d{{{dtype.scale}}}\d*[1-9]|[eE]")
            odd = scan.filter(finer).select(name).head(1).collect()
            if odd.height:
                raise SourceError(
                    f"'{odd.item()}' under '{name}' of '{place}' does not fit {type_name(dtype)} exactly.",
                    help="Name a type with more digits behind the point, or string.",
                )
    return scan.with_columns(
        pl.col(name).str.to_time() if isinstance(dtype, pl.Time) else pl.col(name).cast(dtype)
        for name, dtype in wanted.items()
    )


def _nested(name: str, dtype: Any) -> pl.DataType:
    inner: pl.DataType = dtype if isinstance(dtype, pl.DataType) else dtype()
    if isinstance(inner, pl.Time | pl.Decimal):
        raise _unheld(name, inner, "inside a list or an object ")
    return readable(name, inner)


def _unheld(name: str, dtype: pl.DataType, where: str = "") -> UsageError:
    return UsageError(
        f"'{name}' cannot be read as {type_name(dtype)} {where}from JSON.",
        help="Read it as string, int64 or float64, and convert it in a step.",
    )
