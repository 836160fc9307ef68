"""A database that checks, inside each transaction, that its user may still write."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from everloop.stores.records.condition_sql import Paths, Sql
    from everloop.stores.records.expression_sql import Patterns
    from everloop.stores.records.sql_logs import Database


class FencedDatabase:
    """A `Database` over another one. `check` runs at the start of each transaction and raises to refuse the write.

    The transaction excludes other writers, so the answer stays valid until the transaction ends.
    """

    def __init__(self, database: Database, check: Callable[[], None]) -> None:
        self.database = database
        self._check = check

    @property
    def paths(self) -> Paths:
        return self.database.paths

    @property
    def patterns(self) -> Patterns:
        return self.database.patterns

    @property
    def row_id(self) -> str:
        return self.database.row_id

    def read_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        return self.database.read_raw(statement, values)

    def read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        return self.database.read(statement, values)

    def write(self, statement: str, values: Sequence[object] = ()) -> int:
        return self.database.write(statement, values)

    def write_many(self, statement: str, rows: Sequence[Sequence[object]]) -> None:
        self.database.write_many(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self.database.transaction():
            self._check()
            yield

    def index(self, value: Sql) -> None:
        self.database.index(value)

    def problems(self) -> list[str]:
        return self.database.problems()

    @property
    def closed(self) -> bool:
        return self.database.closed

    def close(self) -> None:
        self.database.close()
