"""The process that reconciles a project's loops: folds logs, watches, decides releases and requests runs.

It never trains, so a rollback never waits for a training. Each loop is reconciled by one process at a time, which holds
the lease `reconcile:<loop>`; others wait and take over when it dies. Every write is fenced by the lease, except that
each process folds the logs on the disk of its own host, which no other host can read.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, LeaseLostError
from everloop.loop.watches.watch_runs import close_removed, reconcile_lease
from everloop.loop.worker.failure_reports import FailureReports
from everloop.loop.worker.reloading import ProjectFiles, describe_changed, describe_project, plan_reload
from everloop.loop.worker.run_queue import enqueue_run
from everloop.loop.worker.runner import store_arguments
from everloop.stores.clock import elapsed_seconds
from everloop.stores.durations import parse_duration
from everloop.stores.leases import TTL_S, Leases

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.loop.loop_definition import Loop
    from everloop.loop.project import Project
    from everloop.loop.triggers.trigger_declarations import Due
    from everloop.stores import Store
    from everloop.stores.leases import HeldLease

CHECK_EVERY_S = 1.0
"""How often files, leases and rolling releases are looked at between two ticks."""


class ReconcilerProcess:
    """Reconciles the loops of a project until `stop` is set, or until the project's code has changed.

    Args:
        every_s: seconds between two ticks of a loop.
        ttl_s: how long the leases last without a heartbeat.
        guard: a light check of a loop's release under way, called about every second between its ticks, so that a bad
            candidate does not wait for the next tick. It gets the fenced store.
    """

    def __init__(
        self,
        store: Store,
        project: Project,
        *,
        every_s: float = 10.0,
        ttl_s: float = TTL_S,
        guard: Callable[[Loop, Store], object] | None = None,
    ) -> None:
        self.store = store
        self.project = project
        self.every_s = every_s
        self.stop = threading.Event()
        self.parent: int | None = None
        """Process id of the parent, if the process ends with it."""
        self._files = ProjectFiles(project.folder)
        self._description = describe_project(project, None)
        self._leases = Leases(store)
        self._ttl_s = ttl_s
        self._guard = guard
        self._held: dict[str, HeldLease] = {}
        self._reports = FailureReports()
        self._next: dict[str, float] = {}
        """Name of a loop to the time of its next tick."""
        self._fold_at = 0.0
        """The time of the next look at the logs of this host."""

    def work(self) -> bool:
        """Reconcile until `stop` is set or the parent has died.

        Returns:
            True if the project's code has changed and was found valid. Then the caller starts the process again.
        """
        try:
            while not self.stop.is_set() and (self.parent is None or os.getppid() == self.parent):
                for name, loop in self.project.loops.items():
                    self._look_at(name, loop)
                self._fold_host_logs()
                if self._should_reload():
                    return True
                self.stop.wait(min(CHECK_EVERY_S, self.every_s))
        finally:
            for held in self._held.values():
                held.release()
            self._held.clear()
        return False

    def tick(self, loop: Loop, store: Store) -> None:
        """Reconcile one loop, and request a run if one is due. Failures are reported, never raised."""
        from everloop.loop.worker.reconciler import reconcile

        failures: list[tuple[str, Exception]] = []
        failed = False
        try:
            reconciliation = reconcile(loop, store)
            failures += [("tick_failed", error) for error in reconciliation.errors]
            if reconciliation.due is not None:
                self._request(loop, reconciliation.due, store)
        except LeaseLostError:
            raise
        except Exception as error:
            # The project's own watches and gates may raise anything. The next tick tries again.
            failures.append(("tick_failed", error))
            failed = True
        self._reports.report(store, "loop", loop.name, failures, failed=failed)

    def _look_at(self, name: str, loop: Loop) -> None:
        held = self._held.get(name)
        try:
            if held is None or held.lost.is_set():
                held = self._leases.acquire(reconcile_lease(name), ttl_s=self._ttl_s)
                if held is None:
                    self._held.pop(name, None)
                    return
                held.start_heartbeat()
                self._held[name] = held
            if not held.is_held:
                return
            store = held.fenced(self.store)
            # Before a tick too, because a tick folds the journals that the guards read.
            self._check_release(loop, store)
            if elapsed_seconds() < self._next.get(name, 0.0):
                return
            self.tick(loop, store)
            close_removed(self.project.loops.values(), store)
            self._notify(store)
        except LeaseLostError as error:
            sys.stderr.write(f"LeaseLostError: {error}\n")
            self._held.pop(name, None)
        except EverloopError as error:
            # The store does not respond, so the failure cannot be recorded in it either.
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        self._next[name] = elapsed_seconds() + self._reports.wait_s("loop", name, self.every_s)

    def _fold_host_logs(self) -> None:
        """Fold what endpoints have logged on this host's disk, unless a tick of this process does."""
        from everloop.prediction_log.host_logs import endpoints_logged_here, fold_here

        if elapsed_seconds() < self._fold_at:
            return
        loops = [loop for name, loop in self.project.loops.items() if name in self._held]
        ticked = {loop.serve.name for loop in loops if loop.serve is not None}
        for name in endpoints_logged_here(self.store):
            if name in ticked:
                continue
            failures: list[tuple[str, Exception]] = []
            try:
                fold_here(self.store, name)
            except Exception as error:
                # Like a failed tick, it must not end the process.
                failures.append(("fold_failed", error))
            try:
                self._reports.report(self.store, "endpoint", name, failures)
            except EverloopError as error:
                # The store does not respond, so the failure cannot be recorded in it either.
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
        self._fold_at = elapsed_seconds() + self.every_s

    def _check_release(self, loop: Loop, store: Store) -> None:
        """Call the guard. Its failures are reported, and do not delay the ticks."""
        if self._guard is None:
            return
        failures: list[tuple[str, Exception]] = []
        try:
            self._guard(loop, store)
        except LeaseLostError:
            raise
        except Exception as error:
            failures.append(("guard_failed", error))
        self._reports.report(store, "release_guard", loop.name, failures, failed=False)

    def _request(self, loop: Loop, due: Due, store: Store) -> None:
        enqueue_run(
            store,
            loop.name,
            f"{due.trigger}: {due.reason}",
            folder=str(self.project.folder),
            cause=due.to_dict(),
            code=self._files.digest,
            timeout_s=None if loop.timeout is None else parse_duration(loop.timeout).total_seconds(),
        )

    def _notify(self, store: Store) -> None:
        """Send messages about incidents. A channel that cannot be reached does not stop the loops."""
        from everloop.monitoring.incidents.notification_channels import read_channels
        from everloop.monitoring.incidents.notifications import send_notifications

        errors: list[EverloopError] = []
        try:
            _, errors = send_notifications(store, read_channels(self.project.folder))
        except LeaseLostError:
            raise
        except EverloopError as error:
            errors.append(error)
        failures: list[tuple[str, Exception]] = [("notify_failed", error) for error in errors]
        self._reports.report(store, "notification_channel", "notify", failures)

    def _should_reload(self) -> bool:
        """Whether the code has changed to something valid. Records what changes, or once why it cannot be used."""
        changed = self._files.changed()
        if not changed:
            return False
        names = [str(path.relative_to(self._files.folder)) for path in changed]
        scratch = self.store.home / "run" / f"reload-{os.getpid()}.json"
        try:
            after = describe_changed(self.project.folder, store_arguments(self.store), scratch)
        except EverloopError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            self._record("reload_failed", {"files": names, "error": str(error)})
            return False
        plan = plan_reload(self._description, after)
        self._record("reloaded", {"files": names, "changes": plan.changes, "steps": plan.steps})
        return True

    def _record(self, verb: str, data: dict[str, object]) -> None:
        """Append an event about the project. Only the process that reconciles its loops does, so that it is one."""
        for name, held in self._held.items():
            if held.is_held:
                held.fenced(self.store).records.append_event(verb, "loop", name, name, data)
                return
