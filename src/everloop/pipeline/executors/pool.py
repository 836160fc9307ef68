"""Steps in a pool of warm worker processes.

Each slot of the pool is an executor of `loky` with one worker: so a worker that dies or is killed takes only its
own step with it, and it is known which. Slots outlive the run and wait for the next one of this process.
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
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from everloop.errors import StepError, StepTimeoutError, UsageError, WorkerLostError
from everloop.pipeline.executors.worker import (
    PIPES_CLOSED,
    Envelope,
    Failed,
    Stale,
    prepare_worker,
    run_envelope,
)
from everloop.pipeline.resources import parse_amount
from everloop.pipeline.steps import by_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from everloop.pipeline.executors.executor import LogWriter
    from everloop.pipeline.job import Job, JobOutcome
    from everloop.stores import Store

_log = logging.getLogger("everloop.pipeline")

# A worker that nobody needs for so long goes away.
_IDLE_S = 300
_WAYS_OUT = {
    "SIGKILL": 'The system kills so when memory runs out; @step(resources={"memory": …}) keeps large steps apart.',
    "SIGSEGV": 'Native code crashed; run it with executor="inline" under a debugger.',
}
_SIGNAL = re.compile(r"\{([A-Z]+)\((-?\d+)\)")


class PoolExecutor:
    """Independent steps side by side.

    Inputs and outputs do not pass through this process: a worker reads and writes the store itself. Functions are
    found by name in the worker where they can be; what is meant and what is found there are compared by their code.

    Args:
        workers: default: the number of cores that this process may use.
        resources: what there is beside `cpu` and `memory`, such as `{"gpu": 1}`; those two can be set as well.
    """

    isolates = True

    def __init__(self, workers: int | None = None, resources: Mapping[str, float | str] | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"A pool of {workers} workers runs nothing.", help="Give at least 1.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = workers or cores
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.capacity: dict[str, float] = {"cpu": float(max(cores, self.slots)), "memory": float(memory)}
        self.capacity |= {name: parse_amount(amount) for name, amount in (resources or {}).items()}
        self._busy: dict[_Slot, Future[JobOutcome]] = {}
        self._guard = threading.Lock()

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        future: Future[JobOutcome] = Future()
        future.set_running_or_notify_cancel()
        self._send(_Sending(job, store, log, future), _take_slot())
        return future

    def close(self, *, kill: bool = False) -> None:
        with self._guard:
            busy = list(self._busy)
        for slot in busy:
            if kill:
                slot.kill()

    def _send(self, sending: _Sending, slot: _Slot) -> None:
        with self._guard:
            self._busy[slot] = sending.future
        try:
            envelope = sending.envelope()
            slot.start(envelope, sending.job.timeout_s, lambda inner: self._receive(sending, slot, inner))
        except Exception as error:
            # The future is the only way on which the caller looks for errors of a job.
            self._release(slot, warm=True)
            sending.future.set_exception(error)

    def _receive(self, sending: _Sending, slot: _Slot, inner: Future[JobOutcome | Failed | Stale]) -> None:
        """Called in a thread of loky's when a worker has answered or is no more."""
        from loky.process_executor import BrokenProcessPool, ShutdownExecutorError

        job, future = sending.job, sending.future
        try:
            answer = inner.result()
        except (BrokenProcessPool, ShutdownExecutorError) as error:
            self._release(slot, warm=False)
            future.set_exception(_lost(job, slot, error))
            return
        except BaseException as error:
            # This thread belongs to loky: what is not put into the future is lost, and the run would wait for ever.
            self._release(slot, warm=False)
            failed = StepError(f"Step '{job.name}' could not be handed to a worker: {error}")
            failed.__cause__ = error
            future.set_exception(failed)
            return
        if isinstance(answer, Stale):
            if answer.outdated and not sending.restarted:
                # The worker has imported files that were edited since; a new one imports them anew.
                self._release(slot, warm=False)
                sending.restarted = True
                self._send(sending, _Slot())
            else:
                # Files do not say what is meant, this process does: the code itself is sent.
                sending.whole = True
                self._send(sending, slot)
            return
        self._release(slot, warm=True)
        if isinstance(answer, Failed):
            future.set_exception(answer.error(job.name))
            return
        for metrics, step in answer.logged:
            sending.log(metrics, step)
        future.set_result(answer)

    def _release(self, slot: _Slot, *, warm: bool) -> None:
        with self._guard:
            self._busy.pop(slot, None)
        if warm:
            _give_slot(slot)
        else:
            slot.kill()


