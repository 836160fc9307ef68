"""Search expressions: trees of comparisons, which code can build without a query language.

    And((Compare(("metrics", "auc"), ">", 0.9), Not(Compare(("tags", "team"), "in", ("a", "b")))))

A comparison is true or false, never unknown. If the record has no value at the path, it is false. `!=`, `not in`,
`not like`, `not ilike` and `is null` are the exact negations of their counterparts. A number is compared with numbers,
including texts that represent a number. A text is compared with texts, and with the JSON of other values (`true`,
`0.5`). NaN equals only NaN, and cannot be ordered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from everloop.errors import UsageError
from everloop.stores.records.like_patterns import is_like

if TYPE_CHECKING:
    from collections.abc import Callable

CompareOp = Literal[
    "=", "!=", "<", "<=", ">", ">=", "in", "not in", "like", "not like", "ilike", "not ilike", "is null", "is not null"
]
Scalar = str | int | float | bool | datetime
PATTERN_LIMIT = 1000
"""Limit for the length of a pattern, because databases are too slow with longer ones."""

OPPOSITE: dict[CompareOp, CompareOp] = {
    "!=": "=",
    "not in": "in",
    "not like": "like",
    "not ilike": "ilike",
    "is null": "is not null",
}
"""Each negated operation with its counterpart."""

_NAN = "Use = or != to find values that are, or are not, NaN."
_POSITIVE = frozenset({"=", "<", "<=", ">", ">=", "in", "like", "ilike", "is not null"})


@dataclass(frozen=True, slots=True)
class Compare:
    """Compares a value of a record with a constant.

    `path` is a field, `("name",)`, or a field and a name in it, `("metrics", "val/auc")`. `value` is a text, number,
    boolean or time. For `in` it is a tuple of these, for `is null` and `is not null` it is None. In patterns, `%`
    stands for any characters and `_` for one character. `ilike` ignores the case of ASCII letters.
    """

    path: tuple[str, ...]
    op: CompareOp
    value: Scalar | tuple[Scalar, ...] | None = None

    def __post_init__(self) -> None:
        if self.op not in _POSITIVE and self.op not in OPPOSITE:
            raise UsageError(
                f"'{self.op}' is not a comparison operator.", help=f"Operators: {', '.join([*_POSITIVE, *OPPOSITE])}"
            )
        if not self.path or not all(isinstance(name, str) for name in self.path):
            raise UsageError(
                f"{self.path!r} is not a valid path.", help='Use a tuple of names, such as ("metrics", "auc").'
            )
        shown = ".".join(self.path)
        if "\0" in shown or not _is_unicode(shown):
            raise UsageError(f"There is no field {shown[:100]!r}, because names never contain such characters.")
        op = OPPOSITE.get(self.op, self.op)
        if op == "in":
            if not isinstance(self.value, tuple):
                raise UsageError(f"'{shown} {self.op}' needs a tuple, not {self.value!r}.")
            for item in self.value:
                _check(shown, item)
        elif op == "is not null":
            if self.value is not None:
                raise UsageError(f"'{shown} {self.op}' takes no value, but got {self.value!r}.")
        else:
            _check(shown, self.value)
            if op != "=" and is_nan(self.value):
                raise UsageError(f"'{shown} {self.op}' cannot be used with NaN, which has no order.", help=_NAN)
            if op in ("like", "ilike") and (not isinstance(self.value, str) or len(self.value) > PATTERN_LIMIT):
                raise UsageError(
                    f"'{shown} {self.op}' needs a text of at most {PATTERN_LIMIT} characters.",
                    help="Use % for any characters and _ for one character.",
                )


@dataclass(frozen=True, slots=True)
class And:
    """True if all parts are true. Without parts, always true."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True if one of the parts is true. Without parts, never true."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression


Expression = Compare | And | Or | Not

NumberAndText = tuple[float | None, str | None] | None
"""A record's value at a path as a number and as a text, if it has these forms. None if there is no value."""


def matches(expression: Expression, at: Callable[[tuple[str, ...]], NumberAndText]) -> bool:
    """Evaluate an expression for a record in Python, with the same result as in a database.

    Args:
        at: returns the record's value at a path.
    """
    match expression:
        case And(parts):
            return all(matches(part, at) for part in parts)
        case Or(parts):
            return any(matches(part, at) for part in parts)
        case Not(part):
            return not matches(part, at)
        case Compare(path, op, value):
            if op in OPPOSITE:
                return not matches(Compare(path, OPPOSITE[op], value), at)
            found = at(path)
            return found is not None and (op == "is not null" or _is_true(found, op, value))


def _is_true(found: tuple[float | None, str | None], op: str, value: object) -> bool:
    number, text = found
    if isinstance(value, tuple):
        return any(_is_true(found, "=", item) for item in value)
    against = comparable(value)  # type: ignore[arg-type]
    if is_nan(against):
        return number is None and text is None
    if isinstance(against, str):
        if text is None:
            return False
        if op in ("like", "ilike"):
            return is_like(text, against, any_case=op == "ilike")
        return _ordered(text, op, against)
    return number is not None and _ordered(number, op, against)


def comparable(value: Scalar) -> str | float:
    """Convert a constant to the text or number that is compared: a time to µs since 1970, a boolean to its JSON."""
    from everloop.stores.clock import micros

    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        return float(micros(value) if isinstance(value, datetime) else value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def is_nan(value: object) -> bool:
    """Whether a constant is NaN. The search entry of a NaN has neither a number nor a text."""
    return isinstance(value, float) and math.isnan(value)


def _ordered(left: float | str, op: str, right: float | str) -> bool:
    match op:
        case "=":
            return left == right
        case "<":
            return left < right  # type: ignore[operator]
        case "<=":
            return left <= right  # type: ignore[operator]
        case ">":
            return left > right  # type: ignore[operator]
    return left >= right  # type: ignore[operator]


def _check(shown: str, value: object) -> None:
    if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
        raise UsageError(
            f"'{shown}' cannot be compared with {value!r}, because stored texts never contain such characters."
        )
    if isinstance(value, datetime) and value.tzinfo is None:
        raise UsageError(f"'{shown}' cannot be compared with a time without a time zone.", help="Use times in UTC.")
    if not isinstance(value, str | int | float | datetime):
        raise UsageError(f"'{shown}' cannot be compared with {value!r}.", help="Use a text, number, boolean or time.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
