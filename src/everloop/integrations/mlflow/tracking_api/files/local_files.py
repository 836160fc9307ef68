"""Artifact location in a local folder. Symbolic links are never followed."""

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
    """An `ArtifactLocation` on a local disk.

    Args:
        root: the folder; created if missing.
    """

    quick = True

    def __init__(self, root: Path | str) -> None:
        make_folder(Path(root))
        self.root = Path(root).resolve()
        self._drafts = self.root / UPLOADS

    def resolve(self, path: str) -> Path:
        """Return the full path of a relative path.

        Raises:
            MlflowError: the path is not safe, or has a symbolic link in it.
        """
        resolved = self.root
        for part in safe_parts(path):
            resolved = resolved / part
            if resolved.is_symlink():
                raise invalid_path()
        return resolved

    def check(self, path: str) -> None:
        if self.resolve(path) == self.root:
            raise invalid_path()

    def drafts(self) -> Path:
        make_folder(self._drafts)
        return self._drafts

    def keep(self, draft: Path, path: str) -> None:
        target = self.resolve(path)
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
            descriptor = os.open(self.resolve(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            raise no_artifact(path) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise no_artifact(path)
        return LocalFile(descriptor, found.st_size)

    def list(self, path: str) -> list[Listed]:
        """List a folder, sorted by name, without symbolic links."""
        folder = self.resolve(path)
        try:
            with os.scandir(folder) as entries:
                found = [
                    Listed(
                        entry.name,
                        entry.is_dir(follow_symlinks=False),
                        0 if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_size,
                    )
                    for entry in entries
                    if not entry.is_symlink() and not (folder == self.root and entry.name == UPLOADS)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda entry: entry.name)

    def delete(self, path: str) -> None:
        target = self.resolve(path)
        if target == self.root:
            raise invalid_path()
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def on_disk(self, path: str) -> Path:
        return self.resolve(path)

    def presigned_url(self, method: Literal["GET", "PUT"], path: str, seconds: int) -> str | None:
        return None


class LocalFile:
    """An open local file."""

    __slots__ = ("_descriptor", "size_bytes")

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = size_bytes

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, at)

    def close(self) -> None:
        os.close(self._descriptor)
