"""The tasks that run in a graph's executor, and the resources that they use."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, wait
from typing import TYPE_CHECKING, Any

from everloop import plugins
from everloop.pipeline.scheduled_tasks import needs_of

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from concurrent.futures import Future

    from everloop.pipeline.executors import Executor
    from everloop.pipeline.executors.executor import LogWriter
    from everloop.pipeline.job import Job, JobOutcome
    from everloop.pipeline.scheduled_tasks import ScheduledTask
    from everloop.stores import Store


class RunningTasks:
    """Starts tasks in the run's executor, in a process of their own if they have a timeout, or here if they must."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.active: list[ScheduledTask] = []
        """Tasks that have started and have not been collected. Also those whose start was interrupted."""
        self._futures: dict[Future[JobOutcome], ScheduledTask] = {}
        self._isolating: Executor | None = None
        self._driver: Executor | None = None
        self._kept_here: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._futures)

    def has_room(self) -> bool:
        return len(self.active) < self.executor.slots

    def fits(self, task: ScheduledTask) -> bool:
        """Whether the running tasks leave enough resources. A task that runs alone may use more than there is."""
        if not self.has_room():
            return False
        if not self.active or not self.executor.capacity:
            return True
        used = [needs_of(other.node) for other in self.active]
        return all(
            amount + sum(need.get(name, 0.0) for need in used) <= self.executor.capacity[name]
            for name, amount in needs_of(task.node).items()
        )

    def start(
        self, task: ScheduledTask, job: Job, store: Store, *, log: LogWriter, held: MutableMapping[str, Any]
    ) -> None:
        self.active.append(task)
        future = self._executor_of(task).submit(job, store, log=log, held=held)
        self._futures[future] = task

    def keep_here(self, step: str) -> None:
        """From now on, start the jobs of this step in the process of the run: they need files that are only here."""
        self._kept_here.add(step)

    def collect(self, timeout_s: float) -> list[tuple[ScheduledTask, Future[JobOutcome]]]:
        """Take out the tasks that have ended; wait for the first one up to `timeout_s` seconds."""
        done, _ = wait(self._futures, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [(self._futures.pop(future), future) for future in done]

    def close(self) -> None:
        """Close the executors that were started for single tasks. The run's own belongs to the caller."""
        for executor in (self._isolating, self._driver):
            if executor is not None:
                executor.close()

    def kill(self) -> None:
        self.executor.close(kill=True)
        if self._isolating is not None:
            self._isolating.close(kill=True)

    def _executor_of(self, task: ScheduledTask) -> Executor:
        step = task.node.step
        here = not self.executor.remote or not (step.on_driver or task.node.name in self._kept_here)
        if here and (step.timeout_s is None or self.executor.isolates):
            return self.executor
        if step.timeout_s is None:
            if self._driver is None:
                self._driver = plugins.load("executor", "inline")()
            return self._driver
        if self._isolating is None:
            self._isolating = plugins.load("executor", "pool")(workers=1)
        return self._isolating
