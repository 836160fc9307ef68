"""File permissions of a home: for its owner only, or on request for its group, but never for everyone.

Folders are created with mode 0700 and files with 0600, whatever the umask. A shared home has 2770 and 0660: the
set-group-id bit together with the group's write permission marks a folder as shared, and new files and folders follow
the folder that contains them. deltalake and other libraries create files by the umask; the folders around them keep
other users out.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.stores.full_disk import writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
SHARED_FOLDER, SHARED_FILE = 0o2770, 0o660

_SHARED_MARK = stat.S_ISGID | stat.S_IWGRP
_DATABASES = ("everloop.db", "online.db")
_PARTS = frozenset(
    (
        *("artifacts", "cache", "clock", "journals", "locks", "objects", "tables", "secret.key", ".gitignore"),
        *(f"{name}{end}" for name in _DATABASES for end in ("", "-wal", "-shm", "-journal")),
    )
)
"""Names of the files and folders that everloop creates in a home."""
_BY_UMASK = frozenset(("logs", "run"))
"""Logs and state of processes. Other tools may need to read them, so the umask decides."""
_OWN_NAME = ".everloop"


def is_shared(folder: Path | str) -> bool:
    """Whether a folder is marked as shared with its group. False for a missing folder."""
    try:
        mode = os.stat(folder).st_mode  # noqa: PTH116 - runs for each file that is created
    except OSError:
        return False
    return mode & _SHARED_MARK == _SHARED_MARK


def make_folder(folder: Path, *, shared: bool | None = None) -> None:
    """Create a folder and its missing parents, for the owner only or for the group of a shared home.

    Args:
        shared: default: the same as the parent folder.

    Raises:
        InsufficientStorageError, ReadOnlyError, StoreError: it cannot be created.
    """
    if folder.is_dir():
        return
    with writing(folder):
        _make(folder, shared)


def private_opener(path: str, flags: int) -> int:
    """The `opener` of `open` for a file of a home."""
    return make_private(path, flags)


def make_private(path: Path | str, flags: int, *, read_only: bool = False) -> int:
    """Open a file of a home, or create it if `flags` contain O_CREAT, and return its descriptor.

    Args:
        read_only: create the file without write permission. It can be written only through this descriptor.
    """
    shared = is_shared(os.path.dirname(path))  # noqa: PTH120 - as in `is_shared`
    mode = SHARED_FILE if shared else PRIVATE_FILE
    if read_only:
        mode &= 0o440
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    if shared:
        # The umask may have removed the group's permissions.
        with suppress(PermissionError):
            os.fchmod(descriptor, mode)
    return descriptor


def file_mode(folder: Path | str, *, read_only: bool = False) -> int:
    """The mode that a file in this folder must have."""
    mode = SHARED_FILE if is_shared(folder) else PRIVATE_FILE
    return mode & 0o440 if read_only else mode


def close_to_others(paths: Iterable[Path]) -> None:
    """Give files and folders that a library created the mode that everloop would have given them."""
    for path in paths:
        with suppress(OSError):
            status = path.lstat()
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _settle(folder, path.name, status, shared=is_shared(path.parent), deep=False)
            finally:
                os.close(folder)


def settle(home: Path, *, shared: bool = False) -> None:
    """Correct the modes in a home, which an earlier version or the umask may have left open to other users.

    Only files and folders of this user are changed, and symbolic links are not followed. A folder that contains other
    files besides the home keeps its mode. If all is in order, this only reads the home's own folder.

    Args:
        shared: the home's group keeps its permissions, as it does if the home's folder is marked as shared.
    """
    with suppress(OSError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            shared = shared or status.st_mode & _SHARED_MARK == _SHARED_MARK
            found = os.listdir(descriptor)  # noqa: PTH208 - of a descriptor
            names = [name for name in found if _is_part(name)]
            wanted = _wanted(status, shared)
            only_home = home.name == _OWN_NAME or set(found) <= {*names, *_BY_UMASK}
            if wanted != stat.S_IMODE(status.st_mode) and _is_ours(status) and only_home:
                os.fchmod(descriptor, wanted)
            for name in names:
                with suppress(OSError):
                    _settle(descriptor, name, os.stat(name, dir_fd=descriptor, follow_symlinks=False), shared=shared)
        finally:
            os.close(descriptor)


def exposed(home: Path) -> Iterator[tuple[Path, str]]:
    """Find the files and folders of a home that others can access, each with `everyone` or `the group`."""
    shared = is_shared(home)
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            who = _open_to(folder.stat() if folder == home else folder.lstat(), shared)
            if not who:
                # Other users cannot enter this folder, so its contents are closed as well.
                continue
            yield folder, who
            with os.scandir(folder) as entries:
                for entry in entries:
                    if folder == home and not _is_part(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        who = _open_to(entry.stat(follow_symlinks=False), shared)
                        if who:
                            yield Path(entry.path), who


def _open_to(status: os.stat_result, shared: bool) -> str:
    if status.st_mode & 0o007:
        return "everyone"
    return "the group" if status.st_mode & 0o070 and not shared else ""


def _make(folder: Path, shared: bool | None) -> None:
    wanted = is_shared(folder.parent) if shared is None else shared
    mode = SHARED_FOLDER if wanted else PRIVATE_FOLDER
    try:
        os.mkdir(folder, mode & 0o777)  # noqa: PTH102 - see chmod
    except FileNotFoundError:
        _make(folder.parent, shared)
        _make(folder, shared)
        return
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if wanted:
        with suppress(PermissionError):
            folder.chmod(mode)


def _is_ours(status: os.stat_result) -> bool:
    # A folder such as /tmp is meant for all users, even if this user created it.
    return status.st_uid == os.geteuid() and not status.st_mode & stat.S_ISVTX


def _is_part(name: str) -> bool:
    return name in _PARTS or name.startswith(".everloop-")


def _wanted(status: os.stat_result, shared: bool) -> int:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(mode | stat.S_IFMT(status.st_mode)):
        return (mode | SHARED_FOLDER) & ~0o007 if shared else mode & ~0o077
    return (mode & 0o700) | ((mode & 0o600) >> 3) if shared else mode & 0o700


def _settle(folder: int, name: str, status: os.stat_result, *, shared: bool, deep: bool = True) -> None:
    """Correct the mode of one entry of a folder. If it is a folder whose mode was wrong, also of its contents."""
    wanted = _wanted(status, shared)
    if wanted == stat.S_IMODE(status.st_mode) or not _is_ours(status):
        return
    if stat.S_ISREG(status.st_mode):
        # A file with a second hard link may belong to something outside of the home.
        if status.st_nlink == 1:
            _change_mode(folder, name, wanted)
        return
    if not stat.S_ISDIR(status.st_mode):
        return
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        # The folder comes first, so that other users cannot replace its contents meanwhile.
        os.fchmod(below, wanted)
        for inner in os.listdir(below) if deep else ():  # noqa: PTH208 - of a descriptor
            with suppress(OSError):
                _settle(below, inner, os.stat(inner, dir_fd=below, follow_symlinks=False), shared=shared)
    finally:
        os.close(below)


def _change_mode(folder: int, name: str, mode: int) -> None:
    """Change the mode of a file that is not a link, without opening it: closing it would release SQLite's locks."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)
        return
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101
    finally:
        os.close(descriptor)
