"""Leases: one process at a time holds a piece of shared work, also across machines.

A lease is a row of the database with an owner, a fencing number and a count of heartbeats. The owner renews it every
third of its time to live. If it stops, because it died or hangs or lost its network, another process takes over.

**No clock is compared with another.** A process that wants a lease watches the heartbeat count. Only after the count
has not changed for the whole time to live, measured by the watcher's own `elapsed_seconds`, may it take over. The
holder stops believing in its lease earlier: nine tenths of the time to live after it *began* its last successful
heartbeat, by its own `elapsed_seconds`. The heartbeat became visible after it began, so the holder's time ends before
the watcher's, whatever their wall clocks show.

**A dead process of the same machine is noticed at once**, by its process id and start time, without waiting.

**Fencing.** A process that was stopped and continues later may not know yet that it has lost its lease. `fenced`
returns a store whose every transaction first checks, inside the transaction, that the fencing number is still the same.
So a holder of the past cannot write.

Source: C. Gray, D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache consistency",
SOSP 1989; fencing numbers as in M. Burrows, "The Chubby lock service", OSDI 2006, section 2.4 (sequencers).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, LeaseLostError, UsageError
from everloop.records import Lease
from everloop.stores.clock import elapsed_seconds, moment_of, system_micros
from everloop.stores.fencing import FencedDatabase
from everloop.stores.processes import host_of, pid_of, process_identity, process_is_gone
from everloop.stores.records.sql_records import SqlRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from everloop.stores.home import Store
    from everloop.stores.records.sql_logs import Database

TTL_S = 15.0
"""Default time to live: how long the work of a dead machine waits before another one takes over."""
BEATS_PER_TTL = 3
TRUSTED_SHARE = 0.9
"""The share of the time to live for which the holder itself relies on its last heartbeat."""

_COLUMNS = "name, fence, beats, owner, ttl_ms, acquired_at, renewed_at"


class Leases:
    """The leases of one project, as one process sees them. Safe to use from any thread.

    Keep one object for as long as the process waits for leases: it remembers since when it has seen each heartbeat.
    """

    def __init__(
        self,
        store: Store,
        *,
        owner: str | None = None,
        elapsed: Callable[[], float] = elapsed_seconds,
        is_gone: Callable[[str], bool] = process_is_gone,
    ) -> None:
        """Use the leases in the database of a store.

        Args:
            owner: identity of the process; default: this one.
            elapsed: seconds since any moment. Tests pass a clock of their own.
            is_gone: whether the process with an identity has certainly ended.

        Raises:
            UsageError: the records of the store are not in an SQL database.
        """
        if not isinstance(store.records, SqlRecords):
            raise UsageError(
                "The records of this store are not in an SQL database, so processes cannot share work by leases.",
                help="Use a store with SQLite or PostgreSQL.",
            )
        self.store = store
        self.owner = owner or process_identity()
        self._records = store.records
        self._elapsed = elapsed
        self._is_gone = is_gone
        self._guard = threading.Lock()
        self._seen: dict[str, tuple[tuple[int, int, datetime], float]] = {}
        """Name to what identifies a heartbeat, and the time at which this process first saw it."""

    def find(self, name: str) -> Lease | None:
        """The lease as it is stored, held or released; None if it was never acquired."""
        rows = self._records.database.read(
            f"SELECT {_COLUMNS} FROM leases WHERE project = ? AND name = ?",  # noqa: S608
            (self.store.project, name),
        )
        return _lease(rows[0]) if rows else None

    def held(self) -> list[Lease]:
        """All leases of the project that were not released, by name. Some may have expired."""
        rows = self._records.database.read(
            f"SELECT {_COLUMNS} FROM leases WHERE project = ? AND owner <> '' ORDER BY name",  # noqa: S608
            (self.store.project,),
        )
        return [_lease(row) for row in rows]

    def is_expired(self, lease: Lease) -> bool:
        """Whether another process may take this lease now.

        It is released, or its process has ended on this machine, or this object has watched it for its whole time to
        live without seeing a heartbeat.
        """
        if not lease.owner:
            return True
        now = self._elapsed()
        with self._guard:
            # A lease that was deleted and acquired again counts from 1 again, but was acquired at another time.
            heartbeat = (lease.fence, lease.beats, lease.acquired_at)
            seen, since = self._seen.get(lease.name, (heartbeat, now))
            if seen != heartbeat:
                since = now
            self._seen[lease.name] = (heartbeat, since)
        return now - since >= lease.ttl_s or self._is_gone(lease.owner)

    def acquire(self, name: str, *, ttl_s: float = TTL_S) -> HeldLease | None:
        """Take the lease if it is free or expired; None if another holder has it.

        Never waits for the holder. A second holder in the same process is refused like any other.

        Args:
            ttl_s: time to live without heartbeats, at least 0.05 s.

        Raises:
            UsageError: the name is empty or too long, or the time to live is too short.
        """
        if not name or len(name) > 200:
            raise UsageError(f"'{name}' is not a valid name for a lease.", help="Use 1 to 200 characters.")
        if not 0.05 <= ttl_s <= 86_400:
            raise UsageError(f"A lease cannot last {ttl_s:g} s.", help="Use 0.05 s to one day.")
        known = self.find(name)
        # Reading does not exclude other processes, so waiting for a lease costs the database almost nothing.
        if known is not None and not self.is_expired(known):
            return None
        began, now = self._elapsed(), system_micros()
        values = (self.owner, round(ttl_s * 1000), now, now, self.store.project, name)
        with self._records.transaction():
            if known is None:
                changed = self._records.database.write(
                    "INSERT INTO leases (owner, ttl_ms, acquired_at, renewed_at, project, name, fence, beats)"
                    " VALUES (?, ?, ?, ?, ?, ?, 1, 0) ON CONFLICT DO NOTHING",
                    values,
                )
            else:
                changed = self._records.database.write(
                    "UPDATE leases SET owner = ?, ttl_ms = ?, acquired_at = ?, renewed_at = ?, fence = fence + 1,"
                    " beats = beats + 1 WHERE project = ? AND name = ? AND fence = ? AND beats = ?",
                    (*values, known.fence, known.beats),
                )
        if not changed:
            return None
        at = moment_of(now)
        fence, beats = (1, 0) if known is None else (known.fence + 1, known.beats + 1)
        lease = Lease(name=name, fence=fence, beats=beats, owner=self.owner, ttl_s=ttl_s, acquired_at=at, renewed_at=at)
        return HeldLease(lease, self, began)

    @contextmanager
    def hold(
        self, name: str, *, ttl_s: float = TTL_S, on_lost: Callable[[HeldLease], None] | None = None
    ) -> Iterator[HeldLease | None]:
        """Hold a lease inside a `with` block, renewed by a thread. Yields None if another process has it.

        Args:
            on_lost: called once, in that thread, if the lease is lost. `HeldLease.lost` is set before.
        """
        lease = self.acquire(name, ttl_s=ttl_s)
        if lease is None:
            yield None
            return
        lease.start_heartbeat(on_lost)
        try:
            yield lease
        finally:
            lease.release()

    @property
    def database(self) -> Database:
        return self._records.database

    def elapsed(self) -> float:
        """Seconds by the clock that expiry is judged by."""
        return self._elapsed()


class HeldLease:
    """A lease that this process has acquired. It may have been lost since: see `is_held` and `check`."""

    def __init__(self, lease: Lease, leases: Leases, began: float) -> None:
        self.lease = lease
        self.lost = threading.Event()
        """Set as soon as this process knows that another one may hold the lease. Long work should watch it."""
        self._leases = leases
        self._trusted_until = began + TRUSTED_SHARE * lease.ttl_s
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def name(self) -> str:
        return self.lease.name

    @property
    def fence(self) -> int:
        return self.lease.fence

    @property
    def is_held(self) -> bool:
        """Whether this process may rely on the lease now, by its last heartbeat. Costs no query."""
        return not self.lost.is_set() and self._leases.elapsed() < self._trusted_until

    def renew(self) -> None:
        """Send a heartbeat.

        Raises:
            LeaseLostError: another process has taken the lease.
        """
        if self.lost.is_set():
            raise self._gone()
        began, now = self._leases.elapsed(), system_micros()
        with self._leases.store.records.transaction():
            changed = self._leases.database.write(
                "UPDATE leases SET beats = beats + 1, renewed_at = ?"
                " WHERE project = ? AND name = ? AND fence = ? AND owner = ?",
                (now, self._leases.store.project, self.name, self.fence, self.lease.owner),
            )
        if not changed:
            self.lost.set()
            raise self._gone()
        self.lease = replace(self.lease, beats=self.lease.beats + 1, renewed_at=moment_of(now))
        self._trusted_until = began + TRUSTED_SHARE * self.lease.ttl_s

    def start_heartbeat(self, on_lost: Callable[[HeldLease], None] | None = None) -> None:
        """Renew the lease in a thread until it is released or lost.

        A store that does not respond is tried again at the next heartbeat. Meanwhile `is_held` turns false.

        Args:
            on_lost: called once, in that thread, if the lease is lost. `lost` is set before.
        """
        self._heart = threading.Thread(target=self._beat, args=(on_lost,), name=f"lease-{self.name}", daemon=True)
        self._heart.start()

    def _beat(self, on_lost: Callable[[HeldLease], None] | None) -> None:
        while not self._released.wait(self.lease.ttl_s / BEATS_PER_TTL):
            try:
                self.renew()
            except LeaseLostError:
                if on_lost is not None:
                    on_lost(self)
                return
            except EverloopError:
                continue

    def check(self) -> None:
        """Look into the database whether the lease is still this one.

        Raises:
            LeaseLostError: another process has taken it.
        """
        found = self._leases.find(self.name)
        if self.lost.is_set() or found is None or (found.fence, found.owner) != (self.fence, self.lease.owner):
            self.lost.set()
            raise self._gone()

    def release(self, *, forget: bool = False) -> None:
        """Free the lease at once for others, and stop its heartbeat. Does nothing else if it was lost.

        Args:
            forget: delete the row, because the name is of one piece of work and is unlikely to be used again. Only for
                leases that fence nothing, because the fencing number begins again.
        """
        self._released.set()
        if self._heart is not None and self._heart is not threading.current_thread():
            self._heart.join()
        if self.lost.is_set():
            return
        self.lost.set()
        end = "DELETE FROM leases" if forget else "UPDATE leases SET owner = '', beats = beats + 1"
        with self._leases.store.records.transaction():
            self._leases.database.write(
                f"{end} WHERE project = ? AND name = ? AND fence = ? AND owner = ?",
                (self._leases.store.project, self.name, self.fence, self.lease.owner),
            )

    def fenced(self, store: Store) -> Store:
        """The same store, whose records can be written only while this lease is not taken over."""
        return fenced_store(store, self.lease)

    def _gone(self) -> LeaseLostError:
        return lease_lost(self.lease, self._leases.find(self.name))


def fenced_store(store: Store, lease: Lease) -> Store:
    """A view of a store in which each write first checks, in its transaction, that the lease was not taken over.

    A write after a takeover raises LeaseLostError and changes nothing. A child process that works for the holder can
    use it as well, because only the fencing number counts.
    """
    view = store.as_actor(store.actor)
    if not isinstance(view.records, SqlRecords):
        raise UsageError("The records of this store are not in an SQL database, so they cannot be fenced.")
    project = store.project
    database = view.records.database

    def check() -> None:
        rows = database.read(
            f"SELECT {_COLUMNS} FROM leases WHERE project = ? AND name = ?",  # noqa: S608
            (project, lease.name),
        )
        found = _lease(rows[0]) if rows else None
        if found is None or found.fence != lease.fence or not found.owner:
            raise lease_lost(lease, found)

    view.records.database = FencedDatabase(database, project, check)
    return view


def fenced_by(store: Store, name: str, fence: int) -> Store:
    """As `fenced_store`, for a child process of the holder, which is given the name and the fencing number."""
    now = store.now()
    return fenced_store(
        store, Lease(name=name, fence=fence, beats=0, owner="", ttl_s=0, acquired_at=now, renewed_at=now)
    )


def lease_lost(lease: Lease, now: Lease | None) -> LeaseLostError:
    """The error for a lease that this process no longer holds."""
    if now is not None and now.owner and now.fence != lease.fence:
        why = f"process {pid_of(now.owner)} on {host_of(now.owner)} has taken it over"
    else:
        why = "it was released"
    return LeaseLostError(
        f"This process no longer holds the lease '{lease.name}' with number {lease.fence}: {why}.",
        help="The other process continues the work.",
    )


def _lease(row: tuple[str, int, int, str, int, int, int]) -> Lease:
    name, fence, beats, owner, ttl_ms, acquired_at, renewed_at = row
    return Lease(
        name=name,
        fence=fence,
        beats=beats,
        owner=owner,
        ttl_s=ttl_ms / 1000,
        acquired_at=moment_of(acquired_at),
        renewed_at=moment_of(renewed_at),
    )
