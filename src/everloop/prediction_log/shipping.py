"""Ships a log: frames go to a local journal first, and soon afterwards to a store that others read.

An answer waits only until its frame is in a journal on the local disk. A journal is sealed when it is large or old, and
a thread uploads sealed journals to the store in order. A journal is removed here only when the store has confirmed it.
If an instance leaves journals behind, because it was killed or the store did not answer, any later process that uses
the same folder ships them:

    <folder>/<stream>/<instance>/<number, twelve digits>.<random>.journal

The journal of a killed instance no longer changes, so shipping it twice, by any process, puts the same bytes under the
same name.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Literal

from everloop.errors import CorruptionError, EverloopError, InsufficientStorageError, NotFoundError, UnavailableError
from everloop.prediction_log.log_sinks import ShippingOptions, SinkState, make_own_folder, new_instance, on_this_kernel
from everloop.prediction_log.segment_stores import open_segments
from everloop.prediction_log.segments import Segment, first_line, shown
from everloop.stores.clock import system_micros
from everloop.stores.journals import HEADER, SUFFIX, Journal, list_journals, read_journal, writer_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from everloop.prediction_log.segments import SegmentStore

logger = logging.getLogger("everloop.serving")

STALE_S = 120.0
"""An instance of another host counts as dead if its files are unchanged for this long and it holds no lock. Not every
network file system shares locks between hosts."""
BEAT_S = 10.0
LOOK_S = 30.0
"""How often a shipper looks for journals that other instances have left."""
FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 15.0
TELL_S = 60.0
DAMAGED = ".damaged"


class ShippingSink:
    """A `LogSink` over a folder, a bucket or PostgreSQL."""

    kind: Literal["journal", "store", "none"] = "store"

    def __init__(self, options: ShippingOptions, stream: str, segments: SegmentStore | None = None) -> None:
        """Create a journal and start the thread that ships.

        Raises:
            UsageError: the folder cannot be used, or the URL does not name a store.
            InsufficientStorageError: the local disk is full.
        """
        self.instance = new_instance()
        self.waits = options.durable == "store"
        self._options = options
        self._stream = stream
        self._store = segments or open_segments(options.where)
        self._spool = options.folder / stream
        make_own_folder(options.folder)
        self._folder = self._spool / self.instance
        self._guard = threading.Lock()
        self._confirmed = threading.Condition(self._guard)
        self._wake = threading.Event()
        self._number = 0
        self._journal = self._begin()
        self._full = False
        """There was no space for the next journal; the previous one is sealed."""
        self._size = 0
        """Bytes of frames in the current journal."""
        self._since = 0.0
        self._sealed: deque[tuple[int, Path, int]] = deque()
        self._waiting = 0
        """Bytes of frames in sealed journals."""
        self._others = 0
        """Bytes of other instances in the same spool."""
        self._shipped_to = -1
        self._failing = False
        self._state = SinkState()
        self._until: float | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="everloop-log", daemon=True)
        self._thread.start()

    # -- LogSink

    def append(self, payload: bytes, *, wait: bool = True) -> None:
        with self._guard:
            if self._waiting + self._size + self._others > self._options.backlog_bytes:
                raise UnavailableError(
                    f"{(self._waiting + self._size + self._others) >> 20} MB of answers wait for the log's store, which"
                    " does not answer. No more requests are answered until it does.",
                    help="See everloop_log_backlog_bytes, and the store's error in the process's log.",
                )
            if self._failing and wait and self.waits:
                raise UnavailableError(
                    "The log's store does not answer, and answers must be in it before they are sent.",
                    help="See the store's error in the process's log.",
                )
            if self._full:
                self._journal = self._begin()
                self._full = False
            number = self._number
            end = self._journal.append(payload)
            if not self._size:
                self._since = monotonic()
            self._size = end - len(HEADER)
            if self._size >= self._options.segment_bytes:
                self._seal()
                self._wake.set()
            if not (wait and self.waits):
                return
            self._wake.set()
            done = self._confirmed.wait_for(lambda: self._shipped_to >= number, self._options.confirm_s)
        if not done:
            raise UnavailableError(
                f"The log's store has not confirmed this answer within {self._options.confirm_s:g} s.",
                help="The answer is in the local journal and will be shipped. Try again.",
            )

    def state(self) -> SinkState:
        with self._guard:
            backlog = self._waiting + self._size
        return SinkState(backlog, self._state.shipped, self._state.failures)

    def close(self, until: float | None = None) -> None:
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._until = monotonic() + self._options.grace_s if until is None else until
            if not self._full:
                self._seal(last=True)
            self._journal.close()
        self._wake.set()
        self._thread.join(max(0.0, self._until - monotonic()) + 0.1)
        if self._waiting:
            logger.error(
                "%s bytes of the log '%s' have not reached %s. They are in %s, for the next process that uses it.",
                self._waiting,
                self._stream,
                shown(self._options.where),
                self._folder,
            )
            return
        with suppress(OSError):
            self._folder.rmdir()

    # -- the journal; with the guard held

    def _begin(self) -> Journal:
        return Journal.create(self._folder, f"{self._number:012d}")

    def _seal(self, *, last: bool = False) -> None:
        """Queue the current journal for shipping, and begin the next one."""
        full, number, size = self._journal, self._number, self._size
        if not size:
            if last:
                full.path.unlink(missing_ok=True)
            return
        if not last:
            self._number += 1
            try:
                # Create the next before closing this one: a folder without a locked journal belongs to a dead instance.
                self._journal = self._begin()
            except InsufficientStorageError:
                # Shipping the sealed journals makes space. Until then nothing can be appended.
                self._full = True
            full.close()
        self._sealed.append((number, full.path, size))
        self._waiting += size
        self._size = 0

    # -- the shipper's thread

    def _run(self) -> None:
        pause, beat, look, warn_at = 0.0, 0.0, 0.0, 0.0
        self._wake.set()
        while True:
            self._wake.wait(pause or min(self._options.segment_s / 4, 1.0))
            self._wake.clear()
            try:
                if monotonic() >= look:
                    look = monotonic() + LOOK_S
                    self._help_others()
                if monotonic() >= beat:
                    beat = monotonic() + BEAT_S
                    with suppress(OSError):
                        os.utime(self._journal.path)
                self._seal_if_due()
                self._ship()
                pause, self._failing = 0.0, False
            except (EverloopError, OSError) as error:
                self._state.failures += 1
                self._failing = bool(self._sealed)
                pause = min(2 * pause, LAST_PAUSE_S) or FIRST_PAUSE_S
                if monotonic() >= warn_at:
                    warn_at = monotonic() + TELL_S
                    logger.warning("Cannot ship the log '%s' now: %s", self._stream, first_line(error))
            except Exception:
                self._state.failures += 1
                pause = LAST_PAUSE_S
                logger.exception("Shipping the log '%s' failed", self._stream)
            if self._until is not None:
                if not self._sealed or self._is_late():
                    return
                pause = min(pause, 0.2)
                self._wake.clear()
            elif pause:
                # Waiting writers set the event, but must not make this thread hammer a store that does not answer.
                self._rest(pause)

    def _rest(self, pause: float) -> None:
        until = monotonic() + pause
        while self._until is None and (left := until - monotonic()) > 0:
            self._wake.wait(min(left, 0.2))
            self._wake.clear()
        self._wake.set()

    def _seal_if_due(self) -> None:
        with self._guard:
            if self._closed or not self._size:
                return
            if self.waits or monotonic() - self._since >= self._options.segment_s:
                self._seal()

    def _ship(self) -> None:
        while self._sealed:
            number, path, size = self._sealed[0]
            ship_journal(self._store, self._stream, self.instance, path)
            self._sealed.popleft()
            with self._guard:
                self._waiting -= size
                self._shipped_to = number
                self._confirmed.notify_all()
            self._state.shipped += 1
            if self._is_late():
                return

    def _is_late(self) -> bool:
        return self._until is not None and monotonic() >= self._until

    def _help_others(self) -> None:
        """Ship what dead instances have left in the same spool, and measure what other instances have there."""
        self._others = _bytes_of_others(self._spool, self.instance)
        if ship_leftovers(self._store, self._spool, until=self._is_late, but=self.instance):
            self._others = _bytes_of_others(self._spool, self.instance)


def ship_journal(store: SegmentStore, stream: str, instance: str, path: Path) -> None:
    """Upload a sealed journal to the store, and then remove it.

    Raises:
        UnavailableError, InsufficientStorageError: the store does not accept it now; the journal stays.
    """
    try:
        data, complete = _complete_frames(path)
    except NotFoundError:
        logger.warning("The journal '%s' is gone: another process has shipped it, or it was deleted.", path)
        return
    if len(data) > len(HEADER):
        store.put(Segment.of(stream, instance, _number_of(path), data), data)
    if complete:
        path.unlink(missing_ok=True)
        return
    logger.error("The journal '%s' is damaged in its middle. Everything before the damage has been shipped.", path)
    with suppress(FileNotFoundError):
        path.rename(path.with_name(path.name + DAMAGED))


def ship_leftovers(
    store: SegmentStore, spool: Path, *, until: Callable[[], bool] = lambda: False, but: str | None = None
) -> int:
    """Ship the journals that dead instances of one stream have left in its spool, and return their number.

    Safe beside running instances, and beside other processes that do the same.

    Args:
        until: called between two journals; True stops.
        but: an instance to skip: the caller's own.

    Raises:
        UnavailableError, InsufficientStorageError: the store does not accept them now; the journals stay.
    """
    shipped = 0
    for folder in _instances(spool):
        if folder.name == but or _alive(folder):
            continue
        # In the order of their numbers, as the instance itself would have shipped them.
        for path in list_journals(folder):
            if until():
                return shipped
            if writer_alive(path):
                break
            ship_journal(store, spool.name, folder.name, path)
            shipped += 1
        else:
            _remove(folder)
    return shipped


def bytes_left(folder: Path) -> int:
    """The bytes of this host's dead instances that no store has confirmed, over all streams of a spool."""
    instances = (instance for spool in _instances(folder) for instance in _instances(spool))
    return sum(_size(one) for one in instances if on_this_kernel(one.name) and not _alive(one))


