"""One stretch of a search's order as a statement that an index answers from its beginning to the page's end."""

# ruff: noqa: S608 - only names that stand in this room are ever put into SQL; every value is a parameter.

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
    """A search in an order. Its stretches are 0, the numbers of the first key, 1, its texts, and 2, the rest."""

    compiler: Compiler
    where: Expression
    keys: list[SortKey]
    project: str
    kind: str

    def border(self, stretch: int, begin: SearchHit | None, window: int) -> Sql:
        """Reads the value of the first key at which a window of so many rows ends; no row if there are no more."""
        column, way = self._column(stretch), " DESC" if self.keys[0].descending else ""
        # The other keys are not at hand here, so a few rows may count that the last page has shown.
        further = "<=" if self.keys[0].descending else ">="
        start = Sql("1 = 1") if begin is None else Sql(f"{column} {further} ?", (begin.position[0][1],))
        return Sql(
            f"SELECT {column} FROM searched_values k0 WHERE k0.path = ? AND {_THERE[stretch]} AND {start.text}"
            f" ORDER BY {column}{way}, k0.rec{way} LIMIT 1 OFFSET ?",
            (self.compiler.number_of(self.keys[0].path), *start.values, window),
        )

    def query(self, stretch: int, begin: SearchHit | None, border: object, limit: int, *, sets: bool) -> Sql:
        """Reads number and sort values of the stretch's records behind a hit.

        Args:
            border: where there is one, only records up to it, or with `sets` only those beyond.
            sets: see `Compiler.sets`.
        """
        first, down = self.keys[0], self.keys[0].descending
        compiler = replace(self.compiler, sets=sets)
        columns, joins, joined = joined_keys(compiler, self.keys, "k0.rec", 1)
        rows = self._rows()
        number = compiler.number_of(first.path)
        if stretch > _TEXTS:
            source, head, sort = "searched_records k0", "NULL, NULL", ""
            tests = [Sql(_WITHOUT, (self.project, self.kind, number)), compiler.condition(self.where, "k0.rec")]
            if begin is not None:
                tests.append(behind(rows, list(begin.position[1:]), "k0.rec", int(begin.number), down=down))
        else:
            column = self._column(stretch)
            source = "searched_values k0"
            head = f"{column}, NULL" if stretch == _NUMBERS else f"NULL, {column}"
            sort = f"{column}{' DESC' if down else ''}, "
            tests = [
                Sql(f"k0.path = ? AND {_THERE[stretch]}", (number,)),
                compiler.condition(self.where, "k0.rec", (first.path, "k0")),
                self._from(stretch, begin),
            ]
            if border is not None:
                within, beyond = (">=", "<") if down else ("<=", ">")
                tests.append(Sql(f"{column} {beyond if sets else within} ?", (border,)))
        return Sql(
            f"SELECT k0.rec, {head}{columns} FROM {source}{joins} WHERE {' AND '.join(test.text for test in tests)}"
            f" ORDER BY {sort}{order_by(rows, 'k0.rec', descending=down)} LIMIT ?",
            (*joined, *(value for test in tests for value in test.values), limit),
        )

    def _column(self, stretch: int) -> str:
        return "k0.number" if stretch == _NUMBERS else sorted_text("k0")

    def _rows(self) -> list[tuple[SortKey, str]]:
        return [(key, f"k{at}") for at, key in enumerate(self.keys)][1:]

    def _from(self, stretch: int, begin: SearchHit | None) -> Sql:
        """True behind a hit."""
        if begin is None:
            return Sql("1 = 1")
        column, value = self._column(stretch), begin.position[0][1]
        further = "<" if self.keys[0].descending else ">"
        down = self.keys[0].descending
        rest = behind(self._rows(), list(begin.position[1:]), "k0.rec", int(begin.number), down=down)
        # In this form an index can begin where the last page ended.
        return Sql(f"{column} {further}= ? AND ({column} {further} ? OR {rest.text})", (value, value, *rest.values))


def joined_keys(compiler: Compiler, keys: list[SortKey], rec: str, start: int) -> tuple[str, str, tuple[object, ...]]:
    """The columns, joins and values that bring the sort values of all keys from the number `start` on."""
    columns = joins = ""
    values: list[object] = []
    for at, key in enumerate(keys[start:], start):
        columns += f", k{at}.number, {sorted_text(f'k{at}')}"
        joins += f" LEFT JOIN searched_values k{at} ON k{at}.rec = {rec} AND k{at}.path = ?"
        values.append(compiler.number_of(key.path))
    return columns, joins, tuple(values)
