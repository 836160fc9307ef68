"""Copy-on-write records: a fork's own records over those of its origin.

A record of the origin is copied with its whole history before it is changed, deleted, restored or moved. From then on
the copy is the record, and the origin's is hidden. So each write is the ordinary write of an SQL store.
"""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.records import KINDS
from everloop.stores.clock import micros
from everloop.stores.forks.overlay_reading import OverlayReading
from everloop.stores.records.record_codec import R, kind_of
from everloop.stores.records.row_checksums import ended_part, record_sum

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from everloop.records import Json, Record

_COLUMNS = "id, project, kind, key, state, created_at, revision, written_at, body"


class OverlayRecords(OverlayReading):
    """A `RecordStore` over read-only layers, with its own records in a SQLite database."""

    def put(self, *records: Record, verb: str = "created", data: Mapping[str, Json] | None = None) -> None:
        with self.transaction():
            for record in records:
                self._claim(type(record), record.id, record.key)
            super().put(*records, verb=verb, data=data)

    def update(self, *records: R, verb: str = "updated", data: Mapping[str, Json] | None = None) -> tuple[R, ...]:
        with self.transaction():
            for record in records:
                self._copy(type(record), record.id)
            return super().update(*records, verb=verb, data=data)

    def delete(
        self, kind: type[Record], ref: str, verb: str = "deleted", data: Mapping[str, Json] | None = None
    ) -> None:
        with self.transaction():
            record = self.get(kind, ref)
            self._copy(kind, record.id)
            super().delete(kind, record.id, verb, data)

    def restore(
        self, kind: type[Record], ref: str, verb: str = "restored", data: Mapping[str, Json] | None = None
    ) -> None:
        with self.transaction():
            for view in self._views(kind_of(kind)):
                for identity in view.records.deleted_ids(kind, ref):
                    self._copy(kind, identity)
            super().restore(kind, ref, verb, data)

    def move(self, kind: type[Record], ref: str, project: str, data: Mapping[str, Json] | None = None) -> None:
        with self.transaction():
            record = self.get(kind, ref)
            self._copy(kind, record.id)
            if project != self.project:
                for series in (record.id, f"{kind_of(kind)}:{record.id}"):
                    self._hide_points(series, copy=True)
            super().move(kind, record.id, project, data)

    def purge(self, before: datetime) -> int:
        with self.transaction():
            base = self._origin()
            for stored in () if base is None else base.stored():
                expired = stored.deleted_at is not None and stored.deleted_at <= before
                if stored.current and expired and stored.project == self.project and stored.kind in KINDS:
                    self._copy(KINDS[stored.kind], stored.id)
                    for series in (stored.id, f"{stored.kind}:{stored.id}"):
                        self._hide_points(series, copy=False)
            gone = self.database.read(
                "SELECT id, kind FROM records WHERE project = ? AND deleted_at <= ?", (self.project, micros(before))
            )
            for identity, kind in gone:
                for series in (identity, f"{kind}:{identity}"):
                    self._hide_points(series, copy=False)
            return super().purge(before)

    def _holder(self, kind: str, key: str) -> str | None:
        """As in a single store. A holder from the layers below is copied first, so this runs in a transaction."""
        self._claim_key(KINDS[kind], key)
        return super()._holder(kind, key)

    def _claim(self, kind: type[Record], identity: str, key: str) -> None:
        """Copy the records that have this id or key, so that the unique indexes of the own database know them."""
        self._copy(kind, identity)
        if key != identity:
            self._claim_key(kind, key)

    def _claim_key(self, kind: type[Record], key: str) -> None:
        for view in self._views(kind_of(kind)):
            for found in view.records.find(kind, ("key", "=", key)):
                if found.id not in view.hidden:
                    self._copy(kind, found.id)

    def _copy(self, kind: type[Record], identity: str) -> None:
        """Copy a record with its history from the layers below, if it is there and has not been copied."""
        name = kind_of(kind)
        for view in self._views(name):
            if identity in view.hidden:
                continue
            life = view.records.intervals(kind, identity)
            if not life:
                continue
            for past in life[:-1]:
                until = micros(past.until) if past.until is not None else 0
                self._insert("revisions", "until", past.record, micros(past.since), until)
            last = life[-1]
            deleted = None if last.until is None else micros(last.until)
            self._insert("records", "deleted_at", last.record, micros(last.since), deleted)
            self.database.write("INSERT INTO copied_records (id, kind) VALUES (?, ?)", (identity, name))
            if deleted is None:
                self._index_record(last.record)
            return

    def _insert(self, table: str, end: str, record: Record, since: int, until: int | None) -> None:
        row = self._row(record)
        values = (*row[:7], since, row[7], until, record_sum(*row[:7], since, row[7]) + ended_part(until))
        self.database.write(
            f"INSERT INTO {table} ({_COLUMNS}, {end}, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values
        )
