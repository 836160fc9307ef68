"""What an executor has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from everloop.pipeline.job import Job, JobOutcome
    from everloop.stores import Store

LogWriter = Callable[[dict[str, Any], int | None], None]


class Executor(Protocol):
    """Runs jobs. Called from one thread; it starts none whose resources it was not told of.

    - A future ends with the job's `JobOutcome`, with the exception of the step's function, or with
      `StepTimeoutError` or `WorkerLostError` that name the step.
    - A job whose step has a timeout is killed when that has passed since its function was started.
    - After a future has ended, no part of its job runs any more.
    """

    @property
    def slots(self) -> int:
        """How many jobs can run at once."""

    @property
    def capacity(self) -> Mapping[str, float]:
        """What the jobs that run at once may need together, by resource; empty where nothing is counted."""

    @property
    def isolates(self) -> bool:
        """Whether a job runs in a process that can be killed. Steps with a timeout go elsewhere if not."""

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        """Start a job, at once: the caller has seen to it that there is room.

        Args:
            log: writes metrics to the run, from this process.
            held: digest to frame: values that stay in memory between steps of this process.
        """

    def close(self, *, kill: bool = False) -> None:
        """Give everything back; with `kill`, end what still runs."""
