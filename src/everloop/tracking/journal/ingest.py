"""Taking in journal frames that another machine ships, each exactly once.

How far a writer has come is the same mark that folding keeps, and is written in the transaction that writes the
points. So a batch that comes again, in whole or in part, changes nothing and is answered the same.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import AlreadyExistsError, ConflictError, CorruptionError, NotFoundError, UsageError
from everloop.records import Point, Run
from everloop.stores.journals import HEADER, split_frames
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.last_points import Latest, merge, series_of, with_latest
from everloop.tracking.journal.run_folding import STREAM_PREFIX, apply_frames, was_deleted

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_BYTES = 8 << 20
"""Of one batch."""
_WRITER = re.compile(rf"{STREAM_PREFIX}([A-Za-z0-9-]{{1,64}})\.[0-9a-f]{{16}}")
_TURNS = 16
_ATTEMPTS = 20


def receive_frames(store: Store, writer: str, offset: int, body: bytes) -> int:
    """Take frames into the store; returns the offset from which the writer's next batch is wanted.

    A batch that begins behind that offset is not taken, and the answer says where to go on. The run comes into
    this store's project, whatever it was called where it ran.

    Args:
        writer: name of the journal without its ending: `run-<id>.<16 hex digits>`.
        offset: where in the journal the body begins; 0 stands for its beginning as well.
        body: bytes of whole frames, as they stand in the journal; none, to ask for the offset.

    Raises:
        UsageError: the writer's name, the offset or the bytes are not what they should be.
    """
    named = _WRITER.fullmatch(writer)
    if named is None:
        raise UsageError(f"'{writer[:100]}' is no writer of a run.", help="Send the journal's name without its ending.")
    if offset < 0 or len(body) > MOST_BYTES:
        raise UsageError(f"A batch of {len(body)} bytes at {offset} is not taken.", help=f"Send up to {MOST_BYTES}.")
    offset = max(offset, len(HEADER))
    with store.lock(f"receive-{zlib.crc32(writer.encode()) % _TURNS}"):
        known = _known(store, writer)
        if not body or offset > known or offset + len(body) <= known:
            return known
        try:
            found = [(payload, offset + end) for payload, end in split_frames(body)]
            said = [(journal_frames.decode(payload), end) for payload, end in found if end > known]
        except CorruptionError as error:
            raise UsageError(f"The batch of '{writer}' cannot be read: {error.message}") from error
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return _take(store, writer, named[1], said)
            except (ConflictError, AlreadyExistsError):
                # Another writer of the same run was quicker.
                if attempt == _ATTEMPTS:
                    raise
    raise AssertionError("unreachable")


def _take(store: Store, writer: str, run: str, said: list[tuple[journal_frames.Frame | None, int]]) -> int:
    start = next((frame for frame, _ in said if isinstance(frame, Run)), None)
    if start is not None and start.id != run:
        raise UsageError(f"The journal of the run '{run}' begins with another, '{start.id}'.")
    end = said[-1][1]
    with store.records.transaction():
        known = _run(store, run, start)
        if known is not None:
            rows = journal_frames.rows_of(frame for frame, _ in said)
            latest: Latest = {}
            merge(latest, rows)
            if rows:
                store.records.append_rows(series_of(run), rows)
            changed = with_latest(store, apply_frames(known, (frame for frame, _ in said)), latest)
            if changed != known:
                verb = changed.state if changed.state != known.state else "updated"
                store.records.update(changed, verb=verb)
        store.records.append_points(_mark(writer), [Point(key="offset", value=float(end), step=end, at=store.now())])
    return end


def _run(store: Store, run: str, start: Run | None) -> Run | None:
    """The run's record, made where it is new; None for a run that somebody has deleted here."""
    try:
        return store.records.get(Run, run)
    except NotFoundError:
        pass
    if start is None:
        return None
    made = replace(start, project=store.project, revision=0)
    if was_deleted(store, made):
        return None
    store.records.put(made, verb="received")
    return made


def _known(store: Store, writer: str) -> int:
    return max((point.step for point in store.records.read_points(_mark(writer))), default=len(HEADER))


def _mark(writer: str) -> str:
    return f"journal:{writer}"