class _Sending:
    """A job on its way, perhaps for the second time."""

    def __init__(self, job: Job, store: Store, log: LogWriter, future: Future[JobOutcome]) -> None:
        self.job = job
        self.store = store
        self.log = log
        self.future = future
        self.restarted = False
        self.whole = False
        """Send the code of the project itself instead of its name."""

    def envelope(self) -> bytes:
        import cloudpickle

        # What a script defines has no name elsewhere, so it always travels itself.
        by_name = not self.whole and getattr(self.job.step, "__module__", "") != "__main__"
        with ExitStack() as stack:
            if self.whole:
                token = by_value.set(frozenset(self.job.modules))
                stack.callback(by_value.reset, token)
                for name in self.job.modules:
                    cloudpickle.register_pickle_by_value(sys.modules[name])
                    stack.callback(cloudpickle.unregister_pickle_by_value, sys.modules[name])
            try:
                payload = cloudpickle.dumps(self.job)
            except (pickle.PicklingError, TypeError, AttributeError, RecursionError, ValueError) as error:
                raise StepError(
                    f"Step '{self.job.name}' cannot be sent to a worker: {error}.",
                    help="Its function or its parameters hold something that cannot be pickled; "
                    'run it with executor="inline" and without timeout_s.',
                ) from error
        store = self.store
        return pickle.dumps(
            Envelope(
                payload=payload,
                compare=self.job.code if by_name else None,
                modules=self.job.modules,
                home=str(store.home),
                places=repr(store.urls),
                project=store.project,
                actor=store.actor,
                folder=os.getcwd(),  # noqa: PTH109 - a string is what travels
                search=tuple(sys.path),
                environment=dict(os.environ),
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
            # Time runs from when the worker is there and has imported what it needs: that takes longer than many steps.
            self._executor.submit(prepare_worker, envelope).add_done_callback(lambda _: self._watch(timeout_s))
        inner = self._executor.submit(run_envelope, envelope)
        # Callbacks are called in order: the clock is stopped before anybody looks at the answer.
        inner.add_done_callback(lambda _: self._unwatch())
        inner.add_done_callback(done)

    def kill(self) -> None:
        self.killed = True
        self._unwatch()
        self._executor.shutdown(wait=False, kill_workers=True)

    def _watch(self, timeout_s: float) -> None:
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self.timed_out = True
        self.kill()


# Workers that wait for the next run of this process.
_idle: list[_Slot] = []
_idle_guard = threading.Lock()


def _take_slot() -> _Slot:
    with _idle_guard:
        while _idle:
            slot = _idle.pop()
            # After a fork, the slots are the parent's.
            if slot.process == os.getpid() and not slot.killed:
                return slot
    return _Slot()


def _give_slot(slot: _Slot) -> None:
    with _idle_guard:
        if not slot.killed:
            _idle.append(slot)


@atexit.register
def _close_idle() -> None:
    """Before the interpreter takes apart what loky needs for it."""
    with _idle_guard:
        mine = [slot for slot in _idle if slot.process == os.getpid()]
        _idle.clear()
    for slot in mine:
        slot.kill()


def _lost(job: Job, slot: _Slot, error: BaseException) -> StepError:
    if slot.timed_out:
        timeout = StepTimeoutError(
            f"Step '{job.name}' took longer than its timeout of {job.timeout_s:g} s and was killed.",
            help="Give it more with @step(timeout_s=…), or look at what takes so long.",
        )
        timeout.__cause__ = error
        return timeout
    found = _SIGNAL.search(str(error))
    name, number = found.groups() if found else ("", "0")
    if int(number) == PIPES_CLOSED:
        closed = WorkerLostError(
            f"Step '{job.name}' closed the pipes through which its worker answers.",
            help="Close only the files that the step has opened itself; os.closerange closes everything.",
        )
        closed.__cause__ = error
        return closed
    how = f"was killed by {name}" if int(number) < 0 else f"ended with exit code {number}" if found else "died"
    way_out = _WAYS_OUT.get(name, "See: everloop runs show")
    lost = WorkerLostError(f"The worker of step '{job.name}' {how}.", help=way_out)
    lost.__cause__ = error
    return lost
