"""Bounds of a contract's columns: how they are written, and which values lie outside.

A bound is of its column's type, or the contract is refused when it is read:

| column | bound |
|---|---|
| whole numbers, fractions | a number |
| decimal | a number, or text where a float would round: `"0.10"` |
| duration | seconds, or text such as `"90m"` |
| date | `2026-03-01` |
| timestamp | `2026-03-01T12:00:00Z`; without a zone it is UTC, without a time it is midnight |
| time | `23:30:00` |

TOML's own dates and times are taken as well as text. Whole numbers, decimals and times are compared exactly, to the
nanosecond.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
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
_PER_UNIT = {"ms": 1_000_000, "us": 1_000, "ns": 1}
_WAYS = {
    "number": "int or float",
    "decimal": 'int, float or text such as "0.10"',
    "duration": 'seconds or text such as "90m"',
    "date": "a date such as 2026-03-01",
    "timestamp": "a time such as 2026-03-01T12:00:00Z",
    "time": "a time of day such as 23:30:00",
}


def bound_kind(declared: str) -> str | None:
    """What bounds of a column of this type are; None for a type that has no order of amounts."""
    for kind in ("decimal", "duration", "timestamp"):
        if declared.startswith(kind):
            return kind
    if declared in ("date", "time"):
        return declared
    return "number" if declared.startswith(("int", "uint", "float")) else None


def as_bound(value: Any) -> Json:
    """A bound as JSON holds it: dates and times, such as TOML's own, become text."""
    match value:
        case date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal():
            return str(value)
    # A scalar of NumPy is what it holds.
    return value.item() if hasattr(value, "item") else value


def read_bound(where: str, bound: str, value: Json, declared: str) -> Any:
    """The bound as it is compared: a number, a Decimal, seconds, or nanoseconds.

    Raises:
        UsageError: it is of another type than its column, with `where` to say which.
    """
    kind = bound_kind(declared)
    if kind is None:
        raise UsageError(
            f"{where} has {bound} = {value!r}, and values of the type {declared} have no bounds.",
            help="Leave it out, or use a pattern, categories or a rule of SQL.",
        )
    try:
        found = _read(kind, value)
    except (ValueError, InvalidOperation, UsageError) as error:
        raise UsageError(
            f"{where} has {bound} = {value!r}, where {_WAYS[kind]} belongs: its type is {declared}."
        ) from error
    return found


def is_known(declared: str) -> bool:
    """Whether a type's name begins with a word that types have; a table cannot hold another."""
    return declared.partition("[")[0] in _FAMILIES


def outside(name: str, dtype: pl.DataType, bound: Any, *, below: bool) -> pl.Expr | None:
    """Which values of a column lie below, or above, a bound that was read; None where the column has no values.

    Args:
        dtype: the column's own, which may be of another width, unit or zone than the contract's.
    """
    column = pl.col(name)
    match dtype:
        case pl.Null():
            return None
        case pl.Date():
            return _beyond(column.cast(pl.Int32), bound, 86_400 * 10**9, below=below)
        case pl.Time():
            return _beyond(column.cast(pl.Int64), bound, 1, below=below)
        case pl.Datetime(time_unit=unit):
            # What has a zone is UTC inside, what has none is UTC by agreement.
            return _beyond(column.cast(pl.Int64), bound, _PER_UNIT[unit], below=below)
        case pl.Duration(time_unit=unit):
            # As inference rounds: by its own unit, in float64 seconds.
            seconds = column.cast(pl.Int64).cast(pl.Float64) / (10**9 / _PER_UNIT[unit])
            return seconds < pl.lit(bound) if below else seconds > pl.lit(bound)
    if dtype.is_integer() and isinstance(bound, int):
        return _beyond(column, bound, 1, below=below)
    if dtype.is_decimal() and isinstance(bound, Decimal):
        exact = pl.lit(bound)
        return column < exact if below else column > exact
    number = column.cast(pl.Float64)
    limit = pl.lit(float(bound))
    # Infinities are judged by a rule of their own, NaN is not an amount.
    return number.is_finite() & ((number < limit) if below else (number > limit))


def exact_text(values: pl.Series, bound: str) -> Json:
    """The least (`min`) or greatest (`max`) date or time of a column, as a bound that says it to the nanosecond."""
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
    # Python's times end at microseconds: with nanoseconds there are six digits, and these are the next three.
    head, micros, tail = re.fullmatch(r"(.*?:\d\d:\d\d)(\.\d{6})?(.*)", text).groups()  # type: ignore[union-attr]
    return f"{head}{micros or '.000000'}{rest:03d}{tail}"


def _beyond(values: pl.Expr, bound: int, per_unit: int, *, below: bool) -> pl.Expr:
    wide = values.cast(pl.Int128)
    if below:
        return wide < pl.lit(-(-bound // per_unit), dtype=pl.Int128)
    return wide > pl.lit(bound // per_unit, dtype=pl.Int128)


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
            text, rest = _cut(value)
            moment = time.fromisoformat(text)
            if moment.tzinfo is not None:
                raise ValueError(value)
            since = timedelta(hours=moment.hour, minutes=moment.minute, seconds=moment.second)
            return int(since.total_seconds()) * 10**9 + rest
    raise ValueError(value)


def _nanoseconds(text: str) -> int:
    whole, rest = _cut(text)
    moment = datetime.fromisoformat(whole)
    since = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    return since // timedelta(microseconds=1) * 1_000 + rest


def _cut(text: str) -> tuple[str, int]:
    """The text without its fraction of a second, and this fraction in nanoseconds."""
    found = _FRACTION.search(text)
    if found is None:
        return text, 0
    return text[: found.end(1)] + text[found.end() :], int(found.group(2).ljust(9, "0"))
