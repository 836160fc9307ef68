"""Moving a store: its records to another database, its objects and tables to another folder or bucket.

The order of steps keeps the store whole if the process dies at any of them. The records are copied in one transaction
of the target, while the source's lock keeps all writers out, and compared row by row. Objects and tables are copied
file by file. Only then is `everloop.toml` switched. Until then nothing has changed, and the same command continues;
afterwards the old database refuses writes, so that a process that still has it open loses nothing silently.

Journals and locks stay in the home. The old parts stay where they are, until you delete them.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, ReadOnlyError, StoreError, UsageError
from everloop.stores.gc import LOCK
from everloop.stores.home import CONFIG, Store, StoreUrls, find_store_urls, nearest_config, open_urls, store_urls
from everloop.stores.journals import list_journals, writer_alive
from everloop.stores.leases import Leases
from everloop.stores.locks import is_locked
from everloop.stores.objects.byte_stores import open_bytes
from everloop.stores.part_copies import CopiedFiles, copy_files, listed
from everloop.stores.records.row_copies import clear_rows, compare_rows, copy_rows, count_rows, is_empty
from everloop.stores.records.sql_logs import MOVED
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.store_config import with_settings, write_config
from everloop.stores.store_urls import mask_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.stores.records.sql_logs import Database

    Progress = Callable[[str, int], None]

LEFT = "everloop-moved.json"
"""A file in a folder of tables that a move has left. A later move may replace what is in it."""
_OWN_LOCKS = (f"{LOCK}.lock",)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedStore:
    """The result of a move, or what it would do. URLs are shown without their secrets."""

    moved: dict[str, tuple[str, str]]
    """Each part that moves (records, objects, tables), with its old and its new URL or path."""
    rows: dict[str, int]
    """The number of rows of each table of the database."""
    objects: int
    table_files: int
    size_bytes: int
    """Total size of the objects and of the tables."""
    digests: dict[str, str]
    """The SHA-256 of all rows, objects and table files, which are equal on both sides."""
    config: str
    dry_run: bool


def move_store(
    store: Store,
    changes: dict[str, str],
    *,
    config: Path | None = None,
    dry_run: bool = False,
    progress: Progress = lambda part, done: None,
) -> MovedStore:
    """Move parts of a store, and switch `everloop.toml` when everything has been compared.

    Args:
        changes: the new settings `records`, `objects` or `tables`, as in `[store]` of `everloop.toml`.
        config: the `everloop.toml` to change. Default: the nearest one. It is created beside the home if missing.
        dry_run: copy nothing, and report what would be moved.
        progress: called with a table of the database, `objects` or `tables`, and how many rows or files are complete.

    Raises:
        UsageError: nothing would move, the target is not empty, or `everloop.toml` configures another home.
        ConflictError: a process still uses the store. Nothing was switched.
        StoreError: a copy differs from its original. Nothing was switched.
        CorruptionError: the store is damaged.
    """
    if store.read_only or store.fork_parts is not None:
        raise ReadOnlyError("A view of the past and a fork cannot be moved.", help="Open the store itself.")
    path, text = _config(store, config)
    target = _target(store, changes)
    moved = {
        part: (mask_url(old), mask_url(new))
        for part in ("records", "objects", "tables")
        if (old := getattr(store.urls, part)) != (new := getattr(target, part))
    }
    if not moved:
        raise UsageError("The store is already there.", help="Name another URL or path for records, objects or tables.")
    new_text = with_settings(text, changes)
    refuse_while_used(store)
    source = _database(store.records)
    _refuse_segments(source)
    if dry_run:
        return _planned(store, source, moved, path)
    with store.lock(LOCK), source.transaction():
        refuse_while_used(store)
        digests, objects, tables = {}, CopiedFiles(0, 0, ""), CopiedFiles(0, 0, "")
        if "objects" in moved:
            new_objects = open_bytes(target.objects)
            objects = copy_files(store.objects.bytes_store, new_objects, lambda done: progress("objects", done))
            digests["objects"] = objects.digest
        if "tables" in moved:
            tables = _copy_tables(store.urls.tables, target.tables, progress)
            digests["tables"] = tables.digest
        if "records" in moved:
            digests["records"] = _copy_records(store, source, target, progress)
        rows = count_rows(source) if "records" in moved else {}
        refuse_while_used(store)
        write_config(path, new_text)
        if "records" in moved:
            source.refuse_writes(f"{MOVED}{mask_url(target.records)}.")
    if "tables" in moved:
        left = json.dumps({"moved_to": mask_url(target.tables)}).encode()
        # The file only permits a later move to replace these tables, so the move is complete without it.
        with suppress(StoreError, OSError):
            open_bytes(store.urls.tables).put(LEFT, left, if_absent=False)
    return MovedStore(
        moved=moved,
        rows=rows,
        objects=objects.files,
        table_files=tables.files,
        size_bytes=objects.size_bytes + tables.size_bytes,
        digests=digests,
        config=str(path),
        dry_run=False,
    )


def refuse_while_used(store: Store) -> None:
    """Raise ConflictError if a living process writes to the store: it holds a lock or lease, or writes a journal."""
    busy = [f"journal {path.name}" for path in list_journals(store.journals) if writer_alive(path)]
    if isinstance(store.records, SqlRecords):
        leases = Leases(store)
        busy += [f"lease {lease.name}" for lease in leases.held() if not leases.is_expired(lease)]
    folder = store.home / "locks"
    for path in sorted(folder.glob("*.lock")):
        if path.name not in _OWN_LOCKS and is_locked(path):
            busy.append(f"lock {path.stem}")
    if busy:
        shown = ", ".join(busy[:5]) + (" …" if len(busy) > 5 else "")
        raise ConflictError(
            f"The store is in use by other processes: {shown}.",
            help="Stop runs, endpoints, workers and servers of this store, and move it again.",
        )


def _config(store: Store, given: Path | None) -> tuple[Path, str]:
    """The file to change and its text."""
    path = given or nearest_config(Path.cwd())
    if path is None:
        path = store.home.parent / CONFIG
        return path, f"[store]\nhome = {json.dumps(store.home.name)}\n"
    if given is None:
        urls, _ = find_store_urls()
        if urls.home != store.home:
            raise UsageError(
                f"'{path}' configures the store '{urls.home}', not '{store.home}', so it cannot be switched.",
                help="Run the command in the project of this store, without EVERLOOP_STORE and --home.",
            )
    return path, path.read_text(encoding="utf-8") if path.exists() else ""


def _target(store: Store, changes: dict[str, str]) -> StoreUrls:
    wanted = store_urls(store.home, dict(changes))
    return replace(store.urls, **{part: getattr(wanted, part) for part in changes})


def _database(records: object) -> Database:
    if not isinstance(records, SqlRecords):
        raise UsageError("Only records in SQLite and PostgreSQL can be moved.")
    return records.database


def _refuse_segments(database: Database) -> None:
    """Predictions that instances have shipped to the database are not rows of records, so they must be folded first."""
    with suppress(StoreError):
        if database.read("SELECT 1 FROM log_segments LIMIT 1"):
            raise ConflictError(
                "The database contains predictions that are not in the tables yet.",
                help="Fold them first, for example with: everloop predictions ls",
            )


def _planned(store: Store, source: Database, moved: dict[str, tuple[str, str]], path: Path) -> MovedStore:
    objects = listed(store.objects.bytes_store) if "objects" in moved else {}
    tables = listed(open_bytes(store.urls.tables), frozenset({LEFT})) if "tables" in moved else {}
    return MovedStore(
        moved=moved,
        rows=count_rows(source) if "records" in moved else {},
        objects=len(objects),
        table_files=len(tables),
        size_bytes=sum(objects.values()) + sum(tables.values()),
        digests={},
        config=str(path),
        dry_run=True,
    )


def _copy_records(store: Store, source: Database, target: StoreUrls, progress: Progress) -> str:
    with open_urls(replace(store.urls, records=target.records), project=store.project, actor=store.actor) as opened:
        there = _database(opened.records)
        with there.transaction():
            if _was_left(there):
                there.refuse_writes(None)
                clear_rows(there)
            if is_empty(there):
                copy_rows(source, there, progress)
                return compare_rows(source, there)
            try:
                # An earlier move may have been killed between this transaction and the switch.
                return compare_rows(source, there)
            except StoreError as error:
                raise UsageError(
                    f"The database '{mask_url(target.records)}' already contains other records.",
                    help="Use an empty database, or another schema or file.",
                ) from error


def _was_left(database: Database) -> bool:
    """Whether the database refuses writes, because a move has left it."""
    if database.row_id == "rowid":
        query = "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'moved_events_insert'"
    else:
        query = (
            "SELECT 1 FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.tgname = 'moved_events_insert'"
            " AND c.relnamespace = current_schema()::regnamespace"
        )
    return bool(database.read(query))


def _copy_tables(old: str, new: str, progress: Progress) -> CopiedFiles:
    source, target = open_bytes(old), open_bytes(new)
    ours, theirs = listed(source, frozenset({LEFT})), listed(target)
    strange = sorted(key for key in theirs if key not in ours and key != LEFT)
    try:
        left = target.size(LEFT) is not None
    except NotFoundError:
        left = False
    if strange and not left:
        raise UsageError(
            f"The tables at '{mask_url(new)}' contain other files, such as '{strange[0]}'.",
            help="Use an empty folder or prefix.",
        )
    for key in strange:
        target.delete(key)
    found = copy_files(source, target, lambda done: progress("tables", done), leave_out=frozenset({LEFT}))
    if left:
        target.delete(LEFT)
    return found
