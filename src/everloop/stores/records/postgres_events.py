"""Writing events to PostgreSQL, and waiting for them with LISTEN and NOTIFY.

NOTIFY makes all commits of a server that use it wait for each other (`PreCommit_Notify` in `async.c`). So it is sent
only if a client listens: clients that wait share an advisory lock, and a writer that cannot take this lock alone sends
the notification. It is part of the transaction, so it arrives when the event is visible, and never without it.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.stores.records.postgres_locks import events_lock, key_of, listeners_lock, lock_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

POLL_S = 1.0
"""Clients look for events at least this often, because a connection pooler may not pass notifications on."""
CONNECTING_S = 0.1
"""As `POLL_S`, until the server has confirmed that it sends notifications."""
IDLE_S = 30.0
"""If no thread has waited for this time, the connection for notifications is closed."""
_TURN_S = 0.5
_INSERT = (
    "INSERT INTO events (project, at, actor, verb, kind, subject, key, data, crc)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)


def channel_of(project: str) -> str:
    """The name of a project's channel, as an expression. A name has at most 63 bytes, so it contains a digest."""
    digest = sha256(project.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return f"'everloop_' || current_schema()::regnamespace::oid || '_{digest}'"


def event_statements(connection: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> bytes:
    """Statements that number and write events, and notify those who wait for them when the transaction commits.

    Args:
        rows: the columns of the table of events, without the number. The first one is the project.
    """
    import psycopg

    projects = sorted({row[0] for row in rows})
    cursor = psycopg.ClientCursor(connection)
    statements = [cursor.mogrify(_INSERT, row).encode(connection.info.encoding) for row in rows]
    notices = [
        f"SELECT pg_notify({channel_of(project)}, '')"
        f" WHERE NOT pg_try_advisory_xact_lock({key_of(listeners_lock(project))})".encode()
        for project in projects
    ]
    return b"; ".join([lock_statements({events_lock(project): True for project in projects}), *statements, *notices])


class EventListener:
    """Waits for events of one database, with one connection for all threads of this process.

    The connection is opened when the first thread waits. While it is lost, threads look for events at short intervals.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._wanted: set[str] = set()
        self._active: set[str] = set()
        """Projects whose notifications the server sends."""
        self._seen: dict[str, int] = {}
        """Number of notifications of each project."""
        self._running = False
        self._closed = False
        self._last_use = 0.0

    def wait(self, project: str, timeout_s: float) -> None:
        """Return when events of a project may have been added, and at the latest after the timeout or `POLL_S`."""
        if self._process != os.getpid():
            # A child of a fork has no threads, and another thread of the parent may have held the lock.
            self._process, self._changed, self._running = os.getpid(), threading.Condition(), False
            self._active.clear()
        with self._changed:
            self._last_use = time.monotonic()
            self._wanted.add(project)
            if not self._running and not self._closed:
                self._running = True
                threading.Thread(target=self._run, name="everloop-events", daemon=True).start()
            seen = self._seen.get(project, 0)
            most = POLL_S if project in self._active else CONNECTING_S
            # A notification between the caller's last look and this call is not missed for longer than a poll.
            self._changed.wait_for(
                lambda: self._closed or self._seen.get(project, 0) != seen, max(0.0, min(timeout_s, most))
            )

    def close(self) -> None:
        if self._process == os.getpid():
            with self._changed:
                self._closed = True
                self._changed.notify_all()

    def _run(self) -> None:
        import psycopg

        try:
            while self._in_use():
                try:
                    connection = self._connect()
                except EverloopError:
                    time.sleep(POLL_S)
                    continue
                with suppress(psycopg.Error):
                    self._listen(connection)
                with suppress(Exception):
                    connection.close()
                with self._changed:
                    self._active.clear()
        finally:
            with self._changed:
                self._running = False

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        projects: dict[str, str] = {}
        while self._in_use():
            with self._changed:
                fresh = self._wanted - self._active
            for project in fresh:
                lock = f"pg_advisory_lock_shared({key_of(listeners_lock(project))})"
                channel = connection.execute(f"SELECT {channel_of(project)}, {lock}".encode()).fetchall()[0][0]
                connection.execute(f'LISTEN "{channel}"'.encode())
                projects[channel] = project
                self._bump(project)
            for notice in connection.notifies(timeout=_TURN_S, stop_after=1):
                self._bump(projects[notice.channel])

    def _bump(self, project: str) -> None:
        with self._changed:
            self._active.add(project)
            self._seen[project] = self._seen.get(project, 0) + 1
            self._changed.notify_all()

    def _in_use(self) -> bool:
        with self._changed:
            return not self._closed and time.monotonic() - self._last_use < IDLE_S
