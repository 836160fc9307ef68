"""The worker process of the pool: adopts its parent's environment, checks that it has the same code, and runs jobs."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import stat
import sys
import traceback
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError, StepError, UnavailableError
from everloop.pipeline.code.project_modules import finder
from everloop.pipeline.code.source_files import Stamp, stamp_of
from everloop.pipeline.code.step_code import accept_changes, code_of
from everloop.pipeline.job import Job, JobOutcome, RemoteError, perform
from everloop.pipeline.outside.read_tracking import worker_variables
from everloop.pipeline.step_failures import show_error

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from everloop.stores import Clock, Store
    from everloop.stores.home import StoreUrls


@dataclass(frozen=True, slots=True)
class Envelope:
    """A pickled job and what a worker needs to unpack and run it."""

    payload: bytes
    compare: str | None
    """Digest that the code must have in the worker; None if the code itself is in the payload."""
    modules: dict[str, str]
    urls: StoreUrls = field(repr=False)
    project: str
    actor: str
    folder: str
    search_path: tuple[str, ...]
    environment: dict[str, str]
    clock: int | None = None
    """Simulated time of the parent's store, in µs since 1970; None for the system's clock."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The worker has other code than the parent, and has not run the job."""

    outdated: bool
    """Whether files that the worker has imported have changed since. If so, a new worker may have the right code."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The step raised. The exception itself is sent if it can be pickled, its text always."""

    message: str
    """Type and text of the error."""
    trace: str
    pickled: bytes | None = field(repr=False)
    missing_file: bool = False
    """Whether the cause is a file that does not exist."""

    def error(self, step: str) -> BaseException:
        """The original exception, or a StepError with its text."""
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)  # noqa: S301 - from our own worker, over our own pipe
            except Exception:
                # Exceptions with unusual constructors can be pickled but not unpickled; then only the text is left.
                error = None
            if isinstance(error, BaseException):
                error.__cause__ = RemoteError(self.trace)
                return error
        error = StepError(f"Step '{step}' failed: {self.message}")
        error.__cause__ = RemoteError(self.trace)
        return error


def prepare_worker(data: bytes) -> None:
    """Import the step's modules and open the store, without running the step."""
    envelope, job = _unpack(data)
    if isinstance(job, Job):
        _open_store(envelope)


def run_envelope(data: bytes) -> JobOutcome | Failed | Stale:
    """Unpack an envelope and run its job. An error of the step is returned, not raised."""
    envelope, job = _unpack(data)
    if not isinstance(job, Job):
        return job
    try:
        return run_job(job, _open_store(envelope))
    except Exception as error:
        return failed(error)
    finally:
        _check_pipes()


def run_job(job: Job, store: Store) -> JobOutcome | Failed:
    """Run a job in this worker. An error of the step is returned, not raised."""
    try:
        # So that `current_run` works in the step as it does in the parent process.
        with _joined(store, job.run):
            try:
                return perform(job, store)
            except BaseException as error:
                # Also `sys.exit` and the like: the parent waits for a reply, and Ctrl-C does not reach this process.
                return failed(error)
    except Exception as error:
        return failed(error)
    finally:
        accept_changes([job.step])


def _joined(store: Store, run: str) -> AbstractContextManager[object]:
    """Join the run. Do nothing if the store does not have it, because it was unavailable when the run started."""
    from everloop.tracking import join_run

    try:
        return join_run(store, run)
    except (NotFoundError, UnavailableError):
        return nullcontext()


def _unpack(data: bytes) -> tuple[Envelope, Job | Failed | Stale]:
    # The terminal sends Ctrl-C to every process; the parent decides whether to kill its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _pipes()
    envelope: Envelope = pickle.loads(data)  # noqa: S301 - from our own parent, over our own pipe
    _adopt_environment(envelope)
    try:
        if envelope.compare is not None:
            # Also modules of which only a constant is used: the name of its part contains the module.
            for name, filename in envelope.modules.items():
                importlib.import_module(name)
                _stamps.setdefault(filename, stamp_of(filename))
        job: Job = pickle.loads(envelope.payload)  # noqa: S301 - as above
    except BaseException as error:
        # Unpickling fails if the code here lacks something that the parent's has: then this worker is stale.
        return envelope, _stale(envelope) if envelope.compare is not None else failed(error)
    if envelope.compare is not None and code_of(job.step.function).digest != envelope.compare:
        return envelope, _stale(envelope)
    return envelope, job


