"""Compare the entities of rows, requests and views, whatever the exact types of their columns are.

The join and serving use the same rules. Integers of any width are compared as numbers: rows may have `Int32`, the view
`UInt64`, and a request NumPy's `int64`. Strings, categories and enums are compared as text, times in UTC. A number does
not equal its text unless the view has `entity_as_text=True`. All other differences are refused, because a lookup that
never finds anything would look like missing data.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.table_inputs import type_name
from everloop.errors import DataError, UsageError

if TYPE_CHECKING:
    from everloop.data.features.feature_views import FeatureView

_TEXT = (pl.String, pl.Categorical, pl.Enum)
_NAMES = (pl.Boolean, pl.Binary, pl.Date, pl.Datetime, pl.Time, pl.Duration, pl.Decimal, pl.Null, *_TEXT)
_KINDS: dict[type, pl.DataType] = {
    bool: pl.Boolean(),
    int: pl.Int64(),
    float: pl.Float64(),
    str: pl.String(),
    bytes: pl.Binary(),
    date: pl.Date(),
    time: pl.Time(),
    timedelta: pl.Duration("us"),
    Decimal: pl.Decimal(38, 0),
}


def refuse_entity(view: FeatureView, name: str, dtype: pl.DataType) -> None:
    """Raise DataError for a type that cannot identify an entity."""
    if not (dtype.is_integer() or dtype.is_float() or isinstance(dtype, _NAMES)):
        raise DataError(
            f"The entity '{name}' of '{view.name}' is {type_name(dtype)}, which cannot identify an entity.",
            help="Use numbers, text, booleans or times.",
        )
    if view.entity_as_text and not _has_text(dtype):
        raise DataError(
            f"The entity '{name}' of '{view.name}' is {type_name(dtype)}, but only text, integers and dates can be "
            "compared as text.",
            help="Cast it, or leave out entity_as_text=.",
        )


def common_type(rows: pl.DataType, view: pl.DataType, *, as_text: bool) -> pl.DataType | None:
    """The type in which entities of these two types are compared; None if they cannot be compared."""
    if isinstance(rows, pl.Null) or isinstance(view, pl.Null):
        return view if isinstance(rows, pl.Null) else rows
    if as_text:
        return pl.String() if _has_text(rows) and _has_text(view) else None
    if rows.is_integer() and view.is_integer():
        wide = any(isinstance(kind, pl.UInt64 | pl.Int128 | pl.UInt128) for kind in (rows, view))
        return rows if rows == view else pl.Int128() if wide else pl.Int64()
    if isinstance(rows, _TEXT) and isinstance(view, _TEXT):
        return pl.String()
    match rows, view:
        case pl.Datetime(), pl.Datetime() if bool(rows.time_zone) == bool(view.time_zone):
            zone = "UTC" if rows.time_zone else None
            return pl.Datetime("ns" if "ns" in (rows.time_unit, view.time_unit) else "us", zone)
        case pl.Duration(), pl.Duration():
            return pl.Duration("ns" if "ns" in (rows.time_unit, view.time_unit) else "us")
        case pl.Decimal(), pl.Decimal():
            return pl.Decimal(38, max(rows.scale, view.scale))
    return rows if rows == view else None


def incompatible_entity(name: str, kind: pl.DataType, view: FeatureView, other: pl.DataType) -> DataError:
    """The error for entities of types that cannot be compared."""
    both_text = not view.entity_as_text and _has_text(kind) and _has_text(other)
    return DataError(
        f"The entity '{name}' is {kind} in the rows but {other} in '{view.name}'.",
        help="Cast one of them" + (", or declare the view with entity_as_text=True." if both_text else "."),
    )


def published_value(name: str, value: Any, dtype: pl.DataType | None, *, as_text: bool, view: str) -> Any:
    """The entity value of a request, converted to the form in which it is published.

    Raises:
        UsageError: the value does not fit the type of the view's entity.
    """
    kind = type(value)
    if value is None or dtype is None:
        return value
    if kind.__module__ == "numpy" and kind.__name__ not in ("datetime64", "timedelta64"):
        value = value.item()
        kind = type(value)
    if kind is str and (as_text or isinstance(dtype, _TEXT)):
        return value
    if kind is int and not as_text and dtype.is_integer():
        return value
    given = _dtype_of(value)
    common = None if given is None else common_type(given, dtype, as_text=as_text)
    if given is None or common is None:
        found = type_name(given) if given is not None else kind.__name__
        expected = "text" if as_text else type_name(dtype)
        raise UsageError(
            f"'{name}' is {value!r} ({found}), but the entity of the feature view '{view}' is {expected}.",
            help=f"Pass {expected}."
            + (
                " A view with entity_as_text=True accepts both."
                if not as_text and given is not None and _has_text(given) and _has_text(dtype)
                else ""
            ),
        )
    if as_text:
        return str(value)
    if isinstance(given, pl.Datetime | pl.Duration | pl.Date) and not isinstance(value, date | timedelta):
        return as_series(value).cast(common)[0]
    return value


def read_entity(name: str, text: str, dtype: pl.DataType | None) -> Any:
    """Parse the value of an entity column from a command line.

    Raises:
        UsageError: the text is not a value of this type.
    """
    if dtype is None:
        return text
    try:
        match dtype:
            case pl.String() | pl.Categorical() | pl.Enum():
                return text
            case pl.Boolean():
                return {"true": True, "false": False}[text.lower()]
            case pl.Date():
                return date.fromisoformat(text)
            case pl.Datetime():
                return datetime.fromisoformat(text)
            case pl.Time():
                return time.fromisoformat(text)
            case pl.Decimal():
                return Decimal(text)
        if dtype.is_integer():
            return int(text)
        if dtype.is_float():
            return float(text)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise UsageError(f"'{text}' is not a value of type {type_name(dtype)}, the type of '{name}'.") from error
    raise UsageError(
        f"'{name}' is {type_name(dtype)}, which cannot be given on the command line.", help="Use Python instead."
    )


def _has_text(dtype: pl.DataType) -> bool:
    """Whether each value of this type has exactly one text."""
    return dtype.is_integer() or isinstance(dtype, (*_TEXT, pl.Date, pl.Null))


def as_series(value: Any) -> pl.Series:
    """One value as a column. NumPy times in a unit that Polars does not have are converted to microseconds."""
    if type(value).__module__ != "numpy":
        return pl.Series([value])
    import numpy as np

    values = np.array([value])
    unit = np.datetime_data(values.dtype)[0] if values.dtype.kind in "mM" else None
    if unit not in (None, "D", "ms", "us", "ns") or values.dtype == np.dtype("m8[D]"):
        values = values.astype(f"{values.dtype.kind}8[us]")
    return pl.Series(values)


def _dtype_of(value: Any) -> pl.DataType | None:
    kind = type(value)
    if kind in _KINDS:
        return _KINDS[kind]
    if isinstance(value, datetime):
        return pl.Datetime("us", "UTC" if value.tzinfo is not None else None)
    found = next((dtype for base, dtype in _KINDS.items() if isinstance(value, base)), None)
    if found is not None:
        return found
    try:
        dtype = as_series(value).dtype
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        return None
    return None if isinstance(dtype, pl.Object) else dtype
