"""The writer of a run's journal. Errors of the disk never stop or delay the code that logs."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import StoreError
from everloop.stores.journals import Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger("everloop.tracking")

_MOST_HELD = 100_000  # frames held in memory while the journal cannot be written
_RETRY_S = 0.1


class RunWriter:
    """Appends frames. A frame that cannot be written is held in memory and tried again.

    If too many are held, the oldest is dropped.

    The journal is created when it is first needed, and begins with the run. Safe to use from several threads. A forked
    child writes a separate journal.

    Args:
        start: makes the frame with which every journal of the run begins.
    """

    def __init__(self, folder: Path, stream: str, name: str, start: Callable[[], bytes]) -> None:
        self._folder = folder
        self._stream = stream
        self._name = name
        self._start = start
        self._journal: Journal | None = None
        self._process = os.getpid()
        self._held: deque[bytes] = deque()
        self._dropped = 0
        self._retry_at = 0.0
        self._warned = False
        self._lock = threading.Lock()

    @property
    def path(self) -> Path | None:
        """The file of this process's journal; None if it has not written one."""
        return None if self._journal is None or self._process != os.getpid() else self._journal.path

    @property
    def lost(self) -> int:
        """How many frames have not been written so far. Those that are still held may be written later."""
        return len(self._held) + self._dropped

    def begin(self) -> None:
        """Create the journal now."""
        with self._lock:
            try:
                self._open()
            except (OSError, StoreError) as error:
                self._warn(error)

    def append(self, payload: bytes, *, last: bool = False) -> None:
        """Write one frame, or hold it. With `last`, try at once, even if the last attempt was a moment ago."""
        if self._process != os.getpid():
            # A forked child writes a new journal, which begins with its own start frame.
            self._lock = threading.Lock()
            self._process = os.getpid()
            self._held.clear()
            self._journal = None
        journal = self._journal
        if journal is not None and not self._held:
            try:
                journal.append(payload)
                return
            except (OSError, StoreError) as error:
                self._warn(error)
        with self._lock:
            self._hold(payload, last)

    def close(self) -> None:
        if self.lost:
            _log.error("The run '%s' has ended, but %d of its log calls could not be written.", self._name, self.lost)
        if self._journal is not None:
            self._journal.close()

    def _hold(self, payload: bytes, last: bool) -> None:
        self._held.append(payload)
        if not last and time.monotonic() < self._retry_at:
            if len(self._held) > _MOST_HELD:
                self._held.popleft()
                self._dropped += 1
            return
        try:
            journal = self._open()
            while self._held:
                journal.append(self._held[0])
                self._held.popleft()
        except (OSError, StoreError) as error:
            self._retry_at = time.monotonic() + _RETRY_S
            self._warn(error)

    def _open(self) -> Journal:
        if self._journal is None:
            journal = Journal.create(self._folder, self._stream)
            try:
                journal.append(self._start())
            except (OSError, StoreError):
                # A journal that does not begin with its run is useless.
                journal.close()
                journal.path.unlink(missing_ok=True)
                raise
            self._journal = journal
        return self._journal

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        message = f"The run '{self._name}' cannot write its journal; its data is held in memory for now: {error}"
        _log.warning(message)
        # If warnings are errors, the log message is enough: the code that logs must not fail because of this.
        with suppress(RuntimeWarning):
            warnings.warn(message, RuntimeWarning, stacklevel=5)
