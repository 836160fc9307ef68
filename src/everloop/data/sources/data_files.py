"""A file to read: the name that the user knows, the path of its bytes, and its partition columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of a source."""

    path: Path
    """The file to open: the original, or a plain copy of it in the store's cache."""
    shown: str
    """Its name in messages."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns from folder names such as `year=2025/`, with their values as text."""

    @classmethod
    def of(cls, path: Path) -> DataFile:
        return cls(path, str(path))

    def at(self, path: Path) -> DataFile:
        """The same file, read from a copy at `path`."""
        return replace(self, path=path)

    def __str__(self) -> str:
        return self.shown
