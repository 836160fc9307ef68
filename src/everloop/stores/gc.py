"""Garbage collection: purging deleted records and removing unreferenced objects, by mark and sweep."""

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
"""Name of the lock that is held while objects are removed, and while none may be removed, such as during a backup."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_BYTES = re.compile(rb"sha256:[0-9a-f]{64}")
_TABLE_HOURS = 168


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """What was removed, or would be removed."""

    records: int
    objects: int
    size_bytes: int
    """Total size of the objects."""
    drafts: int
    """Unfinished files left behind by killed processes."""
    dry_run: bool


def gc(store: Store, *, dry_run: bool = False, grace_s: float = 3600.0) -> SweepResult:
    """Purge the deleted records of all projects, and remove every object that nothing refers to.

    An object stays while its digest is named by a record (in any revision), by a journal or by another object that
    stays. Objects that are younger than the grace period stay as well, and so do records that were deleted within it.
    Other processes may continue to work, provided that none needs longer than the grace period between adding an
    object, or reading its digest, and putting the record that names it.

    Args:
        dry_run: remove nothing, and report what would be removed.
        grace_s: grace period in seconds. It is measured by the system's clock for objects, by the store's for records.

    Raises:
        ReadOnlyError: the store is a view of the past.
    """
    if grace_s < 0:
        raise UsageError(f"The grace period is {grace_s} s, which is negative.", help="Use 0 or more seconds.")
    if store.read_only:
        raise ReadOnlyError(
            "Garbage collection cannot run on a view of the past.", help="Open the store without as_of."
        )
    grace = timedelta(seconds=grace_s)
    with store.lock(LOCK):
        since = SystemClock().now() - grace
        # Another process may have read a record just before it was deleted, and may be about to put a new record that
        # refers to the same objects.
        before = store.now() - grace
        records = _purge(store, before, dry_run=dry_run)
        referenced = _mark(store, before)
        objects = size_bytes = 0
        for digest, size in list(store.objects.digests()):
            if digest not in referenced and _remove(store, digest, since, dry_run=dry_run):
                objects += 1
                size_bytes += size
        drafts = _sweep_drafts(store, since.timestamp(), dry_run=dry_run)
        if not dry_run:
            for name in store.tables.names():
                store.tables.vacuum(name, keep_hours=max(_TABLE_HOURS, math.ceil(grace_s / 3600)))
    return SweepResult(records=records, objects=objects, size_bytes=size_bytes, drafts=drafts, dry_run=dry_run)


def _purge(store: Store, before: datetime, *, dry_run: bool) -> int:
    expired = {(stored.project, stored.id) for stored in store.records.stored() if _is_expired(stored, before)}
    if not dry_run:
        for project in sorted({project for project, _ in expired}):
            store.records.for_project(project).purge(before)
    return len(expired)


def _is_expired(stored: StoredRecord, before: datetime) -> bool:
    return stored.deleted_at is not None and stored.deleted_at <= before


def _mark(store: Store, before: datetime) -> set[str]:
    """The digests of all objects that stay."""
    found: set[str] = set()
    for stored in store.records.stored():
        if not _is_expired(stored, before):
            found.update(_DIGEST.findall(stored.body))
    for path in list_journals(store.journals):
        # Journals hold data that is not in the database yet. They are searched as bytes, whatever their frames mean.
        with suppress(FileNotFoundError):
            found.update(match.decode() for match in _DIGEST_BYTES.findall(path.read_bytes()))
    marked: set[str] = set()
    waiting = list(found)
    while waiting:
        digest = waiting.pop()
        if digest in marked:
            continue
        marked.add(digest)
        # Missing objects are reported by `verify`, not here.
        with suppress(NotFoundError):
            waiting += store.objects.references(digest) - marked
    return marked


def _remove(store: Store, digest: str, since: datetime, *, dry_run: bool) -> bool:
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
