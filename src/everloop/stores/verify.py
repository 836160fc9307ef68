"""Whether everything that a home promises to hold is there and whole."""

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
from everloop.stores.journals import check_tail, list_journals, mended, read_journal, whole_part, writer_alive
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
_BEGINNINGS = _ELSEWHERE | {"created", "started", "resumed"}
"""Verbs of the events by which a run begins, or goes on."""


def verify(store: Store, *, found: Sequence[str] = ()) -> VerifyReport:
    """Check the whole home, all of its projects: every byte that it promises to keep is read and compared with the
    checksum that was written with it.

    Writes nothing. Others may go on working meanwhile.

    Args:
        found: what `check_before_opening` has found wrong with the database.
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
            unchecked.append(StoreProblem(kind=kind, subject=kind, message=f"Not checked to the end: {error}"))
        except StoreError as error:
            # The database is damaged so far that it cannot be asked.
            problems.append(StoreProblem(kind=kind, subject="database", message=error.message, repair=RESTORE))
    return VerifyReport(problems=tuple(problems), counts=counts, checked=checked, unchecked=tuple(unchecked))


def check_before_opening(places: StoreUrls) -> list[str]:
    """What is wrong with the database's write-ahead log. Opening a database after a crash makes SQLite forget what it
    cannot read of the log, so this comes first.

    Raises:
        CorruptionError: there is no database, or an empty file, beside parts that only a store with one can have.
            Opening it would make a new one.
    """
    if "://" in places.records:
        return []
    from everloop.stores.records.sqlite_files import log_problems

    path = Path(places.records)
    if not path.exists() or path.stat().st_size == 0:
        parts = [Path(part) for part in (places.objects, places.tables) if "://" not in part]
        if any(part.is_dir() and any(part.iterdir()) for part in parts):
            raise CorruptionError(
                f"The database '{path}' is {'empty' if path.exists() else 'missing'}, and other parts of the store are"
                " there.",
                help=f"Restore a backup: {RESTORE}",
            )
        return []
    return log_problems(path)


def seal(store: Store) -> tuple[int, int]:
    """Give everything that has no checksum one, because an earlier version wrote it or its writer was killed; returns
    how many rows and how many files of tables that were.

    To be called when a check has found nothing wrong: what is damaged by now cannot be told from what was written.
    """
    rows = 0
    if isinstance(store.records, SqlRecords):
        rows = seal_rows(store.records.database)
    return rows, sum(store.tables.files(name).seal_all() for name in store.tables.names())


def projects_with_runs(store: Store) -> list[str]:
    """The projects that have running runs; the store's own where its records do not say."""
    if not isinstance(store.records, SqlRecords):
        return [store.project]
    query = "SELECT DISTINCT project FROM records WHERE kind = 'run' AND state = 'running' AND deleted_at IS NULL"
    return sorted(str(project) for (project,) in store.records.database.read(query))


def mark_lost(store: Store, *, started_here: bool = False) -> list[Run]:
    """Give the running runs of the store's project whose process is gone the state `lost`, and return them.

    The process of a running run holds the store's lock `run-<id>`, from before the run is put until after it has
    ended, and another that logs to it holds its journal. Runs of other machines are left alone, and so are those that
    a client keeps running over HTTP.

    Args:
        started_here: only runs of which this home has had the lock: those are certain to have been started here.
    """
    running = [hit.id for hit in store.records.search(Run, Compare(("state",), "=", "running"))]
    lost: list[Run] = []
    for run in store.records.get_many(Run, running):
        if (started_here and not store.was_locked(_lock(run))) or not _is_lost(store, run):
            continue
        try:
            lost += store.records.update(replace(run, state="lost", ended_at=store.now()), verb="lost")
        except (ConflictError, NotFoundError):
            # It ended by itself between the two looks.
            continue
        except (ReadOnlyError, InsufficientStorageError):
            # Who looks after others' runs only in passing does not fail for a home that takes no writes.
            return lost
    return lost


def digests_in(value: Json) -> Iterator[str]:
    """Every text that is a digest, anywhere in a value of plain JSON types."""
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
    # A run that arrived from elsewhere, or that a client has set running, has its process elsewhere.
    events = store.for_project(run.project).records.events_since(0, kinds=["run"], subject=run.id)
    begun = [event.verb for event in events if event.verb in _BEGINNINGS]
    return not begun or begun[-1] not in _ELSEWHERE


def _lock(run: Run) -> str:
    """The lock that the run's process holds; its journals bear the same name."""
    return f"run-{run.id}"


