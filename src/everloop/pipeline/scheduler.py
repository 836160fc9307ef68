"""The scheduler of a graph: runs each step once its inputs are there, from the cache or in an executor.

One thread decides, executors work. A step and its artifacts become visible in one write. So whatever kills the process,
the next run finds the steps that were finished and repeats the others.
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, StepOutputError, TrustError
from everloop.pipeline import fingerprint as fp
from everloop.pipeline.artifacts import Stored, keep_value
from everloop.pipeline.artifacts.lists import keep_elements
from everloop.pipeline.binding import bind_inputs, elements_of
from everloop.pipeline.cache import Cache, CacheHit
from everloop.pipeline.code.step_code import accept_changes, code_of
from everloop.pipeline.executors.executor import FileElsewhereError
from everloop.pipeline.job import Job, JobOutcome, StoredInput
from everloop.pipeline.plan_compilation import compile_nodes
from everloop.pipeline.result import GraphRun
from everloop.pipeline.running_tasks import RunningTasks
from everloop.pipeline.scheduled_tasks import FanOut, ScheduledTask, count_readers
from everloop.pipeline.step_failures import clean_text, describe_failure, show_error, step_error
from everloop.pipeline.step_locks import StepLocks
from everloop.pipeline.step_output import log_of
from everloop.pipeline.step_progress import watch_steps
from everloop.pipeline.step_recorder import StepRecorder
from everloop.pipeline.steps import RESULT
from everloop.pipeline.value_digests import UndigestibleError, digest_text, digest_value

if TYPE_CHECKING:
    from everloop.pipeline.executors import Executor
    from everloop.pipeline.graph import Node
    from everloop.pipeline.run_listener import Listener
    from everloop.records import StepStatus
    from everloop.stores import Store
    from everloop.tracking import ActiveRun

_log = logging.getLogger("everloop.pipeline")

# The longest wait between two attempts to take a step's lock that another process holds.
_LONGEST_LOCK_POLL_S = 0.25
_LONGEST_WAIT_S = 0.25


class GraphScheduler:
    """The state of one run. Only one thread may use it."""

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
        self.forced = forced
        self.listener = listener
        self.result = GraphRun(run.id, store)
        self.recorder = StepRecorder(self.result, listener)
        self.running = RunningTasks(executor)
        self.cache = Cache(store)
        self.codes = {name: code_of(nodes[name].step.function) for name in order}
        self.plan = compile_nodes(run.name, [nodes[name] for name in order], self.codes)
        self.plan_nodes = {node.name: node for node in self.plan.nodes}
        self.results = self.result._results
        self.waiting_nodes = list(order)
        self.tasks: list[ScheduledTask] = []
        self.fan_outs: dict[str, FanOut] = {}
        self.readers = count_readers(nodes, order)
        self.held: dict[str, Any] = {}
        self.locks = StepLocks(store)
        self.settling: list[ScheduledTask] = []
        """Tasks whose result is not written yet. They hold their locks until it is."""

    def run_all(self) -> None:
        self.running.executor.prepare(self.plan, self.store)
        self.cache.prefetch(self.order)
        self._record_code()
        self.listener.on_begin(self.order)
        try:
            with watch_steps(self.recorder.on_progress):
                self._run_steps()
        except BaseException as error:
            # After Ctrl-C or an error of the store, no task may keep running and no record may stay half-written.
            self._abandon(error)
            raise
        finally:
            self.running.close()
            accept_changes(self.nodes[name].step.function for name in self.order)
            self.listener.on_end()

    def _run_steps(self) -> None:
        while self.waiting_nodes or self.tasks or self.running:
            self._schedule_ready_nodes()
            started = self._start_tasks()
            self._settle()
            if self.result.error is not None and not self.running:
                break
            if self.running:
                self._collect(block=not started or not self.running.has_room())
            elif self.tasks and not started:
                time.sleep(min(self._seconds_to_next_task(), _LONGEST_WAIT_S))
        self._skip_rest()

    # --- from nodes to tasks --------------------------------------------------------------------------------

    def _schedule_ready_nodes(self) -> None:
        """Take every node whose inputs are there: its result comes from the cache, or it becomes tasks."""
        changed = True
        while changed and self.result.error is None:
            changed = False
            for name in list(self.waiting_nodes):
                node = self.nodes[name]
                if all(need in self.results for need in node.needs):
                    self.waiting_nodes.remove(name)
                    self._schedule(node)
                    changed = True

    def _schedule(self, node: Node) -> None:
        code = self.codes[node.name]
        inputs = bind_inputs(node, self.results)
        parts = fp.parts_of(node, inputs, self.store.objects, code=code)
        task = ScheduledTask(node, node.name, inputs, code, parts)
        if self._finish_from_cache(task):
            return
        if node.mapped is None:
            self.tasks.append(task)
            return
        values = elements_of(node, inputs[node.mapped], self.store.objects)
        self.fan_outs[node.name] = FanOut(node, inputs, code, parts, task.reason, [None] * len(values))
        for index, value in enumerate(values):
            element_inputs = {**inputs, node.mapped: self._element(value)}
            element_parts = fp.parts_of(node, element_inputs, self.store.objects, code=code)
            element = ScheduledTask(node, f"{node.name}[{index}]", element_inputs, code, element_parts, index)
            if not self._finish_from_cache(element):
                self.tasks.append(element)
        if not values:
            self._finish_fan_out(node.name)

    def _element(self, value: Any) -> Any:
        """A plain element unchanged, any other one stored: then it has a digest and can be sent to a worker."""
        if isinstance(value, StoredInput):
            return value
        try:
            digest_value(value)
        except UndigestibleError:
            return StoredInput(keep_value(value, self.store.objects))
        return value

    def _finish_from_cache(self, task: ScheduledTask, *, again: bool = False) -> bool:
        """Use an earlier result if there is one; otherwise set the task's reason for running."""
        if task.node.name in self.forced:
            task.reason = fp.FORCED
            return False
        if not task.node.step.cache:
            task.reason = fp.NOT_CACHED
            return False
        undigestible = fp.undigestible(task.parts)
        if undigestible is not None:
            task.reason = undigestible
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
        """Start as many tasks as fit. Returns whether any task was started or came from the cache."""
        changed = False
        now = time.monotonic()
        for task in list(self.tasks):
            if self.result.error is not None or not self.running.has_room():
                break
            if task.not_before > now or not self.running.fits(task):
                continue
            if task.lock is None and not self._lock(task):
                if task not in self.tasks:
                    changed = True
                continue
            self.tasks.remove(task)
            self._start(task)
            changed = True
        return changed

    def _lock(self, task: ScheduledTask) -> bool:
        """Take the lock of the task's fingerprint, so that no two processes do the same work at the same time.

        While another process holds it, this run continues with other tasks: waiting while holding locks could end in
        a deadlock.
        """
        stack = ExitStack()
        if task.node.step.cache and task.node.name not in self.forced:
            whole = self.fan_outs[task.node.name].fingerprint if task.index is not None else task.fingerprint
            held = stack.enter_context(self.locks.hold(task.fingerprint, whole))
            # Another process may have stored the result since the cache was read.
            if self._finish_from_cache(task, again=True):
                stack.close()
                self.tasks.remove(task)
                return False
            if not held:
                stack.close()
                task.not_before = time.monotonic() + task.lock_wait_s
                task.lock_wait_s = min(2 * task.lock_wait_s, _LONGEST_LOCK_POLL_S)
                return False
        task.lock = stack
        return True

    def _start(self, task: ScheduledTask) -> None:
        self.recorder.write()
        self.listener.on_start(task.name, task.reason)
        job = Job(
            name=task.name,
            node=self.plan_nodes[task.node.name],
            step=task.node.step,
            inputs=task.inputs,
            run=self.run.id,
            modules=task.code.modules,
            attempt=task.attempt,
            reached=tuple(task.code.parts),
        )
        # There may be many elements: they read the frames that are held, but their results are not held in memory.
        held = self.held if task.index is None else ChainMap({}, self.held)
        self.running.start(task, job, self.store, log=self._log_metrics, held=held)

    def _collect(self, *, block: bool) -> None:
        """Finish the tasks that have ended. With `block`, first wait until one has, or until another one may start."""
        # Never wait long: the system may deliver Ctrl-C to another thread, and this one sees it only when it wakes.
        timeout_s = min(self._seconds_to_next_task(), _LONGEST_WAIT_S) if block else 0.0
        ended = self.running.collect(timeout_s)
        for name, progress in self.running.executor.take_progress():
            self.recorder.on_progress(name, progress)
        for task, future in ended:
            error = future.exception()
            self.running.active.remove(task)
            if error is None:
                self._finish_run(task, future.result())
            elif isinstance(error, FileElsewhereError):
                _log.warning("Step '%s' runs in this process, because its node has no such file: %s", task.name, error)
                self.running.keep_here(task.node.name)
                self.tasks.append(task)
            elif not self._retry(task, error):
                self._fail(task, error)
        self._settle()

    def _seconds_to_next_task(self) -> float:
        """Seconds until a waiting task may be tried again."""
        moments = [task.not_before for task in self.tasks if self.running.fits(task)]
        if not moments or self.result.error is not None:
            return _LONGEST_WAIT_S
        return max(0.0, min(moments) - time.monotonic())

    def _log_metrics(self, metrics: dict[str, Any], step: int | None) -> None:
        self.run.log(metrics, step=step)

    # --- ends -----------------------------------------------------------------------------------------------

    def _finish_run(self, task: ScheduledTask, outcome: JobOutcome) -> None:
        ids = self.recorder.add_artifacts(task.name, outcome.outputs)
        self.recorder.add_log(task.name, outcome.printed)
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
        step = self.recorder.add_step(task, status, reason, outputs=artifacts, observed=observed, seconds=seconds)
        if status == "ran":
            self.settling.append(task)
        else:
            task.release()
        if task.index is None:
            self.results[task.name] = outputs
            self.result._artifacts[task.name] = artifacts
            self._release_frames(task.node)
            return
        fan_out = self.fan_outs[task.node.name]
        fan_out.elements[task.index] = outputs[RESULT]
        fan_out.steps.append(step)
        if len(fan_out.steps) == len(fan_out.elements):
            self._finish_fan_out(task.node.name)

    def _settle(self) -> None:
        """Write the results of the tasks that have ended, and release their locks.

        One write for all of them, so that a reader who sees a step also sees its artifacts.
        """
        if self.settling:
            self.recorder.write()
            while self.settling:
                self.settling.pop().release()

    def _finish_fan_out(self, name: str) -> None:
        """All elements have ended: the list of their results is the step's result."""
        fan_out = self.fan_outs.pop(name)
        ran = [step for step in fan_out.steps if step.status == "ran"]
        stored = keep_elements([element for element in fan_out.elements if element is not None], self.store.objects)
        observed: list[dict[str, Any]] = []
        for step in fan_out.steps:
            observed += [one for one in step.observed if one not in observed]
        task = ScheduledTask(fan_out.node, name, fan_out.inputs, fan_out.code, fan_out.parts)
        task.reason = f"{fan_out.reason} ({len(ran)} of {len(fan_out.steps)} elements ran)"
        outcome = JobOutcome({RESULT: stored}, tuple(observed), sum(step.seconds for step in ran))
        self._finish_run(task, outcome)

    def _retry(self, task: ScheduledTask, error: BaseException) -> bool:
        step = task.node.step
        if task.attempt > step.retries or isinstance(error, StepOutputError | TrustError) or self.result.error:
            return False
        # The wait doubles and varies by half, so that tasks that failed together are not all retried together.
        spread = int(digest_text(self.run.id, task.name, str(task.attempt))[:8], 16) / 0xFFFFFFFF
        wait_s = step.backoff_s * 2 ** (task.attempt - 1) * (0.5 + spread)
        _log.warning(
            "Step '%s' failed at attempt %d and will be tried again: %s", task.name, task.attempt, show_error(error)
        )
        self.listener.on_retry(task.name, error, wait_s)
        task.attempt += 1
        task.not_before = time.monotonic() + wait_s
        self.tasks.append(task)
        return True

    def _fail(self, task: ScheduledTask, error: BaseException) -> None:
        self.recorder.add_step(task, "failed", task.reason, error=describe_failure(error))
        self.recorder.add_log(task.name, log_of(error))
        self.recorder.write()
        task.release()
        if self.result.error is None:
            self.result.error = step_error(task.name, error)

    def _skip_rest(self) -> None:
        failed = self.result.failed
        if failed is not None:
            # Elements that never started, the steps that they belong to, and all steps after those.
            for task in self.tasks:
                task.release()
                if task.index is not None:
                    self.recorder.add_step(task, "skipped", f"'{failed.name}' failed")
            missing = [name for name in self.order if name not in self.results and name != failed.name]
            for name in missing:
                if not any(step.name == name for step in self.result.steps):
                    self.recorder.add_step(self._unstarted(name), "skipped", f"'{failed.name}' failed")
        self.recorder.write()

    def _abandon(self, error: BaseException) -> None:
        """Stop what runs and record it as interrupted, if the store can still be written."""
        self.running.kill()
        interrupted = list(self.running.active)
        for task in [*interrupted, *self.tasks, *self.settling]:
            task.release()
        done = {step.name for step in self.result.steps}
        reason = clean_text(
            "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        )
        for task in interrupted:
            self.recorder.add_step(task, "interrupted", task.reason, error=reason)
            done.add(task.name)
        for name in self.order:
            if name not in done:
                self.recorder.add_step(self._unstarted(name), "skipped", reason)
        try:
            self.recorder.write()
        except EverloopError as write_error:
            _log.error("Cannot write how the steps of run %s ended: %s", self.run.id, write_error)

    def _unstarted(self, name: str) -> ScheduledTask:
        """A step that did not get as far as having inputs."""
        return ScheduledTask(self.nodes[name], name, {}, self.codes[name], {})

    def _record_code(self) -> None:
        """Record in the run which code it executes."""
        texts = [text for name in self.order for text in (name, self.codes[name].digest)]
        self.run.set_code(f"code:{digest_text(*texts)}")

    def _release_frames(self, node: Node) -> None:
        """Drop held frames that no remaining step reads."""
        for need in (node.name, *node.needs):
            if need in node.needs:
                self.readers[need] -= 1
            if self.readers.get(need, 0) <= 0:
                for stored in self.results[need].values():
                    self.held.pop(stored.digest, None)
