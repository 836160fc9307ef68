"""One database connection per thread and process.

Connections do not survive a fork: two processes on one SQLite handle corrupt the file, two on one socket mix
their answers. So a child opens its own and never touches, not even to close, what it has inherited.
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
    """What SQLite's and PostgreSQL's connections have in common, as this room uses them: outside of a transaction
    each statement stands for itself, and `commit` and `rollback` end one that `execute` began."""

    def execute(self, statement: str, /) -> Any: ...

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Connection)

_inherited: list[object] = []


class Slot(Generic[C]):
    """One thread's connection and how deep it stands in transactions."""

    def __init__(self, connection: C) -> None:
        self.connection = connection
        self.depth = 0
        self.broken = False
        self._closed = False
        self.process = os.getpid()

    @contextmanager
    def transaction(self, begin: Callable[[], object]) -> Iterator[None]:
        """One transaction on the outside, savepoints within. `begin` starts the outermost."""
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
            # The connection is lost, or a full disk has ended the whole transaction. What led here says more.
            self.broken = True

    def close(self) -> None:
        if self.process == os.getpid() and not self._closed:
            self._closed = True
            self.connection.close()

    def __del__(self) -> None:
        # A thread that ends drops its slot, and with it the connection.
        self.close()


class Connections(Generic[C]):
    """Opens a connection where a thread has none yet."""

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
            # The parent's lock may have been held at the fork.
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
        """Close every thread's connection; using the pool afterwards is an error."""
        with self._guard:
            self._closed = True
            for slot in list(self._slots):
                slot.close()
        self._local = threading.local()
