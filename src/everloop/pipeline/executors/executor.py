"""The executor protocol: where the jobs of a run are executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from concurrent.futures import Future

    from everloop.pipeline.graph_plan import Plan
    from everloop.pipeline.job import Job, JobOutcome
    from everloop.pipeline.step_progress import StepProgress
    from everloop.stores import Store

LogWriter = Callable[[dict[str, Any], int | None], None]


class FileElsewhereError(Exception):
    """A job did not find a file where it was executed, and the process of the run may have it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Executor(Protocol):
    """Runs jobs. All methods are called from one thread; the caller counts slots and resources.

    - A future ends with the job's `JobOutcome`, with the exception of the step's function, or with a
      `StepTimeoutError` or `WorkerLostError` that names the step.
    - A remote executor may end a future with a `FileElsewhereError`; the job then runs in the process of the run.
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

    @property
    def remote(self) -> bool:
        """Whether jobs may run on other machines. If so, steps with `on_driver` run in this process instead."""

    def prepare(self, plan: Plan, store: Store) -> None:
        """Get ready for a run. Called once per run, before the first job.

        Raises:
            UsageError: this executor cannot run the plan, or cannot run it with this store.
        """

    def submit(self, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]) -> Future[JobOutcome]:
        """Start a job immediately. The caller has checked that there is room.

        Args:
            log: writes metrics to the run, from this process.
            held: digest to frame, for frames that stay in this process's memory between steps.
        """

    def take_progress(self) -> list[tuple[str, StepProgress]]:
        """The latest progress of each job in another process that has reported any since the last call."""

    def close(self, *, kill: bool = False) -> None:
        """Release all resources; with `kill`, also kill the jobs that are running."""
