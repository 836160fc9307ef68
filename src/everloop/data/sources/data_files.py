"""A file that is read: what its user called it, where its bytes lie, and what its folders say about its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of a source."""

    path: Path
    """What can be opened: the file itself, or a plain copy of it in the store's cache."""
    shown: str
    """What messages call it."""
    partition: tuple[tuple[str, str | None], ...] = ()
    """Columns that its folders name, such as `year=2025/`, with their values as texts."""

    @classmethod
    def of(cls, path: Path) -> DataFile:
        return cls(path, str(path))

    def at(self, path: Path) -> DataFile:
        """The same file, read from a copy."""
        return replace(self, path=path)

    def __str__(self) -> str:
        return self.shown
