"""Steps that nobody gives: each metric counts on from the greatest step that it has been logged with.

That holds for points of this process, however they were logged, for those that the run had before this process
joined it, and for those that other processes of this machine log meanwhile: their journals are read as they grow.
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
"""Two changes of a folder that are closer together than this may bear the same time."""
_RETRY_S = 30.0
"""How long a store that did not answer is left alone."""

_counters: weakref.WeakSet[StepCounter] = weakref.WeakSet()


class StepCounter:
    """The next step of each metric of one run. Safe to use from several threads and in a forked child.

    Args:
        stream: of the run's journals.
        own: the journal of this process, if there is one by now.
        known: whether the store may have points of the run already.
    """

    def __init__(self, store: Store, run: str, stream: str, own: Callable[[], Path | None], *, known: bool) -> None:
        self._store = store
        self._series = series_of(run)
        self._folder = store.journals
        self._watched = str(store.journals)
        self._stream = stream
        self._own = own
        self._next: dict[str, int] = {}
        self._guard = threading.Lock()
        self._stale = known
        """Whether the store may have points that were not read: of a journal that is gone, or came and went unseen."""
        self._changed: int | None = None
        self._retry_at = 0.0
        self._read: dict[Path, int] = {}
        """How far the journals of other processes have been read."""
        _counters.add(self)

    def note(self, keys: Iterable[str], step: int) -> None:
        """Metrics are logged with a step of the caller's."""
        with self._guard:
            self._raise(keys, step)

    def take(self, values: Mapping[str, float]) -> dict[int, dict[str, float]]:
        """Give each metric its next step: the values by step."""
        by_step: dict[int, dict[str, float]] = {}
        with self._guard:
            # Nobody who logs hears of trouble with the disk or the store; the steps known so far have to do.
            with suppress(OSError, EverloopError):
                self._look_around()
            for key, value in values.items():
                step = self._next.get(key, 0)
                self._next[key] = min(step + 1, _LAST)
                by_step.setdefault(step, {})[key] = value
        return by_step

    def _raise(self, keys: Iterable[str], step: int) -> None:
        following = min(step + 1, _LAST)
        held = self._next
        for key in keys:
            if held.get(key, 0) < following:
                held[key] = following

    def _look_around(self) -> None:
        changed = os.stat(self._watched).st_mtime_ns  # noqa: PTH116 - a Path would cost more than the call
        if changed != self._changed or system_micros() * 1000 - changed < _COARSE_NS:
            own = self._own()
            found = [path for path in list_journals(self._folder, self._stream) if path != own]
            self._read = {path: self._read.get(path, 0) for path in found}
            self._stale = self._stale or self._changed not in (None, changed)
            self._changed = changed
        for path, offset in self._read.items():
            try:
                if os.stat(path).st_size > offset:  # noqa: PTH116
                    self._catch_up(path, offset)
            except (FileNotFoundError, NotFoundError):
                self._stale = True  # it has been folded
        if self._stale and time.monotonic() > self._retry_at:
            self._retry_at = time.monotonic() + _RETRY_S
            for key, step in self._store.records.greatest_steps(self._series).items():
                self._raise([key], step)
            self._retry_at, self._stale = 0.0, False

    def _catch_up(self, path: Path, offset: int) -> None:
        for payload, end in read_journal(path, offset):
            frame = journal_frames.decode(payload)
            if type(frame) is journal_frames.PointsFrame:
                self._raise(frame.values, frame.step)
            self._read[path] = end

    def _forked(self) -> None:
        self._guard = threading.Lock()


def _free_guards() -> None:
    # Another thread of the parent may have held one at the fork.
    for counter in list(_counters):
        counter._forked()


os.register_at_fork(after_in_child=_free_guards)
