"""The folder where clients' files are kept, and every check of a path that a client names.

A client never names a path of this machine: what it sends is taken below the operator's folder or refused. Nothing
here follows a symbolic link.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from everloop.server.mlflow.wire import MlflowError, not_found
from everloop.stores import new_id
from everloop.stores.clock import SystemClock

UPLOADS = ".uploads"
"""Where files are written before they get their names. No client can name it."""
LONGEST_PATH = 4000
LONGEST_NAME = 255
_REFUSED = re.compile(r"[\x00-\x1f\x7f\\#?;]")
_DRIVE = re.compile(r"[A-Za-z]:")
_DECODINGS = 10


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a folder."""

    name: str
    is_dir: bool
    size_bytes: int


class ArtifactRoot:
    """A folder below which clients read and write by relative paths.

    Args:
        root: made where it is not there.
    """

    def __init__(self, root: Path | str) -> None:
        Path(root).mkdir(parents=True, exist_ok=True)
        self.root = Path(root).resolve()

    def place(self, path: str) -> Path:
        """Where a relative path leads below the root.

        Raises:
            MlflowError: it is not safe, or a symbolic link stands in its way.
        """
        place = self.root
        for part in safe_parts(path):
            place = place / part
            if place.is_symlink():
                raise _invalid()
        return place

    def upload_place(self) -> Path:
        """A file that does not exist yet, beside the files that clients see."""
        (self.root / UPLOADS).mkdir(exist_ok=True)
        return self.root / UPLOADS / new_id(SystemClock().now())

    def keep(self, upload: Path, path: str) -> None:
        """Give an upload its name, in place of what had it.

        Raises:
            MlflowError: a folder has the name, or a file stands where a folder is needed.
        """
        target = self.place(path)
        if target == self.root or target.is_dir():
            raise _invalid()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            upload.replace(target)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            raise _invalid() from None

    def open(self, path: str) -> tuple[int, int]:
        """A descriptor of a file and its size in bytes. The caller closes it.

        Raises:
            MlflowError: there is no such file.
        """
        try:
            descriptor = os.open(self.place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise _no_artifact(path) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise _no_artifact(path)
        return descriptor, found.st_size

    def list(self, path: str) -> list[Listed]:
        """What is in a folder, by name; empty where there is none. Links are left out."""
        place = self.place(path)
        try:
            with os.scandir(place) as entries:
                found = [
                    Listed(
                        entry.name,
                        entry.is_dir(follow_symlinks=False),
                        0 if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_size,
                    )
                    for entry in entries
                    if not entry.is_symlink() and not (place == self.root and entry.name == UPLOADS)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        """Remove a file or a folder with everything in it; nothing where there is none."""
        import shutil

        place = self.place(path)
        if place == self.root:
            raise _invalid()
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def safe_parts(path: str) -> tuple[str, ...]:
    """The names of a relative path that HTTP has decoded once; of an empty one, none.

    Raises:
        MlflowError: it leads elsewhere, or could be read so by somebody who decodes it again.
    """
    spelled = path
    for _ in range(_DECODINGS):
        _refuse_unsafe(spelled)
        further = unquote(spelled)
        if further == spelled:
            return tuple(part for part in path.split("/") if part not in ("", "."))
        spelled = further
    raise _invalid()


def _refuse_unsafe(path: str) -> None:
    if len(path) > LONGEST_PATH or _REFUSED.search(path) or path.startswith("/") or _DRIVE.match(path):
        raise _invalid()
    names = path.split("/")
    if any(name == ".." or _too_long(name) for name in names):
        raise _invalid()
    if next((name for name in names if name not in ("", ".")), "") == UPLOADS:
        raise _invalid()
    if path.lower().startswith("file:"):
        raise _invalid()


def _too_long(name: str) -> bool:
    return len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME


def _invalid() -> MlflowError:
    return MlflowError("Invalid path")


def _no_artifact(path: str) -> MlflowError:
    return not_found(f"No such artifact: '{path}'")
