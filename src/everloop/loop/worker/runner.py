"""A runner: takes requests from the queue and runs each in a process of its own.

The runner itself imports neither the project's code nor any training library. So it stays small, code that crashes or
leaks memory ends with its process, and the runner can kill a run that hangs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, LeaseLostError
from everloop.loop.worker.failure_reports import FailureReports
from everloop.loop.worker.run_queue import active_runs, end_run, put_back, run_lease, start_attempt
from everloop.records import QueuedRun
from everloop.stores.clock import elapsed_seconds
from everloop.stores.leases import TTL_S, Leases

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from everloop.stores import Store
    from everloop.stores.leases import HeldLease

POLL_S = 0.5
STOP_S = 20.0
"""How long a run may take to end after it was interrupted. Then it is killed."""
MOST_RUNNERS = 64
"""How many runners of one machine are shown."""
RETRY_AFTER_S = (1.0, 10.0, 60.0)
"""Delay before a run whose process died is started again."""


class Runner:
    """Takes and runs requests until `stop` is set. One run at a time; start more runners for more.

    Args:
        store: the store with the queue.
        folder: project folder on this machine.
        ttl_s: how long the leases of this runner last without a heartbeat.
    """

    def __init__(self, store: Store, folder: Path, *, ttl_s: float = TTL_S, poll_s: float = POLL_S) -> None:
        self.store = store
        self.folder = folder
        self.stop = threading.Event()
        self._leases = Leases(store)
        self._ttl_s = ttl_s
        self._poll_s = poll_s
        self._reports = FailureReports()
        self._not_before: dict[str, float] = {}
        """Request to the time before which it is not started again."""
        self._pending = True
        """Whether there were requests at the last look."""

    def work(self) -> None:
        """Run until `stop` is set."""
        seen = -1
        seat: HeldLease | None = None
        while not self.stop.is_set():
            if seat is None or seat.lost.is_set():
                seat = self._sit_down()
            failures: list[tuple[str, Exception]] = []
            try:
                last = self.store.records.last_event()
                # Requests arrive as events. A request of another runner needs more looks, because that one may die.
                if last != seen or self._pending:
                    seen = last
                    self.take_one()
            except EverloopError as error:
                failures.append(("runner_failed", error))
            self._report(failures)
            self.stop.wait(self._reports.wait_s("runner", "runner", self._poll_s))
        if seat is not None:
            seat.release()

    def _sit_down(self) -> HeldLease | None:
        """Take a lease that shows others that this runner is alive. Their names are used again, so their number is low.

        Returns:
            None if the store does not respond.
        """
        try:
            for number in range(1, MOST_RUNNERS + 1):
                seat = self._leases.acquire(f"runner:{os.uname().nodename}:{number}", ttl_s=self._ttl_s)
                if seat is not None:
                    seat.start_heartbeat()
                    return seat
        except EverloopError as error:
            self._report([("runner_failed", error)])
        return None

    def take_one(self) -> QueuedRun | None:
        """Run the first request that no other runner has, and return it as it ended; None if there is none."""
        active = active_runs(self.store)
        self._pending = bool(active)
        for queued in active:
            if elapsed_seconds() < self._not_before.get(queued.id, 0.0):
                continue
            with self._leases.hold(run_lease(queued.loop), ttl_s=self._ttl_s) as held:
                if held is None:
                    continue
                try:
                    return self._run(held, queued)
                except LeaseLostError:
                    # Another runner continues it.
                    continue
        return None

    def _run(self, held: HeldLease, queued: QueuedRun) -> QueuedRun | None:
        store = held.fenced(self.store)
        # It may have ended between the listing and the lease.
        current = store.records.get(QueuedRun, queued.id)
        if current.state not in ("waiting", "running"):
            return None
        if current.cancel_requested_by:
            return end_run(store, current, "cancelled", f"Cancelled by {current.cancel_requested_by}.")
        started = start_attempt(store, current, held.lease)
        if started.state != "running":
            return started
        process = self._start(started, held)
        try:
            reason = self._watch(process, started, held)
        finally:
            stop_group(process)
        return self._finish(store, started, process, reason, held)

    def _start(self, queued: QueuedRun, held: HeldLease) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "everloop.loop", "queued", str(self.folder), *store_arguments(self.store)]
        command += [
            "--request",
            queued.id,
            "--lease",
            held.name,
            "--fence",
            str(held.fence),
            "--parent",
            str(os.getpid()),
        ]
        # Its own process group, so that pool workers and whatever else the code starts can be stopped together.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def _watch(self, process: subprocess.Popen[bytes], queued: QueuedRun, held: HeldLease) -> str | None:
        """Wait until the process ends. Returns why it must be stopped before, or None if it ended by itself."""
        began = elapsed_seconds()
        while process.poll() is None:
            if held.lost.is_set():
                return "lost"
            if self.stop.is_set():
                return "stopped"
            if queued.timeout_s is not None and elapsed_seconds() - began > queued.timeout_s:
                return "timeout"
            try:
                if self.store.records.get(QueuedRun, queued.id).cancel_requested_by:
                    return "cancelled"
            except EverloopError:
                # The store does not respond. If that lasts, the lease expires.
                pass
            try:
                process.wait(self._poll_s)
            except subprocess.TimeoutExpired:
                continue
        return None

    def _finish(
        self, store: Store, queued: QueuedRun, process: subprocess.Popen[bytes], reason: str | None, held: HeldLease
    ) -> QueuedRun:
        if reason == "lost":
            held.check()
        current = store.records.get(QueuedRun, queued.id)
        if current.state != "running":
            return current
        if reason == "timeout":
            error = f"The run took longer than its timeout of {queued.timeout_s:g} s, so it was stopped."
            return end_run(store, queued, "failed", error)
        if reason == "cancelled":
            return end_run(store, queued, "cancelled", f"Cancelled by {current.cancel_requested_by}.")
        if reason is not None or self.stop.is_set():
            return put_back(store, queued, attempt_counts=False)
        code = process.returncode
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        error = f"The process of the run ended with {ended}, without a result."
        if current.attempts >= current.most_attempts:
            return end_run(store, queued, "failed", f"{error} It was started {current.attempts} times.")
        wait = RETRY_AFTER_S[min(current.attempts - 1, len(RETRY_AFTER_S) - 1)]
        self._not_before[queued.id] = elapsed_seconds() + wait
        return put_back(store, queued, attempt_counts=True, error=error)

    def _report(self, failures: list[tuple[str, Exception]]) -> None:
        try:
            self._reports.report(self.store, "runner", "runner", failures)
        except EverloopError:
            # The store does not respond, which is what the failure says already.
            return


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process that leads its group, and kill what is left of the group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # All members have ended. macOS reports members that were not collected yet as a missing permission.
        return


def stop_on_signal(stop: threading.Event) -> None:
    """Set `stop` on SIGTERM and SIGINT."""

    def handle(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def store_arguments(store: Store) -> list[str]:
    """Options with which a child process opens the same store."""
    return ["--home", str(store.home), "--project", store.project]
