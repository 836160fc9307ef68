"""Checking a whole home: that nothing is missing and that every byte matches its checksum."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import (
    ConflictError,
    CorruptionError,
    EverloopError,
    InsufficientStorageError,
    NotFoundError,
    ReadOnlyError,
    StoreError,
    UnavailableError,
    UsageError,
)
from everloop.records import Alias, Artifact, ModelVersion, Record, Run, StepRun
from everloop.stores.clock import SharedClock
from everloop.stores.journals import (
    check_tail,
    intact_part,
    list_journals,
    read_journal,
    repaired_journal,
    writer_alive,
)
from everloop.stores.objects.manifests import DIGEST
from everloop.stores.permissions import exposed, is_shared
from everloop.stores.records.expressions import Compare
from everloop.stores.records.row_verification import REPAIR, RESTORE, check_rows, seal_rows
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.tables.table_verification import check_table
from everloop.stores.verify_report import Checked, Cure, StoreProblem, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from everloop.records import Json
    from everloop.stores.home import Store, StoreUrls

__all__ = [
    "Checked",
    "StoreProblem",
    "VerifyReport",
    "check_before_opening",
    "digests_in",
    "mark_lost",
    "seal",
    "verify",
]

_INDEX_PROBLEM = re.compile(r"row \d+ missing from index|wrong # of entries in index|non-unique entry in index")
_ELSEWHERE = frozenset({"received", "imported", "running"})
_WRITTEN_BY_PEOPLE = frozenset({"params", "tags", "description", "notes", "name", "user", "error", "trigger"})
"""Fields of records with texts of users. Garbage collection keeps an object whose digest they contain all the same."""
_BEGINNINGS = _ELSEWHERE | {"created", "started", "resumed"}
"""Verbs of the events that start or resume a run."""


def verify(store: Store, *, found: Sequence[str] = ()) -> VerifyReport:
    """Check all projects of a home: read every stored byte and compare it with its checksum.

    Writes nothing. Other processes may continue to work meanwhile.

    Args:
        found: problems of the database that `check_before_opening` has returned.
    """
    counts = dict.fromkeys(("records", "objects", "journals", "tables"), 0)
    checked = Checked()
    records: list[Record] = []
    problems: list[StoreProblem] = []
    unchecked: list[StoreProblem] = []
    parts: list[tuple[str, Callable[[], Iterable[StoreProblem]]]] = [
        ("records", lambda: _check_database(store, found, records, counts, checked)),
        ("search", lambda: _check_search(store, records, problems)),
        ("object", lambda: _check_objects(store, records, counts, checked)),
        ("reference", lambda: _check_relations(records)),
        ("journal", lambda: _check_journals(store.journals, counts, checked)),
        ("table", lambda: _check_tables(store, counts, checked, unchecked)),
        ("clock", lambda: _check_clock(store, checked)),
        ("key", lambda: _check_keys(checked)),
        ("permissions", lambda: _check_permissions(store.home)),
        ("run", lambda: _check_runs(store, records)),
    ]
    for kind, part in parts:
        try:
            problems += part()
        except (UnavailableError, PermissionError, OSError) as error:
            unchecked.append(StoreProblem(kind=kind, subject=kind, message=f"The check did not finish: {error}"))
        except StoreError as error:
            # The database is so badly damaged that it cannot be queried.
            problems.append(StoreProblem(kind=kind, subject="database", message=error.message, repair=RESTORE))
    return VerifyReport(problems=tuple(problems), counts=counts, checked=checked, unchecked=tuple(unchecked))


def check_before_opening(urls: StoreUrls) -> list[str]:
    """Return the problems of the database's write-ahead log.

    Call this before opening the store: when SQLite opens a database after a crash, it discards the part of the log
    that it cannot read.

    Raises:
        CorruptionError: the database is missing or empty, although other parts of the store exist. Opening the store
            would create a new one.
    """
    if "://" in urls.records:
        return []
    from everloop.stores.records.sqlite_files import log_problems

    path = Path(urls.records)
    if not path.exists() or path.stat().st_size == 0:
        parts = [Path(part) for part in (urls.objects, urls.tables) if "://" not in part]
        if any(part.is_dir() and any(part.iterdir()) for part in parts):
            raise CorruptionError(
                f"The database '{path}' is {'empty' if path.exists() else 'missing'}, although other parts of the"
                " store exist.",
                help=f"Restore a backup: {RESTORE}",
            )
        return []
    return log_problems(path)


def seal(store: Store) -> tuple[int, int]:
    """Add the checksums that are missing because an earlier version wrote the data or its writer was killed.

    Call this only after a check without problems: from then on, damage that is already there looks right.

    Returns:
        The number of rows and of table files that were sealed.
    """
    rows = 0
    if isinstance(store.records, SqlRecords):
        rows = seal_rows(store.records.database)
    return rows, sum(store.delta_tables.files(name).seal_all() for name in store.tables.names())


def projects_with_runs(store: Store) -> list[str]:
    """The projects that have running runs. If the records are not in an SQL database, the store's own project."""
    if not isinstance(store.records, SqlRecords):
        return [store.project]
    query = "SELECT DISTINCT project FROM records WHERE kind = 'run' AND state = 'running' AND deleted_at IS NULL"
    return sorted(str(project) for (project,) in store.records.database.read(query))


