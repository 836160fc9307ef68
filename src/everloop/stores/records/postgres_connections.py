"""Connections to PostgreSQL, and patience with a server that has none to give at the moment.

A server that has no free connection, that is just starting or that restarts is tried again for some seconds, in
pauses that grow and differ from process to process. What cannot be mended by waiting, such as a wrong password, is
raised at once. The server's messages are recognised in English.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, MissingExtraError, UnavailableError, UsageError
from everloop.stores.store_urls import check_url, database_name, mask_text

if TYPE_CHECKING:
    import psycopg

SCHEMES = ("postgresql", "postgres")
WAIT_S = 10.0
WAIT_VARIABLE = "EVERLOOP_POSTGRES_WAIT_S"
MOST_WAIT_S = 600.0
EVENT_LOOP_WAIT_S = 1.0
"""A thread with an event loop waits no longer than this: everything else on it stands still meanwhile."""

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
    """Opens connections to one database. Safe from any thread.

    Once a server has been waited for in vain, the next calls try it only once, until one gets through: of the many
    threads of a server each would wait as long otherwise.
    """

    def __init__(self, url: str, wait_s: float | None = None, *, needed_by: str = "PostgreSQL") -> None:
        """
        Args:
            wait_s: default: `EVERLOOP_POSTGRES_WAIT_S`, else ten seconds.
            needed_by: what needs the library, for the message if it is not installed.

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
        self._in_vain = False

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A new connection.

        Raises:
            UnavailableError: it has had no connection to give for as long as it is waited for, or refuses this user.
        """
        deadline = time.monotonic() + self._patience()
        pause = _PAUSE_S[0]
        while True:
            connection, problem = self._try(options)
            if connection is not None:
                self._in_vain = False
                return connection
            left = deadline - time.monotonic()
            if not _BUSY.search(problem) and not _AWAY.search(problem):
                break
            if left <= 0:
                self._in_vain = True
                break
            # Many that lost the same server should not come back to it at once.
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - no secret hangs on it
            pause = min(2 * pause, _PAUSE_S[1])
        # Raised here and not where it was caught, so that no traceback shows what the library says of the URL.
        raise self._unavailable(problem)

    def told(self, error: Exception) -> str:
        """What psycopg says, on one line and without secrets."""
        return mask_text(" ".join(str(error).split()) or type(error).__name__, self.url)

    def _try(self, options: dict[str, Any]) -> tuple[psycopg.Connection[Any] | None, str]:
        import psycopg

        # Without a limit a host that drops packets would be waited for as long as the operating system does.
        if "connect_timeout" not in self.url and "PGCONNECT_TIMEOUT" not in os.environ:
            options = {"connect_timeout": max(2, math.ceil(self.wait_s)), **options}
        try:
            return psycopg.connect(self.url, **options), ""
        except psycopg.Error as error:
            return None, self.told(error)
        except (UnicodeError, ValueError) as error:
            return None, f"{type(error).__name__} while the URL was read"

    def _patience(self) -> float:
        if self._in_vain:
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
                help="Close connections, raise max_connections or use a pooler. "
                f"To wait longer, set {WAIT_VARIABLE} to a number of seconds.",
            )
        if _AWAY.search(problem):
            return UnavailableError(
                f"The database '{self.name}' does not answer, also after {self.wait_s:g} s: {problem}",
                help=f"Is its server running? To wait longer, set {WAIT_VARIABLE} to a number of seconds.",
            )
        return UnavailableError(
            f"The database '{self.name}' does not answer: {problem}", help="Check its URL, user and password."
        )


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
