"""The executor protocol: where the jobs of a run are executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from everloop.pipeline.job import Job, JobOutcome
    from everloop.stores import Store

LogWriter = Callable[[dict[str, Any], int | None], None]


class Executor(Protocol):
    """Runs jobs. All methods are called from one thread; the caller counts slots and resources.

    - A future ends with the job's `JobOutcome`, with the exception of the step's function, or with a
      `StepTimeoutError` or `WorkerLostError` that names the step.
    - A job whose step has a timeout is killed when the timeout has passed since its function was started.
    - When a future has ended, no part of its job is running any more.
    """

    @property
    def slots(self) -> int:
        """How many jobs can run at the same time."""

    @property
    def capacity(self) -> Mapping[str, float]:
        """Resource to the amount that all running jobs may use together. Empty if resources are not counted."""

    @property
    def isolates(self) -> bool:
        """Whether a job runs in a process that can be killed. If not, steps with a timeout use another executor."""

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        """Start a job immediately. The caller has checked that there is room.

        Args:
            log: writes metrics to the run, from this process.
            held: digest to frame, for frames that stay in this process's memory between steps.
        """

    def close(self, *, kill: bool = False) -> None:
        """Release all resources; with `kill`, also kill the jobs that are running."""