def mark_lost(store: Store, *, started_here: bool = False) -> list[Run]:
    """Set the state `lost` for the project's running runs whose process is gone, and return them.

    The process of a running run holds the store's lock `run-<id>`, from before the run is put until after it has
    ended. Another process that logs to the run holds its journal. Runs of other machines and runs that a client
    updates over HTTP are left alone.

    Args:
        started_here: only consider runs whose lock exists in this home, which proves that they were started here.
    """
    running = [hit.id for hit in store.records.search(Run, Compare(("state",), "=", "running"))]
    lost: list[Run] = []
    for run in store.records.get_many(Run, running):
        if (started_here and not store.was_locked(_lock(run))) or not _is_lost(store, run):
            continue
        try:
            lost += store.records.update(replace(run, state="lost", ended_at=store.now()), verb="lost")
        except (ConflictError, NotFoundError):
            # The run ended in the meantime.
            continue
        except (ReadOnlyError, InsufficientStorageError):
            # Callers do this in passing. They should not fail because the home cannot be written to.
            return lost
    return lost


def digests_in(value: Json) -> Iterator[str]:
    """Find all strings that are digests, at any depth of a JSON value."""
    match value:
        case str():
            if value.startswith("sha256:") and DIGEST.fullmatch(value):
                yield value
        case dict():
            for item in value.values():
                yield from digests_in(item)
        case list() | tuple():
            for item in value:
                yield from digests_in(item)


def _is_lost(store: Store, run: Run) -> bool:
    here = run.source.host in (None, os.uname().nodename)
    if run.state != "running" or not here or run.artifacts_at is not None or store.locked(_lock(run)):
        return False
    if any(writer_alive(path) for path in list_journals(store.journals, _lock(run))):
        return False
    # If the run was received, imported or set running by a client, its process is on another machine.
    events = store.for_project(run.project).records.events_since(0, kinds=["run"], subject=run.id)
    starts = [event.verb for event in events if event.verb in _BEGINNINGS]
    return not starts or starts[-1] not in _ELSEWHERE


def _lock(run: Run) -> str:
    """Name of the lock that the run's process holds. Its journals have the same name."""
    return f"run-{run.id}"


def _check_database(
    store: Store, found: Sequence[str], records: list[Record], counts: dict[str, int], checked: Checked
) -> Iterator[StoreProblem]:
    messages = list(dict.fromkeys([*found, *store.records.problems()]))
    for message in messages:
        yield _database_problem(message)
    if not isinstance(store.records, SqlRecords):
        raise UsageError("The records of this store are not in an SQL database, so they cannot be checked.")
    database = store.records.database
    if isinstance(database, SqliteDatabase):
        checked.files += 1
        checked.size_bytes += database.path.stat().st_size if database.path.exists() else 0
    yield from check_rows(database, records, checked)
    counts["records"] += len(records)


