"""Records in an SQL database; see `sql_logs` for the database and for times."""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from everloop.errors import AlreadyExistsError, ConflictError, CorruptionError, NotFoundError, UsageError
from everloop.stores.clock import micros, moment_of
from everloop.stores.records.condition_sql import Sql, SqlPart, parse_conditions, parse_order
from everloop.stores.records.record_codec import R, decode, encode, kind_of
from everloop.stores.records.record_store import RecordInterval, StoredRecord
from everloop.stores.records.row_checksums import SUMS, ended_part, record_sum
from everloop.stores.records.sql_search import SqlSearch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from everloop.records import Json, Record
    from everloop.stores.records.record_store import Condition

_COLUMNS = "id, project, kind, key, state, created_at, revision, written_at, body"
_PORTION = 1000
_ALL = Sql("1 = 1")
_AND = Sql("AND")
_LIST_COMMANDS = {
    "run": "runs ls",
    "step": "runs ls",
    "artifact": "runs ls",
    "contract": "data ls",
    "snapshot": "data ls",
    "feature_view": "data ls",
    "endpoint": "endpoints ls",
    "finding": "monitor findings",
    "incident": "monitor ls",
    "gate_result": "release ls",
    "release": "release ls",
}


SLOW_S = 0.05
"""If reading a page takes longer than this, an index is created. So sorting a hundred thousand runs by a metric is slow
only once, and stores that never do it have no index that makes writes slower."""


