"""From journals into the store: each logged point exactly once.

How far a journal has been folded is itself a point, of the series `journal:<name>`, written in the transaction
that writes the run's points. Whoever looks may fold: the run itself when it ends, a server now and then, the next
process after a crash. They take turns by a lock, and a journal whose writer is gone is removed once all of it is
in the store.
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
"""A folder beside the journals; where there is one, journals that are in the store wait in it to be shipped."""
_BATCH = 10_000  # frames in one transaction: about 50 ms in which other writers wait
_TURNS = 16
_ATTEMPTS = 20
_PAUSE_S = 0.005  # between two looks whether another has done with a journal


def read_metrics(store: Store, run: str, key: str | None = None, *, since_step: int | None = None) -> list[Point]:
    """The points of a run, by metric, step and arrival; what journals still hold is folded first."""
    fold_run(store, run)
    return store.records.read_points(series_of(run), key, since_step=since_step)


def fold_run(store: Store, run: str) -> None:
    """Fold the journals of one run."""
    for path in list_journals(store.journals, STREAM_PREFIX + run):
        fold_journal(store, path)


def fold(store: Store) -> int:
    """Fold every journal of the home, of the living and the dead; returns how many points were new.

    A journal that cannot be folded is left as it is and named in the log; the others are folded all the same.
    """
    total = 0
    for path in list_journals(store.journals):
        if not stream_of(path).startswith(STREAM_PREFIX):
            continue
        try:
            total += fold_journal(store, path)
        except (CorruptionError, StoreVersionError, UsageError) as error:
            _log.error("The journal %s cannot be folded to its end: %s", path, error)
    return total


def fold_journal(store: Store, path: Path, *, deadline: float | None = None) -> int:
    """Fold one journal; returns how many points were new.

    Args:
        deadline: when to stop, by `time.monotonic`; what is folded by then stays, and the next call goes on from
            there. Without one the whole journal is folded, however long that takes.

    Raises:
        CorruptionError: the journal is damaged; what stands before the damage is in the store.
    """
    # Sixteen turns for any number of journals: a lock's file stays for ever.
    turn = f"fold-{zlib.crc32(path.name.encode()) % _TURNS}"
    with ExitStack() as stack:
        while not stack.enter_context(store.lock(turn, block=deadline is None)):
            if deadline is not None and time.monotonic() > deadline:
                return 0
            time.sleep(_PAUSE_S)
        # Asked before reading: what a dead writer has written is all that there will be.
        finished = not writer_alive(path)
        try:
            return _fold(store, path, finished, deadline)
        except NotFoundError:
            if path.exists():
                raise
            return 0  # another has folded and removed it


def _fold(store: Store, path: Path, finished: bool, deadline: float | None) -> int:
    start = _started(path)
    if start is None:
        if finished:
            path.unlink()  # its writer died before it had said anything
        return 0
    store = store.for_project(start.project)
    mark = f"journal:{path.stem}"
    offset = max((point.step for point in store.records.read_points(mark)), default=0)
    reader = read_journal(path, offset)
    others: list[journal_frames.Frame] = []
    latest: Latest = {}
    total = 0
    more = True
    while more:
        batch = list(islice(reader, _BATCH))
        more = len(batch) == _BATCH
        said = journal_frames.decode_all([payload for payload, _ in batch])
        rows = journal_frames.rows_of(said)
        others += journal_frames.others_of(said)
        merge(latest, rows)
        if finished and not more:
            _read_before(path, offset, others, latest)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with store.records.transaction():
                    if rows:
                        store.records.append_rows(series_of(start.id), rows)
                    if batch:
                        store.records.append_points(mark, [_mark(store, batch[-1][1])])
                    if finished and not more:
                        _settle(store, start, others, latest)
                break
            except (ConflictError, AlreadyExistsError):
                # Somebody else wrote the run's record meanwhile, on a store whose transactions do not exclude that.
                if attempt == _ATTEMPTS:
                    raise
        total += len(rows)
        if more and deadline is not None and time.monotonic() > deadline:
            return total
    if finished and (started_here(start) or any(isinstance(frame, journal_frames.EndFrame) for frame in others)):
        # A damaged last frame is not what a killed writer leaves. Removing it would hide that something is lost.
        check_tail(path)
        _give_up(path)
    return total


def started_here(run: Run) -> bool:
    """Whether the run was started on this machine. On another one, a lock that looks free may be held: not every
    shared file system passes locks on."""
    return run.source.host in (None, os.uname().nodename)


def _give_up(path: Path) -> None:
    """Remove a journal that is in the store; one that is to be shipped elsewhere goes to where it waits for that."""
    outbox = path.parent / OUTBOX
    if outbox.is_dir():
        path.rename(outbox / path.name)
    else:
        path.unlink()


def _started(path: Path) -> Run | None:
    first = next(read_journal(path), None)
    if first is None:
        return None
    frame = journal_frames.decode(first[0])
    if not isinstance(frame, Run):
        raise CorruptionError(f"The journal '{path}' does not begin with its run.", help="See: everloop verify")
    return frame


def _read_before(path: Path, offset: int, others: list[journal_frames.Frame], latest: Latest) -> None:
    """Bring in what the journal says before an offset: frames in front of the others, points among the last ones."""
    earlier: list[journal_frames.Frame] = []
    reader = read_journal(path)
    done = 0
    while done < offset and (batch := list(islice(reader, _BATCH))):
        said = journal_frames.decode_all([payload for payload, end in batch if end <= offset])
        earlier += journal_frames.others_of(said)
        merge(latest, journal_frames.rows_of(said))
        done = batch[-1][1]
    others[:0] = earlier


def _mark(store: Store, offset: int) -> Point:
    return Point(key="offset", value=float(offset), step=offset, at=store.now())


def _settle(store: Store, start: Run, others: Iterable[journal_frames.Frame], latest: Latest) -> None:
    """Bring the run's record to what the whole journal says. Doing it twice changes nothing."""
    try:
        known = store.records.get(Run, start.id)
    except NotFoundError:
        if was_deleted(store, start):
            return
        store.records.put(start, verb="started")
        known = start
    run = with_latest(store, apply_frames(known, others), latest)
    if run != known:
        store.records.update(run, verb=run.state if run.state != known.state else "updated")


def apply_frames(known: Run, said: Iterable[journal_frames.Frame | None]) -> Run:
    """The run's record with what frames say in their order, except for points. Doing it twice changes nothing."""
    run = replace(known, params=dict(known.params), tags=dict(known.tags))
    for frame in said:
        match frame:
            case journal_frames.ParamsFrame(values=params):
                run.params.update(params)
            case journal_frames.TagsFrame(values=tags):
                run.tags.update(tags)
            case journal_frames.OriginFrame(packages=packages, code=code, seal=seal):
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
