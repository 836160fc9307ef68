"""Find what has been added to a Delta table since one of its versions, without reading the rest of it.

Only appends add rows. Commits that also remove files, such as compactions and deletions, rewrite rows that were there
already.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from everloop.errors import NotFoundError
from everloop.stores.tables.table_digests import LOG, active_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from everloop.stores.tables.delta_tables import Tables


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """One version of a table.

    Attributes:
        id: differs for a table that is created again under the same name.
        version: number of the last commit.
        files: paths of the data files, relative to the table.
    """

    name: str
    id: str
    uri: str
    version: int
    files: tuple[str, ...]

    def scan(self, path: str) -> pl.LazyFrame:
        """The rows of one of the table's data files."""
        import polars as pl

        return pl.scan_parquet(f"{self.uri.rstrip('/')}/{path}", glob=False)


def find_snapshot(tables: Tables, name: str) -> TableSnapshot | None:
    """The present version of a table; None if there is no such table."""
    table = tables.find(name)
    if table is None:
        return None
    files = tuple(sorted(active_files(table)))
    return TableSnapshot(name, str(table.metadata().id), f"{tables.root}/{name}", int(table.version()), files)


def added_since(tables: Tables, snapshot: TableSnapshot, after: int) -> Iterator[tuple[int, list[str]]] | None:
    """The files that the commits after a version have added, oldest first, each with its version.

    Returns:
        None if that is not known any more, because log entries or files have been removed meanwhile.
    """
    found: list[tuple[int, list[str]]] = []
    files = tables.files(snapshot.name)
    for version in range(after + 1, snapshot.version + 1):
        try:
            actions = [json.loads(line) for line in files.read(f"{LOG}/{version:020}.json").splitlines() if line]
        except NotFoundError:
            return None
        paths = [unquote(action["add"]["path"]) for action in actions if "add" in action]
        if any("remove" in action for action in actions):
            continue
        if any(files.size(path) is None for path in paths):
            return None
        found.append((version, paths))
    return iter(found)


__all__ = ["TableSnapshot", "added_since", "find_snapshot"]
