"""Replay several policies, each in a process of its own, as many at once as there are cores.

A policy's result does not depend on where it runs: its store, its clock and its seed are its own.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.replay.policy_run import PolicyJob, PolicyTrace, run_policy
from everloop.replay.replay_history import ReplayHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WAIT_S = 0.5
_LAST_WAIT_S = 10.0


def run_policies(
    jobs: Sequence[PolicyJob],
    folder: Path,
    *,
    processes: int,
    project: Path | None = None,
    progress: Callable[[str, int], None] = lambda _policy, _tick: None,
) -> tuple[list[PolicyTrace], bool]:
    """Replay every job.

    Args:
        jobs: the policies, in the order in which they are started.
        folder: a private folder for the rows that the processes share.
        processes: how many run at once; 1 runs all of them in this process.
        project: folder of the project whose `loop.py` the loops come from.
        progress: called with a policy's name and the number of its finished ticks.

    Returns:
        The traces in the order of the jobs, and whether the replay was interrupted. A policy that was not started
        before an interruption has an empty trace.
    """
    if processes <= 1 or len(jobs) == 1:
        return _in_this_process(jobs, progress)
    return _in_processes(jobs, folder, processes, project, progress)


def _in_this_process(jobs: Sequence[PolicyJob], progress: Callable[[str, int], None]) -> tuple[list[PolicyTrace], bool]:
    traces: list[PolicyTrace] = []
    for job in jobs:
        if traces and traces[-1].error == "interrupted":
            traces.append(PolicyTrace(policy=job.policy, error="interrupted"))
            continue
        traces.append(run_policy(job, progress))
    return traces, any(trace.error == "interrupted" for trace in traces)


def _in_processes(
    jobs: Sequence[PolicyJob],
    folder: Path,
    processes: int,
    project: Path | None,
    progress: Callable[[str, int], None],
) -> tuple[list[PolicyTrace], bool]:
    import cloudpickle
    import polars as pl

    rows = folder / "history.arrow"
    history = jobs[0].history
    history.table.write_ipc(rows, compat_level=pl.CompatLevel.oldest())
    context = get_context("spawn")
    ticks = context.SimpleQueue()
    traces: dict[str, PolicyTrace] = {}
    interrupted = False
    futures: dict[Future[bytes], PolicyJob] = {}
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=_begin, initargs=(os.getpid(), ticks)
    )
    try:
        for job in jobs:
            # Steps and watches of the user are pickled by value or by their module, which the process imports first.
            light = replace(
                job, history=ReplayHistory(history.table.head(0), history.target, history.time, history.key)
            )
            futures[
                pool.submit(_work, cloudpickle.dumps(light), str(rows), None if project is None else str(project))
            ] = job
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
            while not ticks.empty():
                progress(*ticks.get())
            for future in done:
                traces[futures[future].policy.name] = _trace_of(future, futures[future])
        pool.shutdown()
    except KeyboardInterrupt:
        interrupted = True
        # Ctrl-C reaches the processes as well. They end their policies and send what is known so far.
        pool.shutdown(wait=False, cancel_futures=True)
        done, _ = wait([future for future in futures if not future.cancelled()], timeout=_LAST_WAIT_S)
        for future in done:
            if not future.cancelled():
                traces.setdefault(futures[future].policy.name, _trace_of(future, futures[future]))
    return [
        traces.get(job.policy.name) or PolicyTrace(policy=job.policy, error="interrupted") for job in jobs
    ], interrupted


def _trace_of(future: Future[bytes], job: PolicyJob) -> PolicyTrace:
    """The trace that a process has sent; one with an error if the process died."""
    import cloudpickle

    try:
        trace: PolicyTrace = cloudpickle.loads(future.result())
    except BrokenProcessPool:
        return PolicyTrace(policy=job.policy, error="its process died, perhaps for lack of memory")
    return trace


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
    trace = run_policy(replace(job, history=history), lambda policy, tick: _queue.put((policy, tick)))
    return bytes(cloudpickle.dumps(trace))
