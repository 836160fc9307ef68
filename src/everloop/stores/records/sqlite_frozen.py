"""Reading a SQLite database in a folder that cannot be written to: in a read-only home or on a full disk.

With write-ahead logging, even a reader creates two files beside the database. If it cannot, there are three
alternatives. The first that works is used:

1. Another process has the database open, and its files exist and can be read: SQLite reads the database as usual.
2. There is no log, so the database file contains everything: SQLite opens it as immutable.
3. There is a log, left by a writer that died: both files are copied to a temporary folder and read there.

In the last two cases SQLite takes no locks. So the state of the files is compared before and after each statement, and
the statement is repeated if they have changed.
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
"""SQLite's extended error codes if a reader cannot create the files that it needs beside the database."""


def can_write_beside(path: Path) -> bool:
    """Whether this process may write to a database and create files in its folder. True if it does not exist yet."""
    effective = os.access in os.supports_effective_ids
    if not path.exists():
        return True
    return all(os.access(one, os.W_OK, effective_ids=effective) for one in (path, path.parent))


class FrozenReader:
    """Reads one database. Safe to use from any thread. A forked child opens the database again."""

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
            text: converts the bytes of a text to the value that is returned.
            may_copy: whether the database may be copied. Must be false if this process has another connection to it,
                because closing the copied file would release the locks of that connection.

        Raises:
            sqlite3.Error: the statement failed.
            UnavailableError: other processes write to the database all the time.
            OSError: a copy is needed and cannot be created.
        """
        with self._locked():
            for attempt in range(ATTEMPTS):
                connection = self._opened(may_copy=may_copy)
                connection.text_factory = text
                try:
                    rows = connection.execute(statement, values).fetchall()
                except sqlite3.DatabaseError:
                    # A page that is just being written looks like damage.
                    if self._is_same():
                        raise
                else:
                    if self._is_same():
                        return rows
                self._drop()
                time.sleep(0.002 * attempt)
        raise UnavailableError(
            f"The store '{self.path}' cannot be read: other processes write to it all the time, and this user may not"
            " lock it.",
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
        raise UnavailableError(
            f"The store '{self.path}' cannot be copied: other processes write to it all the time.", help="Try again."
        )

    def close(self) -> None:
        with self._locked():
            self._drop()

    def _locked(self) -> threading.RLock:
        if self._process != os.getpid():
            # A child must not use or close its parent's connection. The lock may have been held at the fork.
            self._guard, self._process = threading.RLock(), os.getpid()
            self._connection, self._state, self._copies = None, None, []
        return self._guard

    def _opened(self, *, may_copy: bool = True) -> sqlite3.Connection:
        if self._connection is None:
            live = self._try("mode=ro")
            if live is not None:
                self._connection, self._state = live, None
                return live
            self._state = self._file_state()
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

    def _file_state(self) -> _State:
        return tuple(_stamp(self.path.with_name(self.path.name + end)) for end in ("", "-wal"))

    def _is_same(self) -> bool:
        return self._state is None or self._state == self._file_state()

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
