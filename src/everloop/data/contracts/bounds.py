"""Bounds and shares of a contract's columns: how they are written, and which values are outside.

A bound must suit the type of its column; otherwise reading the contract fails:

| column | bound |
|---|---|
| integers, floats | a number |
| decimal | a number, or text if a float would round it: `"0.10"` |
| duration | seconds, or text such as `"90m"` |
| date | `2026-03-01` |
| timestamp | `2026-03-01T12:00:00Z`; without a zone it is UTC, without a time it is midnight |
| time | `23:30:00` |

TOML's own dates and times are accepted as well as text. Integers, decimals and times are compared exactly, times to the
nanosecond.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, InvalidOperation, localcontext
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.errors import UsageError
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.records import Json

_FAMILIES = frozenset(
    (
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64, 128)),
        *("float16", "float32", "float64", "decimal", "bool", "string", "categorical", "enum", "binary", "null"),
        *("date", "time", "timestamp", "duration", "list", "array", "struct"),
    )
)
BOUNDS = ("least", "most", "min", "max")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTION = re.compile(r"(:\d\d)[.,](\d{1,9})(?!\d)")
_DECIMAL_DIGITS = 38
"""The greatest precision of a decimal column."""
_PER_UNIT = {"ms": 1_000_000, "us": 1_000, "ns": 1}
_WAYS = {
    "number": "an int or float",
    "decimal": 'an int, a float, or text such as "0.10"',
    "duration": 'seconds, or text such as "90m"',
    "date": "a date such as 2026-03-01",
    "timestamp": "a time such as 2026-03-01T12:00:00Z",
    "time": "a time of day such as 23:30:00",
}


def bound_kind(declared: str) -> str | None:
    """The kind of bound that a column of this type takes; None if the type cannot have bounds."""
    for kind in ("decimal", "duration", "timestamp"):
        if declared.startswith(kind):
            return kind
    if declared in ("date", "time"):
        return declared
    return "number" if declared.startswith(("int", "uint", "float")) else None


def as_bound(value: Any) -> Json:
    """A bound as a JSON value: dates and times, such as TOML's own, become text."""
    match value:
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
    # NumPy scalars become Python numbers.
    return value.item() if hasattr(value, "item") else value


def read_bound(where: str, bound: str, value: Json, declared: str) -> Any:
    """Convert a bound to what values are compared with: a number, a Decimal, seconds, or nanoseconds.

    Args:
        where: names the column in error messages.

    Raises:
        UsageError: the bound does not suit the type of its column.
    """
    kind = bound_kind(declared)
    if kind is None:
        raise UsageError(
            f"{where} has {bound} = {value!r}, but values of type {declared} cannot have bounds.",
            help="Remove it, or use a pattern, categories, or a rule with SQL.",
        )
    try:
        found = _read(kind, value)
    except (ValueError, InvalidOperation, UsageError) as error:
        raise UsageError(
            f"{where} has {bound} = {value!r}, which is not a bound for its type {declared}.",
            help=f"Write {_WAYS[kind]}.",
        ) from error
    return found


