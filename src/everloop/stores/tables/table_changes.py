"""Find what has been added to a Delta table since one of its versions, without reading the rest of it.

Only appends add rows. Commits that also remove files, such as compactions and deletions, rewrite rows that were there
already.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from everloop.errors import NotFoundError
from everloop.stores.tables.table_digests import LOG, active_files

if TYPE_CHECKING:
    import polars as pl
    from deltalake import DeltaTable

    from everloop.stores.tables.table_digests import TableFiles


@dataclass(frozen=True, slots=True)
class DeltaSnapshot:
    """A `TableSnapshot` of a Delta table. `rows` and `last_batch` are valid until this thread uses the table again."""

    name: str
    id: str
    uri: str
    version: int
    files: tuple[str, ...]
    _table: DeltaTable = field(repr=False, compare=False)

    @classmethod
    def of(cls, table: DeltaTable, name: str, uri: str) -> DeltaSnapshot:
        files = tuple(sorted(active_files(table)))
        return cls(name, str(table.metadata().id), uri.rstrip("/"), int(table.version()), files, table)

    def scan(self, path: str) -> pl.LazyFrame:
        import polars as pl

        return pl.scan_parquet(f"{self.uri}/{path}", glob=False)

    def rows(self) -> pl.LazyFrame:
        import polars as pl

        return pl.scan_delta(self._table)

    def last_batch(self, writer: str) -> int:
        version = self._table.transaction_version(writer)
        return -1 if version is None else int(version)


def delta_commits(files: TableFiles, after: int, upto: int) -> list[tuple[int, list[str]]] | None:
    """As `TableStore.added_since`, for the commits `after < commit <= upto`."""
    found: list[tuple[int, list[str]]] = []
    for version in range(after + 1, upto + 1):
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
    return found
