"""Check Python values before they become columns: rows as dicts, database results, objects of a JSON file.

Polars would turn a column of texts and numbers into text, and would round whole numbers in a column with fractions.
This module finds the first such value, with its key and its position.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_NONE = type(None)
_UINT64 = 1 << 64
_INT64 = 1 << 63


def find_problem(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str | None:
    """Describe the first value that does not fit its column; None if all values fit.

    Args:
        rows: values in the order of `names`. Rows are counted from 1.
    """
    for name, values in zip(names, zip(*rows, strict=True), strict=True) if rows else ():
        kinds = set(map(type, values)) - {_NONE}
        if len(kinds) < 2 and kinds <= {bool, float, str, bytes}:
            continue
        seen = ValueKinds()
        for number, value in enumerate(values, 1):
            problem = seen.add(name, value, f"row {number}")
            if problem is not None:
                return problem
        if (problem := seen.finish()) is not None:
            return problem
    return None


class ValueKinds:
    """The kind of value of every key so far, and where it was first seen."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}
        self._fractions: dict[str, str] = {}
        self._inexact: dict[str, tuple[int, str]] = {}
        self._negative: set[str] = set()
        self._large: dict[str, tuple[int, str]] = {}

    def add(self, key: str, value: Any, position: str) -> str | None:
        """Check one value; return what is wrong with it, or None.

        Args:
            position: where it is, as messages show it: `row 3`, `line 2 of 'a.jsonl'`.
        """
        if value is None:
            return None
        kind = kind_of(value)
        known = self._kinds.setdefault(key, (kind, position))
        if known[0] != kind and {known[0], kind} != {"int64", "float64"}:
            shown = value if not isinstance(value, str) else repr(value)
            return f"Column '{key}' is {known[0]}, but {position} contains {short_text(shown)} ({kind})."
        if kind == "int64":
            return self._add_whole(key, int(value), position)
        if kind == "float64":
            self._fractions.setdefault(key, position)
        elif kind == "struct":
            for name, inner in value.items():
                if (problem := self.add(f"{key}.{name}", inner, position)) is not None:
                    return problem
        elif kind == "list":
            for inner in value:
                if (problem := self.add(f"{key}[]", inner, position)) is not None:
                    return problem
        return None

    def finish(self) -> str | None:
        """Check all values of each key together; return what is wrong, or None."""
        for key, (value, position) in self._inexact.items():
            if key in self._fractions:
                return (
                    f"Column '{key}' is float64, because {self._fractions[key]} has a fraction, but {position} "
                    f"contains {value}, which float64 cannot hold."
                )
        for key, (value, position) in self._large.items():
            if key in self._negative:
                return _too_large(key, position, value)
        return None

    def _add_whole(self, key: str, value: int, position: str) -> str | None:
        if value < 0:
            self._negative.add(key)
        if value >= _UINT64 or value < -_INT64:
            return _too_large(key, position, value)
        if value >= _INT64:
            self._large.setdefault(key, (value, position))
        if key not in self._inexact and int(float(value)) != value:
            self._inexact[key] = value, position
        return None


def _too_large(key: str, position: str, value: int) -> str:
    return f"Column '{key}' is int64, but {position} contains {short_text(value)}, which int64 cannot hold."


def kind_of(value: Any) -> str:
    """The type of a value, as messages show it."""
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


def short_text(value: object, show: Callable[[object], str] = str) -> str:
    """A value as messages show it, cut after 60 characters.

    Args:
        show: how to write it: `str` or `repr`.
    """
    try:
        text = show(value)
    except ValueError:
        # Python refuses to write very long whole numbers, also inside lists and dicts.
        what = "a number" if isinstance(value, int) else f"a {type(value).__name__} with a number"
        return f"{what} of more than {sys.get_int_max_str_digits():,} digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def signature(value: Any) -> Any:
    """A hashable value that is equal for values with the same keys and kinds at every level.

    A value with a known signature need not be checked again. None if a whole number is so long that it must be.
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
    """The kind of a NumPy number, or the name of any other class."""
    import numbers

    name = type(value).__name__
    if name in ("bool_", "bool"):
        return "bool"
    if isinstance(value, numbers.Integral):
        return "int64"
    if isinstance(value, numbers.Real):
        return "float64"
    return name
