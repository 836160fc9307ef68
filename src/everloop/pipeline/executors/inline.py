"""The inline executor: steps run in this process, one after the other."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from everloop.pipeline.job import Job, JobOutcome, perform
from everloop.pipeline.resources import check_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping
    from types import FrameType
    from typing import NoReturn

    from everloop.pipeline.executors.executor import LogWriter
    from everloop.pipeline.graph_plan import Plan
    from everloop.pipeline.step_progress import StepProgress
    from everloop.stores import Store


class InlineExecutor:
    """The fastest executor for small steps, and the one for debugging. `submit` returns when the step has ended."""

    slots = 1
    capacity: Mapping[str, float] = {}
    isolates = False
    remote = False

    def prepare(self, plan: Plan, store: Store) -> None:
        check_plan(plan, self.capacity)

    def take_progress(self) -> list[tuple[str, StepProgress]]:
        return []

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        future: Future[JobOutcome] = Future()
        future.set_running_or_notify_cancel()
        with _interrupts() as interrupts, _exits():
            try:
                future.set_result(perform(job, store, log=log, held=held))
            except BaseException as error:
                # The future carries any error to the caller, as from another process: `sys.exit` in a step must not
                # end the run as if it had succeeded. Only Ctrl-C and SIGTERM stop the run itself.
                if interrupts and not isinstance(error, Exception):
                    raise KeyboardInterrupt from error
                future.set_exception(error)
        return future

    def close(self, *, kill: bool = False) -> None:
        """There is nothing to close: no job runs between two calls of `submit`."""


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect interrupts from outside, to tell them from a `KeyboardInterrupt` that the step raises itself.

    An interrupt is Ctrl-C, or SIGTERM in a process that handles it, such as the worker of a loop. Signals reach only
    the main thread; in other threads the list stays empty.
    """
    received: list[int] = []
    replaced: dict[signal.Signals, tuple[Callable[..., object], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                replaced[number] = (_recording(received, handler), handler)
    for number, (recording, _) in replaced.items():
        signal.signal(number, recording)
    try:
        yield received
    finally:
        for number, (recording, handler) in replaced.items():
            # If the step has installed another handler, that one stays.
            if signal.getsignal(number) is recording:
                signal.signal(number, handler)


def _recording(received: list[int], handler: Callable[..., object]) -> Callable[[int, FrameType | None], None]:
    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handler(number, frame)

    return record


class ProcessExitError(BaseException):
    """A step called `os._exit`, which would have ended this process in the middle of the run with its own exit code.

    Not an `Exception`, so that the step does not catch it by accident.
    """


@contextmanager
def _exits() -> Iterator[None]:
    """Turn `os._exit` in this process into an error of the step. In forked children it still works."""
    process, original = os.getpid(), os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not caller:
            original(status)
        raise ProcessExitError(f"it called os._exit({status}). A step ends by returning a value or by raising an error")

    caller = threading.current_thread()
    os._exit = refuse
    try:
        yield
    finally:
        if os._exit is refuse:
            os._exit = original
