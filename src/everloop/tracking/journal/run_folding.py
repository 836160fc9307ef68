"""Folding: copies journals into the store, each logged point exactly once.

The offset up to which a journal has been folded is itself a point, in the series `journal:<name>`, written in the same
transaction as the run's points. Any process may fold: the run itself when it ends, a server, the next process after a
crash. A lock lets only one of them fold a journal at a time. A journal whose writer has ended is removed when all of it
is in the store.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    StoreVersionError,
    UsageError,
)
from everloop.records import Point, Run
from everloop.stores.journals import check_tail, list_journals, read_journal, stream_of, writer_alive
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.last_points import Latest, merge, series_of, with_latest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from everloop.stores import Store

_log = logging.getLogger("everloop.tracking")

STREAM_PREFIX = "run-"
OUTBOX = "outbox"
"""A folder next to the journals. If it exists, folded journals are moved into it, to be uploaded."""
_BATCH = 10_000  # frames in one transaction; other writers wait for about 50 ms
_LOCKS = 16  # shared by all journals, since the file of a lock is never removed
_ATTEMPTS = 20
_PAUSE_S = 0.005  # between two attempts to take a journal's lock


def read_metrics(store: Store, run: str, key: str | None = None, *, since_step: int | None = None) -> list[Point]:
    """The points of a run, ordered by metric, step and arrival. Journals of the run are folded first."""
    fold_run(store, run)
    return store.records.read_points(series_of(run), key, since_step=since_step)


def fold_run(store: Store, run: str) -> None:
    """Fold the journals of one run."""
    for path in list_journals(store.journals, STREAM_PREFIX + run):
        fold_journal(store, path)


def fold(store: Store) -> int:
    """Fold every journal of the home, of living and dead processes. Returns the number of new points.

    A journal that cannot be folded is left unchanged and logged; the others are folded all the same.
    """
    total = 0
    for path in list_journals(store.journals):
        if not stream_of(path).startswith(STREAM_PREFIX):
            continue
        try:
            total += fold_journal(store, path)
        except (CorruptionError, StoreVersionError, UsageError) as error:
            _log.error("The journal %s cannot be folded completely: %s", path, error)
    return total


def fold_journal(store: Store, path: Path, *, deadline: float | None = None) -> int:
    """Fold one journal. Returns the number of new points.

    Args:
        deadline: when to stop, in the time of `time.monotonic`. The next call continues at the same frame. Without a
            deadline, the whole journal is folded.

    Raises:
        CorruptionError: the journal is damaged. Everything before the damage is in the store.
    """
    lock = f"fold-{zlib.crc32(path.name.encode()) % _LOCKS}"
    with ExitStack() as stack:
        while not stack.enter_context(store.lock(lock, block=deadline is None)):
            if deadline is not None and time.monotonic() > deadline:
                return 0
            time.sleep(_PAUSE_S)
        # Checked before reading: if the writer is dead now, the frames that are read are all that there will be.
        finished = not writer_alive(path)
        try:
            return _fold(store, path, finished, deadline)
        except NotFoundError:
            if path.exists():
                raise
            return 0  # another process has folded and removed it


def _fold(store: Store, path: Path, finished: bool, deadline: float | None) -> int:
    start = _read_start(path)
    if start is None:
        if finished:
            path.unlink()  # its writer died before it wrote the first frame
        return 0
    store = store.for_project(start.project)
    offset_series = f"journal:{path.stem}"
    offset = max((point.step for point in store.records.read_points(offset_series)), default=0)
    reader = read_journal(path, offset)
    others: list[journal_frames.Frame] = []
    latest: Latest = {}
    total = 0
    more = True
    while more:
        batch = list(islice(reader, _BATCH))
        more = len(batch) == _BATCH
        frames = journal_frames.decode_all([payload for payload, _ in batch])
        rows = journal_frames.rows_of(frames)
        others += journal_frames.others_of(frames)
        merge(latest, rows)
        if finished and not more:
            _read_before(path, offset, others, latest)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with store.records.transaction(start.id, series_of(start.id), offset_series):
                    if rows:
                        store.records.append_rows(series_of(start.id), rows)
                    if batch:
                        store.records.append_points(offset_series, [_offset_point(store, batch[-1][1])])
                    if finished and not more:
                        _update_record(store, start, others, latest)
                break
            except (ConflictError, AlreadyExistsError):
                # Another process has written the run's record, on a store whose transactions allow that.
                if attempt == _ATTEMPTS:
                    raise
        total += len(rows)
        if more and deadline is not None and time.monotonic() > deadline:
            return total
    if finished and (started_here(start) or any(isinstance(frame, journal_frames.EndFrame) for frame in others)):
        # A killed writer may leave an incomplete last frame, but not a damaged one. Removing a journal with a damaged
        # frame would hide the loss.
        check_tail(path)
        _remove_or_queue(path)
    return total


def started_here(run: Run) -> bool:
    """Whether the run was started on this machine. For other machines, a lock that looks free may be held: not every
    shared file system shares locks."""
    return run.source.host in (None, os.uname().nodename)


def _remove_or_queue(path: Path) -> None:
    """Remove a journal that is in the store, or move it to the outbox if journals are uploaded."""
    outbox = path.parent / OUTBOX
    if outbox.is_dir():
        path.rename(outbox / path.name)
    else:
        path.unlink()


def _read_start(path: Path) -> Run | None:
    first = next(read_journal(path), None)
    if first is None:
        return None
    frame = journal_frames.decode(first[0])
    if not isinstance(frame, Run):
        raise CorruptionError(f"The journal '{path}' does not begin with its run.", help="See: everloop verify")
    return frame


def _read_before(path: Path, offset: int, others: list[journal_frames.Frame], latest: Latest) -> None:
    """Add the frames before an offset: put them before `others`, and merge their points into `latest`."""
    earlier: list[journal_frames.Frame] = []
    reader = read_journal(path)
    done = 0
    while done < offset and (batch := list(islice(reader, _BATCH))):
        frames = journal_frames.decode_all([payload for payload, end in batch if end <= offset])
        earlier += journal_frames.others_of(frames)
        merge(latest, journal_frames.rows_of(frames))
        done = batch[-1][1]
    others[:0] = earlier


def _offset_point(store: Store, offset: int) -> Point:
    return Point(key="offset", value=float(offset), step=offset, at=store.now())


def _update_record(store: Store, start: Run, others: Iterable[journal_frames.Frame], latest: Latest) -> None:
    """Update the run's record from the whole journal. Idempotent."""
    try:
        record = store.records.get(Run, start.id)
    except NotFoundError:
        if was_deleted(store, start):
            return
        store.records.put(start, verb="started")
        record = start
    run = with_latest(store, apply_frames(record, others), latest)
    if run != record:
        store.records.update(run, verb=run.state if run.state != record.state else "updated")


def apply_frames(record: Run, frames: Iterable[journal_frames.Frame | None]) -> Run:
    """The run's record with the changes of all frames, in order; points are ignored. Idempotent."""
    run = replace(record, params=dict(record.params), tags=dict(record.tags))
    for frame in frames:
        match frame:
            case journal_frames.ParamsFrame(values=params):
                run.params.update(params)
            case journal_frames.TagsFrame(values=tags):
                run.tags.update(tags)
            case journal_frames.ProvenanceFrame(packages=packages, code=code, seal=seal):
                source = run.source
                packages = {**source.packages, **packages}
                source = replace(source, packages=packages, code=code or source.code, seal=seal or source.seal)
                run = replace(run, source=source)
            case journal_frames.EndFrame(state=state, at=at, seconds=seconds, error=error):
                run = replace(run, state=state, ended_at=at, seconds=seconds, error=error)
    return run


def was_deleted(store: Store, run: Run) -> bool:
    try:
        return bool(store.records.history(Run, run.id))
    except NotFoundError:
        return False
