"""Who may read what a home holds: its owner, or on purpose its group, and never everybody.

Folders are made with mode 0700 and files with 0600, whatever the umask. A home that a group shares has 2770 and 0660:
the set-group-id bit together with the group's right to write marks a folder as shared, and everything that is made
below it follows the folder that it is made in. Deltalake and other libraries make files of their own by the umask;
the folders around them keep others out.
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
"""Names that everloop gives to what lies in a home."""
_BY_UMASK = frozenset(("logs", "run"))
"""What processes write about themselves. Operators let other tools read it, so the umask decides."""
_OWN_NAME = ".everloop"


def is_shared(folder: Path | str) -> bool:
    """Whether a folder is shared by its group on purpose. A folder that is not there is not."""
    try:
        mode = os.stat(folder).st_mode  # noqa: PTH116 - runs at each file that is made
    except OSError:
        return False
    return mode & _SHARED_MARK == _SHARED_MARK


def make_folder(folder: Path, *, shared: bool | None = None) -> None:
    """Make a folder, and those above it that are missing, for the owner only, or for the group of a shared home.

    Args:
        shared: default: as the folder above it.

    Raises:
        InsufficientStorageError, ReadOnlyError, StoreError: it cannot be made.
    """
    if folder.is_dir():
        return
    with writing(folder):
        _make(folder, shared)


def private_opener(path: str, flags: int) -> int:
    """The `opener` of `open` for a file of a home."""
    return make_private(path, flags)


def make_private(path: Path | str, flags: int, *, read_only: bool = False) -> int:
    """Open a file of a home, make it where `flags` have O_CREAT, and return its descriptor.

    Args:
        read_only: nobody is to write to the file once its descriptor is closed.
    """
    shared = is_shared(os.path.dirname(path))  # noqa: PTH120 - as in `is_shared`
    mode = SHARED_FILE if shared else PRIVATE_FILE
    if read_only:
        mode &= 0o440
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    if shared:
        # The umask has taken the group's rights away.
        with suppress(PermissionError):
            os.fchmod(descriptor, mode)
    return descriptor


def file_mode(folder: Path | str, *, read_only: bool = False) -> int:
    """The mode of a file in this folder."""
    mode = SHARED_FILE if is_shared(folder) else PRIVATE_FILE
    return mode & 0o440 if read_only else mode


def close_to_others(paths: Iterable[Path]) -> None:
    """Give files and folders that a library has made the mode that they would have from here."""
    for path in paths:
        with suppress(OSError):
            held = path.lstat()
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _settle(folder, path.name, held, shared=is_shared(path.parent), deep=False)
            finally:
                os.close(folder)


def settle(home: Path, *, shared: bool = False) -> None:
    """Take from others what an earlier version, or an umask, has let them read in a home.

    Only what belongs to this user is changed, no symbolic link is followed, and a folder that holds other things
    besides a home keeps its mode. A home that is in order costs a look at its own folder.

    Args:
        shared: the home's group keeps its rights. A home whose folder is marked as shared is so anyway.
    """
    with suppress(OSError):
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            held = os.fstat(descriptor)
            shared = shared or held.st_mode & _SHARED_MARK == _SHARED_MARK
            found = os.listdir(descriptor)  # noqa: PTH208 - of a descriptor
            names = [name for name in found if _is_part(name)]
            wanted = _wanted(held, shared)
            whole = home.name == _OWN_NAME or set(found) <= {*names, *_BY_UMASK}
            if wanted != stat.S_IMODE(held.st_mode) and _is_ours(held) and whole:
                os.fchmod(descriptor, wanted)
            for name in names:
                with suppress(OSError):
                    _settle(descriptor, name, os.stat(name, dir_fd=descriptor, follow_symlinks=False), shared=shared)
        finally:
            os.close(descriptor)


def exposed(home: Path) -> Iterator[tuple[Path, str]]:
    """What others can read or change in a home: each file and folder, and who can, as `everybody` or `the group`."""
    shared = is_shared(home)
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            who = _open_to(folder.stat() if folder == home else folder.lstat(), shared)
            if not who:
                # Nobody else gets past this folder, so what lies in it is closed as well.
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


def _open_to(held: os.stat_result, shared: bool) -> str:
    if held.st_mode & 0o007:
        return "everybody"
    return "the group" if held.st_mode & 0o070 and not shared else ""


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


def _is_ours(held: os.stat_result) -> bool:
    # A folder such as /tmp is for everybody, whoever made it.
    return held.st_uid == os.geteuid() and not held.st_mode & stat.S_ISVTX


def _is_part(name: str) -> bool:
    return name in _PARTS or name.startswith(".everloop-")


def _wanted(held: os.stat_result, shared: bool) -> int:
    mode = stat.S_IMODE(held.st_mode)
    if stat.S_ISDIR(mode | stat.S_IFMT(held.st_mode)):
        return (mode | SHARED_FOLDER) & ~0o007 if shared else mode & ~0o077
    return (mode & 0o700) | ((mode & 0o600) >> 3) if shared else mode & 0o700


def _settle(folder: int, name: str, held: os.stat_result, *, shared: bool, deep: bool = True) -> None:
    """Correct the mode of one thing in a folder, and of what lies below a folder whose mode was wrong."""
    wanted = _wanted(held, shared)
    if wanted == stat.S_IMODE(held.st_mode) or not _is_ours(held):
        return
    if stat.S_ISREG(held.st_mode):
        # A file with a second name may be somebody's own, elsewhere.
        if held.st_nlink == 1:
            _change_mode(folder, name, wanted)
        return
    if not stat.S_ISDIR(held.st_mode):
        return
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        # First the folder, so that nobody else exchanges what lies in it meanwhile.
        os.fchmod(below, wanted)
        for inner in os.listdir(below) if deep else ():  # noqa: PTH208 - of a descriptor
            with suppress(OSError):
                _settle(below, inner, os.stat(inner, dir_fd=below, follow_symlinks=False), shared=shared)
    finally:
        os.close(below)


def _change_mode(folder: int, name: str, mode: int) -> None:
    """chmod of a file that is not a link. The file is not opened: closing it would release SQLite's locks."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)
        return
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.chmod(f"/proc/self/fd/{descriptor}", mode)  # noqa: PTH101
    finally:
        os.close(descriptor)
