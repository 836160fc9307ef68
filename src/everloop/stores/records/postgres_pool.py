"""A pool with a limited number of connections to PostgreSQL, shared by all threads of a process.

A thread holds a connection only for one statement or one transaction. So a server with many threads needs few
connections: PostgreSQL starts a process for each, and its default limit is a hundred for all clients together.
Connections cannot be used after a fork, so a child opens its own ones and never closes the inherited ones.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from everloop.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

MOST_VARIABLE = "EVERLOOP_POSTGRES_CONNECTIONS"
MOST = 16
MOST_ALLOWED = 1000
WAIT_S = 60.0
"""How long a thread waits for a free connection."""

_inherited: list[object] = []


class PooledConnection:
    """A connection, and the state of the transaction that is open on it."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.process = os.getpid()
        self.depth = 0
        """Number of nested transactions."""
        self.locks: dict[str, bool] = {}
        """The advisory locks of this transaction by their names. True for exclusive ones."""
        self.events: list[tuple[object, ...]] = []
        """Rows of events that are written at the end of the transaction."""

    @property
    def usable(self) -> bool:
        return not self.connection.closed


class ConnectionPool:
    """The connections of one process. Safe to use from any thread and after a fork."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], most: int | None = None) -> None:
        self._connect = connect
        self.most = _most() if most is None else most
        self._closed = False
        self._process = os.getpid()
        self._guard = threading.Condition()
        self._local = threading.local()
        self._free: list[PooledConnection] = []
        self._count = 0
        """Connections that are open or being opened."""

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def in_transaction(self) -> bool:
        """Whether this thread has an open transaction."""
        own = self._own()
        return own is not None and own.depth > 0

    @contextmanager
    def connection(self) -> Iterator[PooledConnection]:
        """A connection for the length of the block. Inside of it, this thread always gets the same one.

        Raises:
            UnavailableError: no connection became free, or none can be opened.
            UsageError: the pool is closed.
        """
        own = self._own()
        if own is not None:
            yield own
            return
        taken = self._take()
        self._local.own = taken
        try:
            yield taken
        finally:
            self._local.own = None
            self._give_back(taken)

    def discard_free(self) -> None:
        """Close the free connections. After a restart of the server, all of them are dead."""
        with self._guard:
            free, self._free = self._free, []
            self._count -= len(free)
            self._guard.notify_all()
        for one in free:
            with suppress(Exception):
                one.connection.close()

    def replace(self, pooled: PooledConnection) -> None:
        """Open a new connection in place of one that the server has closed."""
        self.discard_free()
        with suppress(Exception):
            pooled.connection.close()
        pooled.connection = self._connect()

    def close(self) -> None:
        """Close all free connections now, and the others when they are returned."""
        self._closed = True
        if self._process == os.getpid():
            self.discard_free()

    def _own(self) -> PooledConnection | None:
        if self._process != os.getpid():
            # Another thread of the parent may have held the guard at the fork, so everything is new.
            _inherited.append((self._free, self._local, self._guard))
            self._process = os.getpid()
            self._guard, self._local, self._free, self._count = threading.Condition(), threading.local(), [], 0
        own: PooledConnection | None = getattr(self._local, "own", None)
        return own

    def _take(self) -> PooledConnection:
        free = self._free_one()
        if free is not None:
            return free
        try:
            return PooledConnection(self._connect())
        except BaseException:
            self._lost()
            raise

    def _free_one(self) -> PooledConnection | None:
        """A free connection, or None if another one may be opened."""
        deadline = time.monotonic() + WAIT_S
        with self._guard:
            while True:
                if self._closed:
                    raise UsageError("The store is closed.", help="Open it again.")
                if self._free:
                    return self._free.pop()
                if self._count < self.most:
                    self._count += 1
                    return None
                left = deadline - time.monotonic()
                if left <= 0:
                    raise UnavailableError(
                        f"All {self.most} connections of this process to PostgreSQL have been in use for {WAIT_S:g} s.",
                        help=f"Allow more with {MOST_VARIABLE}, or use fewer threads.",
                    )
                self._guard.wait(left)

    def _give_back(self, taken: PooledConnection) -> None:
        if taken.process != os.getpid():
            _inherited.append(taken)
            return
        if self._closed or not taken.usable or taken.depth:
            with suppress(Exception):
                taken.connection.close()
            self._lost()
            return
        with self._guard:
            self._free.append(taken)
            self._guard.notify()

    def _lost(self) -> None:
        with self._guard:
            self._count -= 1
            self._guard.notify()


def _most() -> int:
    text = os.environ.get(MOST_VARIABLE)
    if not text:
        return MOST
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text[:9]) <= MOST_ALLOWED:
        raise UsageError(
            f"{MOST_VARIABLE} is '{text[:40]}', which is not a number of connections.",
            help=f"Use 1 to {MOST_ALLOWED}, such as {MOST}.",
        )
    return int(text)