class SqlRecords(SqlSearch):
    """A `RecordStore` in an SQL database."""

    def put(self, *records: Record, verb: str = "created", data: Mapping[str, Json] | None = None) -> None:
        rows = [self._row(record) for record in records]
        with self.transaction(*(record.id for record in records)):
            now = self._now()
            for record, row in zip(records, rows, strict=True):
                added = self.database.write(
                    f"INSERT INTO records ({_COLUMNS}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING",
                    (*row[:7], now, row[7], record_sum(*row[:7], now, row[7])),
                )
                if not added:
                    raise self._taken(record)
                self._index_record(record)
                self._write_event(now, verb, row[2], record.id, record.key, data)

    def get(self, kind: type[R], ref: str) -> R:
        name = kind_of(kind)
        view = self._view(name)
        for column in ("id", "key"):
            rows = self.database.read(f"SELECT body FROM {view.text} WHERE {column} = ?", (*view.values, ref))
            if rows:
                return decode(kind, rows[0][0])
        raise self._missing(kind, ref)

    def find(
        self, kind: type[R], *where: Condition, order: str = "id", limit: int | None = None, after: str | None = None
    ) -> list[R]:
        name = kind_of(kind)
        paths = self.database.paths
        chosen = parse_conditions(where, name, paths)
        parts = parse_order(order, name, paths)
        behind = _ALL
        if after is not None:
            parts, behind = self._behind(name, parts, after)
        view = self._view(name)
        bodies: list[str] = []
        for part in parts:
            left = None if limit is None else max(limit, 0) - len(bodies)
            if left == 0:
                break
            query = [Sql(f"SELECT body FROM {view.text} WHERE", view.values), chosen, _AND, part.where, _AND, behind]
            query += [Sql("ORDER BY"), part.by, *([] if left is None else [Sql("LIMIT ?", (left,))])]
            started = perf_counter()
            bodies += [body for (body,) in self._read(query)]
            if left is not None and part.value is not None and perf_counter() - started > SLOW_S:
                self.database.index(part.value)
            behind = _ALL
        return [decode(kind, body) for body in bodies]

    def _behind(self, kind: str, parts: list[SqlPart], after: str) -> tuple[list[SqlPart], Sql]:
        """The remaining parts of an order after a record, and the condition for the rest of the first one."""
        view = self._view(kind)
        values = [part.value or Sql("NULL") for part in parts]
        columns = Sql(", ".join(value.text for value in values), tuple(one for value in values for one in value.values))
        rows = self._read([Sql("SELECT"), columns, Sql(f"FROM {view.text} WHERE id = ?", (*view.values, after))])
        if not rows:
            raise NotFoundError(
                f"Cannot continue after the {_kind_label(kind)} '{after}', because it does not exist.",
                help="Begin again with the first page.",
            )
        # The last part contains the records without a value.
        number = next((at for at, value in enumerate(rows[0]) if value is not None), len(parts) - 1)
        return parts[number:], parts[number].behind(rows[0][number], after)

    def _read(self, query: Sequence[Sql]) -> list[Any]:
        return self.database.read(
            " ".join(part.text for part in query), [value for part in query for value in part.values]
        )

    def update(self, *records: R, verb: str = "updated", data: Mapping[str, Json] | None = None) -> tuple[R, ...]:
        written = tuple(replace(record, revision=record.revision + 1) for record in records)
        rows = [self._row(record) for record in written]
        # Whether a key is free can be checked only while there are no other writers.
        own = all(record.key == record.id for record in records)
        with self.transaction(*(record.id for record in records) if own else ()):
            now = self._now()
            for before, record, row in zip(records, written, rows, strict=True):
                inserted = self.database.write(
                    f"INSERT INTO revisions ({_COLUMNS}, until, crc) SELECT {_COLUMNS}, ?, crc + ? FROM records"
                    " WHERE id = ? AND project = ? AND kind = ? AND revision = ? AND deleted_at IS NULL",
                    (now, ended_part(now), record.id, self.project, row[2], before.revision),
                )
                if not inserted:
                    raise self._stale(before)
                if record.key != record.id and self._holder(row[2], record.key) not in (None, record.id):
                    raise self._taken(record)
                self.database.write(
                    "UPDATE records SET key = ?, state = ?, created_at = ?, revision = ?, written_at = ?, body = ?,"
                    " crc = ? WHERE id = ?",
                    (*row[3:7], now, row[7], record_sum(*row[:7], now, row[7]), record.id),
                )
                self._index_record(record)
                self._write_event(now, verb, row[2], record.id, record.key, data)
        return written

    def delete(
        self, kind: type[Record], ref: str, verb: str = "deleted", data: Mapping[str, Json] | None = None
    ) -> None:
        with self.transaction():
            record = self.get(kind, ref)
            now = self._now()
            self.database.write(
                "UPDATE records SET deleted_at = ?, crc = crc + ? WHERE id = ?", (now, ended_part(now), record.id)
            )
            self._remove_entries(record.id)
            self._write_event(now, verb, kind_of(kind), record.id, record.key, data)

    def restore(
        self, kind: type[Record], ref: str, verb: str = "restored", data: Mapping[str, Json] | None = None
    ) -> None:
        name = kind_of(kind)
        with self.transaction():
            found = self.database.read(
                "SELECT id, key FROM records WHERE project = ? AND kind = ? AND deleted_at IS NOT NULL"
                " AND (id = ? OR key = ?)"
                " ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END, deleted_at DESC, id DESC LIMIT 1",
                (self.project, name, ref, ref, ref),
            )
            if not found:
                raise NotFoundError(
                    f"There is no deleted {_kind_label(name)} '{ref}'.",
                    help="Records that `everloop gc` has purged cannot be restored.",
                )
            identity, key = found[0]
            if self._holder(name, key) is not None:
                raise AlreadyExistsError(
                    f"Cannot restore the {_kind_label(name)} '{ref}': another one has the key '{key}' now.",
                    help="Delete the other one first.",
                )
            now = self._now()
            # The time before the deletion becomes a revision, so that views of the past still show the gap.
            self.database.write(
                f"INSERT INTO revisions ({_COLUMNS}, until, crc) SELECT {_COLUMNS}, deleted_at, crc FROM records"
                " WHERE id = ?",
                (identity,),
            )
            self._rewrite("records", "id = ?", (identity,), deleted_at=None, written_at=now)
            self._index_record(self.get(kind, identity))
            self._write_event(now, verb, name, identity, key, data)

    def move(self, kind: type[Record], ref: str, project: str, data: Mapping[str, Json] | None = None) -> None:
        name = kind_of(kind)
        there = self.for_project(project)
        # All that move records between the same projects take the locks in the same order.
        first, second = sorted((self, there), key=lambda store: store.project)
        with first.transaction(), second.transaction():
            record = self.get(kind, ref)
            if there._holder(name, record.key) is not None:
                raise AlreadyExistsError(
                    f"The project '{project}' already has a {_kind_label(name)} '{record.key}'.",
                    help=_list_command(name),
                )
            if project == self.project:
                return
            self._remove_entries(record.id)
            # The body contains the project, so the move is a new revision.
            (moved,) = self.update(record, verb="moved", data={**(data or {}), "to": project})
            moved = replace(moved, project=project)
            row = there._row(moved)
            self._rewrite("records", "id = ?", (record.id,), project=project, body=row[7])
            self._rewrite("revisions", "id = ?", (record.id,), project=project)
            for series in (record.id, f"{name}:{record.id}"):
                self._rewrite("metrics", "project = ? AND series = ?", (self.project, series), project=project)
            self._remove_entries(record.id)
            there._index_record(moved)
            there._write_event(
                self._now(), "moved", name, record.id, record.key, {**(data or {}), "from": self.project}
            )

    def history(self, kind: type[R], ref: str) -> list[tuple[datetime, R]]:
        name = kind_of(kind)
        view = self._view(name)
        shown = self.database.read(f"SELECT id FROM {view.text} WHERE key = ?", (*view.values, ref))
        identity = shown[0][0] if shown else ref
        limit = self._limit()
        rows = self.database.read(
            "SELECT revision, min(written_at), min(body) FROM ("
            "SELECT revision, written_at, body FROM revisions WHERE id = ? AND project = ? AND kind = ?"
            " UNION ALL SELECT revision, written_at, body FROM records WHERE id = ? AND project = ? AND kind = ?"
            ") AS written WHERE written_at <= ? GROUP BY revision ORDER BY revision",
            (*(identity, self.project, name) * 2, limit),
        )
        if not rows:
            raise self._missing(kind, ref)
        return [(moment_of(written_at), decode(kind, body)) for _, written_at, body in rows]

    def intervals(self, kind: type[Record], identity: str) -> list[RecordInterval]:
        name, limit = kind_of(kind), self._limit()
        same = (identity, self.project, name, limit)
        rows = self.database.read(
            "SELECT written_at, until, body FROM revisions WHERE id = ? AND project = ? AND kind = ?"
            " AND written_at <= ? ORDER BY number",
            same,
        ) + self.database.read(
            "SELECT written_at, deleted_at, body FROM records WHERE id = ? AND project = ? AND kind = ?"
            " AND written_at <= ?",
            same,
        )
        return [
            RecordInterval(
                decode(kind, body), moment_of(since), None if until is None or until > limit else moment_of(until)
            )
            for since, until, body in rows
        ]

    def deleted_ids(self, kind: type[Record], ref: str) -> list[str]:
        name, limit = kind_of(kind), self._limit()
        named = (self.project, name, ref, ref, limit)
        rows = self.database.read(
            "SELECT id FROM records WHERE project = ? AND kind = ? AND (id = ? OR key = ?) AND written_at <= ?"
            " UNION SELECT id FROM revisions WHERE project = ? AND kind = ? AND (id = ? OR key = ?)"
            " AND written_at <= ? ORDER BY id",
            named * 2,
        )
        found = []
        for (identity,) in rows:
            *_, last = self.intervals(kind, identity)
            if last.until is not None and ref in (identity, last.record.key):
                found.append(identity)
        return found

    def purge(self, before: datetime) -> int:
        with self.transaction():
            expired = self.database.read(
                "SELECT id, kind FROM records WHERE project = ? AND deleted_at <= ?", (self.project, micros(before))
            )
            for identity, kind in expired:
                for series in (identity, f"{kind}:{identity}"):
                    for statement in (
                        "DELETE FROM points WHERE metric IN (SELECT id FROM metrics WHERE project = ? AND series = ?)",
                        "DELETE FROM metrics WHERE project = ? AND series = ?",
                    ):
                        self.database.write(statement, (self.project, series))
                for statement in (
                    "DELETE FROM revisions WHERE project = ? AND id = ?",
                    "DELETE FROM records WHERE project = ? AND id = ?",
                ):
                    self.database.write(statement, (self.project, identity))
        return len(expired)

    def stored(self) -> Iterator[StoredRecord]:
        limit = self._limit()
        # A revision that was replaced only after the moment of a view is the current one there.
        replaced = (
            "v.until <= ? AND (r.written_at <= ? OR EXISTS (SELECT 1 FROM revisions n"
            " WHERE n.id = v.id AND n.number > v.number AND n.written_at <= ?))"
        )
        for source, at, body, written, last, is_current, marks in (
            ("records r", "r.id", "r.body", "r.written_at", "", "1, r.deleted_at", ()),
            (
                "revisions v JOIN records r ON r.id = v.id",
                "v.number",
                "v.body",
                "v.written_at",
                0,
                f"CASE WHEN {replaced} THEN 0 ELSE 1 END, CASE WHEN r.written_at <= ? THEN r.deleted_at ELSE"
                " (SELECT n.until FROM revisions n WHERE n.id = v.id AND n.written_at <= ?"
                " ORDER BY n.number DESC LIMIT 1) END",
                (limit, limit, limit, limit, limit),
            ),
        ):
            while rows := self.database.read(
                f"SELECT {at}, r.project, r.kind, r.id, {body}, {is_current} FROM {source} WHERE {at} > ?"
                f" AND {written} <= ? ORDER BY {at} LIMIT ?",
                (*marks, last, limit, _PORTION),
            ):
                for _, project, kind, identity, text, current, deleted in rows:
                    yield StoredRecord(
                        project=project,
                        kind=kind,
                        id=identity,
                        body=text,
                        current=bool(current),
                        deleted_at=None if deleted is None or deleted > limit else moment_of(deleted),
                    )
                last = rows[-1][0]

    def problems(self) -> list[str]:
        return self.database.problems()

    def _rewrite(self, table: str, where: str, values: Sequence[object], **changes: object) -> None:
        """Change columns of some rows and update their checksums.

        Raises:
            CorruptionError: a row did not match its checksum before the change.
        """
        check = next(one for one in SUMS if one.table == table)
        number = self.database.row_id if check.number == "rowid" else check.number
        columns = ", ".join(check.columns)
        for at, crc, *row in self.database.read(
            f"SELECT {number}, crc, {columns} FROM {table} WHERE {where}", tuple(values)
        ):
            if crc is not None and crc != check.of(row):
                raise CorruptionError(
                    f"A row of '{table}' of the project '{self.project}' differs from its checksum.",
                    help="See: everloop verify",
                )
            changed = {**dict(zip(check.columns, row, strict=True)), **changes}
            # Rows without a checksum get one from `everloop verify`, after a check.
            new = {**changes, "crc": None if crc is None else check.of(tuple(changed.values()))}
            assigned = ", ".join(f"{column} = ?" for column in new)
            self.database.write(f"UPDATE {table} SET {assigned} WHERE {number} = ?", (*new.values(), at))

    def _view(self, kind: str) -> Sql:
        """The source for `SELECT … FROM`: the live records of one kind, now or as of the view's moment."""
        column = self.database.paths.column
        columns = f"id, project, key, state, created_at, revision, body{'' if column == 'body' else f', {column}'}"
        if self._moment is None:
            return Sql(
                f"(SELECT {columns} FROM records WHERE project = ? AND kind = ? AND deleted_at IS NULL) AS shown",
                (self.project, kind),
            )
        moment = self._moment
        return Sql(
            f"(SELECT {columns} FROM records WHERE project = ? AND kind = ?"
            " AND written_at <= ? AND (deleted_at IS NULL OR deleted_at > ?)"
            f" UNION ALL SELECT {columns} FROM revisions"
            " WHERE project = ? AND kind = ? AND written_at <= ? AND until > ?) AS shown",
            (self.project, kind, moment, moment, self.project, kind, moment, moment),
        )

    def _row(self, record: Record) -> tuple[str, str, str, str, str | None, int, int, str]:
        kind = kind_of(type(record))
        if record.project != self.project:
            raise UsageError(
                f"The {_kind_label(kind)} '{record.key}' belongs to the project '{record.project}',"
                f" and this store is open for '{self.project}'.",
                help=f"Use store.for_project('{record.project}').",
            )
        body = encode(record)
        state = getattr(record, "state", None)
        return (
            record.id,
            record.project,
            kind,
            record.key,
            state,
            micros(record.created_at),
            record.revision,
            body,
        )

    def _holder(self, kind: str, key: str) -> str | None:
        """The id of the live record with this key."""
        rows = self.database.read(
            "SELECT id FROM records WHERE project = ? AND kind = ? AND key = ? AND deleted_at IS NULL",
            (self.project, kind, key),
        )
        return rows[0][0] if rows else None

    def _taken(self, record: Record) -> AlreadyExistsError:
        kind = kind_of(type(record))
        deleted = self.database.read(
            "SELECT deleted_at IS NOT NULL FROM records WHERE id = ? AND project = ? AND kind = ?",
            (record.id, self.project, kind),
        )
        name = f"{_kind_label(kind)} '{record.key}'"
        if deleted and deleted[0][0]:
            return AlreadyExistsError(
                f"The {name} already exists and is deleted.", help="Restore it instead of adding it again."
            )
        return AlreadyExistsError(f"The {name} already exists.", help=_list_command(kind))

    def _stale(self, record: Record) -> ConflictError | NotFoundError:
        kind = type(record)
        rows = self.database.read(
            "SELECT revision FROM records WHERE id = ? AND project = ? AND kind = ? AND deleted_at IS NULL",
            (record.id, self.project, kind_of(kind)),
        )
        if not rows:
            return self._missing(kind, record.id)
        return ConflictError(
            f"The {_kind_label(kind_of(kind))} '{record.key}' was changed by another process:"
            f" it has revision {rows[0][0]}, not {record.revision}.",
            help="Read it again and repeat the change.",
        )

    def _newest_keys(self, kind: type[Record]) -> list[str]:
        """The keys of the newest records, for the message that a record is missing."""
        view = self._view(kind_of(kind))
        rows = self.database.read(
            f"SELECT key FROM {view.text} ORDER BY created_at DESC, id DESC LIMIT 500", view.values
        )
        return [row[0] for row in rows]

    def _missing(self, kind: type[Record], ref: str) -> NotFoundError:
        from difflib import get_close_matches

        name = kind_of(kind)
        keys = self._newest_keys(kind)
        near = get_close_matches(ref, keys, n=5, cutoff=0.5)
        known = f" Similar: {', '.join(near)}." if near else " There are none yet."
        if keys and not near:
            known = f" The newest {'are' if len(keys) > 1 else 'is'}: {', '.join(keys[:5])}."
        return NotFoundError(
            f"No {_kind_label(name)} '{ref}' in the project '{self.project}'.{known}", help=_list_command(name)
        )


def _kind_label(kind: str) -> str:
    return kind.replace("_", " ")


def _list_command(kind: str) -> str:
    return f"See: everloop {_LIST_COMMANDS.get(kind, 'models ls')}"