def _check_database(
    store: Store, found: Sequence[str], records: list[Record], counts: dict[str, int], checked: Checked
) -> Iterator[StoreProblem]:
    messages = list(dict.fromkeys([*found, *store.records.problems()]))
    for message in messages:
        yield _database_problem(message)
    if not isinstance(store.records, SqlRecords):
        raise UsageError("Only records in a SQL database can be checked.")
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
        cure, heal = "index", "Make the indexes again from their tables, if all rows are whole."
    return StoreProblem(
        kind="records", subject="database", message=message, repair=REPAIR if heal else RESTORE, heal=heal, cure=cure
    )


def _check_search(store: Store, records: list[Record], known: list[StoreProblem]) -> Iterator[StoreProblem]:
    """What searches find records by follows from the records, and must fit them."""
    if not isinstance(store.records, SqlRecords):
        return
    damaged = {problem.subject for problem in known if problem.kind == "record"}
    heal = "Make it again from the records."
    for record in records:
        here = store.records.for_project(record.project)
        if not here.misfiled(record):
            continue
        # It may have been written to since it was read.
        now = here.get_many(type(record), [record.id])
        if now and here.misfiled(now[0]):
            message = f"What searches find {_name(record)} by differs from what it says."
            yield StoreProblem(
                kind="search",
                subject=record.id,
                message=message,
                repair=REPAIR,
                heal=heal,
                cure="search",
                place=record.id,
            )
    for identity in store.records.strayed():
        if identity not in damaged:
            message = "Searches would find a record that is not there."
            yield StoreProblem(
                kind="search",
                subject=identity,
                message=message,
                repair=REPAIR,
                heal=heal,
                cure="search",
                place=identity,
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
            # Swept since it was listed.
            present.discard(digest)
        except EverloopError as error:
            bad.add(digest)
            yield _object_problem("object", digest, error.message, digest)
    seen: set[str] = set()
    for record in records:
        builtins: Any = msgspec.to_builtins(record)
        for digest in digests_in(builtins):
            if digest not in present:
                message = f"{_name(record)} refers to the object {digest}, which is not there."
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
                message = f"The object {entry.holder} with its file '{entry.path}' is not there."
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
        heal="Take the object from the cache or from a tree's pack, or with --from out of a backup, if it is there.",
        cure="object",
        place=digest,
    )


def _check_relations(records: list[Record]) -> Iterator[StoreProblem]:
    artifacts = {(record.project, record.id) for record in records if isinstance(record, Artifact)}
    versions = {(record.project, record.key) for record in records if isinstance(record, ModelVersion)}
    for record in records:
        if isinstance(record, StepRun):
            for name, artifact in record.outputs.items():
                if (record.project, artifact) not in artifacts:
                    message = f"The output '{name}' of the step '{record.name}' is the artifact '{artifact}'"
                    yield StoreProblem(kind="reference", subject=record.id, message=f"{message}, which is not there.")
        elif isinstance(record, Alias) and (record.project, record.version) not in versions:
            message = f"The alias '{record.key}' names the version '{record.version}', which is not there."
            yield StoreProblem(kind="reference", subject=record.id, message=message)


def _check_journals(folder: Path, counts: dict[str, int], checked: Checked) -> Iterator[StoreProblem]:
    # Those that wait to be shipped elsewhere lie in a folder below.
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
    elif mended(path) is not None:
        cure, heal = "journal-frame", "Flip back the single bit that was flipped, which the checksum proves."
    elif path.stat().st_size > len(whole_part(path)) > 0 and _is_tail(path):
        cure, heal = "journal-tail", "Cut off the damaged last frame; what it said is lost."
    return StoreProblem(
        kind="journal",
        subject=path.name,
        message=message,
        repair=REPAIR if heal else RESTORE,
        heal=heal,
        cure=cure,
        place=str(path),
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
            yield from check_table(store.tables.files(name), checked)
        except (UnavailableError, OSError) as error:
            unchecked.append(StoreProblem(kind="table", subject=name, message=f"Not checked to the end: {error}"))
        except EverloopError as error:
            yield StoreProblem(kind="table", subject=name, message=error.message)


def _check_permissions(home: Path) -> Iterator[StoreProblem]:
    found = list(exposed(home))
    # One line for all: below a folder that is open there may be a file for every object.
    for path, who in found[:1]:
        more = f", and {len(found) - 1:,} more below the home" if len(found) > 1 else ""
        message = f"Not only its owner can use '{path}', but {who}{more}."
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
    """The keys of this machine, by which packages of this home are trusted."""
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
                message=f"The run '{run.name}' is said to be running, and its process is gone.",
                repair="everloop verify",
            )


def _name(record: Record) -> str:
    return f"The {type(record).__name__} '{record.key}'"
