"""Keyset pagination: SQL statements that read a page by scanning an index from where the last page ended."""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everloop.stores.records.condition_sql import Sql
from everloop.stores.records.expression_sql import Compiler, SortKey, behind, order_by, sorted_text

if TYPE_CHECKING:
    from everloop.stores.records.expressions import Expression
    from everloop.stores.records.search_results import SearchHit

_NUMBERS, _TEXTS = 0, 1
_THERE = ("k0.number IS NOT NULL", "k0.text IS NOT NULL AND k0.number IS NULL")
_WITHOUT = (
    "k0.project = ? AND k0.kind = ? AND NOT EXISTS (SELECT 1 FROM searched_values n"
    " WHERE n.rec = k0.rec AND n.path = ? AND (n.number IS NOT NULL OR n.text IS NOT NULL))"
)


@dataclass(frozen=True, slots=True)
class KeysetScan:
    """An ordered search. It has three sections by the value of the first key: 0 numbers, 1 texts, 2 no value."""

    compiler: Compiler
    where: Expression
    keys: list[SortKey]
    project: str
    kind: str

    def border(self, section: int, begin: SearchHit | None, window: int) -> Sql:
        """A statement that reads the value of the first key at the end of a window of rows.

        It returns no row if fewer rows than `window` are left.
        """
        column, direction = self._column(section), " DESC" if self.keys[0].descending else ""
        # The other keys are not compared here, so a few rows that the last page has shown may be counted again.
        further = "<=" if self.keys[0].descending else ">="
        start = Sql("1 = 1") if begin is None else Sql(f"{column} {further} ?", (begin.position[0][1],))
        return Sql(
            f"SELECT {column} FROM searched_values k0 WHERE k0.path = ? AND {_THERE[section]} AND {start.text}"
            f" ORDER BY {column}{direction}, k0.rec{direction} LIMIT 1 OFFSET ?",
            (self.compiler.number_of(self.keys[0].path), *start.values, window),
        )

    def query(self, section: int, begin: SearchHit | None, border: object, limit: int, *, sets: bool) -> Sql:
        """A statement that reads number and sort values of the section's records after a result.

        Args:
            border: if given, read only records up to this value; with `sets`, only those after it.
            sets: see `Compiler.sets`.
        """
        first, down = self.keys[0], self.keys[0].descending
        compiler = replace(self.compiler, sets=sets)
        columns, joins, joined = joined_keys(compiler, self.keys, "k0.rec", 1)
        rows = self._rows()
        number = compiler.number_of(first.path)
        if section > _TEXTS:
            source, head, sort = "searched_records k0", "NULL, NULL", ""
            tests = [Sql(_WITHOUT, (self.project, self.kind, number)), compiler.condition(self.where, "k0.rec")]
            if begin is not None:
                tests.append(behind(rows, list(begin.position[1:]), "k0.rec", int(begin.number), down=down))
        else:
            column = self._column(section)
            source = "searched_values k0"
            head = f"{column}, NULL" if section == _NUMBERS else f"NULL, {column}"
            sort = f"{column}{' DESC' if down else ''}, "
            tests = [
                Sql(f"k0.path = ? AND {_THERE[section]}", (number,)),
                compiler.condition(self.where, "k0.rec", (first.path, "k0")),
                self._from(section, begin),
            ]
            if border is not None:
                within, beyond = (">=", "<") if down else ("<=", ">")
                tests.append(Sql(f"{column} {beyond if sets else within} ?", (border,)))
        return Sql(
            f"SELECT k0.rec, {head}{columns} FROM {source}{joins} WHERE {' AND '.join(test.text for test in tests)}"
            f" ORDER BY {sort}{order_by(rows, 'k0.rec', descending=down)} LIMIT ?",
            (*joined, *(value for test in tests for value in test.values), limit),
        )

    def _column(self, section: int) -> str:
        return "k0.number" if section == _NUMBERS else sorted_text("k0")

    def _rows(self) -> list[tuple[SortKey, str]]:
        return [(key, f"k{at}") for at, key in enumerate(self.keys)][1:]

    def _from(self, section: int, begin: SearchHit | None) -> Sql:
        """True for the rows after a result."""
        if begin is None:
            return Sql("1 = 1")
        column, value = self._column(section), begin.position[0][1]
        further = "<" if self.keys[0].descending else ">"
        down = self.keys[0].descending
        rest = behind(self._rows(), list(begin.position[1:]), "k0.rec", int(begin.number), down=down)
        # Written in this form, so that an index scan can start where the last page ended.
        return Sql(f"{column} {further}= ? AND ({column} {further} ? OR {rest.text})", (value, value, *rest.values))


def joined_keys(compiler: Compiler, keys: list[SortKey], rec: str, start: int) -> tuple[str, str, tuple[object, ...]]:
    """The columns, joins and parameters that add the sort values of the keys from index `start` on."""
    columns = joins = ""
    values: list[object] = []
    for at, key in enumerate(keys[start:], start):
        columns += f", k{at}.number, {sorted_text(f'k{at}')}"
        joins += f" LEFT JOIN searched_values k{at} ON k{at}.rec = {rec} AND k{at}.path = ?"
        values.append(compiler.number_of(key.path))
    return columns, joins, tuple(values)
