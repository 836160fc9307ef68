"""The pool executor: steps run in warm worker processes.

Each slot of the pool is a `loky` executor with one worker. So a worker that dies or is killed fails only its own step,
and it is known which step that is. Slots outlive the run and are used again by the next run of this process.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import re
import sys
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from everloop.errors import StepError, StepTimeoutError, UsageError, WorkerLostError
from everloop.pipeline.executors.job_specs import simulated_time
from everloop.pipeline.executors.step_pickles import pickle_for_worker
from everloop.pipeline.executors.worker import (
    PIPES_CLOSED,
    Envelope,
    Failed,
    Stale,
    prepare_worker,
    run_envelope,
)
from everloop.pipeline.resources import check_plan, parse_amount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from everloop.pipeline.executors.executor import LogWriter
    from everloop.pipeline.graph_plan import Plan
    from everloop.pipeline.job import Job, JobOutcome
    from everloop.pipeline.step_progress import StepProgress
    from everloop.stores import Store

_log = logging.getLogger("everloop.pipeline")

# A worker that is idle for this long ends.
_IDLE_S = 300
_HELP_BY_SIGNAL = {
    "SIGKILL": "The system kills processes when memory runs out. To keep large steps from running at the same time, "
    'declare @step(resources={"memory": …}).',
    "SIGSEGV": 'Native code crashed. Run the step with executor="inline" under a debugger.',
}
_SIGNAL = re.compile(r"\{([A-Z]+)\((-?\d+)\)")


class PoolExecutor:
    """Runs independent steps in parallel.

    Inputs and outputs do not pass through this process: a worker reads and writes the store itself. If possible, a
    worker imports a step's function by name; it then compares the digest of the code to the expected one.

    Args:
        workers: number of worker processes. Default: the number of cores that this process may use.
        resources: resources other than `cpu` and `memory`, such as `{"gpu": 1}`. Those two can be overridden too.
    """

    isolates = True
    remote = False

    def __init__(self, workers: int | None = None, resources: Mapping[str, float | str] | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"A pool needs at least 1 worker, not {workers}.", help="Pass workers=1 or more.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = workers or cores
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.capacity: dict[str, float] = {"cpu": float(max(cores, self.slots)), "memory": float(memory)}
        self.capacity |= {name: parse_amount(amount) for name, amount in (resources or {}).items()}
        self._busy: set[_Slot] = set()
        self._lock = threading.Lock()

    def prepare(self, plan: Plan, store: Store) -> None:
        check_plan(plan, self.capacity)

    def take_progress(self) -> list[tuple[str, StepProgress]]:
        return []

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        future: Future[JobOutcome] = Future()
        future.set_running_or_notify_cancel()
        self._send(_Submission(job, store, log, future), _take_slot())
        return future

    def close(self, *, kill: bool = False) -> None:
        with self._lock:
            busy = list(self._busy)
        for slot in busy:
            if kill:
                slot.kill()

    def _send(self, submission: _Submission, slot: _Slot) -> None:
        with self._lock:
            self._busy.add(slot)
        try:
            envelope = submission.envelope()
            slot.start(envelope, submission.job.timeout_s, lambda inner: self._receive(submission, slot, inner))
        except Exception as error:
            # The caller expects all errors of a job in its future.
            self._release(slot, warm=True)
            submission.future.set_exception(error)

    def _receive(self, submission: _Submission, slot: _Slot, inner: Future[JobOutcome | Failed | Stale]) -> None:
        """Called in one of loky's threads when a worker has replied or died."""
        from loky.process_executor import BrokenProcessPool, ShutdownExecutorError

        job, future = submission.job, submission.future
        try:
            reply = inner.result()
        except (BrokenProcessPool, ShutdownExecutorError) as error:
            self._release(slot, warm=False)
            future.set_exception(_worker_lost(job, slot, error))
            return
        except BaseException as error:
            # This thread belongs to loky: an error that is not set on the future is lost, and the run would hang.
            self._release(slot, warm=False)
            failed = StepError(f"Step '{job.name}' could not be sent to a worker: {error}")
            failed.__cause__ = error
            future.set_exception(failed)
            return
        if isinstance(reply, Stale):
            if reply.outdated and not submission.restarted:
                # The worker has imported files that were edited since then; a new worker imports the present ones.
                self._release(slot, warm=False)
                submission.restarted = True
                self._send(submission, _Slot())
            else:
                # The code in this process differs from its files, so the code itself is sent.
                submission.by_value = True
                self._send(submission, slot)
            return
        self._release(slot, warm=True)
        if isinstance(reply, Failed):
            future.set_exception(reply.error(job.name))
            return
        for metrics, step in reply.logged:
            submission.log(metrics, step)
        future.set_result(reply)

    def _release(self, slot: _Slot, *, warm: bool) -> None:
        with self._lock:
            self._busy.discard(slot)
        if warm:
            _return_slot(slot)
        else:
            slot.kill()


