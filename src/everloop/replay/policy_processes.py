"""Replay several policies, each in a process of its own, as many at once as there are cores.

A policy's result does not depend on where it runs: its store, its clock and its seed are its own. A process that dies,
or whose training hangs where Python cannot interrupt it, costs the policy that it replays, and no other one.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from everloop.replay.policy_run import PolicyJob, PolicyTrace, run_policy
from everloop.replay.replay_history import ReplayHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

_WAIT_S = 0.5
_LAST_WAIT_S = 10.0
NATIVE_GRACE_S = 30.0
"""A training that cannot be interrupted is stopped with its process this long after its limit."""


class PolicyRunner:
    """Replays policies, several at once. Its processes stay until it is closed, for the policies of the next call.

    Args:
        folder: a private folder for the rows that the processes share.
        processes: how many run at once; 1 runs all of them in this process.
        project: folder of the project whose `loop.py` the loops come from.
        progress: called with a policy's name and the number of its finished ticks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        processes: int,
        project: Path | None = None,
        progress: Callable[[str, int], None] = lambda _policy, _tick: None,
    ) -> None:
        self._processes = processes
        self._progress = progress
        self._workers = _Workers(folder / "history.arrow", project, progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def run(self, jobs: Sequence[PolicyJob]) -> tuple[list[PolicyTrace], bool]:
        """Replay every job of the same history.

        Args:
            jobs: the policies, in the order in which they are started.

        Returns:
            The traces in the order of the jobs, and whether the replay was interrupted. A policy that was not started
            before an interruption has an empty trace.
        """
        if self._processes <= 1 or (len(jobs) == 1 and not self._workers.started):
            return _in_this_process(jobs, self._progress)
        interrupted = False
        try:
            self._workers.run(jobs, self._processes)
        except KeyboardInterrupt:
            interrupted = True
            # Ctrl-C reaches the processes as well. They end their policies and send what is known so far.
            self._workers.end()
        traces = self._workers.traces
        return [
            traces.get(job.policy.name) or PolicyTrace(policy=job.policy, error="interrupted") for job in jobs
        ], interrupted


def _in_this_process(jobs: Sequence[PolicyJob], progress: Callable[[str, int], None]) -> tuple[list[PolicyTrace], bool]:
    traces: list[PolicyTrace] = []
    for job in jobs:
        if traces and traces[-1].error == "interrupted":
            traces.append(PolicyTrace(policy=job.policy, error="interrupted"))
            continue
        traces.append(run_policy(job, progress))
    return traces, any(trace.error == "interrupted" for trace in traces)


class _Workers:
    """Processes that replay one policy after the other. A process that dies is replaced.

    Attributes:
        traces: what is known of each policy by its name.
    """

    def __init__(self, rows: Path, project: Path | None, progress: Callable[[str, int], None]) -> None:
        self.traces: dict[str, PolicyTrace] = {}
        self._rows = rows
        self._project = None if project is None else str(project)
        self._progress = progress
        self._context = get_context("spawn")
        self._messages = self._context.SimpleQueue()
        self._idle: list[ProcessPoolExecutor] = []
        self._busy: dict[Future[bytes], tuple[PolicyJob, ProcessPoolExecutor]] = {}
        self._training: dict[str, tuple[int, float]] = {}
        self._stopped: set[str] = set()

    @property
    def started(self) -> bool:
        """Whether there are processes."""
        return bool(self._idle)

    def run(self, jobs: Sequence[PolicyJob], count: int) -> None:
        """Replay every job in at most `count` processes; returns when all have ended."""
        import polars as pl

        if not self._rows.exists():
            jobs[0].history.table.write_ipc(self._rows, compat_level=pl.CompatLevel.oldest())
        while len(self._idle) < min(count, len(jobs)):
            self._idle.append(self._start())
        waiting = list(jobs)
        while waiting or self._busy:
            while waiting and self._idle:
                self._submit(waiting.pop(0), self._idle.pop())
            done, _ = wait(self._busy, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
            self._read_messages()
            self._stop_hanging()
            for future in done:
                job, process = self._busy.pop(future)
                self.traces[job.policy.name] = self._trace_of(future, job)
                self._training.pop(job.policy.name, None)
                if isinstance(future.exception(), BrokenProcessPool):
                    process.shutdown(wait=False)
                    process = self._start()
                self._idle.append(process)

    def close(self) -> None:
        """End the processes that have nothing to do."""
        while self._idle:
            self._idle.pop().shutdown()

    def end(self) -> None:
        """Take what the processes send after an interruption, and end them."""
        busy = dict(self._busy)
        for process in (*self._idle, *(process for _, process in busy.values())):
            process.shutdown(wait=False, cancel_futures=True)
        done, late = wait([future for future in busy if not future.cancelled()], timeout=_LAST_WAIT_S)
        for future in done:
            if not future.cancelled():
                job = busy[future][0]
                self.traces.setdefault(job.policy.name, self._trace_of(future, job))
        self._read_messages()
        for future in late:
            name = busy[future][0].policy.name
            if name in self._training:
                # It is in a training that Python cannot interrupt.
                _kill(self._training[name][0])

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1, mp_context=self._context, initializer=_begin, initargs=(os.getpid(), self._messages)
        )

    def _submit(self, job: PolicyJob, process: ProcessPoolExecutor) -> None:
        import cloudpickle

        history = job.history
        # Steps and watches of the user are pickled by value or by their module, which the process imports first.
        light = replace(job, history=ReplayHistory(history.table.head(0), history.target, history.time, history.key))
        self._busy[process.submit(_work, cloudpickle.dumps(light), str(self._rows), self._project)] = (job, process)

    def _read_messages(self) -> None:
        while not self._messages.empty():
            policy, tick, process = self._messages.get()
            if process is None:
                self._training.pop(policy, None)
                if tick is not None:
                    self._progress(policy, tick)
            else:
                self._training[policy] = (process, monotonic())

    def _stop_hanging(self) -> None:
        """Kill processes whose training exceeds its limit by far: a signal reaches Python, but not native code."""
        for job, _ in self._busy.values():
            process, since = self._training.get(job.policy.name, (0, 0.0))
            if process and monotonic() - since > job.training_limit_s + NATIVE_GRACE_S:
                self._stopped.add(job.policy.name)
                del self._training[job.policy.name]
                _kill(process)

    def _trace_of(self, future: Future[bytes], job: PolicyJob) -> PolicyTrace:
        """The trace that a process has sent; one with an error if the process died."""
        import cloudpickle

        try:
            trace: PolicyTrace = cloudpickle.loads(future.result())
        except BrokenProcessPool:
            error = "its process died, perhaps for lack of memory"
            if job.policy.name in self._stopped:
                error = (
                    f"a training took longer than {job.training_limit_s:g} s in code that Python cannot interrupt, so"
                    " its process was stopped"
                )
            return PolicyTrace(policy=job.policy, error=error)
        return trace


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


_queue: Any = None


def _begin(parent: int, ticks: Any) -> None:
    """Set up a process of the pool before it imports anything that starts threads."""
    import threading
    from time import sleep

    global _queue
    _queue = ticks

    def end_with_parent() -> None:
        while os.getppid() == parent:
            sleep(_WAIT_S)
        os._exit(1)

    threading.Thread(target=end_with_parent, name="everloop-parent", daemon=True).start()
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _work(packed: bytes, rows: str, project: str | None) -> bytes:
    """Replay one job in a process of the pool."""
    if project is not None:
        from everloop.loop import load_project

        load_project(Path(project))
    import cloudpickle
    import polars as pl

    job: PolicyJob = cloudpickle.loads(packed)
    empty = job.history
    history = ReplayHistory(pl.read_ipc(rows), empty.target, empty.time, empty.key)
    name = job.policy.name
    trace = run_policy(
        replace(job, history=history),
        lambda policy, tick: _queue.put((policy, tick, None)),
        training=lambda begins: _queue.put((name, None, os.getpid() if begins else None)),
    )
    return bytes(cloudpickle.dumps(trace))
