"""Python values that are to become columns: rows of dicts, answers of a database, objects of a JSON file.

Polars would make texts of a column with texts and numbers, and round whole numbers that stand among fractions. Here
the first such value is found, with its key and its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_NONE = type(None)
_UINT64 = 1 << 64
_INT64 = 1 << 63


def find_problem(names: Sequence[str], rows: Sequence[Sequence[Any]], place: str = "row") -> str | None:
    """What is wrong with the first value that does not fit the others of its column; None where all do.

    Args:
        rows: values in the order of `names`; a row's number counts from 1.
        place: what a row is called.
    """
    for name, values in zip(names, zip(*rows, strict=True), strict=True) if rows else ():
        kinds = set(map(type, values)) - {_NONE}
        if len(kinds) < 2 and kinds <= {bool, float, str, bytes}:
            continue
        seen = ValueKinds()
        for number, value in enumerate(values, 1):
            problem = seen.take(name, value, f"{place} {number}")
            if problem is not None:
                return problem
        if (problem := seen.finish()) is not None:
            return problem
    return None


class ValueKinds:
    """The kind of every key that was seen, and where."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._fractions: dict[str, str] = {}
        self._inexact: dict[str, tuple[int, str]] = {}
        self._negative: set[str] = set()
        self._large: dict[str, tuple[int, str]] = {}

    def take(self, key: str, value: Any, place: str) -> str | None:
        """Look at one value; what is wrong with it, or None."""
        if value is None:
            return None
        kind = kind_of(value)
        known = self._kinds.setdefault(key, (kind, place))
        if known[0] != kind and {known[0], kind} != {"int64", "float64"}:
            shown = value if not isinstance(value, str) else repr(value)
            return f"Column '{key}' holds {known[0]}, but {place} says {_short(shown)}, {kind}."
        if kind == "int64":
            return self._whole(key, int(value), place)
        if kind == "float64":
            self._fractions.setdefault(key, place)
        elif kind == "struct":
            for name, inner in value.items():
                if (problem := self.take(f"{key}.{name}", inner, place)) is not None:
                    return problem
        elif kind == "list":
            for inner in value:
                if (problem := self.take(f"{key}[]", inner, place)) is not None:
                    return problem
        return None

    def finish(self) -> str | None:
        """What is wrong with all values together, or None."""
        for key, (value, place) in self._inexact.items():
            if key in self._fractions:
                return (
                    f"Column '{key}' holds float64, but {place} says {value}, which no float64 can hold: "
                    f"{self._fractions[key]} has a fraction."
                )
        for key, (value, place) in self._large.items():
            if key in self._negative:
                return f"Column '{key}' holds int64, but {place} says {value}, which no int64 can hold."
        return None

    def _whole(self, key: str, value: int, place: str) -> str | None:
        if value < 0:
            self._negative.add(key)
        if value >= _UINT64 or value < -_INT64:
            return f"Column '{key}' holds int64, but {place} says {_short(value)}, which no int64 can hold."
        if value >= _INT64:
            self._large.setdefault(key, (value, place))
        if key not in self._inexact and int(float(value)) != value:
            self._inexact[key] = value, place
        return None


def kind_of(value: Any) -> str:
    """What a value is, as messages say it."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int64"
        case float():
            return "float64"
        case str():
            return "string"
        case bytes() | bytearray() | memoryview():
            return "binary"
        case datetime():
            return "timestamp[us]" if value.tzinfo is None else "timestamp[us, UTC]"
        case date():
            return "date"
        case time():
            return "time"
        case timedelta():
            return "duration[us]"
        case Decimal():
            return "decimal"
        case Mapping():
            return "struct"
        case list() | tuple():
            return "list"
    return _other_kind(value)


def signature(value: Any) -> Any:
    """Hashable, and equal for values that have the same keys and kinds all the way down.

    What has a known signature needs no second look. None where a whole number is so long that it does.
    """
    kind = type(value)
    if kind is dict:
        types = tuple(map(type, value.values()))
        if _DEEP.isdisjoint(types):
            if int in types and any(type(each) is int and not -_SMALL < each < _SMALL for each in value.values()):
                return None
            return (*value, types)
        inner = [(name, signature(each)) for name, each in value.items()]
        return None if any(each is None for _, each in inner) else tuple(inner)
    if kind is list:
        kinds = frozenset([signature(each) for each in value])
        return None if None in kinds else (list, kinds)
    return None if kind is int and not -_SMALL < value < _SMALL else kind


_SMALL = 1 << 53
_DEEP = frozenset({dict, list})


def _other_kind(value: Any) -> str:
    """NumPy's numbers are numbers; other classes stand for themselves."""
    import numbers

    name = type(value).__name__
    if name in ("bool_", "bool"):
        return "bool"
    if isinstance(value, numbers.Integral):
        return "int64"
    if isinstance(value, numbers.Real):
        return "float64"
    return name


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
