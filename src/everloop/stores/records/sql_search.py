"""Searching records by any of their values, over any SQL database.

Beside each live record of a searchable kind stand its single values in the table `searched_values`, written in the
record's own transaction, and only those that have changed. So a page is found by walking an index, and no record is
decoded that is not shown.
"""

# ruff: noqa: S608 - only names that stand in this room are ever put into SQL; every value is a parameter.

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.records import KINDS
from everloop.stores.clock import micros
from everloop.stores.records.expression_sql import TEXT_SORTED, Compiler, SortKey
from everloop.stores.records.expressions import And, Compare, Expression, Not, Or, matches
from everloop.stores.records.keyset import KeysetScan, joined_keys
from everloop.stores.records.record_codec import R, decode, families, kind_of
from everloop.stores.records.search_results import Place, SearchHit, sort_value
from everloop.stores.records.searchable import entries, is_searchable, path_number, value_of
from everloop.stores.records.sql_logs import SqlLogs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from everloop.records import Record
    from everloop.stores.records.condition_sql import Sql
    from everloop.stores.records.searchable import SearchEntry

FEW = 5000
"""So many records are looked at and sorted at once rather than met one by one on the way through an index."""

WINDOW = 4000
"""So many rows of an index are walked before the records that meet each comparison are looked up as a whole."""

_BATCH = 500
_KEPT = (
    "INSERT INTO searched_values (rec, path, number, text, form) VALUES (?, ?, ?, ?, ?) ON CONFLICT (rec, path)"
    " DO UPDATE SET number = excluded.number, text = excluded.text, form = excluded.form"
)


