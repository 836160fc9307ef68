"""What runs in a worker process: it makes itself like its parent, sees that it has the same code, and works."""

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

from everloop.errors import NotFoundError, StepError, StoreError, UnavailableError
from everloop.pipeline.code.project_modules import finder
from everloop.pipeline.code.source_files import Stamp, stamp_of
from everloop.pipeline.code.step_code import code_of, settle
from everloop.pipeline.job import Job, JobOutcome, RemoteError, perform
from everloop.pipeline.outside.read_tracking import worker_variables
from everloop.pipeline.step_failures import show_error

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Envelope:
    """A job and what a worker needs to open it."""

    payload: bytes
    compare: str | None
    """Digest that the code must have here; None where the code itself is inside."""
    modules: dict[str, str]
    home: str
    places: str
    project: str
    actor: str
    folder: str
    search: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Stale:
    """The worker has other code than is meant, and has run nothing."""

    outdated: bool
    """Whether files that it has imported have changed since, so that a new worker may have the right code."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The step raised. The exception itself travels where it can be pickled, its text always."""

    message: str
    """Kind and text."""
    trace: str
    pickled: bytes | None = field(repr=False)

    def error(self, step: str) -> BaseException:
        """The exception as it was, or a StepError that tells of it."""
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)  # noqa: S301 - from our own worker, over our own pipe
            except Exception:
                # Exceptions with odd constructors pickle and do not come back; the text has to do.
                error = None
            if isinstance(error, BaseException):
                error.__cause__ = RemoteError(self.trace)
                return error
        error = StepError(f"Step '{step}' failed: {self.message}")
        error.__cause__ = RemoteError(self.trace)
        return error


def prepare_worker(data: bytes) -> None:
    """Do all but run the step: imports, and opening the store."""
    envelope, job = _unpack(data)
    if isinstance(job, Job):
        _open(envelope)


def run_envelope(data: bytes) -> JobOutcome | Failed | Stale:
    """Open an envelope and do what it says. Never raises what the step raises."""
    envelope, job = _unpack(data)
    if not isinstance(job, Job):
        return job
    try:
        store = _open(envelope)
        # So that `current_run` is here what it is in the process that turns the loop.
        with _joined(store, job.run):
            try:
                return perform(job, store)
            except BaseException as error:
                # Also `sys.exit` and its like: the parent waits for an answer, and Ctrl-C does not reach this process.
                return _failed(error)
    except Exception as error:
        return _failed(error)
    finally:
        settle([job.step])
        _check_pipes()


def _joined(store: Store, run: str) -> AbstractContextManager[object]:
    """The run, joined; nothing where the store does not have it, as when it did not answer at the run's start."""
    from everloop.tracking import join_run

    try:
        return join_run(store, run)
    except (NotFoundError, UnavailableError):
        return nullcontext()


def _unpack(data: bytes) -> tuple[Envelope, Job | Failed | Stale]:
    # Ctrl-C goes to every process of the terminal; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _pipes()
    envelope: Envelope = pickle.loads(data)  # noqa: S301 - from our own parent, over our own pipe
    _become(envelope)
    try:
        if envelope.compare is not None:
            # Also those from which only a constant is used: where it comes from is part of its name.
            for name, filename in envelope.modules.items():
                importlib.import_module(name)
                _stamps.setdefault(filename, stamp_of(filename))
        job: Job = pickle.loads(envelope.payload)  # noqa: S301 - as above
    except BaseException as error:
        # The code here may lack what the parent's has: then it is other code.
        return envelope, _stale(envelope) if envelope.compare is not None else _failed(error)
    if envelope.compare is not None and code_of(job.step.function).digest != envelope.compare:
        return envelope, _stale(envelope)
    return envelope, job


def _stale(envelope: Envelope) -> Stale:
    return Stale(any(stamp_of(name) != _stamps.get(name) for name in envelope.modules.values()))


def _failed(error: BaseException) -> Failed:
    import cloudpickle

    trace = "".join(traceback.format_exception(error))
    try:
        pickled = cloudpickle.dumps(error)
    except BaseException:
        # Any object may hang on an exception; what cannot travel stays, and the text goes.
        pickled = None
    return Failed(show_error(error), trace, pickled)


PIPES_CLOSED = 71
"""Exit code of a worker whose step has closed the pipes to its parent."""


@cache
def _pipes() -> dict[int, tuple[int, int]]:
    """The pipes that this process was started with, by number: device and inode. Called before any step runs."""
    found: dict[int, tuple[int, int]] = {}
    for number in range(3, 256):
        with suppress(OSError):
            status = os.fstat(number)
            if stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
                found[number] = (status.st_dev, status.st_ino)
    return found


def _check_pipes() -> None:
    """End this process if its answer could not reach the parent, which would wait for ever."""
    for number, known in _pipes().items():
        try:
            status = os.fstat(number)
        except OSError:
            os._exit(PIPES_CLOSED)
        if (status.st_dev, status.st_ino) != known:
            os._exit(PIPES_CLOSED)


def _become(envelope: Envelope) -> None:
    if os.getcwd() != envelope.folder:  # noqa: PTH109 - a string is what travels
        os.chdir(envelope.folder)
    # A warm worker was started with the environment of an earlier moment. What loky has set for it stays.
    for name in _given.keys() - envelope.environment.keys():
        os.environ.pop(name, None)
    os.environ.update(envelope.environment)
    _given.clear()
    _given.update(envelope.environment)
    worker_variables.clear()
    worker_variables.update(os.environ.keys() - envelope.environment.keys())
    if tuple(sys.path) != envelope.search:
        sys.path[:] = envelope.search
        importlib.invalidate_caches()
    finder.add(envelope.modules)


# The environment that the parent had at the last job.
_given: dict[str, str] = {}
# The stamp of each file of the project when its module was imported here.
_stamps: dict[str, Stamp] = {}
_stores: dict[tuple[str, str, str], Store] = {}


def _open(envelope: Envelope) -> Store:
    """The parent's store. Its parts may be elsewhere than in its home, as `everloop.toml` says."""
    from everloop.stores import open_store

    key = (envelope.places, envelope.project, envelope.actor)
    store = _stores.get(key)
    if store is None:
        for home in (envelope.home, None):
            store = open_store(home, project=envelope.project, actor=envelope.actor, create=False)
            if repr(store.urls) == envelope.places:
                break
        else:
            raise StoreError(
                f"A worker cannot find the store at '{envelope.home}'.",
                help="Say where its parts are in everloop.toml, and run from that folder or below.",
            )
        _stores[key] = store
    return store


__all__ = ["Envelope", "Failed", "Stale", "prepare_worker", "run_envelope"]