class _Submission:
    """A job that is sent to a worker, a second time if the first worker has other code."""

    def __init__(self, job: Job, store: Store, log: LogWriter, future: Future[JobOutcome]) -> None:
        self.job = job
        self.store = store
        self.log = log
        self.future = future
        self.restarted = False
        self.by_value = False
        """Whether to send the code of the project itself instead of its names."""

    def envelope(self) -> bytes:
        # Other processes cannot import what a script defines in `__main__`, so that is always sent by value.
        by_name = not self.by_value and self.job.node.module != "__main__"
        payload = pickle_for_worker(self.job, self.job, by_value=self.by_value)
        store = self.store
        return pickle.dumps(
            Envelope(
                payload=payload,
                compare=self.job.code if by_name else None,
                modules=self.job.modules,
                urls=store.urls,
                project=store.project,
                actor=store.actor,
                folder=os.getcwd(),  # noqa: PTH109 - the envelope holds a string
                search_path=tuple(sys.path),
                environment=dict(os.environ),
                clock=simulated_time(store),
            )
        )


class _Slot:
    """One worker process, started when it is first needed."""

    def __init__(self) -> None:
        import loky

        self.process = os.getpid()
        self.timed_out = False
        self.killed = False
        self._executor = loky.ProcessPoolExecutor(max_workers=1, timeout=_IDLE_S)
        self._timer: threading.Timer | None = None

    def start(
        self,
        envelope: bytes,
        timeout_s: float | None,
        done: Callable[[Future[JobOutcome | Failed | Stale]], None],
    ) -> None:
        if timeout_s is not None:
            # The timeout starts once the worker has started and imported what it needs: that may take longer than the
            # step itself.
            self._executor.submit(prepare_worker, envelope).add_done_callback(lambda _: self._start_timer(timeout_s))
        inner = self._executor.submit(run_envelope, envelope)
        # Callbacks are called in order: the timer is stopped before the reply is handled.
        inner.add_done_callback(lambda _: self._stop_timer())
        inner.add_done_callback(done)

    def kill(self) -> None:
        self.killed = True
        self._stop_timer()
        self._executor.shutdown(wait=False, kill_workers=True)

    def _start_timer(self, timeout_s: float) -> None:
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.timed_out = True
        self.kill()


# Warm slots that are free for the next job of this process.
_idle: list[_Slot] = []
_idle_lock = threading.Lock()


def _take_slot() -> _Slot:
    with _idle_lock:
        while _idle:
            slot = _idle.pop()
            # After a fork, the slots belong to the parent process.
            if slot.process == os.getpid() and not slot.killed:
                return slot
    return _Slot()


def _return_slot(slot: _Slot) -> None:
    with _idle_lock:
        if not slot.killed:
            _idle.append(slot)


@atexit.register
def _close_idle() -> None:
    """Kill idle workers before the interpreter shuts down the parts that loky needs for it."""
    with _idle_lock:
        owned = [slot for slot in _idle if slot.process == os.getpid()]
        _idle.clear()
    for slot in owned:
        slot.kill()


def _worker_lost(job: Job, slot: _Slot, error: BaseException) -> StepError:
    if slot.timed_out:
        timeout = StepTimeoutError(
            f"Step '{job.name}' took longer than its timeout of {job.timeout_s:g} s and was killed.",
            help="Raise the limit with @step(timeout_s=…), or find out what takes so long.",
        )
        timeout.__cause__ = error
        return timeout
    found = _SIGNAL.search(str(error))
    name, number = found.groups() if found else ("", "0")
    if int(number) == PIPES_CLOSED:
        closed = WorkerLostError(
            f"Step '{job.name}' closed the pipes between its worker and this process.",
            help="Close only the files that the step has opened itself; os.closerange closes everything.",
        )
        closed.__cause__ = error
        return closed
    how = f"was killed by {name}" if int(number) < 0 else f"ended with exit code {number}" if found else "died"
    lost = WorkerLostError(
        f"The worker of step '{job.name}' {how}.", help=_HELP_BY_SIGNAL.get(name, "See: everloop runs show")
    )
    lost.__cause__ = error
    return lost
