"""Connecting to PostgreSQL, with retries while the server is unavailable, and writing without holding others up.

If a server has no free connection, is starting or restarts, connecting is retried for some seconds, with growing,
random pauses. Errors that do not go away by waiting, such as a wrong password, are raised immediately. The server's
messages are recognised only in English.

A host may be suspended, or lose its network, in the middle of a transaction whose locks others wait for. The server
ends a transaction that does nothing, but only between two requests. In the middle of COPY, of the several messages of
psycopg's `executemany`, or of a statement with long values, it waits for its client without a limit. So transactions
that take locks use a connection of `connect_writer`, and write many rows or long values with `write_at_once`.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, MissingExtraError, UnavailableError, UsageError
from everloop.stores.store_urls import check_url, database_name, mask_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg

SCHEMES = ("postgresql", "postgres")
WAIT_S = 10.0
WAIT_VARIABLE = "EVERLOOP_POSTGRES_WAIT_S"
MOST_WAIT_S = 600.0
EVENT_LOOP_WAIT_S = 1.0
"""Limit for threads that run an event loop, because waiting blocks the whole loop."""
IDLE_TRANSACTION_S = 30
"""How long the server waits for a client in a transaction: for its next request, or until it takes a result."""

_LIMITS = ("idle_in_transaction_session_timeout", "tcp_user_timeout")
_ROWS_AT_ONCE = 100
"""More rows in a request make each of them slower."""
_ROW = re.compile(r"(?<=VALUES )\([%s, ]+\)")
_PAUSE_S = (0.05, 1.0)
_BUSY = re.compile(
    r"too many (?:clients|connections)|connection slots are reserved|no more connections allowed"
    r"|query_wait_timeout|max_client_conn|connection limit exceeded",
    re.IGNORECASE,
)
_AWAY = re.compile(
    r"is starting up|is shutting down|in recovery mode|not yet accepting connections|not accepting connections"
    r"|Connection refused|Connection reset|Is the server running|terminating connection|server closed the connection"
    r"|could not receive data|could not send|Broken pipe|timeout expired|server login has been failing|bouncer cannot",
    re.IGNORECASE,
)


class PostgresConnector:
    """Opens connections to one database. Safe to use from any thread.

    After a wait without success, the next calls try only once, until one of them succeeds. Otherwise each of a server's
    many threads would wait for the full time.
    """

    def __init__(self, url: str, wait_s: float | None = None, *, needed_by: str = "PostgreSQL") -> None:
        """
        Args:
            wait_s: how long to retry. Default: `EVERLOOP_POSTGRES_WAIT_S`, else ten seconds.
            needed_by: the name of the feature that needs psycopg, for the error if it is not installed.

        Raises:
            MissingExtraError: psycopg is not installed.
            UsageError: the URL is malformed, or the variable is not a number of seconds.
        """
        try:
            import psycopg  # noqa: F401 - later calls need it
        except ImportError as error:
            raise MissingExtraError.of(needed_by, "psycopg", "postgres") from error
        check_url(url, "The URL of PostgreSQL", SCHEMES)
        self.url = url
        self.name = database_name(url)
        self.wait_s = _wait_s() if wait_s is None else wait_s
        self._gave_up = False

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """Open a new connection.

        Raises:
            UnavailableError: the server was unavailable until the end of the wait, or refuses this user.
        """
        deadline = time.monotonic() + self._patience()
        pause = _PAUSE_S[0]
        while True:
            connection, problem = self._try(options)
            if connection is not None:
                self._gave_up = False
                return connection
            left = deadline - time.monotonic()
            if not _BUSY.search(problem) and not _AWAY.search(problem):
                break
            if left <= 0:
                self._gave_up = True
                break
            # Processes that lost the same server should not all reconnect at the same moment.
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - not used for secrets
            pause = min(2 * pause, _PAUSE_S[1])
        # Raised here and not in an except block, so that no traceback shows the library's error with the URL.
        raise self._unavailable(problem)

    def connect_writer(self) -> psycopg.Connection[Any]:
        """As `connect`, for short transactions: the server ends them when this process is suspended or unreachable."""
        connection = self.connect(autocommit=True, application_name="everloop")
        # Only the limits that this server has: related databases lack some.
        connection.execute(
            "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = ANY(%s)",
            (f"{IDLE_TRANSACTION_S}s", list(_LIMITS)),
        )
        return connection

    def error_text(self, error: Exception) -> str:
        """The message of a psycopg error, on one line and without secrets."""
        return mask_text(" ".join(str(error).split()) or type(error).__name__, self.url)

    def _try(self, options: dict[str, Any]) -> tuple[psycopg.Connection[Any] | None, str]:
        import psycopg

        # Without a timeout, a host that drops packets would block until the operating system gives up.
        if "connect_timeout" not in self.url and "PGCONNECT_TIMEOUT" not in os.environ:
            options = {"connect_timeout": max(2, math.ceil(self.wait_s)), **options}
        try:
            return psycopg.connect(self.url, **options), ""
        except psycopg.Error as error:
            return None, self.error_text(error)
        except (UnicodeError, ValueError) as error:
            return None, f"{type(error).__name__} while the URL was read"

    def _patience(self) -> float:
        if self._gave_up:
            return 0.0
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self.wait_s
        return min(self.wait_s, EVENT_LOOP_WAIT_S)

    def _unavailable(self, problem: str) -> EverloopError:
        if _BUSY.search(problem):
            return UnavailableError(
                f"PostgreSQL at '{self.name}' has had no free connection for {self.wait_s:g} s: {problem}",
                help="Close other connections, raise max_connections or use a connection pooler. "
                f"To wait longer, set {WAIT_VARIABLE} to a number of seconds.",
            )
        if _AWAY.search(problem):
            return UnavailableError(
                f"The database '{self.name}' has not responded for {self.wait_s:g} s: {problem}",
                help=f"Is its server running? To wait longer, set {WAIT_VARIABLE} to a number of seconds.",
            )
        return UnavailableError(
            f"Cannot connect to the database '{self.name}': {problem}", help="Check its URL, user and password."
        )


def write_at_once(connection: psycopg.Connection[Any], statement: str, rows: Iterable[Sequence[Any]]) -> int:
    """As `executemany`, but the server never waits for the rest of a request.

    Args:
        statement: with psycopg's placeholders. The rows of an INSERT must not be in conflict with each other.

    Returns:
        The number of rows that were changed.
    """
    import psycopg

    changed = 0
    cursor = psycopg.ClientCursor(connection)
    rows = iter(rows)
    row = _ROW.search(statement)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        if row is None:
            request = "; ".join([cursor.mogrify(statement, one) for one in part])
        else:
            values = ", ".join([cursor.mogrify(row[0], one) for one in part])
            request = f"{statement[: row.start()]}{values}{statement[row.end() :]}"
        cursor.execute(request.encode(connection.info.encoding))
        changed += cursor.rowcount
        while cursor.nextset():
            changed += cursor.rowcount
    return changed


def _wait_s() -> float:
    text = os.environ.get(WAIT_VARIABLE)
    if not text:
        return WAIT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_WAIT_S:
        raise UsageError(
            f"{WAIT_VARIABLE} is '{text[:40]}', which is not a number of seconds.",
            help=f"Use 0 to {MOST_WAIT_S:g}, such as 30.",
        )
    return seconds
