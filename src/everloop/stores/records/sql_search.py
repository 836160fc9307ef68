"""Searching records by any of their values in an SQL database.

The table `searched_values` contains each searchable value of every live record. It is updated in the transaction that
writes the record, and only values that have changed are written. So a page is found by scanning an index, and only
records that are shown are decoded.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

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
from everloop.stores.records.search_results import Position, SearchHit, sort_value
from everloop.stores.records.searchable import entries, is_searchable, path_number, value_of
from everloop.stores.records.sql_logs import SqlLogs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from everloop.records import Record
    from everloop.stores.records.condition_sql import Sql
    from everloop.stores.records.searchable import SearchEntry

FEW = 5000
"""If at most this many records meet a comparison, they are all read and sorted instead of scanning an index."""

WINDOW = 4000
"""Number of index rows to scan before the set of records that meet each comparison is computed instead."""

_BATCH = 500
_UPSERT = (
    "INSERT INTO searched_values (rec, path, number, text, form) VALUES (?, ?, ?, ?, ?) ON CONFLICT (rec, path)"
    " DO UPDATE SET number = excluded.number, text = excluded.text, form = excluded.form"
)


class SqlSearch(SqlLogs):
    """The part of `RecordStore` that searches, and methods that keep the search entries up to date."""

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
        directions = [key.descending for key in keys]
        if after is not None and (isinstance(after.number, str) != (self._moment is not None)):
            raise UsageError(
                "A search of the present cannot continue a search of the past, or the other way round.",
                help="Begin again with the first page.",
            )
        if self._moment is not None:
            return self._search_past(kind, where, keys, limit, after)
        self._catch_up()
        most = None if limit is None else max(limit, 0)
        compiler = self._compiler(name)
        driver = self._few(compiler, where)
        if driver is not None or most is None or not keys:
            found = self._sorted(compiler, name, where, keys, driver)
            found = [
                hit for hit in found if after is None or sort_value(hit, directions) > sort_value(after, directions)
            ]
            return found if most is None else found[:most]
        return self._scan(compiler, name, where, keys, most, after)

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
            known = {record.id: record for record in self.get_many(kind, ids)}
            return [stored_values(known[one], paths) if one in known else {} for one in ids]
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

    def search_names(self, kind: type[Record], field: str, *, without: Collection[str] = ()) -> list[str]:
        if self._moment is not None or without:
            return self._read_names(kind, field, without)
        self._catch_up()
        rows = self.database.read(
            "SELECT name FROM searched_paths WHERE project = ? AND kind = ? AND field = ? ORDER BY name",
            (self.project, kind_of(kind), field),
        )
        return [row[0] for row in rows]

    def _index_record(self, record: Record) -> None:
        """Update the search entries of a record. Runs in the transaction that writes the record."""
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
            self.database.write_many(_UPSERT, changed)
            self._name_paths(kind, {number: now[number][0] for _, number, *_ in changed})
        removed = [(rec, number) for number in before.keys() - now.keys()]
        if removed:
            self.database.write_many("DELETE FROM searched_values WHERE rec = ? AND path = ?", removed)

    def _remove_entries(self, identity: str) -> None:
        """Remove the search entries of a record. Runs in the transaction that deletes it."""
        for (rec,) in self.database.read("SELECT rec FROM searched_records WHERE id = ?", (identity,)):
            self.database.write("DELETE FROM searched_values WHERE rec = ?", (rec,))
            self.database.write("DELETE FROM searched_records WHERE rec = ?", (rec,))

    def _name_paths(self, kind: str, paths: dict[int, tuple[str, ...]]) -> None:
        fresh = sorted(number for number in paths if number not in self._known_paths)
        for start in range(0, len(fresh), _BATCH):
            part = fresh[start : start + _BATCH]
            rows = self.database.read(
                f"SELECT path FROM searched_paths WHERE path IN ({', '.join('?' * len(part))})", part
            )
            existing = {row[0] for row in rows}
            # This transaction may be rolled back, so only paths that existed before are remembered.
            self._known_paths |= existing
            added = [
                (number, self.project, kind, paths[number][0], "".join(paths[number][1:]))
                for number in part
                if number not in existing
            ]
            if added:
                # Without this part, two transactions could each wait for a new path of the other one.
                with self.transaction("searched_paths"):
                    self.database.write_many(
                        "INSERT INTO searched_paths (path, project, kind, field, name) VALUES (?, ?, ?, ?, ?)"
                        " ON CONFLICT DO NOTHING",
                        added,
                    )

    def has_stale_entries(self, record: Record) -> bool:
        """Whether the search entries of a live record differ from the record."""
        kind = kind_of(type(record))
        if not is_searchable(kind):
            return False
        known = self.database.read_raw("SELECT rec, project, kind FROM searched_records WHERE id = ?", (record.id,))
        if not known:
            # Records that earlier versions wrote get their entries at the first search.
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

    def rebuild_entries(self, identity: str) -> None:
        """Rebuild the search entries of a record from the record."""
        with self.transaction():
            found = self.database.read(
                "SELECT project, kind, body FROM records WHERE id = ? AND deleted_at IS NULL", (identity,)
            )
            for (rec,) in self.database.read("SELECT rec FROM searched_records WHERE id = ?", (identity,)):
                self.database.write(
                    "DELETE FROM searched_paths WHERE path IN (SELECT path FROM searched_values WHERE rec = ?)", (rec,)
                )
            self._remove_entries(identity)
            for project, kind, body in found:
                record = decode(KINDS[kind], body)
                here = self.for_project(project)
                numbers = {path_number(project, kind, path): path for path in entries(record)}
                for number in numbers:
                    self.database.write("DELETE FROM searched_paths WHERE path = ?", (number,))
                self._known_paths.difference_update(numbers)
                here._index_record(record)

    def orphaned_entries(self) -> list[str]:
        """The ids in the search entries that belong to no live record."""
        rows = self.database.read_raw(
            "SELECT s.id FROM searched_records s LEFT JOIN records r"
            " ON r.id = s.id AND r.deleted_at IS NULL AND r.kind = s.kind AND r.project = s.project WHERE r.id IS NULL"
        )
        return [row[0] for row in rows]

    def _catch_up(self) -> None:
        """Add search entries for records that were written by versions without them."""
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
                            self.for_project(project)._index_record(decode(KINDS[kind], body))
                self.database.write_many("DELETE FROM searched_backlog WHERE id = ?", rows)
        self._caught_up[0] = True

    def _searched(self, kind: type[Record], where: Expression, order: Sequence[tuple[tuple[str, ...], bool]]) -> str:
        """Check that all paths can be searched, and return the name of the kind."""
        name = kind_of(kind)
        paths = [path for path, _ in order]
        waiting: list[Expression] = [where]
        while waiting:
            match waiting.pop():
                case Compare(path=path):
                    paths.append(path)
                case And(parts) | Or(parts):
                    waiting += parts
                case Not(part):
                    waiting.append(part)
        for path in paths:
            if path[0] not in kind.searchable:
                raise UsageError(
                    f"A {name.replace('_', ' ')} cannot be searched by '{'.'.join(path)}'.",
                    help=f"Searchable fields: {', '.join(kind.searchable) or 'none'}",
                )
        return name

    def _compiler(self, kind: str) -> Compiler:
        return Compiler(
            lambda path: path_number(self.project, kind, path),
            self.database.patterns,
            lambda path: len(path) == 1 and families(kind, path) == {"text"},
        )

    def _few(self, compiler: Compiler, where: Expression) -> Sql | None:
        """The condition for the most selective of the comparisons that must all be true, if few records meet it."""
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
        """All results, sorted in Python."""
        base, values = self._base(kind, driver)
        columns, joins, joined = joined_keys(compiler, keys, "b.rec", 0)
        chosen = replace(compiler, sets=driver is None).condition(where, "b.rec")
        rows = self.database.read(
            f"SELECT b.rec, s.id{columns} FROM {base} JOIN searched_records s ON s.rec = b.rec{joins}"
            f" WHERE {chosen.text}",
            (*values, *joined, *chosen.values),
        )
        directions = [key.descending for key in keys]
        hits = [_hit(row, len(keys)) for row in rows]
        hits.sort(key=lambda hit: sort_value(hit, directions))
        return hits

    def _scan(
        self, compiler: Compiler, kind: str, where: Expression, keys: list[SortKey], limit: int, after: SearchHit | None
    ) -> list[SearchHit]:
        """The next results in index order of the first key: its numbers, its texts, then records without a value."""
        scan = KeysetScan(compiler, where, keys, self.project, kind)
        found: list[SearchHit] = []
        long = False  # whether there are more rows than a window: then few records meet the expression
        for section in range(after.position[0][0] if after else 0, 3):
            begin = after if after is not None and after.position[0][0] == section else None
            border = None
            if section < 2:
                window = scan.border(section, begin, WINDOW)
                border = next((row[0] for row in self.database.read(window.text, window.values)), None)
                long = long or border is not None
            for sets in (long and section == 2,) if border is None else (False, True):
                left = limit - len(found)
                if left <= 0:
                    return found
                query = scan.query(section, begin, border, left, sets=sets)
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
        """Search a view of the past. Search entries exist only for the present, so every record is read."""
        view = self._view(kind_of(kind))
        directions = [key.descending for key in keys]
        hits = []
        for (body,) in self.database.read(f"SELECT body FROM {view.text} ORDER BY created_at, id", view.values):
            record = decode(kind, body)
            values = entries(record)
            if matches(where, lambda path, values=values: _number_and_text(values.get(path))):  # type: ignore[misc]
                position = tuple(_position_of(values.get(key.path)) for key in keys)
                hits.append(SearchHit(record.id, f"{micros(record.created_at):020d} {record.id}", position))
        hits.sort(key=lambda hit: sort_value(hit, directions))
        hits = [hit for hit in hits if after is None or sort_value(hit, directions) > sort_value(after, directions)]
        return hits if limit is None else hits[: max(limit, 0)]

    def _read_names(self, kind: type[Record], field: str, without: Collection[str]) -> list[str]:
        """The names that records had had by the moment of a view. The table of paths has no times and no records."""
        name = kind_of(kind)
        if not is_searchable(name):
            return []
        same = (self.project, name, self._limit())
        rows = self.database.read(
            "SELECT id, body FROM records WHERE project = ? AND kind = ? AND written_at <= ?"
            " UNION ALL SELECT id, body FROM revisions WHERE project = ? AND kind = ? AND written_at <= ?",
            same * 2,
        )
        left_out = set(without)
        paths = {path for identity, body in rows if identity not in left_out for path in entries(decode(kind, body))}
        return sorted("".join(path[1:]) for path in paths if path[0] == field)

    def _view(self, kind: str) -> Sql:
        # Implemented by `SqlRecords`, which knows how the records of a view are selected.
        raise NotImplementedError


def _hit(row: Sequence[Any], keys: int) -> SearchHit:
    rec, identity, *values = row
    return SearchHit(identity, rec, tuple(_position(values[2 * at], values[2 * at + 1]) for at in range(keys)))


def _position(number: float | None, text: str | None) -> Position:
    if number is not None:
        return 0, number
    return (2, None) if text is None else (1, text)


def _position_of(entry: SearchEntry | None) -> Position:
    if entry is None:
        return 2, None
    return _position(entry.number, entry.text and entry.text[:TEXT_SORTED])


def _number_and_text(entry: SearchEntry | None) -> tuple[float | None, str | None] | None:
    return None if entry is None else (entry.number, entry.text)


def stored_values(record: Record, paths: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Any]:
    """A record's searchable values at some paths. Paths without a value are left out."""
    found = entries(record)
    return {path: value_of(*found[path]) for path in paths if path in found}


def _flat(parts: Iterable[Expression]) -> Iterator[Expression]:
    for part in parts:
        if isinstance(part, And):
            yield from _flat(part.parts)
        else:
            yield part
