"""Translating conditions and orders to SQL.

Only reading a value from a record's JSON depends on the SQL dialect: as a number, a text or a boolean, each NULL if the
value has another type. Everything else is the same SQL for all databases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from everloop.errors import UsageError
from everloop.stores.clock import micros
from everloop.stores.records.expressions import comparable
from everloop.stores.records.record_codec import families, field_names, time_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from everloop.stores.records.record_store import Condition, FieldPath

COLUMNS = {"id": "text", "project": "text", "key": "text", "state": "text", "created_at": "time", "revision": "number"}
"""Fields with a separate column, with the type of the column. Times are stored as µs since 1970."""

LITERAL = re.compile(r"[A-Za-z0-9_./ @:+-]+")
"""Names that can be written into a string literal, because no dialect treats these characters specially there."""

_OPS = frozenset({"=", "!=", "<", "<=", ">", ">=", "in", "prefix", "is"})


@dataclass(frozen=True, slots=True)
class Sql:
    """A piece of SQL with its parameters, which are marked by `?`."""

    text: str
    values: tuple[object, ...] = ()


class Paths(Protocol):
    """How a dialect reads a value from a record's JSON. The result is NULL if the value has another type."""

    column: str
    """The column to read from: `body` with the JSON text, or another with the same JSON in the dialect's own type."""

    def number(self, path: Sequence[str]) -> Sql: ...

    def text(self, path: Sequence[str]) -> Sql: ...

    def boolean(self, path: Sequence[str]) -> Sql:
        """1 or 0."""

    def absent(self, path: Sequence[str]) -> Sql:
        """True if the value is missing or null."""


@dataclass(frozen=True, slots=True)
class SqlPart:
    """One section of an order: the rows whose value is a number, the rows whose value is a text, or the others."""

    where: Sql
    """Condition for the rows of this section."""
    value: Sql | None
    """The value that they are sorted by, or None if they are sorted only by id."""
    descending: bool

    @property
    def by(self) -> Sql:
        direction = " DESC" if self.descending else ""
        if self.value is None:
            return Sql(f"id{direction}")
        return Sql(f"{self.value.text}{direction}, id{direction}", self.value.values)

    def behind(self, value: object, identity: str) -> Sql:
        """True for the rows of this section after the one with this value and id."""
        further = "<" if self.descending else ">"
        if self.value is None:
            return Sql(f"id {further} ?", (identity,))
        at, values = self.value.text, self.value.values
        # Written in this form, so that an index scan can start where the last page ended.
        return Sql(
            f"{at} {further}= ? AND ({at} {further} ? OR id {further} ?)",
            (*values, value, *values, value, identity),
        )


def parse_order(order: str, kind: str, paths: Paths) -> list[SqlPart]:
    """The sections of an order, in their sequence."""
    descending = order.startswith("-")
    path = parse_path(order.removeprefix("-"), kind)
    if path == ("id",):
        return [SqlPart(Sql("1 = 1"), None, descending)]
    if len(path) == 1 and path[0] in COLUMNS and path[0] != "state":
        # Columns that are never null need only one section, for which an index can be used.
        return [SqlPart(Sql("1 = 1"), Sql(path[0]), descending)]
    parts = []
    possible = families(kind, path)
    if "number" in possible:
        parts.append(_number(path, paths))
    if "text" in possible:
        parts.append(_text(path, kind, paths))
    without = Sql(
        " AND ".join(f"{part.text} IS NULL" for part in parts) or "1 = 1",
        tuple(v for part in parts for v in part.values),
    )
    sections = [SqlPart(Sql(f"{part.text} IS NOT NULL", part.values), part, descending) for part in parts]
    return [*sections, SqlPart(without, None, descending)]


def parse_path(field: FieldPath, kind: str) -> tuple[str, ...]:
    """Split a path into its names, and check the first one.

    Raises:
        UsageError: records of this kind have no such field.
    """
    path = tuple(field.split(".")) if isinstance(field, str) else tuple(field)
    if not path or path[0] not in field_names(kind):
        raise UsageError(
            f"A {kind.replace('_', ' ')} has no field '{path[0] if path else ''}'.",
            help=f"Fields: {', '.join(sorted(field_names(kind)))}",
        )
    return path


def parse_conditions(where: Sequence[Condition], kind: str, paths: Paths) -> Sql:
    """Join all conditions by AND, each in brackets. Without conditions, the result is always true."""
    parts = [_condition(parse_path(field, kind), op, value, kind, paths) for field, op, value in where]
    return Sql(" AND ".join(f"({part.text})" for part in parts) or "1 = 1", tuple(v for p in parts for v in p.values))