def _database_problem(message: str) -> StoreProblem:
    cure: Cure | None = None
    heal = None
    if _INDEX_PROBLEM.match(message):
        cure, heal = "index", "Rebuild the indexes from their tables, if all rows are intact."
    return StoreProblem(
        kind="records", subject="database", message=message, repair=REPAIR if heal else RESTORE, heal=heal, cure=cure
    )


def _check_search(store: Store, records: list[Record], known: list[StoreProblem]) -> Iterator[StoreProblem]:
    """Check that the search tables match the records that they are derived from."""
    if not isinstance(store.records, SqlRecords):
        return
    damaged = {problem.subject for problem in known if problem.kind == "record"}
    heal = "Rebuild the search entries from the records."
    for record in records:
        here = store.records.for_project(record.project)
        if not here.has_stale_entries(record):
            continue
        # The record may have been updated since it was read.
        now = here.get_many(type(record), [record.id])
        if now and here.has_stale_entries(now[0]):
            message = f"The search entries of {_name(record, start=False)} differ from the record."
            yield StoreProblem(
                kind="search",
                subject=record.id,
                message=message,
                repair=REPAIR,
                heal=heal,
                cure="search",
                location=record.id,
            )
    for identity in store.records.orphaned_entries():
        if identity not in damaged:
            message = "There are search entries for a record that does not exist."
            yield StoreProblem(
                kind="search",
                subject=identity,
                message=message,
                repair=REPAIR,
                heal=heal,
                cure="search",
                location=identity,
            )


def _check_objects(
    store: Store, records: list[Record], counts: dict[str, int], checked: Checked
) -> Iterator[StoreProblem]:
    bad: set[str] = set()
    present: set[str] = set()
    for digest, size in store.objects.digests():
        counts["objects"] += 1
        checked.files += 1
        checked.size_bytes += size
        present.add(digest)
        try:
            store.objects.prove(digest)
        except NotFoundError:
            # Garbage-collected since it was listed.
            present.discard(digest)
        except EverloopError as error:
            bad.add(digest)
            yield _object_problem("object", digest, error.message, digest)
    seen: set[str] = set()
    for record in records:
        builtins: Any = msgspec.to_builtins(record)
        # What people write may look like a digest, and refers to nothing.
        fields = {name: value for name, value in builtins.items() if name not in _WRITTEN_BY_PEOPLE}
        for digest in digests_in(fields):
            if digest not in present:
                message = f"{_name(record)} refers to the object {digest}, which does not exist."
                yield _object_problem("reference", record.id, message, digest)
            elif digest not in seen and digest not in bad:
                seen.add(digest)
                yield from _check_tree(store, digest, present)


def _check_tree(store: Store, digest: str, present: set[str]) -> Iterator[StoreProblem]:
    if not store.objects.is_tree(digest):
        return
    try:
        for entry in store.objects.tree(digest):
            if entry.holder not in present:
                message = f"The object {entry.holder} with its file '{entry.path}' does not exist."
                yield _object_problem("tree", digest, message, entry.holder)
            elif entry.pack is not None:
                store.objects.read_entry(entry)
    except EverloopError as error:
        yield StoreProblem(kind="tree", subject=digest, message=error.message)


def _object_problem(kind: str, subject: str, message: str, digest: str) -> StoreProblem:
    return StoreProblem(
        kind=kind,
        subject=subject,
        message=message,
        repair=f"{REPAIR} --from BACKUP",
        heal="Restore the object from the cache or from a tree's pack, or from a backup with --from.",
        cure="object",
        location=digest,
    )


def _check_relations(records: list[Record]) -> Iterator[StoreProblem]:
    artifacts = {(record.project, record.id) for record in records if isinstance(record, Artifact)}
    versions = {(record.project, record.key) for record in records if isinstance(record, ModelVersion)}
    for record in records:
        if isinstance(record, StepRun):
            for name, artifact in record.outputs.items():
                if (record.project, artifact) not in artifacts:
                    message = f"The output '{name}' of the step '{record.name}' refers to the artifact '{artifact}'"
                    yield StoreProblem(kind="reference", subject=record.id, message=f"{message}, which does not exist.")
        elif isinstance(record, Alias) and (record.project, record.version) not in versions:
            message = f"The alias '{record.key}' points to the version '{record.version}', which does not exist."
            yield StoreProblem(kind="reference", subject=record.id, message=message)


