"""Steps in this process, one after the other."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from everloop.pipeline.job import Job, JobOutcome, perform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping
    from types import FrameType
    from typing import NoReturn

    from everloop.pipeline.executors.executor import LogWriter
    from everloop.stores import Store


class InlineExecutor:
    """The cheapest place, and the one to debug in. `submit` returns when the step has ended."""

    slots = 1
    capacity: Mapping[str, float] = {}
    isolates = False

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        future: Future[JobOutcome] = Future()
        future.set_running_or_notify_cancel()
        with _interrupts() as interrupts, _exits():
            try:
                future.set_result(perform(job, store, log=log, held=held))
            except BaseException as error:
                # The future carries it to the caller, as it would from another process: `sys.exit` in a step must
                # not end the run as if it had succeeded. Only Ctrl-C belongs to the run.
                if interrupts and not isinstance(error, Exception):
                    raise KeyboardInterrupt from error
                future.set_exception(error)
        return future

    def close(self, *, kill: bool = False) -> None:
        """Nothing runs between two calls of `submit`."""


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The interrupts that come from outside, which look like a `KeyboardInterrupt` that the step raises itself.

    Signals reach the main thread only, so elsewhere there are none.
    """
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        # A step may have set a handler of its own, which stays.
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)


class ProcessExitError(BaseException):
    """A step called `os._exit`, which would have ended this process with the run unfinished and its exit code unasked.

    Not an `Exception`, so that the step does not catch it by accident.
    """


@contextmanager
def _exits() -> Iterator[None]:
    """Turn `os._exit` of this process into an error of the step. Forked children still end by it."""
    process, leave = os.getpid(), os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not caller:
            leave(status)
        raise ProcessExitError(f"it called os._exit({status}). A step ends by returning a value or by raising an error")

    caller = threading.current_thread()
    os._exit = refuse
    try:
        yield
    finally:
        if os._exit is refuse:
            os._exit = leave
