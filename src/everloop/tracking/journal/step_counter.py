"""Automatic steps: a metric that is logged without a step continues from the greatest step that it was logged with.

This includes points that this process has logged with a step, points that the run had before this process joined it,
and points that other processes of this machine log at the same time: their journals are read as they grow.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, NotFoundError
from everloop.stores.clock import system_micros
from everloop.stores.journals import list_journals, read_journal
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.last_points import series_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from everloop.stores import Store

_LAST = (1 << 63) - 1
_COARSE_NS = 20_000_000
"""Two changes of a folder that are closer together than this may have the same modification time."""
_RETRY_S = 30.0
"""How long to wait after the store was unavailable."""

_counters: weakref.WeakSet[StepCounter] = weakref.WeakSet()


class StepCounter:
    """The next step of each metric of one run. Safe to use from several threads and in a forked child.

    Args:
        stream: name of the run's journals.
        own_journal: returns the path of this process's journal, or None if it has not been created yet.
        known: whether the store may already have points of the run.
    """

    def __init__(
        self, store: Store, run: str, stream: str, own_journal: Callable[[], Path | None], *, known: bool
    ) -> None:
        self._store = store
        self._series = series_of(run)
        self._folder = store.journals
        self._folder_path = str(store.journals)
        self._stream = stream
        self._own_journal = own_journal
        self._next: dict[str, int] = {}
        self._lock = threading.Lock()
        self._stale = known
        """Whether the store may have points that were not read yet: those of a journal that has been folded."""
        self._changed_at: int | None = None
        """Modification time of the folder when it was last listed."""
        self._retry_at = 0.0
        self._read: dict[Path, int] = {}
        """Journal of another process to the offset up to which it has been read."""
        _counters.add(self)

    def note(self, keys: Iterable[str], step: int) -> None:
        """Record that metrics are logged with an explicit step."""
        with self._lock:
            self._raise(keys, step)

    def take(self, values: Mapping[str, float]) -> dict[int, dict[str, float]]:
        """Give each metric its next step. Returns the values grouped by step."""
        by_step: dict[int, dict[str, float]] = {}
        with self._lock:
            # Errors of the disk or the store must not stop the code that logs; then the steps known so far are used.
            with suppress(OSError, EverloopError):
                self._read_other_journals()
            for key, value in values.items():
                step = self._next.get(key, 0)
                self._next[key] = min(step + 1, _LAST)
                by_step.setdefault(step, {})[key] = value
        return by_step

    def _raise(self, keys: Iterable[str], step: int) -> None:
        following = min(step + 1, _LAST)
        for key in keys:
            if self._next.get(key, 0) < following:
                self._next[key] = following

    def _read_other_journals(self) -> None:
        changed_at = os.stat(self._folder_path).st_mtime_ns  # noqa: PTH116 - a Path would cost more than the call
        if changed_at != self._changed_at or system_micros() * 1000 - changed_at < _COARSE_NS:
            own = self._own_journal()
            others = [path for path in list_journals(self._folder, self._stream) if path != own]
            self._read = {path: self._read.get(path, 0) for path in others}
            self._stale = self._stale or self._changed_at not in (None, changed_at)
            self._changed_at = changed_at
        for path, offset in self._read.items():
            try:
                if os.stat(path).st_size > offset:  # noqa: PTH116
                    self._read_journal(path, offset)
            except (FileNotFoundError, NotFoundError):
                self._stale = True  # it has been folded
        if self._stale and time.monotonic() > self._retry_at:
            self._retry_at = time.monotonic() + _RETRY_S
            for key, step in self._store.records.greatest_steps(self._series).items():
                self._raise([key], step)
            self._retry_at, self._stale = 0.0, False

    def _read_journal(self, path: Path, offset: int) -> None:
        for payload, end in read_journal(path, offset):
            frame = journal_frames.decode(payload)
            if type(frame) is journal_frames.PointsFrame:
                self._raise(frame.values, frame.step)
            self._read[path] = end


def _renew_locks() -> None:
    # Another thread of the parent may have held a lock at the fork.
    for counter in list(_counters):
        counter._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks)