def _stale(envelope: Envelope) -> Stale:
    return Stale(any(stamp_of(name) != _stamps.get(name) for name in envelope.modules.values()))


def failed(error: BaseException) -> Failed:
    import cloudpickle

    trace = "".join(traceback.format_exception(error))
    try:
        pickled = cloudpickle.dumps(error)
    except BaseException:
        # An exception may hold any object. If it cannot be pickled, only its text is sent.
        pickled = None
    return Failed(show_error(error), trace, pickled, _lacks_file(error))


def _lacks_file(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that a file does not exist."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, FileNotFoundError):
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


PIPES_CLOSED = 71
"""Exit code of a worker whose step has closed the pipes to its parent."""


@cache
def _pipes() -> dict[int, tuple[int, int]]:
    """The pipes that this process was started with: descriptor to device and inode. First called before any job."""
    found: dict[int, tuple[int, int]] = {}
    for number in range(3, 256):
        with suppress(OSError):
            status = os.fstat(number)
            if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                found[number] = (status.st_dev, status.st_ino)
    return found


def _check_pipes() -> None:
    """End this process if its reply cannot reach the parent, which would otherwise wait forever."""
    for number, expected in _pipes().items():
        try:
            status = os.fstat(number)
        except OSError:
            os._exit(PIPES_CLOSED)
        if (status.st_dev, status.st_ino) != expected:
            os._exit(PIPES_CLOSED)


def _adopt_environment(envelope: Envelope) -> None:
    if os.getcwd() != envelope.folder:  # noqa: PTH109 - the envelope holds a string
        os.chdir(envelope.folder)
    adopt_variables(envelope.environment)
    if tuple(sys.path) != envelope.search_path:
        sys.path[:] = envelope.search_path
        importlib.invalidate_caches()
    finder.add(envelope.modules)


def adopt_variables(environment: dict[str, str]) -> None:
    """Set the parent's environment variables in this process, instead of those that an earlier job has set."""
    # A warm worker still has the environment of an earlier job. Variables that the worker itself needs stay.
    for name in _adopted_variables.keys() - environment.keys():
        os.environ.pop(name, None)
    for name, value in environment.items():
        # Libraries read the environment in threads of their own, which is only safe while nothing is set.
        if os.environ.get(name) != value:
            os.environ[name] = value
    _adopted_variables.clear()
    _adopted_variables.update(environment)
    worker_variables.clear()
    worker_variables.update(os.environ.keys() - environment.keys())


# The parent's environment at the last job.
_adopted_variables: dict[str, str] = {}
# Stamp of each project file when its module was imported here.
_stamps: dict[str, Stamp] = {}
_stores: dict[tuple[StoreUrls, str, str, bool], Store] = {}


def _open_store(envelope: Envelope) -> Store:
    from everloop.stores.home import open_urls

    key = (envelope.urls, envelope.project, envelope.actor, envelope.clock is None)
    store = _stores.get(key)
    if store is None:
        clock = clock_of_job(envelope.urls, envelope.clock)
        store = open_urls(envelope.urls, project=envelope.project, actor=envelope.actor, clock=clock, create=False)
        _stores[key] = store
    follow_clock(store, envelope.clock)
    return store


def clock_of_job(urls: StoreUrls, simulated: int | None) -> Clock | None:
    """The clock to open a store with, for a job that was sent at this simulated time; None for the home's own."""
    from everloop.stores.clock import SimulatedClock, moment_of

    # A clock that is in the home is shared with the run. Only one in the memory of the run has to be followed.
    return None if simulated is None or (urls.home / "clock").exists() else SimulatedClock(moment_of(simulated))


def follow_clock(store: Store, simulated: int | None) -> None:
    """Move the clock that `clock_of_job` has made to the time of the next job. It never goes back."""
    from everloop.stores.clock import SimulatedClock, moment_of

    if simulated is not None and isinstance(store.clock, SimulatedClock):
        store.clock.set(max(moment_of(simulated), store.now()))


__all__ = [
    "Envelope",
    "Failed",
    "Stale",
    "adopt_variables",
    "clock_of_job",
    "failed",
    "follow_clock",
    "prepare_worker",
    "run_envelope",
    "run_job",
]