def _complete_frames(path: Path) -> tuple[bytes, bool]:
    """A journal's bytes up to its last complete frame, and whether nothing but a torn tail follows."""
    end = len(HEADER)
    complete = True
    try:
        for _, offset in read_journal(path):
            end = offset
    except CorruptionError:
        complete = False
    try:
        with path.open("rb") as file:
            return file.read(end), complete
    except FileNotFoundError:
        raise NotFoundError(f"There is no journal '{path}'.") from None


def _number_of(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _instances(spool: Path) -> Iterator[Path]:
    try:
        found = sorted(spool.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (folder for folder in found if folder.is_dir() and not folder.name.startswith("."))


def _alive(folder: Path) -> bool:
    """Whether an instance may still write."""
    try:
        journals = list_journals(folder)
        newest = max([path.stat().st_mtime for path in journals], default=folder.stat().st_mtime)
    except FileNotFoundError:
        return True
    if any(writer_alive(path) for path in journals):
        return True
    quiet = system_micros() / 1e6 - newest
    if not journals:
        # It may be about to create its first journal.
        return quiet < STALE_S
    return not on_this_kernel(folder.name) and quiet < STALE_S


def _bytes_of_others(spool: Path, own: str) -> int:
    """The bytes of other instances on this host's disk. Running instances of other hosts do not count here."""
    others = (folder for folder in _instances(spool) if folder.name != own)
    return sum(_size(folder) for folder in others if on_this_kernel(folder.name) or not _alive(folder))


def _size(folder: Path) -> int:
    """Bytes of frames in an instance's journals."""
    size = 0
    with suppress(FileNotFoundError):
        for path in list_journals(folder):
            with suppress(FileNotFoundError):
                size += max(0, path.stat().st_size - len(HEADER))
    return size


def _remove(folder: Path) -> None:
    """Remove a dead instance's folder with its draft journals, unless it has damaged journals."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(".") or (path.name.endswith(SUFFIX) and path.stat().st_size <= len(HEADER)):
                path.unlink(missing_ok=True)
        folder.rmdir()


__all__ = ["ShippingSink", "bytes_left", "ship_journal", "ship_leftovers"]
