"""Locks between processes, by `flock` on a file. The operating system releases them when their holder dies."""

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


class _LockFile:
    """An open lock file.

    A lock belongs to the open file, which a forked child shares. So the child must close its copy: otherwise the
    parent would seem to hold the lock for as long as the child lives.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int | None = descriptor

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_open_files: set[_LockFile] = set()


def _close_inherited() -> None:
    for file in _open_files:
        file.close()
    _open_files.clear()


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def file_lock(path: Path, *, block: bool = True) -> Iterator[bool]:
    """Hold the lock of `path`. Yields whether it was acquired, which is always true with `block`.

    Not re-entrant: a second lock of the same path waits, even in the same thread. The file is not removed afterwards,
    because then two processes could hold locks on two files of the same name. A forked child does not hold the lock.

    Raises:
        InsufficientStorageError, ReadOnlyError: the file cannot be created.
    """
    make_folder(path.parent)
    with writing(path):
        descriptor = make_private(path, os.O_RDWR | os.O_CREAT)
    file = _LockFile(descriptor)
    _open_files.add(file)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        _open_files.discard(file)
        file.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        # The file belongs to another user, whose process may be alive.
        return True
    try:
        # A shared lock, so that two processes that check at the same time both succeed.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
