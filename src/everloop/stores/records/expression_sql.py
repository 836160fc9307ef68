"""Translating search expressions and orders to SQL over the table `searched_values`.

A comparison becomes a test of one row of `searched_values`, and an expression a condition on a record's number `rec`.
`rank` is 0 for a number, 1 for a text and 2 for neither. Values are sorted by rank first, in both directions.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from everloop.errors import UsageError
from everloop.stores.records.condition_sql import Sql
from everloop.stores.records.expressions import OPPOSITE, And, Compare, Expression, Not, Or, Scalar, comparable, is_nan

if TYPE_CHECKING:
    from everloop.stores.records.search_results import Position

TEXT_SORTED = 200
"""Number of characters that texts are sorted by. Texts that differ only later are in the order of their records."""

MOST_COMPARISONS = 500
MOST_CONSTANTS = 5000

PathNumber = Callable[[tuple[str, ...]], int]


class Patterns(Protocol):
    """How a dialect matches texts with patterns. `expressions.Compare` describes the patterns."""

    def like(self, column: str, pattern: str, *, any_case: bool) -> Sql: ...


@dataclass(frozen=True, slots=True)
class SortKey:
    """One key of an order."""

    path: tuple[str, ...]
    descending: bool


@dataclass(frozen=True, slots=True)
class Compiler:
    """Turns the expressions of one project and kind into SQL."""

    number_of: PathNumber
    patterns: Patterns
    never_nan: Callable[[tuple[str, ...]], bool]
    """Whether values at a path are never NaN, so that each has a number or a text."""
    sets: bool = False
    """For statements that read most records anyway: compute the set of records that meet a comparison once, instead of
    looking up the value of each record."""

    def condition(self, expression: Expression, rec: str, row: tuple[tuple[str, ...], str] | None = None) -> Sql:
        """True for the records that meet the expression.

        Args:
            rec: the column with the record's number in the statement.
            row: a path and the alias of its row, if the statement already joins it.

        Raises:
            UsageError: the expression is too long for a database.
        """
        leaves = _leaves(expression)
        constants = sum(len(leaf.value) if isinstance(leaf.value, tuple) else 1 for leaf in leaves)
        if len(leaves) > MOST_COMPARISONS or constants > MOST_CONSTANTS:
            raise UsageError(
                f"A search with {len(leaves)} comparisons and {constants} constants is too long.",
                help=f"At most {MOST_COMPARISONS} and {MOST_CONSTANTS}.",
            )
        return self._condition(expression, rec, row)

    def _condition(self, expression: Expression, rec: str, row: tuple[tuple[str, ...], str] | None) -> Sql:
        match expression:
            case And(parts):
                return _joined(" AND ", "1 = 1", [self._condition(part, rec, row) for part in parts])
            case Or(parts):
                return _joined(" OR ", "1 = 0", [self._condition(part, rec, row) for part in parts])
            case Not(part):
                inner = self._condition(part, rec, row)
                return Sql(f"NOT ({inner.text})", inner.values)
            case Compare(path, op, value):
                if op in OPPOSITE:
                    inner = self._condition(Compare(path, OPPOSITE[op], value), rec, row)
                    return Sql(f"NOT ({inner.text})", inner.values)
                if row is not None and row[0] == path and op not in ("is not null",):
                    # The negation of NULL would be NULL, so it becomes false first.
                    test = self.of_row(expression, row[1])
                    return Sql(f"coalesce({test.text}, 1 = 0)", test.values)
                if self.sets and (found := self._set(expression)) is not None:
                    return Sql(f"{rec} IN ({found.text})", found.values)
                test = self.of_row(expression, "v")
                return Sql(
                    f"EXISTS (SELECT 1 FROM searched_values v WHERE v.rec = {rec} AND v.path = ? AND {test.text})",
                    (self.number_of(path), *test.values),
                )

    def _set(self, compare: Compare) -> Sql | None:
        """The numbers of the records that meet a comparison, if an index can be used."""
        select = "SELECT v.rec FROM searched_values v WHERE"
        if compare.op == "is not null":
            if not self.never_nan(compare.path):
                return None
            number = self.number_of(compare.path)
            return Sql(
                f"{select} v.path = ? AND v.number IS NOT NULL UNION {select} v.path = ? AND v.text IS NOT NULL",
                (number, number),
            )
        ranged = self.ranged(compare, "v")
        return None if ranged is None else Sql(f"{select} {ranged.text}", ranged.values)

    def of_row(self, compare: Compare, row: str) -> Sql:
        """True if the comparison, which must not be negated, is true for a row of its path."""
        if compare.op == "is not null":
            return Sql("1 = 1")
        if isinstance(compare.value, tuple):
            return self._one_of(compare.value, row)
        value = comparable(compare.value)  # type: ignore[arg-type]
        if is_nan(value):
            return _nan(row)
        if isinstance(value, float):
            return Sql(f"{row}.number {compare.op} ?", (value,))
        if compare.op in ("like", "ilike"):
            return self.patterns.like(f"{row}.text", value, any_case=compare.op == "ilike")
        return Sql(f"{row}.text {compare.op} ?", (value,))

    def _one_of(self, values: tuple[Scalar, ...], row: str) -> Sql:
        constants = [comparable(value) for value in values]
        found = []
        for column, wanted in (
            ("number", [value for value in constants if not isinstance(value, str) and not is_nan(value)]),
            ("text", [value for value in constants if isinstance(value, str)]),
        ):
            if wanted:
                found.append(Sql(f"{row}.{column} IN ({', '.join('?' * len(wanted))})", tuple(wanted)))
        if any(is_nan(value) for value in constants):
            found.append(_nan(row))
        return _joined(" OR ", "1 = 0", found)

    def ranged(self, compare: Compare, row: str) -> Sql | None:
        """The comparison in a form that can use an index over numbers or texts, if there is one."""
        constants = compare.value if compare.op == "in" else (compare.value,)
        if compare.op not in ("=", "<", "<=", ">", ">=", "in") or not isinstance(constants, tuple) or not constants:
            return None
        values = [comparable(value) for value in constants]  # type: ignore[arg-type]
        if any(is_nan(value) for value in values):
            return None  # NaN is not in an index
        test = self.of_row(compare, row)
        head = Sql(f"{row}.path = ?", (self.number_of(compare.path),))
        if all(isinstance(value, float) for value in values):
            return Sql(f"{head.text} AND {row}.number IS NOT NULL AND {test.text}", (*head.values, *test.values))
        if all(isinstance(value, str) for value in values) and compare.op in ("=", "in"):
            starts = tuple(str(value)[:TEXT_SORTED] for value in values)
            found = Sql(
                f"{head.text} AND {row}.text IS NOT NULL AND {sorted_text(row)} IN ({', '.join('?' * len(starts))})",
                (*head.values, *starts),
            )
            if max(map(len, starts)) < TEXT_SORTED:
                return found  # the index contains the full texts
            return Sql(f"{found.text} AND ({test.text})", (*found.values, *test.values))
        return None


def _nan(row: str) -> Sql:
    return Sql(f"({row}.number IS NULL AND {row}.text IS NULL)")


def sorted_text(row: str) -> str:
    return f"substr({row}.text, 1, {TEXT_SORTED})"


def rank(row: str) -> str:
    return f"CASE WHEN {row}.number IS NOT NULL THEN 0 WHEN {row}.text IS NOT NULL THEN 1 ELSE 2 END"


def order_by(keys: list[tuple[SortKey, str]], rec: str, *, descending: bool) -> str:
    """The terms of an ORDER BY over the rows of several keys, with the number of the record as last term."""
    terms = []
    for key, row in keys:
        direction = " DESC" if key.descending else ""
        # Within a rank, only one of the two columns has values, so the position of NULLs does not matter.
        terms += [
            rank(row),
            f"{row}.number{direction}",
            f"CASE WHEN {row}.number IS NULL THEN {sorted_text(row)} END{direction}",
        ]
    return ", ".join([*terms, f"{rec}{' DESC' if descending else ''}"])


def behind(keys: list[tuple[SortKey, str]], position: list[Position], rec: str, last: int, *, down: bool) -> Sql:
    """True for the records after the one with these ranks and values, in the order of `order_by`."""
    if not keys:
        return Sql(f"{rec} {'<' if down else '>'} ?", (last,))
    (key, row), (at, value) = keys[0], position[0]
    rest = behind(keys[1:], position[1:], rec, last, down=down)
    if at == 2:
        return Sql(f"({rank(row)} = 2 AND {rest.text})", rest.values)
    column = f"{row}.number" if at == 0 else sorted_text(row)
    further = "<" if key.descending else ">"
    return Sql(
        f"({rank(row)} > ? OR ({rank(row)} = ? AND ({column} {further} ? OR ({column} = ? AND {rest.text}))))",
        (at, at, value, value, *rest.values),
    )


def _leaves(expression: Expression) -> list[Compare]:
    match expression:
        case And(parts) | Or(parts):
            return [leaf for part in parts for leaf in _leaves(part)]
        case Not(part):
            return _leaves(part)
    return [expression]


def _joined(by: str, empty: str, parts: list[Sql]) -> Sql:
    if not parts:
        return Sql(empty)
    if len(parts) == 1:
        return parts[0]
    return Sql("(" + by.join(part.text for part in parts) + ")", tuple(v for part in parts for v in part.values))
