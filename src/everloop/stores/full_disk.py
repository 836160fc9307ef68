"""Errors for a full disk, quota or file size limit, recognised in the errors of all libraries."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, InsufficientStorageError, ReadOnlyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space on the device, the user's quota is used up, or the file has reached the size limit."""

_PROTECTED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_WORDS = tuple(os.strerror(number) for number in sorted(FULL))
_SPARE_BYTES = 1 << 16


def is_full(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that no space is left.

    Libraries written in Rust or C++ pass on the operating system's message, but not its error number.
    """
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if isinstance(seen, InsufficientStorageError) or (isinstance(seen, OSError) and seen.errno in FULL):
            return True
        # Messages of everloop itself are not searched, because they may quote a value of the user.
        if not isinstance(seen, EverloopError) and any(words in str(seen) for words in _WORDS):
            return True
        seen = seen.__cause__
    return False


def insufficient(what: str) -> InsufficientStorageError:
    """The error for a write that did not fit.

    Args:
        what: how the message "No space left …" continues, such as "in '/data'".
    """
    return InsufficientStorageError(
        f"No space left {what}: the disk, the quota or the file size limit is used up.",
        help="Free some space; nothing needs to be restarted.",
    )


def storage_error(error: OSError, where: Path | str) -> StoreError:
    """The error to raise for a failed write to a file or folder of the store."""
    if error.errno in FULL:
        return insufficient(f"in '{where}'")
    if error.errno in _PROTECTED:
        return read_only(where)
    return StoreError(f"Cannot write to '{where}': {error.strerror or error}.")


def read_only(where: Path | str) -> ReadOnlyError:
    """The error for a write to a path that this process may only read."""
    return ReadOnlyError(
        f"'{where}' is read-only for this user, so nothing was written.",
        help="Check who owns it (ls -ld) and whether its disk is mounted read-only, or use another home: --home, "
        "EVERLOOP_STORE.",
    )


@contextmanager
def writing(where: Path | str) -> Iterator[None]:
    """Turn an OSError of the block into `InsufficientStorageError`, `ReadOnlyError` or `StoreError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, where) from error


def looks_full(path: Path) -> bool:
    """Whether a file cannot grow right now. For libraries that report a failed write without the reason."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    for name in (path.name, f"{path.name}-wal"):
        try:
            if limit != resource.RLIM_INFINITY and path.with_name(name).stat().st_size + _SPARE_BYTES > limit:
                return True
        except OSError:
            continue
    # File system statistics do not include quotas, so a test write is needed.
    draft = path.with_name(f".{path.name}.{os.getpid()}.space")
    try:
        with draft.open("xb", buffering=0) as file:
            return file.write(bytes(_SPARE_BYTES)) < _SPARE_BYTES
    except OSError as error:
        return error.errno in FULL
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
