"""Removing for good what nothing refers to any more: mark and sweep."""

from __future__ import annotations

import math
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, ReadOnlyError, UsageError
from everloop.stores.clock import SystemClock
from everloop.stores.journals import list_journals
from everloop.stores.objects.byte_stores import LocalBytes

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores.home import Store
    from everloop.stores.records.record_store import StoredRecord

LOCK = "sweep"
"""Held by whoever removes objects, and by whoever needs that nobody does."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_BYTES = re.compile(rb"sha256:[0-9a-f]{64}")
_TABLE_HOURS = 168


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What was removed, or would be."""

    records: int
    objects: int
    size_bytes: int
    """Of the objects."""
    drafts: int
    """Unfinished files that killed processes had left."""
    dry_run: bool


def gc(store: Store, *, dry_run: bool = False, grace_s: float = 3600.0) -> SweepResult:
    """Purge the deleted records of all projects, and remove each object that nothing refers to.

    An object is kept while a record, also one that an update has replaced, a journal or an object that is kept
    names its digest, and while it is younger than the grace; so is a record that was deleted within the grace.
    Others may go on working meanwhile, as long as none takes longer than the grace from adding an object, or from
    reading its digest, to putting the record that names it.

    Args:
        dry_run: remove nothing and say what would be.
        grace_s: in seconds; for objects of the system's clock, for records of the store's.

    Raises:
        ReadOnlyError: the store is a view of the past.
    """
    if grace_s < 0:
        raise UsageError(f"A grace of {grace_s} s is none.", help="Name a number of seconds from 0 up.")
    if store.read_only:
        raise ReadOnlyError("A view of the past is not swept.")
    grace = timedelta(seconds=grace_s)
    with store.lock(LOCK):
        since = SystemClock().now() - grace
        # A record that was deleted only just may have been read before, and what it names be on its way into another.
        before = store.now() - grace
        records = _purge(store, before, dry_run=dry_run)
        kept = _mark(store, before)
        objects = size_bytes = 0
        for digest, size in list(store.objects.digests()):
            if digest not in kept and _is_swept(store, digest, since, dry_run=dry_run):
                objects += 1
                size_bytes += size
        drafts = _sweep_drafts(store, since.timestamp(), dry_run=dry_run)
        if not dry_run:
            for name in store.tables.names():
                store.tables.vacuum(name, keep_hours=max(_TABLE_HOURS, math.ceil(grace_s / 3600)))
    return SweepResult(records=records, objects=objects, size_bytes=size_bytes, drafts=drafts, dry_run=dry_run)


def _purge(store: Store, before: datetime, *, dry_run: bool) -> int:
    doomed = {(kept.project, kept.id) for kept in store.records.stored() if _is_doomed(kept, before)}
    if not dry_run:
        for project in sorted({project for project, _ in doomed}):
            store.records.for_project(project).purge(before)
    return len(doomed)


def _is_doomed(kept: StoredRecord, before: datetime) -> bool:
    return kept.deleted_at is not None and kept.deleted_at <= before


def _mark(store: Store, before: datetime) -> set[str]:
    """The digests of every object that is to stay."""
    found: set[str] = set()
    for kept in store.records.stored():
        if not _is_doomed(kept, before):
            found.update(_DIGEST.findall(kept.body))
    for path in list_journals(store.journals):
        # As bytes, whatever a frame may mean: what is on its way into the store counts as being there.
        with suppress(FileNotFoundError):
            found.update(match.decode() for match in _DIGEST_BYTES.findall(path.read_bytes()))
    marked: set[str] = set()
    waiting = list(found)
    while waiting:
        digest = waiting.pop()
        if digest in marked:
            continue
        marked.add(digest)
        # What a record names without its being there is for `verify` to tell.
        with suppress(NotFoundError):
            waiting += store.objects.references(digest) - marked
    return marked


def _is_swept(store: Store, digest: str, since: datetime, *, dry_run: bool) -> bool:
    if not dry_run:
        return store.objects.remove(digest, unless_since=since)
    written = store.objects.written_at(digest)
    return written is not None and written < since


def _sweep_drafts(store: Store, since: float, *, dry_run: bool) -> int:
    if not isinstance(store.objects.bytes_store, LocalBytes):
        return 0
    count = 0
    for path in store.objects.bytes_store.drafts():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                continue
            count += 1
            if dry_run:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
    return count
