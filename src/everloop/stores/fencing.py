"""A database that checks, inside each transaction, that its user may still write."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from everloop.stores.records.condition_sql import Paths, Sql
    from everloop.stores.records.expression_sql import Patterns
    from everloop.stores.records.sql_logs import Database


class FencedDatabase:
    """A `Database` over another one. `check` runs at the start of each transaction and raises to refuse the write.

    The transaction excludes a takeover of the lease, so the answer stays valid until the transaction ends.
    """

    def __init__(self, database: Database, project: str, check: Callable[[], None]) -> None:
        """
        Args:
            project: the project of the lease that `check` reads.
        """
        self.database = database
        self._project = project
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

    def write_points(self, rows: Sequence[Sequence[Any]]) -> None:
        self.database.write_points(rows)

    def write_event(self, row: Sequence[object]) -> None:
        self.database.write_event(row)

    def write_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.database.write_rows(table, columns, rows)

    def continue_numbers(self, table: str, column: str) -> None:
        self.database.continue_numbers(table, column)

    def refuse_writes(self, message: str | None) -> None:
        self.database.refuse_writes(message)

    def wait_for_change(self, project: str, timeout_s: float) -> None:
        self.database.wait_for_change(project, timeout_s)

    @contextmanager
    def transaction(self, project: str | None = None, parts: Sequence[str] = ()) -> Iterator[None]:
        # A takeover is a transaction of the whole project, so it waits for the end of any transaction that has locked
        # a part of the project. The part is this thread's own, so fenced writers do not wait for each other.
        own = f"fenced {os.getpid()} {threading.get_ident()}"
        with self.database.transaction(project, parts), self.database.transaction(self._project, (own,)):
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
