"""What has been added to a log's table since it was aggregated.

The table of aggregates records how far it has counted each of the two tables of an endpoint, in the same commits that
add the counts. So a process that is killed at any moment neither loses nor doubles a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl

    from everloop.stores.tables.table_store import TableSnapshot, TableStore

SLICE_ROWS = 100_000
"""Rows that are read at once, which bounds the memory that counting needs."""
MOST_COMMITS = 20
"""Commits that are counted before the progress is written."""


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Commits of a table that have not been counted.

    Attributes:
        after, upto: they are the commits `after < commit <= upto`.
        files: the data files with their rows, relative to the table.
    """

    snapshot: TableSnapshot
    after: int
    upto: int
    files: tuple[str, ...]

    @property
    def writer(self) -> str:
        return writer_of(self.snapshot)

    def slices(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Their rows, at most `SLICE_ROWS` at a time.

        Args:
            columns: the columns to read, if the file has them. None: all.
        """
        import polars as pl

        for path in self.files:
            rows = self.snapshot.scan(path)
            if columns is not None:
                present = rows.collect_schema().names()
                rows = rows.select([name for name in columns if name in present])
            height = rows.select(pl.len()).collect().item()
            for offset in range(0, height, SLICE_ROWS):
                yield rows.slice(offset, SLICE_ROWS).collect()


def writer_of(snapshot: TableSnapshot) -> str:
    """The name under which the table of aggregates records how far it has counted a table."""
    return f"{snapshot.name}:{snapshot.id}"


def find_pending(
    tables: TableStore, name: str, counted: Callable[[str], int], *, most_commits: int | None = None
) -> PendingRows | None:
    """The rows of a table that have not been counted; None if there is no such table or nothing has happened.

    If it is not known any more which files the commits have added, these are all rows, from `after = -1`. So it is if
    the table is older than what has been counted, because it was restored.

    Args:
        counted: returns how far a table has been counted, by its `writer_of`.
        most_commits: return at most this many commits, the oldest.
    """
    snapshot = tables.snapshot(name)
    if snapshot is None:
        return None
    last = counted(writer_of(snapshot))
    if last == snapshot.version:
        return None
    added = tables.added_since(snapshot, last) if 0 <= last < snapshot.version else None
    if added is None:
        return PendingRows(snapshot, -1, snapshot.version, snapshot.files)
    commits = added
    upto = snapshot.version
    if most_commits is not None and len(commits) > most_commits:
        commits = commits[:most_commits]
        upto = commits[-1][0]
    return PendingRows(snapshot, last, upto, tuple(path for _, paths in commits for path in paths))


__all__ = ["MOST_COMMITS", "SLICE_ROWS", "PendingRows", "find_pending", "writer_of"]