def _condition(path: tuple[str, ...], op: str, value: object, kind: str, paths: Paths) -> Sql:
    shown = ".".join(path)
    if op not in _OPS:
        raise UsageError(f"'{op}' is not a comparison operator.", help=f"Operators: {' '.join(sorted(_OPS))}")
    if op == "in":
        if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
            raise UsageError(f"'{shown} in' needs a list, not {value!r}.", help="Put the value in brackets.")
        return _any_of(path, value, kind, paths)
    if value is None:
        absent = _absent(path, paths)
        if op in ("is", "="):
            return absent
        if op == "!=":
            return Sql(f"NOT ({absent.text})", absent.values)
    if op == "is":
        raise UsageError(f"'{shown} is' can only be used with None, not {value!r}.", help="Use '=' for a value.")
    if op == "prefix":
        if not isinstance(value, str):
            raise UsageError(f"'{shown} prefix' needs a text, not {value!r}.")
        return _prefix(_text(path, kind, paths), value)
    at, against = _typed(path, value, kind, paths)
    if op == "!=":
        return Sql(f"{at.text} IS NULL OR {at.text} <> ?", (*at.values, *at.values, against))
    if isinstance(value, bool) and op != "=":
        raise UsageError(f"'{shown} {op}' cannot compare {value!r}.", help="Use '=' or '!='.")
    return Sql(f"{at.text} {op} ?", (*at.values, against))


def _any_of(path: tuple[str, ...], values: Iterable[object], kind: str, paths: Paths) -> Sql:
    """True if a value is one of these. Uses IN lists: a chain of ORs would be nested too deeply for a database."""
    either: list[Sql] = []
    # At most one list for numbers, one for texts and one for booleans.
    lists: list[tuple[Sql, list[object]]] = []
    for value in values:
        if value is None:
            either.append(_absent(path, paths))
            continue
        at, against = _typed(path, value, kind, paths)
        items = next((items for known, items in lists if known == at), None)
        if items is None:
            lists.append((at, items := []))
        items.append(against)
    for at, items in lists:
        either.append(Sql(f"{at.text} IN ({', '.join('?' * len(items))})", (*at.values, *items)))
    return Sql(" OR ".join(part.text for part in either) or "1 = 0", tuple(v for part in either for v in part.values))


def _typed(path: tuple[str, ...], value: object, kind: str, paths: Paths) -> tuple[Sql, object]:
    """The expression that can equal `value`, and the value as the database compares it."""
    match value:
        case bool():
            return _boolean(path, paths), int(value)
        case int() | float():
            if value != value:
                raise UsageError(f"'{'.'.join(path)}' cannot be compared with NaN.")
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                return _number(path, paths), comparable(value)
            return _number(path, paths), value
        case str():
            return _text(path, kind, paths, plain=True), value
        case datetime():
            if len(path) > 1 or path[0] not in time_fields(kind):
                raise UsageError(
                    f"'{'.'.join(path)}' of a {kind.replace('_', ' ')} is not a time.",
                    help=f"Fields with times: {', '.join(sorted(time_fields(kind)))}",
                )
            if path[0] == "created_at":
                return _number(path, paths), micros(value)
            micros(value)
            return _text(path, kind, paths), f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}".rjust(27, "0")
    raise UsageError(f"'{'.'.join(path)}' cannot be compared with {value!r}.", help="Use a text, number, time or None.")


def _prefix(at: Sql, start: str) -> Sql:
    if not start:
        return Sql(f"{at.text} IS NOT NULL", at.values)
    within = Sql(f"{at.text} >= ? AND substr({at.text}, 1, ?) = ?", (*at.values, start, *at.values, len(start), start))
    last = ord(start[-1])
    if last >= 0xD7FF:
        return within
    # The upper bound lets an index stop.
    return Sql(f"{within.text} AND {at.text} < ?", (*within.values, *at.values, start[:-1] + chr(last + 1)))


def _column(path: tuple[str, ...], *holds: str) -> Sql | None:
    """The column of a path if it has one, or NULL if the column has none of the types in `holds`."""
    if path[0] not in COLUMNS:
        return None
    if len(path) == 1 and COLUMNS[path[0]] in holds:
        return Sql(path[0])
    return Sql("CAST(NULL AS TEXT)" if "text" in holds else "CAST(NULL AS DOUBLE PRECISION)")


def _number(path: tuple[str, ...], paths: Paths) -> Sql:
    return _column(path, "number", "time") or paths.number(path)


def _boolean(path: tuple[str, ...], paths: Paths) -> Sql:
    return _column(path) or paths.boolean(path)


def _absent(path: tuple[str, ...], paths: Paths) -> Sql:
    column = _column(path, "number", "time", "text")
    return Sql(f"{column.text} IS NULL") if column else paths.absent(path)


def _text(path: tuple[str, ...], kind: str, paths: Paths, *, plain: bool = False) -> Sql:
    column = _column(path, "text")
    if column:
        return column
    text = paths.text(path)
    if plain or len(path) > 1 or path[0] not in time_fields(kind):
        return text
    # Times at whole seconds are encoded without a fraction, so without this they would be sorted wrongly.
    return Sql(
        f"CASE length({text.text}) WHEN 20 THEN substr({text.text}, 1, 19) || '.000000Z' ELSE {text.text} END",
        text.values * 3,
    )
