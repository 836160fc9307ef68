"""The writing end of a run's journal: nobody who logs ever waits for, or hears of, trouble with the disk."""

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

_HELD = 100_000  # frames kept in memory while the journal cannot be written
_RETRY_S = 0.1


class RunWriter:
    """Appends frames; what cannot be written is held in memory and tried again, the oldest given up at last.

    The journal is made when it is first needed, and begins with the run. Safe from several threads. A forked child
    writes a journal of its own.

    Args:
        start: the frame with which every journal of the run begins.
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
        self._guard = threading.Lock()

    @property
    def path(self) -> Path | None:
        """The file of this process's journal; None where it has written nothing."""
        return None if self._journal is None or self._process != os.getpid() else self._journal.path

    @property
    def lost(self) -> int:
        """How many entries could not be written so far; those still held may yet be."""
        return len(self._held) + self._dropped

    def begin(self) -> None:
        """Make the journal now."""
        with self._guard:
            try:
                self._open()
            except (OSError, StoreError) as error:
                self._warn(error)

    def append(self, payload: bytes, *, last: bool = False) -> None:
        """Write one frame, or hold it. `last`: try at once, however short ago the last trial was."""
        if self._process != os.getpid():
            # A forked child goes on in a journal of its own, which has to say whose it is.
            self._guard = threading.Lock()
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
        with self._guard:
            self._hold(payload, last)

    def close(self) -> None:
        if self.lost:
            _log.error("The run '%s' ends with %d entries that could not be written.", self._name, self.lost)
        if self._journal is not None:
            self._journal.close()

    def _hold(self, payload: bytes, last: bool) -> None:
        self._held.append(payload)
        if not last and time.monotonic() < self._retry_at:
            if len(self._held) > _HELD:
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
                # A journal that does not begin with its run says nothing to anybody.
                journal.close()
                journal.path.unlink(missing_ok=True)
                raise
            self._journal = journal
        return self._journal

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        message = f"The run '{self._name}' cannot write its journal and holds back: {error}"
        _log.warning(message)
        # Where warnings are errors, the log has to do: who logs a number must not fail for this.
        with suppress(RuntimeWarning):
            warnings.warn(message, RuntimeWarning, stacklevel=5)
