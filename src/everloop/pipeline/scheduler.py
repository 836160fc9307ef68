"""One run of a graph: each step when its inputs are there, in the cache or in an executor, and a record of it.

One thread decides, executors work. A step becomes visible in one write, its artifacts with it; so whatever kills
the process, what was finished is found by the next run, and what was not is done again.
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from everloop import plugins
from everloop.errors import EverloopError, StepOutputError, TrustError, UsageError
from everloop.pipeline import fingerprint as fp
from everloop.pipeline.artifacts import Stored, keep_value
from everloop.pipeline.artifacts.lists import keep_elements
from everloop.pipeline.binding import bind_inputs, elements_of
from everloop.pipeline.cache import Cache, CacheHit
from everloop.pipeline.code.step_code import code_of, settle
from everloop.pipeline.job import Job, JobOutcome, Kept
from everloop.pipeline.result import GraphRun
from everloop.pipeline.scheduled_tasks import FanOut, ScheduledTask, count_readers, needs_of
from everloop.pipeline.step_failures import clean_text, describe_failure, failure_text, show_error
from everloop.pipeline.step_progress import watch_steps
from everloop.pipeline.steps import RESULT
from everloop.pipeline.value_digests import UndigestibleError, digest_text, digest_value
from everloop.records import Artifact, Record, StepRun, StepStatus

if TYPE_CHECKING:
    from everloop.pipeline.executors import Executor
    from everloop.pipeline.graph import Node
    from everloop.pipeline.run_listener import Listener
    from everloop.pipeline.step_progress import StepProgress
    from everloop.stores import Store
    from everloop.tracking import ActiveRun

_log = logging.getLogger("everloop.pipeline")

# How often to look whether another process has given a step's lock back.
_LOCK_POLL_S = (0.01, 0.25)
_LONGEST_WAIT_S = 0.25
_EVENT_EVERY_S = 10.0


class GraphScheduler:
    """The state of one run. All of it is touched by one thread only."""

    def __init__(
        self,
        store: Store,
        run: ActiveRun,
        nodes: dict[str, Node],
        order: list[str],
        executor: Executor,
        forced: frozenset[str],
        listener: Listener,
    ) -> None:
        self.store = store
        self.run = run
        self.nodes = nodes
        self.order = order
        self.executor = executor
        self.forced = forced
        self.listener = listener
        self.result = GraphRun(run.id, store)
        self.cache = Cache(store)
        self.codes = {name: code_of(nodes[name].step.function) for name in order}
        self.results = self.result._results
        self.unplaced = list(order)
        self.tasks: list[ScheduledTask] = []
        self.running: dict[Future[JobOutcome], ScheduledTask] = {}
        self.fans: dict[str, FanOut] = {}
        self.unwritten: list[Record] = []
        self.readers = count_readers(nodes, order)
        self.held: dict[str, Any] = {}
        self.active: list[ScheduledTask] = []
        self._isolating: Executor | None = None
        self._next_event: dict[str, float] = {}

    def go(self) -> None:
        self._check_resources()
        self.cache.prefetch(self.order)
        self._name_code()
        self.listener.on_begin(self.order)
        try:
            with watch_steps(self._on_progress):
                self._run_all()
        except BaseException as error:
            # Ctrl-C, or trouble with the store: nothing half-written stays, and nothing runs on.
            self._abandon(error)
            raise
        finally:
            if self._isolating is not None:
                self._isolating.close()
            settle(self.nodes[name].step.function for name in self.order)
            self.listener.on_end()

    def _run_all(self) -> None:
        while self.unplaced or self.tasks or self.running:
            self._place()
            started = self._start_tasks()
            if self.result.error is not None and not self.running:
                break
            if self.running:
                self._collect(block=not started or not self._room())
            elif self.tasks and not started:
                self._pause()
        self._skip_rest()

    def _on_progress(self, name: str, progress: StepProgress) -> None:
        """Hand a step's news on, and write an event of it now and then."""
        self.listener.on_progress(name, progress)
        now = time.monotonic()
        if now < self._next_event.setdefault(name, now + _EVENT_EVERY_S):
            return
        self._next_event[name] = now + _EVENT_EVERY_S
        told = {"step": name, "done": progress.done, "total": progress.total, "unit": progress.unit}
        try:
            self.store.records.append_event("progress", "run", self.run.id, data={**told, "note": progress.note})
        except EverloopError as error:
            # A step does not fail because its progress cannot be written down.
            _log.warning("The progress of step '%s' cannot be written: %s", name, error)

    # --- from nodes to tasks --------------------------------------------------------------------------------

    def _place(self) -> None:
        """Turn every node whose inputs are there into a cached result or into tasks."""
        moved = True
        while moved and self.result.error is None:
            moved = False
            for name in list(self.unplaced):
                node = self.nodes[name]
                if all(need in self.results for need in node.needs):
                    self.unplaced.remove(name)
                    self._place_node(node)
                    moved = True

    def _place_node(self, node: Node) -> None:
        code = self.codes[node.name]
        inputs = bind_inputs(node, self.results)
        parts = fp.parts_of(node, inputs, self.store.objects, code=code)
        task = ScheduledTask(node, node.name, inputs, code, parts)
        if self._settle_from_cache(task):
            return
        if node.mapped is None:
            self.tasks.append(task)
            return
        values = elements_of(node, inputs[node.mapped], self.store.objects)
        self.fans[node.name] = FanOut(node, inputs, code, parts, task.reason, [None] * len(values))
        for index, value in enumerate(values):
            given = {**inputs, node.mapped: self._element(value)}
            own = fp.parts_of(node, given, self.store.objects, code=code)
            element = ScheduledTask(node, f"{node.name}[{index}]", given, code, own, index)
            if not self._settle_from_cache(element):
                self.tasks.append(element)
        if not values:
            self._finish_fan(node.name)

    def _element(self, value: Any) -> Any:
        """An element as it is where it is plain, else kept: so it is known by its content and can travel."""
        if isinstance(value, Kept):
            return value
        try:
            digest_value(value)
        except UndigestibleError:
            return Kept(keep_value(value, self.store.objects))
        return value

    def _settle_from_cache(self, task: ScheduledTask, *, again: bool = False) -> bool:
        """Use a former result if there is one; else say why the task has to run."""
        if task.node.name in self.forced:
            task.reason = fp.FORCED
            return False
        if not task.node.step.cache:
            task.reason = fp.NOT_CACHED
            return False
        untold = fp.untold(task.parts)
        if untold is not None:
            task.reason = untold
            return False
        found = self.cache.find(task.fingerprint, again=again)
        if isinstance(found, CacheHit):
            self._finish(
                task, "cached", fp.cached(found.step.observed), found.outputs, found.artifacts, found.step.observed
            )
            return True
        last = self.cache.last(task.name)
        task.reason = found.reason or fp.reason(task.parts, last.parts if last else None, task.code.home)
        return False

    # --- running --------------------------------------------------------------------------------------------

    def _start_tasks(self) -> bool:
        """Start what there is room for; whether anything moved."""
        moved = False
        now = time.monotonic()
        for task in list(self.tasks):
            if self.result.error is not None:
                break
            if task.not_before > now or not self._fits(task):
                continue
            if task.lock is None and not self._lock(task):
                if task not in self.tasks:
                    moved = True
                continue
            self.tasks.remove(task)
            self._start(task)
            moved = True
            if not self._room():
                break
        return moved

    def _lock(self, task: ScheduledTask) -> bool:
        """Take the lock of the task's fingerprint, so that no two processes do the same at once.

        While another has it, this turn goes on with other tasks: waiting with locks in hand could be a deadlock.
        """
        stack = ExitStack()
        if task.node.step.cache and task.node.name not in self.forced:
            held = stack.enter_context(self.store.lock(f"step-{task.fingerprint[3:]}", block=False))
            # Before the first look at the store, or after another's work: the result may be there by now.
            if self._settle_from_cache(task, again=True):
                stack.close()
                self.tasks.remove(task)
                return False
            if not held:
                stack.close()
                task.not_before = time.monotonic() + task.lock_wait_s
                task.lock_wait_s = min(2 * task.lock_wait_s, _LOCK_POLL_S[1])
                return False
        task.lock = stack
        return True

    def _start(self, task: ScheduledTask) -> None:
        self._write()
        self.listener.on_start(task.name, task.reason)
        job = Job(
            name=task.name,
            step=task.node.step,
            inputs=task.inputs,
            outputs=() if task.node.mapped else task.node.step.outputs,
            run=self.run.id,
            code=task.code.digest,
            modules=task.code.modules,
            attempt=task.attempt,
            reached=tuple(task.code.parts),
            packages=tuple(task.code.packages),
        )
        self.active.append(task)
        # Elements can be many: they read what is held, but what they return is not kept in memory.
        held = self.held if task.index is None else ChainMap({}, self.held)
        future = self._executor_of(task).submit(job, self.store, log=self._log_metrics, held=held)
        self.running[future] = task

    def _executor_of(self, task: ScheduledTask) -> Executor:
        if task.node.step.timeout_s is None or self.executor.isolates:
            return self.executor
        if self._isolating is None:
            self._isolating = plugins.load("executor", "pool")(workers=1)
        return self._isolating

    def _room(self) -> bool:
        return len(self.active) < self.executor.slots

    def _fits(self, task: ScheduledTask) -> bool:
        """Whether the resources of what runs leave enough. Alone, a task may have whatever there is."""
        if not self._room():
            return False
        if not self.active or not self.executor.capacity:
            return True
        used = [needs_of(other.node) for other in self.active]
        return all(
            amount + sum(need.get(name, 0.0) for need in used) <= self.executor.capacity[name]
            for name, amount in needs_of(task.node).items()
        )

    def _check_resources(self) -> None:
        capacity = self.executor.capacity
        for name in self.order:
            for resource in needs_of(self.nodes[name]):
                if capacity and resource not in capacity:
                    raise UsageError(
                        f"Step '{name}' asks for '{resource}', which this executor does not have.",
                        help=f"It has: {', '.join(capacity)}. Add it: PoolExecutor(resources={{'{resource}': 1}})",
                    )

    def _collect(self, *, block: bool) -> None:
        """Take in what has ended; if asked, wait until something has, or until another task may start."""
        # Never for long: the system may give Ctrl-C to another thread, and this one sees it only when it wakes.
        timeout = min(self._next_moment(), _LONGEST_WAIT_S) if block else 0.0
        done, _ = wait(self.running, timeout=timeout, return_when=FIRST_COMPLETED)
        for future in done:
            task = self.running.pop(future)
            error = future.exception()
            self.active.remove(task)
            if error is None:
                self._finish_ran(task, future.result())
            elif not self._retry(task, error):
                self._fail(task, error)

    def _pause(self) -> None:
        time.sleep(min(self._next_moment(), _LONGEST_WAIT_S))

    def _next_moment(self) -> float:
        """Seconds until a waiting task may be looked at again."""
        moments = [task.not_before for task in self.tasks if self._fits(task)]
        if not moments or self.result.error is not None:
            return _LONGEST_WAIT_S
        return max(0.0, min(moments) - time.monotonic())

    def _log_metrics(self, metrics: dict[str, Any], step: int | None) -> None:
        self.run.log(metrics, step=step)

    # --- ends -----------------------------------------------------------------------------------------------

    def _finish_ran(self, task: ScheduledTask, outcome: JobOutcome) -> None:
        artifacts = [
            self.store.new(
                Artifact,
                run=self.run.id,
                step=task.name,
                name=task.name if name == RESULT else f"{task.name}.{name}",
                type=stored.type,
                digest=stored.digest,
                size_bytes=stored.size_bytes,
                meta=stored.meta,
                signature=stored.signature,
            )
            for name, stored in outcome.outputs.items()
        ]
        self.unwritten.extend(artifacts)
        ids = {name: artifact.id for name, artifact in zip(outcome.outputs, artifacts, strict=True)}
        self._finish(task, "ran", task.reason, outcome.outputs, ids, outcome.observed, seconds=outcome.seconds)

    def _finish(
        self,
        task: ScheduledTask,
        status: StepStatus,
        reason: str,
        outputs: dict[str, Stored],
        artifacts: dict[str, str],
        observed: tuple[dict[str, Any], ...],
        *,
        seconds: float = 0.0,
    ) -> None:
        record = self._record(task, status, reason, outputs=artifacts, observed=observed, seconds=seconds)
        self._add(record)
        if status == "ran":
            # In one write: whoever sees the step sees its artifacts.
            self._write()
        task.release()
        if task.index is None:
            self.results[task.name] = outputs
            self.result._artifacts[task.name] = artifacts
            self._let_go(task.node)
            return
        fan = self.fans[task.node.name]
        fan.elements[task.index] = outputs[RESULT]
        fan.steps.append(record)
        if len(fan.steps) == len(fan.elements):
            self._finish_fan(task.node.name)

    def _finish_fan(self, name: str) -> None:
        """All elements are there: the list of them is the step's result."""
        fan = self.fans.pop(name)
        ran = [step for step in fan.steps if step.status == "ran"]
        stored = keep_elements([element for element in fan.elements if element is not None], self.store.objects)
        observed: list[dict[str, Any]] = []
        for step in fan.steps:
            observed += [one for one in step.observed if one not in observed]
        whole = ScheduledTask(fan.node, name, fan.inputs, fan.code, fan.parts)
        whole.reason = f"{fan.reason} ({len(ran)} of {len(fan.steps)} elements ran)"
        outcome = JobOutcome({RESULT: stored}, tuple(observed), sum(step.seconds for step in ran))
        self._finish_ran(whole, outcome)

    def _retry(self, task: ScheduledTask, error: BaseException) -> bool:
        step = task.node.step
        if task.attempt > step.retries or isinstance(error, StepOutputError | TrustError) or self.result.error:
            return False
        # Doubling, give or take a half: what fails together should not come back together.
        spread = int(digest_text(self.run.id, task.name, str(task.attempt))[:8], 16) / 0xFFFFFFFF
        wait_s = step.backoff_s * 2 ** (task.attempt - 1) * (0.5 + spread)
        _log.warning(
            "Step '%s' failed at attempt %d and will try again: %s", task.name, task.attempt, show_error(error)
        )
        self.listener.on_retry(task.name, error, wait_s)
        task.attempt += 1
        task.not_before = time.monotonic() + wait_s
        self.tasks.append(task)
        return True

    def _fail(self, task: ScheduledTask, error: BaseException) -> None:
        self._add(self._record(task, "failed", task.reason, error=describe_failure(error)))
        self._write()
        task.release()
        if self.result.error is None:
            self.result.error = failure_text(task.name, error)

    def _skip_rest(self) -> None:
        failed = self.result.failed
        if failed is not None:
            # Elements that never started, the steps they belong to, and what would have followed.
            for task in self.tasks:
                task.release()
                if task.index is not None:
                    self._add(self._record(task, "skipped", f"'{failed.name}' failed"))
            missing = [name for name in self.order if name not in self.results and name != failed.name]
            for name in missing:
                if not any(step.name == name for step in self.result.steps):
                    whole = ScheduledTask(self.nodes[name], name, {}, self.codes[name], {})
                    self._add(self._record(whole, "skipped", f"'{failed.name}' failed"))
        self._write()

    def _abandon(self, error: BaseException) -> None:
        """End what runs and say that it was interrupted, as far as the store still listens."""
        self.executor.close(kill=True)
        if self._isolating is not None:
            self._isolating.close(kill=True)
        interrupted = list(self.active)
        for task in [*interrupted, *self.tasks]:
            task.release()
        done = {step.name for step in self.result.steps}
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        for task in interrupted:
            self._add(self._record(task, "interrupted", task.reason, error=clean_text(why)))
            done.add(task.name)
        for name in self.order:
            if name not in done:
                whole = ScheduledTask(self.nodes[name], name, {}, self.codes[name], {})
                self._add(self._record(whole, "skipped", clean_text(why)))
        try:
            self._write()
        except EverloopError as trouble:
            _log.error("What became of the steps of run %s could not be written: %s", self.run.id, trouble)

    # --- records --------------------------------------------------------------------------------------------

    def _record(
        self,
        task: ScheduledTask,
        status: StepStatus,
        reason: str,
        *,
        outputs: dict[str, str] | None = None,
        observed: tuple[dict[str, Any], ...] = (),
        seconds: float = 0.0,
        error: str | None = None,
    ) -> StepRun:
        return self.store.new(
            StepRun,
            run=self.run.id,
            name=task.name,
            status=status,
            reason=reason,
            fingerprint=task.fingerprint if task.parts else "",
            code=task.code.digest,
            inputs=fp.input_digests(task.inputs),
            outputs=outputs or {},
            depends_on=task.node.needs,
            observed=observed,
            parts=task.parts,
            attempts=task.attempt,
            seconds=seconds,
            error=error,
        )

    def _add(self, step: StepRun) -> None:
        self.unwritten.append(step)
        self.result.steps.append(step)
        self.listener.on_finish(step)

    def _write(self) -> None:
        if self.unwritten:
            self.store.records.put(*self.unwritten)
            self.unwritten.clear()

    def _name_code(self) -> None:
        """Tell the run which code it executes."""
        texts = [text for name in self.order for text in (name, self.codes[name].digest)]
        self.run.set_code(f"code:{digest_text(*texts)}")

    def _let_go(self, node: Node) -> None:
        """Frames that nobody will read any more leave memory."""
        for need in (node.name, *node.needs):
            if need in node.needs:
                self.readers[need] -= 1
            if self.readers.get(need, 0) <= 0:
                for stored in self.results[need].values():
                    self.held.pop(stored.digest, None)
