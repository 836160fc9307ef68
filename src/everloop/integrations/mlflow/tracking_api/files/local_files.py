"""Clients' files in a folder of this machine. Nothing here follows a symbolic link."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Literal

from everloop.integrations.mlflow.tracking_api.files.artifact_location import (
    UPLOADS,
    Listed,
    invalid_path,
    no_artifact,
    safe_parts,
)
from everloop.stores.permissions import make_folder


class ArtifactRoot:
    """An `ArtifactFolder` on a local disk.

    Args:
        root: made where it is not there.
    """

    quick = True

    def __init__(self, root: Path | str) -> None:
        make_folder(Path(root))
        self.root = Path(root).resolve()
        self._drafts = self.root / UPLOADS

    def place(self, path: str) -> Path:
        """Where a relative path leads below the root.

        Raises:
            MlflowError: it is not safe, or a symbolic link stands in its way.
        """
        place = self.root
        for part in safe_parts(path):
            place = place / part
            if place.is_symlink():
                raise invalid_path()
        return place

    def check(self, path: str) -> None:
        if self.place(path) == self.root:
            raise invalid_path()

    def drafts(self) -> Path:
        make_folder(self._drafts)
        return self._drafts

    def keep(self, draft: Path, path: str) -> None:
        target = self.place(path)
        if target == self.root:
            raise invalid_path()
        try:
            try:
                draft.replace(target)
            except FileNotFoundError:
                target.parent.mkdir(parents=True, exist_ok=True)
                draft.replace(target)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            raise invalid_path() from None

    def open(self, path: str) -> LocalFile:
        try:
            descriptor = os.open(self.place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise no_artifact(path) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise no_artifact(path)
        return LocalFile(descriptor, found.st_size)

    def list(self, path: str) -> list[Listed]:
        """What is in a folder, by name; links are left out."""
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
        place = self.place(path)
        if place == self.root:
            raise invalid_path()
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)

    def on_disk(self, path: str) -> Path:
        return self.place(path)

    def address(self, method: Literal["GET", "PUT"], path: str, seconds: int) -> str | None:
        return None


class LocalFile:
    """An open file of this machine."""

    __slots__ = ("_descriptor", "size_bytes")

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = size_bytes

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, at)

    def close(self) -> None:
        os.close(self._descriptor)
