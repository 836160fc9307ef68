"""What a search asks of a record: a tree of comparisons, which any caller can build without text.

    And((Compare(("metrics", "auc"), ">", 0.9), Not(Compare(("tags", "team"), "in", ("a", "b")))))

A comparison is true or false, never unknown. One whose record has no such value is false, except `!=`, `not in`,
`not like`, `not ilike` and `is null`, which say the opposite of their counterparts. A number compares with numbers
only, also with those that a text spells; a text compares with texts, and with the JSON of values that are no
texts (`true`, `0.5`). NaN equals NaN and no other number, and has no order.
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
"""Characters of a pattern; a longer one takes a database too long."""

OPPOSITE: dict[CompareOp, CompareOp] = {
    "!=": "=",
    "not in": "in",
    "not like": "like",
    "not ilike": "ilike",
    "is null": "is not null",
}
"""Each negative operation with the one that it denies."""

_NAN = "Use = or != to find values that are NaN, or are not."
_POSITIVE = frozenset({"=", "<", "<=", ">", ">=", "in", "like", "ilike", "is not null"})


@dataclass(frozen=True, slots=True)
class Compare:
    """One value of a record against a constant.

    `path` is a field, `("name",)`, or a field and a name in it, `("metrics", "val/auc")`. `value` is a text, number,
    boolean or time; for `in` a tuple of them; for `is null` and `is not null` it is None. In patterns `%` stands
    for any characters and `_` for one; `ilike` takes small and capital letters of ASCII for equal.
    """

    path: tuple[str, ...]
    op: CompareOp
    value: Scalar | tuple[Scalar, ...] | None = None

    def __post_init__(self) -> None:
        if self.op not in _POSITIVE and self.op not in OPPOSITE:
            raise UsageError(f"'{self.op}' is no comparison.", help=f"There are: {', '.join([*_POSITIVE, *OPPOSITE])}")
        if not self.path or not all(isinstance(name, str) for name in self.path):
            raise UsageError(f"{self.path!r} is no path.", help='Use a tuple of names, such as ("metrics", "auc").')
        shown = ".".join(self.path)
        if "\0" in shown or not _is_unicode(shown):
            raise UsageError(f"There is no field {shown[:100]!r}: no name of a store holds that.")
        op = OPPOSITE.get(self.op, self.op)
        if op == "in":
            if not isinstance(self.value, tuple):
                raise UsageError(f"'{shown} {self.op}' takes a tuple, not {self.value!r}.")
            for item in self.value:
                _check(shown, item)
        elif op == "is not null":
            if self.value is not None:
                raise UsageError(f"'{shown} {self.op}' takes no value, not {self.value!r}.")
        else:
            _check(shown, self.value)
            if op != "=" and is_nan(self.value):
                raise UsageError(f"'{shown} {self.op}' cannot be compared with NaN, which has no order.", help=_NAN)
            if op in ("like", "ilike") and (not isinstance(self.value, str) or len(self.value) > PATTERN_LIMIT):
                raise UsageError(
                    f"'{shown} {self.op}' takes a text of at most {PATTERN_LIMIT} characters.",
                    help="Write % for any characters and _ for one.",
                )


@dataclass(frozen=True, slots=True)
class And:
    """True where all parts are; of no parts, always."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """True where one of the parts is; of no parts, never."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression


Expression = Compare | And | Or | Not

Held = tuple[float | None, str | None] | None
"""What a record has at a path: its number and its text, each if it has one; None where there is nothing."""


def matches(expression: Expression, at: Callable[[tuple[str, ...]], Held]) -> bool:
    """Whether the expression is true of a record, whose values `at` finds. What a database would say, in Python."""
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
            held = at(path)
            return held is not None and (op == "is not null" or _holds(held, op, value))


def _holds(held: tuple[float | None, str | None], op: str, value: object) -> bool:
    number, text = held
    if isinstance(value, tuple):
        return any(_holds(held, "=", item) for item in value)
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
    """The text or the number as which a constant is compared: a time as µs since 1970, a boolean as its JSON."""
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
    """Whether a constant is NaN. A value that is NaN is kept with neither a number nor a text."""
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
        raise UsageError(f"'{shown}' cannot be compared with {value!r}: no text of a store holds that.")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise UsageError(f"'{shown}' cannot be compared with a time without a zone.", help="Use times in UTC.")
    if not isinstance(value, str | int | float | datetime):
        raise UsageError(f"'{shown}' cannot be compared with {value!r}.", help="Use a text, number, boolean or time.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
