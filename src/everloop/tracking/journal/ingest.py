"""Ingest of journal frames that another machine uploads, each exactly once.

The offset up to which a journal has been ingested is stored like the offset of folding, in the same transaction as the
points. So a batch that is uploaded again, completely or in part, changes nothing and gets the same response.
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
"""The largest size of one batch."""
_WRITER = re.compile(rf"{STREAM_PREFIX}([A-Za-z0-9-]{{1,64}})\.[0-9a-f]{{16}}")
_LOCKS = 16
"""Journals share this many locks, since the file of a lock is never removed."""
_ATTEMPTS = 20


def ingest_frames(store: Store, writer: str, offset: int, body: bytes) -> int:
    """Write uploaded frames into the store. Returns the offset at which the journal's next batch has to begin.

    A batch that begins after the stored offset is not ingested; the returned offset says where to continue. The run
    is written into this store's project, even if it had another project on the machine where it ran.

    Args:
        writer: name of the journal without its suffix: `run-<id>.<16 hex digits>`.
        offset: position of the body in the journal. 0 means the first frame, too.
        body: bytes of complete frames, as in the journal. Empty, to only query the offset.

    Raises:
        UsageError: the writer's name, the offset or the bytes are not valid.
    """
    name = _WRITER.fullmatch(writer)
    if name is None:
        raise UsageError(
            f"'{writer[:100]}' is not the journal of a run.", help="Send the journal's file name without its suffix."
        )
    if offset < 0 or len(body) > MOST_BYTES:
        raise UsageError(
            f"A batch of {len(body)} bytes at offset {offset} is not accepted.",
            help=f"Send up to {MOST_BYTES} bytes, at an offset of 0 or more.",
        )
    offset = max(offset, len(HEADER))
    with store.lock(f"receive-{zlib.crc32(writer.encode()) % _LOCKS}"):
        stored_offset = _stored_offset(store, writer)
        if not body or offset > stored_offset or offset + len(body) <= stored_offset:
            return stored_offset
        try:
            payloads = [(payload, offset + end) for payload, end in split_frames(body)]
            frames = [(journal_frames.decode(payload), end) for payload, end in payloads if end > stored_offset]
        except CorruptionError as error:
            raise UsageError(f"The batch of '{writer}' cannot be read: {error.message}") from error
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return _write_frames(store, writer, name[1], frames)
            except (ConflictError, AlreadyExistsError):
                # Another writer has changed the same run in the meantime.
                if attempt == _ATTEMPTS:
                    raise
    raise AssertionError("unreachable")


def _write_frames(store: Store, writer: str, run: str, frames: list[tuple[journal_frames.Frame | None, int]]) -> int:
    start = next((frame for frame, _ in frames if isinstance(frame, Run)), None)
    if start is not None and start.id != run:
        raise UsageError(f"The journal of the run '{run}' contains another run, '{start.id}'.")
    end = frames[-1][1]
    with store.records.transaction(run, series_of(run), _offset_series(writer)):
        record = _get_or_create_run(store, run, start)
        if record is not None:
            rows = journal_frames.rows_of(frame for frame, _ in frames)
            latest: Latest = {}
            merge(latest, rows)
            if rows:
                store.records.append_rows(series_of(run), rows)
            changed = with_latest(store, apply_frames(record, (frame for frame, _ in frames)), latest)
            if changed != record:
                verb = changed.state if changed.state != record.state else "updated"
                store.records.update(changed, verb=verb)
        store.records.append_points(
            _offset_series(writer), [Point(key="offset", value=float(end), step=end, at=store.now())]
        )
    return end


def _get_or_create_run(store: Store, run: str, start: Run | None) -> Run | None:
    """The run's record, created if it is new; None for a run that was deleted here."""
    try:
        return store.records.get(Run, run)
    except NotFoundError:
        pass
    if start is None:
        return None
    created = replace(start, project=store.project, revision=0)
    if was_deleted(store, created):
        return None
    store.records.put(created, verb="received")
    return created


def _stored_offset(store: Store, writer: str) -> int:
    return max((point.step for point in store.records.read_points(_offset_series(writer))), default=len(HEADER))


def _offset_series(writer: str) -> str:
    return f"journal:{writer}"
