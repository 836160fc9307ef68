"""Whether everything that a home promises to hold is there and whole."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import ConflictError, EverloopError, NotFoundError
from everloop.records import KINDS, Alias, Artifact, ModelVersion, Record, Run, Step
from everloop.stores.bodies import decode
from everloop.stores.expressions import Compare
from everloop.stores.journals import list_journals, read_journal, writer_alive
from everloop.stores.permissions import exposed, is_shared
from everloop.stores.trees import DIGEST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.records import Json
    from everloop.stores.home import Store

_ELSEWHERE = frozenset({"received", "imported", "running"})
_BEGINNINGS = _ELSEWHERE | {"created", "started", "resumed"}
"""Verbs of the events by which a run begins, or goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """`records`, `record`, `object`, `tree`, `reference`, `journal`, `table`, `permissions` or `run`."""
    subject: str
    message: str
    repair: str | None = None
    """The command that helps, where one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a check has looked at and found."""

    problems: tuple[Problem, ...]
    counts: dict[str, int]
    """How many records, objects, journals and tables were looked at."""

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(store: Store) -> Report:
    """Check the whole home, all of its projects: every byte of every object, journal and table is read.

    Others may go on working meanwhile.
    """
    counts = dict.fromkeys(("records", "objects", "journals", "tables"), 0)
    problems = [Problem(kind="records", subject="database", message=message) for message in store.records.problems()]
    records: list[Record] = []
    problems += _check_records(store, records, counts)
    problems += _check_objects(store, records, counts)
    problems += _check_relations(records)
    problems += _check_journals(store.journals, counts)
    problems += _check_tables(store, counts)
    problems += _check_permissions(store.home)
    problems += [
        Problem(
            kind="run",
            subject=run.id,
            message=f"The run '{run.name}' is said to be running, and its process is gone.",
            repair="everloop verify",
        )
        for run in records
        if isinstance(run, Run) and _is_lost(store, run)
    ]
    return Report(problems=tuple(problems), counts=counts)


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


def _check_records(store: Store, records: list[Record], counts: dict[str, int]) -> Iterator[Problem]:
    stored = store.records.stored()
    while True:
        try:
            kept = next(stored, None)
        except EverloopError as error:
            # The database itself is damaged from here on.
            yield Problem(kind="records", subject="database", message=error.message)
            return
        if kept is None:
            return
        if not kept.current or kept.deleted_at is not None:
            continue
        counts["records"] += 1
        if kept.kind not in KINDS:
            yield Problem(kind="record", subject=kept.id, message=f"It is of the kind '{kept.kind}', unknown here.")
            continue
        try:
            records.append(decode(KINDS[kept.kind], kept.body))
        except EverloopError as error:
            yield Problem(kind="record", subject=kept.id, message=error.message)


def _check_objects(store: Store, records: list[Record], counts: dict[str, int]) -> Iterator[Problem]:
    bad: set[str] = set()
    present: set[str] = set()
    for digest, _ in store.objects.digests():
        counts["objects"] += 1
        present.add(digest)
        try:
            store.objects.prove(digest)
        except NotFoundError:
            # Swept since it was listed.
            present.discard(digest)
        except EverloopError as error:
            bad.add(digest)
            yield Problem(kind="object", subject=digest, message=error.message)
    seen: set[str] = set()
    for record in records:
        builtins: Any = msgspec.to_builtins(record)
        for digest in digests_in(builtins):
            if digest not in present:
                message = f"{_name(record)} refers to the object {digest}, which is not there."
                yield Problem(kind="reference", subject=record.id, message=message)
            elif digest not in seen and digest not in bad:
                seen.add(digest)
                yield from _check_tree(store, digest, present)


def _check_tree(store: Store, digest: str, present: set[str]) -> Iterator[Problem]:
    if not store.objects.is_tree(digest):
        return
    try:
        for entry in store.objects.tree(digest):
            if entry.holder not in present:
                message = f"The object {entry.holder} with its file '{entry.path}' is not there."
                yield Problem(kind="tree", subject=digest, message=message)
            elif entry.pack is not None:
                store.objects.read_entry(entry)
    except EverloopError as error:
        yield Problem(kind="tree", subject=digest, message=error.message)


def _check_relations(records: list[Record]) -> Iterator[Problem]:
    artifacts = {(record.project, record.id) for record in records if isinstance(record, Artifact)}
    versions = {(record.project, record.key) for record in records if isinstance(record, ModelVersion)}
    for record in records:
        if isinstance(record, Step):
            for name, artifact in record.outputs.items():
                if (record.project, artifact) not in artifacts:
                    message = f"The output '{name}' of the step '{record.name}' is the artifact '{artifact}'"
                    yield Problem(kind="reference", subject=record.id, message=f"{message}, which is not there.")
        elif isinstance(record, Alias) and (record.project, record.version) not in versions:
            message = f"The alias '{record.key}' names the version '{record.version}', which is not there."
            yield Problem(kind="reference", subject=record.id, message=message)


def _check_journals(folder: Path, counts: dict[str, int]) -> Iterator[Problem]:
    for path in list_journals(folder):
        counts["journals"] += 1
        try:
            for _ in read_journal(path):
                pass
        except NotFoundError:
            # Folded and removed since it was listed.
            continue
        except EverloopError as error:
            yield Problem(kind="journal", subject=path.name, message=error.message)


def _check_tables(store: Store, counts: dict[str, int]) -> Iterator[Problem]:
    for name in store.tables.names():
        counts["tables"] += 1
        try:
            store.tables.prove(name)
        except EverloopError as error:
            yield Problem(kind="table", subject=name, message=error.message)


def _check_permissions(home: Path) -> Iterator[Problem]:
    found = list(exposed(home))
    # One line for all: below a folder that is open there may be a file for every object.
    for path, who in found[:1]:
        more = f", and {len(found) - 1:,} more below the home" if len(found) > 1 else ""
        message = f"Not only its owner can use '{path}', but {who}{more}."
        repair = f"chmod -R {'o=' if is_shared(home) else 'go='} '{home}'"
        yield Problem(kind="permissions", subject=str(path), message=message, repair=repair)


def _name(record: Record) -> str:
    return f"The {type(record).__name__} '{record.key}'"
