"""Reading a SQLite database beside which nothing can be written: in a home that is read-only, or on a full disk.

Under write-ahead logging even a reader makes two files beside the database. Where it cannot, there are three ways, and
the first that works is taken:

1. Another process has the database open, and its files are there and can be read: SQLite reads it as ever.
2. There is no log, so the database's file holds everything: SQLite reads it as one that does not change.
3. There is a log, which a writer that died has left: both files are copied to a temporary folder and read there.

For the last two, SQLite takes no locks. So each statement is read between two looks at the files, and again if they
have changed meanwhile.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from everloop.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ATTEMPTS = 50

_State = tuple[tuple[int, int, int, int] | None, ...]

UNREADABLE_BESIDE = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
        sqlite3.SQLITE_READONLY_CANTINIT,
        sqlite3.SQLITE_READONLY_DIRECTORY,
        sqlite3.SQLITE_READONLY_RECOVERY,
    }
)
"""What SQLite answers, in its extended codes, where a reader cannot make what it needs beside the database."""


def can_write_beside(path: Path) -> bool:
    """Whether this process may write to a database and make files in its folder. True where there is none yet."""
    effective = os.access in os.supports_effective_ids
    if not path.exists():
        return True
    return all(os.access(place, os.W_OK, effective_ids=effective) for place in (path, path.parent))


class FrozenReader:
    """Reads one database. Safe from any thread; a forked child opens it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.RLock()
        self._process = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._state: _State | None = None
        self._copies: list[weakref.finalize[Any, Any]] = []

    def read(
        self,
        statement: str,
        values: Sequence[object] = (),
        text: Callable[[bytes], str] = bytes.decode,
        *,
        may_copy: bool = True,
    ) -> list[Any]:
        """All rows of a statement.

        Args:
            text: from the bytes of a text to what is returned for it.
            may_copy: whether this process has no other connection to the database. Closing a copied file would give
                up the locks of one.

        Raises:
            sqlite3.Error: as the statement itself does.
            UnavailableError: others write to the database all the time.
            OSError: a copy was needed and cannot be made.
        """
        with self._locked():
            for attempt in range(ATTEMPTS):
                connection = self._opened(may_copy=may_copy)
                connection.text_factory = text
                try:
                    rows = connection.execute(statement, values).fetchall()
                except sqlite3.DatabaseError:
                    # A page that was written half way looks like damage.
                    if self._is_same():
                        raise
                else:
                    if self._is_same():
                        return rows
                self._drop()
                time.sleep(0.002 * attempt)
        raise UnavailableError(
            f"The store '{self.path}' is written to all the time, and cannot be locked by this user.",
            help="Try again, or read it as its owner.",
        )

    def backup(self, target: sqlite3.Connection) -> None:
        """Copy the whole database, as `sqlite3.Connection.backup` does."""
        with self._locked():
            for attempt in range(ATTEMPTS):
                self._opened().backup(target)
                if self._is_same():
                    return
                self._drop()
                time.sleep(0.002 * attempt)
        raise UnavailableError(f"The store '{self.path}' is written to all the time.", help="Try again.")

    def close(self) -> None:
        with self._locked():
            self._drop()

    def _locked(self) -> threading.RLock:
        if self._process != os.getpid():
            # The parent's connection is not the child's to use or close; another thread may have held its lock.
            self._guard, self._process = threading.RLock(), os.getpid()
            self._connection, self._state, self._copies = None, None, []
        return self._guard

    def _opened(self, *, may_copy: bool = True) -> sqlite3.Connection:
        if self._connection is None:
            live = self._try("mode=ro")
            if live is not None:
                self._connection, self._state = live, None
                return live
            self._state = self._look()
            if self._state[1] is None or self._state[1][2] == 0:
                frozen = self._try("mode=ro&immutable=1")
                if frozen is not None:
                    self._connection = frozen
                    return frozen
            if not may_copy:
                raise sqlite3.OperationalError("there is a log that cannot be opened")
            self._connection = self._copied()
        return self._connection

    def _try(self, options: str) -> sqlite3.Connection | None:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path.absolute()))}?{options}",
            uri=True,
            timeout=5.0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except sqlite3.Error as error:
            connection.close()
            code = getattr(error, "sqlite_errorcode", 0) or 0
            if code in UNREADABLE_BESIDE or code & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                return None
            raise
        return connection

    def _copied(self) -> sqlite3.Connection:
        folder = Path(tempfile.mkdtemp(prefix="everloop-reading-"))
        self._copies.append(weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True))
        copy = folder / self.path.name
        shutil.copyfile(self.path, copy)
        log = self.path.with_name(f"{self.path.name}-wal")
        if log.exists():
            shutil.copyfile(log, copy.with_name(f"{copy.name}-wal"))
        connection = sqlite3.connect(copy, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _look(self) -> _State:
        return tuple(_stamp(self.path.with_name(self.path.name + end)) for end in ("", "-wal"))

    def _is_same(self) -> bool:
        return self._state is None or self._state == self._look()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._state = None
        for copy in self._copies:
            copy()
        self._copies.clear()


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns
