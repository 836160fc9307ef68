"""The protocol of table stores: append-only tables with an event time and an arrival time in every row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import polars as pl


class TableSnapshot(Protocol):
    """One version of a table, whose rows can be read commit by commit."""

    @property
    def name(self) -> str: ...

    @property
    def id(self) -> str:
        """Differs for a table that is created again under the same name, and between a store and its forks."""

    @property
    def version(self) -> int:
        """The number of the last commit."""

    @property
    def files(self) -> tuple[str, ...]:
        """The parts that together hold all rows of this version."""

    def scan(self, path: str) -> pl.LazyFrame:
        """The rows of one part."""

    def rows(self) -> pl.LazyFrame:
        """All rows of this version."""

    def last_batch(self, writer: str) -> int:
        """The number of a writer's last batch in this version, or -1 if there is none."""


class TableStore(Protocol):
    """The tables of a store, with names such as `predictions/delays`. Safe to use from any thread.

    - An append is atomic, and visible to all when it returns.
    - A batch or a progress that is sent again writes nothing.
    - A view `as_of` a moment shows the rows that had arrived by then, and every write to it raises `ReadOnlyError`.
    """

    root: str
    """Differs between stores. Only the root of Delta tables is a folder or URL."""

    def as_of(self, moment: datetime) -> Self:
        """A read-only view of the rows that had arrived by a moment."""

    def append(
        self,
        name: str,
        frame: Any,
        *,
        batch: tuple[str, int] | None = None,
        progress: Sequence[tuple[str, int, int]] = (),
    ) -> bool:
        """Append rows and return whether they were written. The table is created if it is missing."""

    def scan(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        verify: bool = False,
    ) -> pl.LazyFrame:
        """The rows with `since <= event_at < until` that had arrived by `as_of`, in no particular order."""

    def exists(self, name: str) -> bool: ...

    def names(self, prefix: str = "") -> list[str]:
        """The names of all tables whose names begin with `prefix`, sorted."""

    def snapshot(self, name: str) -> TableSnapshot | None:
        """The present version of a table; None if there is no such table."""

    def added_since(self, snapshot: TableSnapshot, after: int) -> list[tuple[int, list[str]]] | None:
        """The parts that the commits after a version have added, oldest first; None if that is not known any more."""

    def last_batch(self, name: str, writer: str) -> int:
        """The number of the writer's last batch, or -1 if there is none or the table does not exist."""

    def prove(self, name: str) -> None:
        """Verify the stored rows of a table, where they are stored in files."""

    def compact(self, name: str) -> None:
        """Merge small files into larger ones."""

    def tidy(self, name: str, *, most_files: int = 40) -> bool:
        """Compact a table if it has many files, and return whether that was done."""

    def forget(self, name: str, before: datetime) -> int:
        """Delete the rows that arrived before a moment, and return their number."""

    def rewrite(self, name: str, since: datetime, change: Callable[[pl.DataFrame], pl.DataFrame]) -> bool:
        """Replace the rows with `event_at >= since` in one commit, and return whether that was done."""

    def vacuum(self, name: str, *, keep_hours: int = 168) -> list[str]:
        """Remove files that are not needed any more, and return their names."""

    def drop(self, name: str) -> None:
        """Permanently delete a table with all its rows."""
