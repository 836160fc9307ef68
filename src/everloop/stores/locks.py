"""Locks between processes: `flock` on a file, given back by the operating system when its holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from everloop.stores.full_disk import writing
from everloop.stores.permissions import make_folder, make_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Held:
    """An open lock file. A lock belongs to the open file, which a forked child shares: unless the child lets go of
    its copy, the parent would seem to live, and hold the lock, for as long as the child does."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_held: set[_Held] = set()


def _leave_to_parent() -> None:
    for held in _held:
        held.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def file_lock(path: Path, *, block: bool = True) -> Iterator[bool]:
    """Hold the lock of `path`; yields whether it is held, which is always so when `block` is set.

    Not re-entrant: a second lock of the same path waits, even in the same thread. The file stays behind, because
    removing it would let two holders lock two files of the same name. A forked child does not hold it.

    Raises:
        InsufficientStorageError, ReadOnlyError: the file cannot be made.
    """
    make_folder(path.parent)
    with writing(path):
        descriptor = make_private(path, os.O_RDWR | os.O_CREAT)
    held = _Held(descriptor)
    _held.add(held)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        _held.discard(held)
        held.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        # Another user's. Nothing may be done for a holder that could be alive.
        return True
    try:
        # A shared lock, so that two who only ask do not take each other for a holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
