"""A SQLite connection that another thread may close at any moment.

`sqlite3.Connection.close` frees the statements of the connection. If one of them is being executed by another thread,
the whole process crashes. So here each call holds a lock, and closing interrupts the statement that is being executed
and waits until it has ended.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

_CLOSE_S = 2.0
"""How long closing waits for a statement that cannot be interrupted, such as one that waits for another writer."""
_INTERRUPT_S = 0.01


class SqliteConnection:
    """A connection that each method uses under a lock. After `close`, all methods raise UsageError."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Take over a connection that was opened with `check_same_thread=False`."""
        self._connection = connection
        self._guard = threading.Lock()
        self._closed = False

    def execute(self, statement: str, values: Sequence[object] = ()) -> int:
        """Execute a statement whose rows are not wanted, and return the number of changed rows."""
        with self._guard:
            return self._opened().execute(statement, values).rowcount

    def executemany(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        with self._guard:
            self._opened().executemany(statement, rows)

    def executescript(self, script: str) -> None:
        with self._guard:
            self._opened().executescript(script)

    def fetch(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """Execute a statement and return all its rows."""
        with self._guard:
            return self._opened().execute(statement, values).fetchall()

    def fetch_raw(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """Like `fetch`, but bytes of a text that are not UTF-8 become surrogates."""
        with self._guard:
            connection = self._opened()
            connection.text_factory = decode_surrogates
            try:
                return connection.execute(statement, values).fetchall()
            finally:
                connection.text_factory = str

    def backup(self, target: sqlite3.Connection) -> None:
        with self._guard:
            self._opened().backup(target)

    def commit(self) -> None:
        with self._guard:
            self._opened().commit()

    def rollback(self) -> None:
        with self._guard:
            self._opened().rollback()

    @property
    def in_transaction(self) -> bool:
        return not self._closed and self._connection.in_transaction

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def close(self) -> None:
        """Interrupt what another thread executes, and close. An unfinished transaction is rolled back."""
        self._closed = True
        waited = 0.0
        while not self._guard.acquire(timeout=_INTERRUPT_S):
            waited += _INTERRUPT_S
            if waited >= _CLOSE_S:
                # Python closes it when its thread lets go of it.
                return
            self._connection.interrupt()
        try:
            self._connection.close()
        finally:
            self._guard.release()

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise UsageError("The store is closed.", help="Open it again.")
        return self._connection


def decode_surrogates(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
