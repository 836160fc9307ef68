"""Locks of steps, so that two runs do not do the same work at the same time.

If the records are in a file, all runs are on this machine, and a lock of the operating system does. It is free at once
when its holder dies. If they are in a database that other machines reach, a lease does: another run may take it over
when the holder has not renewed it for a while. In the worst case, both do the same work and store the same result.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.pipeline.executors.job_specs import local_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store
    from everloop.stores.leases import HeldLease, Leases

_log = logging.getLogger("everloop.pipeline")


class StepLocks:
    """The locks of one run. Only one thread may use it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        shared = store.fork_parts is None and "records" not in local_parts(store.urls)
        from everloop.stores.leases import Leases

        self._leases = Leases(store) if shared else None
        self._held: dict[str, HeldLease] = {}
        self._holders: dict[str, int] = {}

    @contextmanager
    def hold(self, fingerprint: str, whole: str) -> Iterator[bool]:
        """Hold the lock of a task, if no other run does. Yields whether it is held. Never waits.

        Args:
            fingerprint: fingerprint of the task.
            whole: that of its step. The elements of a step that fans out share one lease, because a lease costs two
                writes to the database. The elements of one run never exclude each other.
        """
        if self._leases is None:
            with self._store.lock(f"step-{fingerprint.removeprefix('fp:')}", block=False) as held:
                yield held
            return
        if not self._acquire(self._leases, whole):
            yield False
            return
        try:
            yield True
        finally:
            self._release(whole)

    def _acquire(self, leases: Leases, whole: str) -> bool:
        lease = self._held.get(whole)
        if lease is None:
            lease = leases.acquire(f"step:{whole}")
            if lease is None:
                return False
            lease.start_heartbeat(_report_loss)
            self._held[whole] = lease
        self._holders[whole] = self._holders.get(whole, 0) + 1
        return True

    def _release(self, whole: str) -> None:
        self._holders[whole] -= 1
        if self._holders[whole]:
            return
        del self._holders[whole]
        try:
            self._held.pop(whole).release(forget=True)
        except EverloopError as error:
            # It expires by itself, and the result is stored already.
            _log.warning("Cannot release the lease of a step: %s", error)


def _report_loss(lease: HeldLease) -> None:
    _log.warning("Another run has taken over the lease '%s'; a step may run twice.", lease.name)