def read_share(where: str, name: str, value: Json) -> float:
    """Return a share of the rows, such as `max_nulls`.

    Args:
        where: names the column in error messages.

    Raises:
        UsageError: the value is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(
            f"{where} has {name} = {value!r}, which is not a share of the rows.",
            help="Write a number from 0 to 1, such as 0.05 for 5 percent.",
        )
    return float(value)


def is_known(declared: str) -> bool:
    """Whether the text begins with the name of a type that a table can have."""
    return declared.partition("[")[0] in _FAMILIES


def outside(name: str, dtype: pl.DataType, bound: Any, *, below: bool) -> pl.Expr | None:
    """Which values of a column are below, or above, a bound from `read_bound`; None if the column has no values.

    Args:
        dtype: the type of the column. Its width, unit or time zone may differ from the contract's.
    """
    column = pl.col(name)
    match dtype:
        case pl.Null():
            return None
        case pl.Date():
            return _beyond(column.cast(pl.Int32), bound, per_unit=86_400 * 10**9, below=below)
        case pl.Time():
            return _beyond(column.cast(pl.Int64), bound, below=below)
        case pl.Datetime(time_unit=unit):
            # Values with a time zone are stored in UTC. Values without one are UTC by convention.
            return _beyond(column.cast(pl.Int64), bound, per_unit=_PER_UNIT[unit], below=below)
        case pl.Duration(time_unit=unit):
            # Round as inference does: in the column's unit, to float64 seconds.
            seconds = column.cast(pl.Int64).cast(pl.Float64) / (10**9 / _PER_UNIT[unit])
            limit = pl.lit(_as_float(bound))
            return seconds < limit if below else seconds > limit
        case pl.Decimal() if isinstance(bound, Decimal):
            return _beyond_decimal(column, bound, dtype, below=below)
    if dtype.is_integer() and isinstance(bound, int):
        return _beyond(column, bound, unsigned=dtype == pl.UInt128(), below=below)
    number = column.cast(pl.Float64)
    limit = pl.lit(_as_float(bound))
    # Infinities have a rule of their own, and NaN counts as missing.
    return number.is_finite() & ((number < limit) if below else (number > limit))


def exact_text(values: pl.Series, bound: str) -> Json:
    """The least (`min`) or greatest (`max`) date or time of a column as a bound, exact to the nanosecond."""
    found = values.min() if bound == "min" else values.max()
    text = str(as_bound(found))
    finer = values.dtype == pl.Time or (isinstance(values.dtype, pl.Datetime) and values.dtype.time_unit == "ns")
    if not finer:
        return text
    whole = values.cast(pl.Int64)
    nanos = whole.min() if bound == "min" else whole.max()
    rest = int(nanos) % 1_000 if isinstance(nanos, int) else 0
    if not rest:
        return text
    # Python's times end at microseconds. After those six digits, append the three digits of the nanoseconds.
    head, micros, tail = re.fullmatch(r"(.*?:\d\d:\d\d)(\.\d{6})?(.*)", text).groups()  # type: ignore[union-attr]
    return f"{head}{micros or '.000000'}{rest:03d}{tail}"


def _beyond(values: pl.Expr, bound: int, *, per_unit: int = 1, unsigned: bool = False, below: bool) -> pl.Expr:
    """Compare integers exactly, as 128-bit numbers. Half of the values of UInt128 do not fit into Int128."""
    wide, least, most = (pl.UInt128, 0, (1 << 128) - 1) if unsigned else (pl.Int128, -(1 << 127), (1 << 127) - 1)
    limit = -(-bound // per_unit) if below else bound // per_unit
    if limit > most if below else limit < least:
        return values.is_not_null()
    limit = min(max(limit, least), most)
    numbers = values.cast(wide)
    return numbers < pl.lit(limit, dtype=wide) if below else numbers > pl.lit(limit, dtype=wide)


def _beyond_decimal(values: pl.Expr, bound: Decimal, dtype: pl.Decimal, *, below: bool) -> pl.Expr:
    """Compare decimals exactly. The bound is rounded to the digits of the column, away from the values in question."""
    if bound and bound.adjusted() >= _DECIMAL_DIGITS - dtype.scale:
        # No decimal of this scale is so large.
        return values.is_not_null() if (bound > 0) == below else values.is_null() & pl.lit(value=False)
    with localcontext(prec=2 * _DECIMAL_DIGITS):
        limit = bound.quantize(Decimal(1).scaleb(-dtype.scale), ROUND_CEILING if below else ROUND_FLOOR)
    return values < pl.lit(limit) if below else values > pl.lit(limit)


def _as_float(bound: Any) -> float:
    """The bound as a float; infinity if it is too large for one."""
    try:
        return float(bound)
    except OverflowError:
        return math.inf if bound > 0 else -math.inf


def _read(kind: str, value: Json) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    match kind:
        case "number" if number:
            return value
        case "decimal" if number:
            return value
        case "decimal" if isinstance(value, str):
            exact = Decimal(value)
            if not exact.is_finite():
                raise ValueError(value)
            return exact
        case "duration" if number:
            return value
        case "duration" if isinstance(value, str):
            return parse_duration(value).total_seconds()
        case "date" if isinstance(value, str):
            return (date.fromisoformat(value) - _EPOCH.date()).days * 86_400 * 10**9
        case "timestamp" if isinstance(value, str):
            return _nanoseconds(value)
        case "time" if isinstance(value, str):
            text, rest = _split_fraction(value)
            moment = time.fromisoformat(text)
            if moment.tzinfo is not None:
                raise ValueError(value)
            since = timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)
            return int(since.total_seconds()) * 10**9 + rest
    raise ValueError(value)


def _nanoseconds(text: str) -> int:
    seconds, rest = _split_fraction(text)
    moment = datetime.fromisoformat(seconds)
    since = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1_000 + rest


def _split_fraction(text: str) -> tuple[str, int]:
    """Split off the fraction of a second: the rest of the text, and the fraction in nanoseconds."""
    found = _FRACTION.search(text)
    if found is None:
        return text, 0
    return text[: found.end(1)] + text[found.end() :], int(found.group(2).ljust(9, "0"))
