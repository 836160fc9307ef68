"""From journals into the store: each logged point exactly once.

How far a journal has been folded is itself a point, of the series `journal:<name>`, written in the transaction
that writes the run's points. Whoever looks may fold: the run itself when it ends, a server now and then, the next
process after a crash. They take turns by a lock, and a journal whose writer is gone is removed once all of it is
in the store.
"""

from __future__ import annotations

import logging
import zlib
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
from everloop.stores.journals import list_journals, read_journal, stream_of, writer_alive
from everloop.tracking import frames

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


def series_of(run: str) -> str:
    """The series that holds the points of the run with this id."""
    return f"run:{run}"


def read_metrics(store: Store, run: str, key: str | None = None, *, since_step: int | None = None) -> list[Point]:
    """The points of a run, by metric, step and arrival; what journals still hold is folded first."""
    for path in list_journals(store.journals, STREAM_PREFIX + run):
        fold_journal(store, path)
    return store.records.read_points(series_of(run), key, since_step=since_step)


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


def fold_journal(store: Store, path: Path) -> int:
    """Fold one journal; returns how many points were new.

    Raises:
        CorruptionError: the journal is damaged; what stands before the damage is in the store.
    """
    # Sixteen turns for any number of journals: a lock's file stays for ever.
    with store.lock(f"fold-{zlib.crc32(path.name.encode()) % _TURNS}"):
        # Asked before reading: what a dead writer has written is all that there will be.
        finished = not writer_alive(path)
        try:
            return _fold(store, path, finished)
        except NotFoundError:
            if path.exists():
                raise
            return 0  # another has folded and removed it


def _fold(store: Store, path: Path, finished: bool) -> int:
    start = _started(path)
    if start is None:
        if finished:
            path.unlink()  # its writer died before it had said anything
        return 0
    store = store.for_project(start.project)
    mark = f"journal:{path.stem}"
    offset = max((point.step for point in store.records.read_points(mark)), default=0)
    reader = read_journal(path, offset)
    told: list[frames.Frame | None] = []
    total = 0
    more = True
    while more:
        batch = list(islice(reader, _BATCH))
        more = len(batch) == _BATCH
        said = frames.decode_all([payload for payload, _ in batch])
        rows = frames.rows_of(said)
        told += frames.condense(said)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with store.records.transaction():
                    if rows:
                        store.records.append_rows(series_of(start.id), rows)
                    if batch:
                        store.records.append_points(mark, [_mark(store, batch[-1][1])])
                    if finished and not more:
                        _settle(store, start, [*_told_before(path, offset), *told])
                break
            except (ConflictError, AlreadyExistsError):
                # Somebody else wrote the run's record meanwhile, on a store whose transactions do not exclude that.
                if attempt == _ATTEMPTS:
                    raise
        total += len(rows)
    if finished:
        _give_up(path)
    return total


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
    frame = frames.decode(first[0])
    if not isinstance(frame, Run):
        raise CorruptionError(f"The journal '{path}' does not begin with its run.", help="See: everloop verify")
    return frame


def _told_before(path: Path, offset: int) -> list[frames.Frame | None]:
    """What the journal says before an offset, condensed."""
    told: list[frames.Frame | None] = []
    reader = read_journal(path)
    done = 0
    while done < offset and (batch := list(islice(reader, _BATCH))):
        told += frames.condense(frames.decode_all([payload for payload, end in batch if end <= offset]))
        done = batch[-1][1]
    return told


def _mark(store: Store, offset: int) -> Point:
    return Point(key="offset", value=float(offset), step=offset, at=store.now())


def _settle(store: Store, start: Run, said: Iterable[frames.Frame | None]) -> None:
    """Bring the run's record to what the whole journal says. Doing it twice changes nothing."""
    try:
        known = store.records.get(Run, start.id)
    except NotFoundError:
        if was_deleted(store, start):
            return
        store.records.put(start, verb="started")
        known = start
    run = apply_frames(known, said)
    if run != known:
        store.records.update(run, verb=run.state if run.state != known.state else "updated")


def apply_frames(known: Run, said: Iterable[frames.Frame | None]) -> Run:
    """The run's record with what frames say in their order. Doing it twice changes nothing."""
    run = replace(known, params=dict(known.params), tags=dict(known.tags), metrics=dict(known.metrics))
    for frame in said:
        match frame:
            case frames.Logged(values=values):
                run.metrics.update(values)
            case frames.Params(values=params):
                run.params.update(params)
            case frames.Tags(values=tags):
                run.tags.update(tags)
            case frames.Origin(packages=packages, code=code):
                packages = {**run.source.packages, **packages}
                run = replace(run, source=replace(run.source, packages=packages, code=code or run.source.code))
            case frames.End(state=state, at=at, seconds=seconds, error=error):
                run = replace(run, state=state, ended_at=at, seconds=seconds, error=error)
    return run


def was_deleted(store: Store, run: Run) -> bool:
    try:
        return bool(store.records.history(Run, run.id))
    except NotFoundError:
        return False
