"""Removing secrets that were once stored unencrypted from the database's files, as far as the database allows."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import StoreError, UnavailableError
from everloop.stores.records.record_codec import kind_of
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite import SqliteDatabase

if TYPE_CHECKING:
    from everloop.records import Record
    from everloop.stores.records.record_store import RecordStore

MOST_BYTES = 512 << 20
"""A larger SQLite file is not rewritten. Its free pages keep their old bytes until they are reused."""


def forget_history(records: RecordStore, kind: type[Record]) -> None:
    """Remove the earlier revisions, the deleted records and the data of events of a kind, in the store's project.

    Views of the past and the history no longer show them. Backups and PostgreSQL's log still contain the old data.
    """
    if not isinstance(records, SqlRecords):
        return
    name, database = kind_of(kind), records.database
    if isinstance(database, SqliteDatabase):
        database.read("PRAGMA secure_delete = ON")
    with records.transaction():
        known = (records.project, name)
        database.write("DELETE FROM revisions WHERE project = ? AND kind = ?", known)
        database.write("DELETE FROM records WHERE project = ? AND kind = ? AND deleted_at IS NOT NULL", known)
        database.write("UPDATE events SET data = NULL WHERE project = ? AND kind = ? AND data IS NOT NULL", known)
    # The following needs exclusive access. If other processes use the database, old bytes stay until overwritten.
    with suppress(StoreError, UnavailableError):
        if not isinstance(database, SqliteDatabase):
            for table in ("records", "revisions", "events"):
                database.write(f"VACUUM {table}")
            return
        if database.path.stat().st_size <= MOST_BYTES:
            database.write("VACUUM")
        database.read("PRAGMA wal_checkpoint(TRUNCATE)")
