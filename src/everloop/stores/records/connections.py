"""One database connection per thread and process.

Connections cannot be used after a fork: two processes with the same SQLite handle corrupt the file, and two processes
with the same socket get each other's responses. So a child opens its own connections, and does not even close the
inherited ones.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Connection(Protocol):
    """The common interface of SQLite's and PostgreSQL's connections.

    Outside of a transaction, each statement is committed immediately. `commit` and `rollback` end a transaction that
    `execute` has begun.
    """

    def execute(self, statement: str, /) -> Any: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Connection)

_inherited: list[object] = []


class Slot(Generic[C]):
    """A thread's connection, and the number of nested transactions on it."""

    def __init__(self, connection: C) -> None:
        self.connection = connection
        self.depth = 0
        self.broken = False
        self._closed = False
        self.process = os.getpid()

    @contextmanager
    def transaction(self, begin: Callable[[], object]) -> Iterator[None]:
        """Open a transaction, which `begin` starts, or a savepoint inside of one."""
        if self.depth:
            with self._savepoint():
                yield
            return
        begin()
        self.depth = 1
        try:
            yield
            self.connection.commit()
        except BaseException:
            self._undo(self.connection.rollback)
            raise
        finally:
            self.depth = 0

    @contextmanager
    def _savepoint(self) -> Iterator[None]:
        name = f"inner_{self.depth}"
        self.connection.execute(f"SAVEPOINT {name}")
        self.depth += 1
        try:
            yield
            self.connection.execute(f"RELEASE {name}")
        except BaseException:
            self._undo(lambda: self.connection.execute(f"ROLLBACK TO {name}"))
            raise
        finally:
            self.depth -= 1

    def _undo(self, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except Exception:
            # The connection is lost, or a full disk has ended the transaction. The original error is more useful.
            self.broken = True

    def close(self) -> None:
        if self.process == os.getpid() and not self._closed:
            self._closed = True
            self.connection.close()

    def __del__(self) -> None:
        # When a thread ends, its slot is released, and the connection with it.
        self.close()


class Connections(Generic[C]):
    """The connections of all threads. A thread's connection is opened at its first use."""

    def __init__(self, connect: Callable[[], C]) -> None:
        self._connect = connect
        self._local = threading.local()
        self._slots: weakref.WeakSet[Slot[C]] = weakref.WeakSet()
        self._guard = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    def slot(self) -> Slot[C]:
        slot: Slot[C] | None = getattr(self._local, "slot", None)
        if slot is not None and slot.process == os.getpid() and not slot.broken:
            return slot
        if self._process != os.getpid():
            # The inherited slots stay referenced, so that they are never closed. The lock is new, because another
            # thread of the parent may have held it at the fork.
            _inherited.extend((slot, list(self._slots)))
            self._guard, self._slots, self._process = threading.Lock(), weakref.WeakSet(), os.getpid()
        if self._closed:
            raise UsageError("The store is closed.", help="Open it again.")
        slot = Slot(self._connect())
        with self._guard:
            self._slots.add(slot)
        self._local.slot = slot
        return slot

    @property
    def closed(self) -> bool:
        return self._closed

    def drop(self) -> None:
        """Close this thread's connection; the next use opens another."""
        slot: Slot[C] | None = getattr(self._local, "slot", None)
        if slot is not None:
            self._local.slot = None
            slot.close()

    def close(self) -> None:
        """Close the connections of all threads. Using the pool afterwards is an error."""
        with self._guard:
            self._closed = True
            for slot in list(self._slots):
                slot.close()
        self._local = threading.local()
