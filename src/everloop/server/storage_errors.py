"""Recognises errors that mean a full disk, which the server answers with 507.

The stores raise `InsufficientStorageError` themselves. Files that are written elsewhere, such as artifacts, fail
with an `OSError`, and SQLite has several codes for a write that the disk refuses.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING

from everloop.errors import InsufficientStorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = "Free some space or raise the quota. Reading still works, and the server needs no restart."
_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SQLITE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
"""SQLite reports FULL for ENOSPC only. A quota or a file size limit shows up as an I/O error of a write."""
_DEPTH = 8


def no_space_error(error: BaseException) -> InsufficientStorageError | None:
    """Return the error to answer with if `error` or one of its causes is a full disk, else None."""
    for cause in _causes(error):
        if isinstance(cause, InsufficientStorageError):
            return InsufficientStorageError("The server has no space left to write this.", help=HELP)
        if isinstance(cause, OSError) and cause.errno in _ERRNOS:
            return InsufficientStorageError("The server has no space left to write this.", help=HELP)
        if isinstance(cause, sqlite3.Error) and _is_full(cause):
            return InsufficientStorageError("The server has no space left to write this.", help=HELP)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(_DEPTH):
        if found is None:
            return
        yield found
        found = found.__cause__


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in _SQLITE or "disk is full" in str(error)
