"""Moves shipped segments into tables exactly once, even if several processes do so and die meanwhile.

The commit that adds the rows also records how far each instance's segments have been read. So rows and progress cannot
diverge, and if two processes fold the same segments at once, the second commit fails. Segments are deleted after the
commit. If a process is killed in between, the next fold recognizes its segments as folded and deletes them.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar

from everloop.errors import (
    CorruptionError,
    EverloopError,
    InsufficientStorageError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from everloop.prediction_log import segments
from everloop.prediction_log.log_sinks import ShippingOptions, log_of
from everloop.prediction_log.segment_stores import open_segments
from everloop.prediction_log.segments import SPOOL, first_line, frames_of, shown
from everloop.prediction_log.shipping import ship_leftovers
from everloop.stores.clock import moment_of, system_micros

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from everloop.prediction_log.fold_target import FoldTarget
    from everloop.prediction_log.segments import Segment, SegmentStore
    from everloop.stores import Store

logger = logging.getLogger("everloop.serving")

Entry = TypeVar("Entry")

CHUNK_BYTES = 16 << 20
"""Segment bytes per commit, which bounds the memory that folding needs."""
AT_ONCE = 8
"""Segments that are fetched in parallel."""
GAP_WAIT = timedelta(hours=1)
"""How long a segment waits for a missing predecessor."""


def segment_sources(store: Store) -> list[tuple[str, SegmentStore]]:
    """The stores to which instances may have shipped the logs of this home, each with its name for messages.

    These are the home itself if it is a folder, the database of its records, and `log` in `everloop.toml`.
    """
    locations = [str(store.home)] if (store.home / segments.FOLDER).is_dir() else []
    if store.urls.records.startswith(("postgresql://", "postgres://")):
        locations.append(store.urls.records)
    if store.urls.log is not None and store.urls.log not in locations:
        locations.append(store.urls.log)
    found = []
    for location in locations:
        try:
            found.append((shown(location), open_segments(location)))
        except EverloopError as error:
            logger.warning("Cannot read the segments in '%s': %s", shown(location), error)
    return found


def spools(store: Store) -> list[tuple[str, Path]]:
    """The folders of this host in which instances may have left journals, each after the URL that they are shipped to.

    These are the home's, and the one that `EVERLOOP_LOG` configures for this process and so for its endpoints.
    """
    found = [(str(store.home), store.home / SPOOL)]
    try:
        log = log_of(os.environ)
    except UsageError as error:
        logger.warning("%s", error)
        return found
    if isinstance(log, ShippingOptions) and log.folder != store.home / SPOOL:
        found.append((log.where, log.folder))
    return found


def has_segments(store: Store, stream: str) -> bool:
    """Whether a store has segments of this stream that may not have been folded."""
    for shown_as, source in segment_sources(store):
        try:
            if source.find(stream):
                return True
        except (EverloopError, OSError) as error:
            logger.warning("Cannot read the segments in '%s': %s", shown_as, error)
    return False


def fold_segments(store: Store, fold: FoldTarget[Entry]) -> int:
    """Fold the shipped segments, and return the number of rows that moved.

    A store that does not answer is skipped with a warning; its segments are folded later.

    Raises:
        CorruptionError: a segment is damaged. Those of its instance that come after it wait; all others are folded.
    """
    for where, folder in spools(store):
        spool = folder / fold.stream
        if not spool.is_dir():
            continue
        try:
            ship_leftovers(open_segments(where), spool)
        except (EverloopError, OSError) as error:
            logger.warning("Cannot ship what dead instances have left in '%s' now: %s", spool, error)
    rows = 0
    damage: CorruptionError | None = None
    for shown_as, source in segment_sources(store):
        try:
            segments = source.find(fold.stream)
            if segments:
                # The lock makes other processes on this machine wait. The commit detects those on other machines.
                with store.lock(f"fold-{fold.stream}"):
                    rows += _Folding(store, fold, source).run(source.find(fold.stream))
        except CorruptionError as error:
            damage = error
        except (EverloopError, OSError) as error:
            logger.warning("Cannot read the segments in '%s': %s", shown_as, error)
    if damage is not None:
        raise damage
    return rows


class _Folding(Generic[Entry]):
    """One pass over the segments of one store."""

    def __init__(self, store: Store, fold: FoldTarget[Entry], source: SegmentStore) -> None:
        self._store = store
        self._fold = fold
        self._source = source
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="everloop-folding")
        self._damage: CorruptionError | None = None
        self._read: dict[str, int] = {}
        """The number of each instance's last folded segment."""
        self._unread: set[str] = set()
        """Instances with an unreadable segment. The segments before it can be committed."""
        self._stopped: set[str] = set()
        """Instances from which nothing more can be committed."""

    def run(self, segments: Sequence[Segment]) -> int:
        with self._pool:
            due: list[tuple[Segment, bytes]] = []
            size, rows = 0, 0
            for segment, data in self._fetched(self._due(segments)):
                due.append((segment, data))
                size += len(data)
                if size >= CHUNK_BYTES:
                    rows += self._commit(due)
                    due, size = [], 0
            rows += self._commit(due)
        if self._damage is not None:
            raise self._damage
        return rows

    def _due(self, segments: Sequence[Segment]) -> list[Segment]:
        """The segments that no fold has read, without gaps within an instance. Deletes those already folded."""
        due: list[Segment] = []
        old: list[Segment] = []
        for instance, of_instance in groupby(segments, key=lambda segment: segment.instance):
            last = self._store.tables.last_batch(self._fold.table, instance)
            self._read[instance] = last
            for segment in of_instance:
                if segment.number <= last:
                    old.append(segment)
                elif segment.number == last + 1 or self._gone_for_good(segment, last):
                    due.append(segment)
                    last = segment.number
                else:
                    break
        self._delete(old)
        return due

    def _gone_for_good(self, segment: Segment, last: int) -> bool:
        """Whether the segments missing before this one are lost.

        An instance puts its segments in order, so missing ones have been deleted, unless a folder's listing lags.
        """
        put_at = self._source.put_at(segment)
        if put_at is None or moment_of(system_micros()) - put_at < GAP_WAIT:
            return False
        logger.error(
            "Segments %s to %s of the instance '%s' are missing. The segments after them are read all the same.",
            last + 1,
            segment.number - 1,
            segment.instance,
        )
        return True

    def _fetched(self, due: Sequence[Segment]) -> Iterator[tuple[Segment, bytes]]:
        """The segments with their bytes, a few in parallel, without those after an unreadable one."""
        for begin in range(0, len(due), AT_ONCE):
            over = self._unread | self._stopped
            window = [segment for segment in due[begin : begin + AT_ONCE] if segment.instance not in over]
            for segment, data in zip(window, self._pool.map(self._get, window), strict=True):
                if isinstance(data, bytes) and segment.instance not in self._unread:
                    yield segment, data
                    continue
                self._unread.add(segment.instance)
                if isinstance(data, CorruptionError):
                    self._damage = data

    def _get(self, segment: Segment) -> bytes | CorruptionError | None:
        for last_try in (False, True):
            try:
                return self._source.get(segment)
            except CorruptionError as error:
                # Fetch it twice, because the network may have damaged it.
                if last_try:
                    return error
            except NotFoundError:
                # Another process has folded it since it was listed.
                return None
        return None

    def _commit(self, due: Sequence[tuple[Segment, bytes]]) -> int:
        """Add the rows of some segments, and delete the segments."""
        entries: list[Entry] = []
        done: list[Segment] = []
        for segment, data in due:
            if segment.instance in self._stopped:
                continue
            try:
                found = [self._fold.decode(payload) for payload in frames_of(segment, data)]
            except CorruptionError as error:
                self._damage = error
                self._stopped.add(segment.instance)
                continue
            entries += found
            done.append(segment)
        if not done:
            return 0
        upto = {segment.instance: segment.number for segment in done}
        progress = [(instance, self._read[instance], number) for instance, number in upto.items()]
        try:
            frame = self._fold.frame_of(self._store, self._fold.table, entries)
            written = self._store.tables.append(self._fold.table, frame, progress=progress)
        except (UnavailableError, InsufficientStorageError):
            raise
        except Exception as error:
            # Some frames can be read but do not make rows. They must not hold up other instances.
            if len(done) > 1:
                return sum(self._commit([one]) for one in due if one[0] in done)
            why = f"The segment '{done[0].key}' makes no rows: {first_line(error)}"
            self._damage = CorruptionError(why, help="Delete the segment, or see the error in the log of its instance.")
            self._stopped.add(done[0].instance)
            logger.debug("Folding a segment failed", exc_info=True)
            return 0
        if not written:
            # Another process folded the same segments faster. The next call sees what is left.
            self._stopped.update(upto)
            return 0
        self._read.update(upto)
        self._delete(done)
        return int(frame.height)

    def _delete(self, segments: Sequence[Segment]) -> None:
        for _ in self._pool.map(self._source.delete, segments):
            pass


__all__ = ["fold_segments", "has_segments", "segment_sources"]