class SqlSearch(SqlLogs):
    """The part of `RecordStore` that searches, and what the writing part has to tell it."""

    def search(
        self,
        kind: type[Record],
        where: Expression,
        *,
        order: Sequence[tuple[tuple[str, ...], bool]] = (),
        limit: int | None = None,
        after: SearchHit | None = None,
    ) -> list[SearchHit]:
        name = self._searched(kind, where, order)
        keys = [SortKey(path, descending) for path, descending in order]
        ways = [key.descending for key in keys]
        if after is not None and (isinstance(after.number, str) != (self._moment is not None)):
            raise UsageError("A page of the past and one of the present do not follow each other.")
        if self._moment is not None:
            return self._search_past(kind, where, keys, limit, after)
        self._catch_up()
        most = None if limit is None else max(limit, 0)
        compiler = self._compiler(name)
        driver = self._few(compiler, where)
        if driver is not None or most is None or not keys:
            found = self._sorted(compiler, name, where, keys, driver)
            found = [hit for hit in found if after is None or sort_value(hit, ways) > sort_value(after, ways)]
            return found if most is None else found[:most]
        return self._walked(compiler, name, where, keys, most, after)

    def count(self, kind: type[Record], where: Expression) -> int:
        name = self._searched(kind, where, ())
        if self._moment is not None:
            return len(self._search_past(kind, where, [], None, None))
        self._catch_up()
        compiler = self._compiler(name)
        driver = self._few(compiler, where)
        base, values = self._base(name, driver)
        chosen = replace(compiler, sets=driver is None).condition(where, "b.rec")
        rows = self.database.read(f"SELECT count(*) FROM {base} WHERE {chosen.text}", (*values, *chosen.values))
        return int(rows[0][0])

    def get_many(self, kind: type[R], ids: Sequence[str]) -> list[R]:
        name = kind_of(kind)
        view = self._view(name)
        found: dict[str, R] = {}
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            rows = self.database.read(
                f"SELECT id, body FROM {view.text} WHERE id IN ({', '.join('?' * len(part))})", (*view.values, *part)
            )
            found.update((identity, decode(kind, body)) for identity, body in rows)
        return [found[identity] for identity in ids if identity in found]

    def values_at(
        self, kind: type[Record], ids: Sequence[str], paths: Sequence[tuple[str, ...]]
    ) -> list[dict[tuple[str, ...], Any]]:
        name = self._searched(kind, And(()), [(path, False) for path in paths])
        if self._moment is not None:
            return [_values(record, paths) for record in self.get_many(kind, ids)]
        numbers = {path_number(self.project, name, path): path for path in paths}
        marks = ", ".join("?" * len(numbers))
        found: dict[str, dict[tuple[str, ...], Any]] = {identity: {} for identity in ids}
        for start in range(0, len(ids) if numbers else 0, _BATCH):
            part = ids[start : start + _BATCH]
            rows = self.database.read(
                "SELECT s.id, v.path, v.number, v.text, v.form FROM searched_records s JOIN searched_values v"
                f" ON v.rec = s.rec WHERE s.id IN ({', '.join('?' * len(part))}) AND v.path IN ({marks})",
                (*part, *numbers),
            )
            for identity, path, number, text, form in rows:
                found[identity][numbers[path]] = value_of(number, text, form)
        return [found[identity] for identity in ids]

    def search_names(self, kind: type[Record], field: str) -> list[str]:
        self._catch_up()
        rows = self.database.read(
            "SELECT name FROM searched_paths WHERE project = ? AND kind = ? AND field = ? ORDER BY name",
            (self.project, kind_of(kind), field),
        )
        return [row[0] for row in rows]

    def _list(self, record: Record) -> None:
        """Bring a record's values to what it says. Runs in the transaction that writes the record."""
        kind = kind_of(type(record))
        if not is_searchable(kind):
            return
        known = self.database.read("SELECT rec FROM searched_records WHERE id = ?", (record.id,))
        before: dict[int, tuple[Any, Any, int]] = {}
        if known:
            rec = known[0][0]
            rows = self.database.read("SELECT path, number, text, form FROM searched_values WHERE rec = ?", (rec,))
            before = {path: (number, text, form) for path, number, text, form in rows}
        else:
            self.database.write(
                "INSERT INTO searched_records (id, project, kind) VALUES (?, ?, ?)", (record.id, self.project, kind)
            )
            rec = self.database.read("SELECT rec FROM searched_records WHERE id = ?", (record.id,))[0][0]
        now = {path_number(self.project, kind, path): (path, value) for path, value in entries(record).items()}
        changed = [(rec, number, *value) for number, (_, value) in now.items() if before.get(number) != value]
        if changed:
            self.database.write_many(_KEPT, changed)
            self._name_paths(kind, {number: now[number][0] for _, number, *_ in changed})
        gone = [(rec, number) for number in before.keys() - now.keys()]
        if gone:
            self.database.write_many("DELETE FROM searched_values WHERE rec = ? AND path = ?", gone)

    def _unlist(self, identity: str) -> None:
        """Take a record out of every search. Runs in the transaction that deletes it."""
        for (rec,) in self.database.read("SELECT rec FROM searched_records WHERE id = ?", (identity,)):
            self.database.write("DELETE FROM searched_values WHERE rec = ?", (rec,))
            self.database.write("DELETE FROM searched_records WHERE rec = ?", (rec,))

    def _name_paths(self, kind: str, paths: dict[int, tuple[str, ...]]) -> None:
        fresh = [number for number in paths if number not in self._named]
        for start in range(0, len(fresh), _BATCH):
            part = fresh[start : start + _BATCH]
            rows = self.database.read(
                f"SELECT path FROM searched_paths WHERE path IN ({', '.join('?' * len(part))})", part
            )
            there = {row[0] for row in rows}
            # What this transaction adds may yet be undone, so only what was found there before is remembered.
            self._named |= there
            added = [
                (number, self.project, kind, paths[number][0], "".join(paths[number][1:]))
                for number in part
                if number not in there
            ]
            if added:
                self.database.write_many(
                    "INSERT INTO searched_paths (path, project, kind, field, name) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    added,
                )

    def misfiled(self, record: Record) -> bool:
        """Whether what searches find a live record by differs from what it says."""
        kind = kind_of(type(record))
        if not is_searchable(kind):
            return False
        known = self.database.read_raw("SELECT rec, project, kind FROM searched_records WHERE id = ?", (record.id,))
        if not known:
            # Records of earlier versions are brought in by the first search.
            return not self.database.read("SELECT 1 FROM searched_backlog WHERE id = ?", (record.id,))
        if known[0][1:] != (self.project, kind):
            return True
        stored = self.database.read_raw(
            "SELECT v.path, v.number, v.text, v.form, p.project, p.kind, p.field, p.name FROM searched_values v"
            " LEFT JOIN searched_paths p ON p.path = v.path WHERE v.rec = ?",
            (known[0][0],),
        )
        expected = {
            path_number(self.project, kind, path): (*value, self.project, kind, path[0], "".join(path[1:]))
            for path, value in entries(record).items()
        }
        return {row[0]: tuple(row[1:]) for row in stored} != expected

    def list_again(self, identity: str) -> None:
        """Make what searches find a record by from the record."""
        with self.transaction():
            found = self.database.read(
                "SELECT project, kind, body FROM records WHERE id = ? AND deleted_at IS NULL", (identity,)
            )
            for (rec,) in self.database.read("SELECT rec FROM searched_records WHERE id = ?", (identity,)):
                self.database.write(
                    "DELETE FROM searched_paths WHERE path IN (SELECT path FROM searched_values WHERE rec = ?)", (rec,)
                )
            self._unlist(identity)
            for project, kind, body in found:
                record = decode(KINDS[kind], body)
                here = self.for_project(project)
                numbers = {path_number(project, kind, path): path for path in entries(record)}
                for number in numbers:
                    self.database.write("DELETE FROM searched_paths WHERE path = ?", (number,))
                self._named.difference_update(numbers)
                here._list(record)

    def strayed(self) -> list[str]:
        """The ids under which searches would find records that are not there."""
        rows = self.database.read_raw(
            "SELECT s.id FROM searched_records s LEFT JOIN records r"
            " ON r.id = s.id AND r.deleted_at IS NULL AND r.kind = s.kind AND r.project = s.project WHERE r.id IS NULL"
        )
        return [row[0] for row in rows]

    def _catch_up(self) -> None:
        """Bring in what was written by versions that had no such table."""
        if self._caught_up[0]:
            return
        while rows := self.database.read("SELECT id FROM searched_backlog ORDER BY id LIMIT ?", (_BATCH,)):
            with self.transaction():
                for (identity,) in rows:
                    found = self.database.read(
                        "SELECT project, kind, body FROM records WHERE id = ? AND deleted_at IS NULL", (identity,)
                    )
                    for project, kind, body in found:
                        if kind in KINDS:
                            self.for_project(project)._list(decode(KINDS[kind], body))
                self.database.write_many("DELETE FROM searched_backlog WHERE id = ?", rows)
        self._caught_up[0] = True

    def _searched(self, kind: type[Record], where: Expression, order: Sequence[tuple[tuple[str, ...], bool]]) -> str:
        name = kind_of(kind)
        asked = [path for path, _ in order]
        waiting: list[Expression] = [where]
        while waiting:
            match waiting.pop():
                case Compare(path=path):
                    asked.append(path)
                case And(parts) | Or(parts):
                    waiting += parts
                case Not(part):
                    waiting.append(part)
        for path in asked:
            if path[0] not in kind.searchable:
                raise UsageError(
                    f"A {name.replace('_', ' ')} cannot be searched by '{'.'.join(path)}'.",
                    help=f"Fields: {', '.join(kind.searchable) or 'none'}",
                )
        return name

    def _compiler(self, kind: str) -> Compiler:
        return Compiler(
            lambda path: path_number(self.project, kind, path),
            self.database.patterns,
            lambda path: len(path) == 1 and families(kind, path) == {"text"},
        )

    def _few(self, compiler: Compiler, where: Expression) -> Sql | None:
        """The rows of that one of the comparisons, all of which must hold, which fewest records meet, if few do."""
        parts = where.parts if isinstance(where, And) else (where,)
        best, best_count = None, FEW + 1
        for part in _flat(parts):
            ranged = compiler.ranged(part, "v") if isinstance(part, Compare) else None
            if ranged is None:
                continue
            rows = self.database.read(
                f"SELECT count(*) FROM (SELECT 1 FROM searched_values v WHERE {ranged.text} LIMIT ?) AS counted",
                (*ranged.values, best_count),
            )
            if rows[0][0] < best_count:
                best, best_count = ranged, rows[0][0]
        return best

    def _base(self, kind: str, driver: Sql | None) -> tuple[str, tuple[object, ...]]:
        if driver is None:
            return (
                "(SELECT rec FROM searched_records WHERE project = ? AND kind = ?) AS b",
                (self.project, kind),
            )
        return f"(SELECT v.rec FROM searched_values v WHERE {driver.text}) AS b", driver.values

    def _sorted(
        self, compiler: Compiler, kind: str, where: Expression, keys: list[SortKey], driver: Sql | None
    ) -> list[SearchHit]:
        """Every hit, sorted here."""
        base, values = self._base(kind, driver)
        columns, joins, joined = joined_keys(compiler, keys, "b.rec", 0)
        chosen = replace(compiler, sets=driver is None).condition(where, "b.rec")
        rows = self.database.read(
            f"SELECT b.rec, s.id{columns} FROM {base} JOIN searched_records s ON s.rec = b.rec{joins}"
            f" WHERE {chosen.text}",
            (*values, *joined, *chosen.values),
        )
        ways = [key.descending for key in keys]
        hits = [_hit(row, len(keys)) for row in rows]
        hits.sort(key=lambda hit: sort_value(hit, ways))
        return hits

    def _walked(
        self, compiler: Compiler, kind: str, where: Expression, keys: list[SortKey], limit: int, after: SearchHit | None
    ) -> list[SearchHit]:
        """The next hits on the way through the index of the first key: its numbers, its texts, then those without."""
        walk = KeysetScan(compiler, where, keys, self.project, kind)
        found: list[SearchHit] = []
        long = False  # whether a whole window was walked: hardly any record meets the expression then
        for stretch in range(after.position[0][0] if after else 0, 3):
            begin = after if after is not None and after.position[0][0] == stretch else None
            border = None
            if stretch < 2:
                window = walk.border(stretch, begin, WINDOW)
                border = next((row[0] for row in self.database.read(window.text, window.values)), None)
                long = long or border is not None
            for sets in (long and stretch == 2,) if border is None else (False, True):
                left = limit - len(found)
                if left <= 0:
                    return found
                query = walk.query(stretch, begin, border, left, sets=sets)
                rows = self.database.read(query.text, query.values)
                ids = self._ids([row[0] for row in rows])
                found += [_hit((row[0], ids[row[0]], *row[1:]), len(keys)) for row in rows if row[0] in ids]
        return found

    def _ids(self, recs: list[int]) -> dict[int, str]:
        found: dict[int, str] = {}
        for start in range(0, len(recs), _BATCH):
            part = recs[start : start + _BATCH]
            marks = ", ".join("?" * len(part))
            found.update(self.database.read(f"SELECT rec, id FROM searched_records WHERE rec IN ({marks})", part))
        return found

    def _search_past(
        self, kind: type[R], where: Expression, keys: list[SortKey], limit: int | None, after: SearchHit | None
    ) -> list[SearchHit]:
        """As of a moment there is no table of values: every record is looked at."""
        view = self._view(kind_of(kind))
        ways = [key.descending for key in keys]
        hits = []
        for (body,) in self.database.read(f"SELECT body FROM {view.text} ORDER BY created_at, id", view.values):
            record = decode(kind, body)
            held = entries(record)
            if matches(where, lambda path, held=held: _held(held.get(path))):  # type: ignore[misc]
                position = tuple(_placed(held.get(key.path)) for key in keys)
                hits.append(SearchHit(record.id, f"{micros(record.created_at):020d} {record.id}", position))
        hits.sort(key=lambda hit: sort_value(hit, ways))
        hits = [hit for hit in hits if after is None or sort_value(hit, ways) > sort_value(after, ways)]
        return hits if limit is None else hits[: max(limit, 0)]

    def _view(self, kind: str) -> Sql:
        # The record store that this class is a part of knows how an as-of view is selected.
        raise NotImplementedError


def _hit(row: Sequence[Any], keys: int) -> SearchHit:
    rec, identity, *values = row
    return SearchHit(identity, rec, tuple(_place(values[2 * at], values[2 * at + 1]) for at in range(keys)))


def _place(number: float | None, text: str | None) -> Place:
    if number is not None:
        return 0, number
    return (2, None) if text is None else (1, text)


def _placed(entry: SearchEntry | None) -> Place:
    if entry is None:
        return 2, None
    return _place(entry.number, entry.text and entry.text[:TEXT_SORTED])


def _held(entry: SearchEntry | None) -> tuple[float | None, str | None] | None:
    return None if entry is None else (entry.number, entry.text)


def _values(record: Record, paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Any]:
    held = entries(record)
    return {path: value_of(*held[path]) for path in paths if path in held}


def _flat(parts: Iterable[Expression]) -> Iterator[Expression]:
    for part in parts:
        if isinstance(part, And):
            yield from _flat(part.parts)
        else:
            yield part