def _check_journals(folder: Path, counts: dict[str, int], checked: Checked) -> Iterator[StoreProblem]:
    # Journals that wait to be shipped to another machine are in subfolders.
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    for path in [path for one in folders for path in list_journals(one)]:
        counts["journals"] += 1
        checked.files += 1
        try:
            checked.size_bytes += path.stat().st_size
            for _ in read_journal(path):
                pass
            check_tail(path)
        except (NotFoundError, FileNotFoundError):
            # Folded and removed since it was listed.
            continue
        except EverloopError as error:
            yield _journal_problem(path, error.message)


def _journal_problem(path: Path, message: str) -> StoreProblem:
    heal: str | None = None
    cure: Cure | None = None
    if writer_alive(path):
        heal = None
    elif repaired_journal(path) is not None:
        cure, heal = "journal-frame", "Correct the one flipped bit; the checksum proves which one it is."
    elif path.stat().st_size > len(intact_part(path)) > 0 and _is_tail(path):
        cure, heal = "journal-tail", "Cut off the damaged last frame. Its content is lost."
    return StoreProblem(
        kind="journal",
        subject=path.name,
        message=message,
        repair=REPAIR if heal else RESTORE,
        heal=heal,
        cure=cure,
        location=str(path),
    )


def _is_tail(path: Path) -> bool:
    try:
        for _ in read_journal(path):
            pass
    except EverloopError:
        return False
    return True


def _check_tables(
    store: Store, counts: dict[str, int], checked: Checked, unchecked: list[StoreProblem]
) -> Iterator[StoreProblem]:
    for name in store.tables.names():
        counts["tables"] += 1
        try:
            yield from check_table(store.delta_tables.files(name), checked)
        except (UnavailableError, OSError) as error:
            unchecked.append(StoreProblem(kind="table", subject=name, message=f"The check did not finish: {error}"))
        except EverloopError as error:
            yield StoreProblem(kind="table", subject=name, message=error.message)


def _check_permissions(home: Path) -> Iterator[StoreProblem]:
    found = list(exposed(home))
    # One problem for all paths: an open folder may contain a file for every object.
    for path, who in found[:1]:
        others = f", as well as {len(found) - 1:,} other paths in the home" if len(found) > 1 else ""
        message = f"'{path}' can be accessed by {who}, not only by its owner{others}."
        repair = f"chmod -R {'o=' if is_shared(home) else 'go='} '{home}'"
        yield StoreProblem(kind="permissions", subject=str(path), message=message, repair=repair)


def _check_clock(store: Store, checked: Checked) -> Iterator[StoreProblem]:
    path = store.home / "clock"
    if not path.exists():
        return
    checked.files += 1
    try:
        SharedClock(path).now()
    except EverloopError as error:
        yield StoreProblem(kind="clock", subject=path.name, message=error.message, repair=error.help)


def _check_keys(checked: Checked) -> Iterator[StoreProblem]:
    """Check the keys of this machine, which decide which packages are trusted."""
    from everloop.stores.trust import Keyring

    ring = Keyring()
    if not ring.folder.is_dir():
        return
    try:
        checked.files += len(ring.listing())
    except EverloopError as error:
        yield StoreProblem(kind="key", subject=str(ring.folder), message=error.message, repair=error.help)


def _check_runs(store: Store, records: list[Record]) -> Iterator[StoreProblem]:
    for run in records:
        if isinstance(run, Run) and _is_lost(store, run):
            yield StoreProblem(
                kind="run",
                subject=run.id,
                message=f"The run '{run.name}' has the state 'running', but its process is gone.",
                repair="everloop verify",
            )


def _name(record: Record, *, start: bool = True) -> str:
    return f"{'The' if start else 'the'} {type(record).__name__} '{record.key}'"
