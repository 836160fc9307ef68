"""Runs a compiled pipeline of Kubeflow here: DAGs, loops, conditions and exit handlers, with records in the store."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError, StepError, UsageError
from everloop.integrations.kubeflow.executor_tasks import TaskSettings, run_executor_task
from everloop.integrations.kubeflow.pipeline_spec import (
    PipelineSpec,
    input_artifacts,
    output_artifacts,
    output_parameters,
    plain,
    producers_of,
    tasks_of,
)
from everloop.integrations.kubeflow.task_recorder import TaskRecorder
from everloop.integrations.kubeflow.task_values import (
    ArtifactValue,
    MissingOutputError,
    TaskInputs,
    TaskOutcome,
    complete,
    resolve_inputs,
    select_outputs,
)
from everloop.integrations.kubeflow.trigger_conditions import evaluate
from everloop.pipeline.run_listener import Listener
from everloop.pipeline.unknown_names import nearest_names

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.records import Json, StepRun
    from everloop.stores import Store

_ALWAYS = "ALL_UPSTREAM_TASKS_COMPLETED"
_MOST_PROCESSES = 16
_MOST_ELEMENTS = 10_000


@dataclass(frozen=True)
class PipelineRun:
    """The result of a pipeline's run."""

    run: str
    """Id of the run."""
    steps: list[StepRun]
    """A record per task that has an executor, and per task that was skipped, in the order in which they ended."""
    parameters: dict[str, Json] = field(default_factory=dict)
    """Output parameters of the pipeline."""
    artifacts: dict[str, list[ArtifactValue]] = field(default_factory=dict)
    error: BaseException | None = None
    remarks: tuple[str, ...] = ()


def run_pipeline(
    spec: PipelineSpec,
    store: Store,
    *,
    params: Mapping[str, Json] | None = None,
    cache: bool = True,
    listener: Listener | None = None,
    check: bool = True,
) -> PipelineRun:
    """Run a pipeline. Its containers run as processes of this machine; their images are not used.

    Args:
        params: input parameters of the pipeline; an input artifact takes a path or URI.
        cache: take results of earlier equal tasks, where the pipeline allows it.
        check: raise the error of a failed pipeline. With False it is in the result's `error`.

    Raises:
        UsageError: a parameter is unknown, missing, or of another type.
        StepError: a task failed. The other tasks that do not need it have run, and exit handlers too.
        KeyboardInterrupt: the run was interrupted; its processes have been ended.
    """
    from everloop.tracking import start_run

    inputs = _root_inputs(spec, params or {})
    folder = Path(tempfile.mkdtemp(prefix="everloop-kubeflow-"))
    result: PipelineRun | None = None
    try:
        shown = dict(inputs.parameters)
        tags = {"kubeflow.pipeline": spec.name}
        with start_run(spec.name, store=store, params=shown, tags=tags, trigger="manual") as run:
            settings = TaskSettings(
                folder, _packages_folder(), _job(spec, run.id, store, folder), threading.Semaphore(_places())
            )
            settings = replace(settings, cache=cache)
            recorder = TaskRecorder(store, run, listener or Listener())
            recorder.listener.on_begin(list(tasks_of(spec.root)) if "dag" in spec.root else [spec.name])
            try:
                outcome = PipelineExecution(spec, recorder, settings).run(inputs)
            finally:
                recorder.listener.on_end()
            error = None if outcome.state == "succeeded" else _failure(spec, outcome)
            result = PipelineRun(run.id, recorder.steps, outcome.parameters, outcome.artifacts, error, spec.remarks)
            if error is not None:
                raise error
    except StepError as error:
        if check or result is None or error is not result.error:
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


class PipelineExecution:
    """One run of a pipeline's tasks. Each DAG runs its ready tasks in threads; all share the limit of processes."""

    def __init__(self, spec: PipelineSpec, recorder: TaskRecorder, settings: TaskSettings) -> None:
        self.spec = spec
        self.recorder = recorder
        self.settings = settings

    def run(self, inputs: TaskInputs) -> TaskOutcome:
        if "dag" in self.spec.root:
            return self._run_dag("", self.spec.root, inputs)
        return run_executor_task(
            self.spec.name, {}, self.spec.root, self.spec, inputs, (), self.recorder, self.settings
        )

    def _run_dag(self, where: str, component: Spec, scope: TaskInputs) -> TaskOutcome:
        """Run the tasks of a DAG, each once those that it waits for have ended."""
        tasks = tasks_of(component)
        done: dict[str, TaskOutcome] = {}
        running: dict[Future[TaskOutcome], str] = {}
        waiting = dict(tasks)
        with ThreadPoolExecutor(max(1, len(tasks)), thread_name_prefix="everloop-kubeflow") as threads:
            try:
                while waiting or running:
                    for name in [name for name in waiting if all(need in done for need in producers_of(tasks[name]))]:
                        task = waiting.pop(name)
                        running[threads.submit(self._run_task, where, name, task, scope, dict(done))] = name
                    ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    for future in ended:
                        done[running.pop(future)] = future.result()
            except BaseException:
                self.settings.stop.set()
                raise
        return self._dag_outcome(component, done)

    def _dag_outcome(self, component: Spec, done: Mapping[str, TaskOutcome]) -> TaskOutcome:
        parameters, artifacts = select_outputs(component["dag"], done)
        steps = tuple(dict.fromkeys(step for outcome in done.values() for step in outcome.steps))
        failed = next((one for one in done.values() if one.state == "failed"), None)
        if failed is not None:
            return TaskOutcome("failed", parameters, artifacts, failed.reason, failed.error, steps)
        return TaskOutcome("succeeded", parameters, artifacts, steps=steps)

    def _run_task(
        self, where: str, name: str, task: Spec, scope: TaskInputs, done: Mapping[str, TaskOutcome]
    ) -> TaskOutcome:
        path = f"{where}/{name}" if where else name
        if self.settings.stop.is_set():
            raise KeyboardInterrupt
        policy = task.get("triggerPolicy") or {}
        if policy.get("strategy") != _ALWAYS:
            for need in producers_of(task):
                if done[need].state != "succeeded":
                    ended = "failed" if done[need].state == "failed" else "was skipped"
                    return self._skip(path, f"'{need}' {ended}")
        component = self.spec.component(task)
        try:
            item = _item_input(task)
            inputs = resolve_inputs(path, task, component, scope, done, self.settings.job, item=item)
            if "condition" in policy and not evaluate(policy["condition"], inputs.parameters):
                return self._skip(path, "its condition is false")
            needs = self._needs(task, inputs, done)
            if item is not None:
                return self._run_loop(path, task, component, inputs, needs)
            return self._run_component(path, task, component, inputs, needs)
        except MissingOutputError as error:
            return self._skip(path, str(error))
        except EverloopError as error:
            self.recorder.end(path, "failed", "cannot start", error=str(error))
            return TaskOutcome("failed", reason=str(error), error=error, steps=(path,))

    def _skip(self, path: str, reason: str) -> TaskOutcome:
        self.recorder.end(path, "skipped", reason)
        return TaskOutcome("skipped", reason=reason, steps=(path,))

    def _needs(self, task: Spec, inputs: TaskInputs, done: Mapping[str, TaskOutcome]) -> tuple[str, ...]:
        """The steps that a task's inputs come from, and those that it only waits for."""
        found = dict.fromkeys(step for steps in inputs.sources.values() for step in steps)
        for name in task.get("dependentTasks") or ():
            if not any(step in found for step in done[name].steps):
                found |= dict.fromkeys(done[name].steps)
        return tuple(found)

    def _run_component(
        self, path: str, task: Spec, component: Spec, inputs: TaskInputs, needs: tuple[str, ...]
    ) -> TaskOutcome:
        if "dag" in component:
            return self._run_dag(path, component, inputs)
        return run_executor_task(path, task, component, self.spec, inputs, needs, self.recorder, self.settings)

    def _run_loop(
        self, path: str, task: Spec, component: Spec, inputs: TaskInputs, needs: tuple[str, ...]
    ) -> TaskOutcome:
        """Run a task once per element, and collect each of its outputs as a list."""
        iterations = _iterations(path, task, component, inputs)
        limit = int((task.get("iteratorPolicy") or {}).get("parallelismLimit") or 0) or _places()
        with ThreadPoolExecutor(max(1, min(limit, len(iterations))), thread_name_prefix="everloop-loop") as threads:
            futures = [
                threads.submit(self._run_iteration, f"{path}[{position}]", task, component, one, needs)
                for position, one in enumerate(iterations)
            ]
            try:
                wait(futures)
            except BaseException:
                self.settings.stop.set()
                raise
            outcomes = [future.result() for future in futures]
        failed = next((one for one in outcomes if one.state == "failed"), None)
        steps = tuple(dict.fromkeys(step for one in outcomes for step in one.steps))
        parameters: dict[str, Json] = {
            name: [one.parameters[name] for one in outcomes if name in one.parameters]
            for name in output_parameters(component)
        }
        artifacts = {
            name: [value for one in outcomes for value in one.artifacts.get(name, ())]
            for name in output_artifacts(component)
        }
        if failed is not None:
            return TaskOutcome("failed", parameters, artifacts, failed.reason, failed.error, steps)
        return TaskOutcome("succeeded", parameters, artifacts, steps=steps)

    def _run_iteration(
        self, path: str, task: Spec, component: Spec, inputs: TaskInputs, needs: tuple[str, ...]
    ) -> TaskOutcome:
        if self.settings.stop.is_set():
            raise KeyboardInterrupt
        return self._run_component(path, task, component, inputs, needs)


def _root_inputs(spec: PipelineSpec, params: Mapping[str, Json]) -> TaskInputs:
    artifacts = input_artifacts(spec.root)
    for name in params:
        if name not in spec.parameters and name not in artifacts:
            raise UsageError(
                f"The pipeline '{spec.name}' has no parameter '{name}'.",
                help=nearest_names(name, [*spec.parameters, *artifacts]),
            )
    values = complete(params, spec.parameters, f"the pipeline '{spec.name}'")
    found: dict[str, list[ArtifactValue]] = {}
    for name, definition in artifacts.items():
        if name in params:
            kind = definition.get("artifactType") or {"schemaTitle": "system.Artifact"}
            found[name] = [ArtifactValue(name, kind, str(params[name]))]
        elif not definition.get("isOptional"):
            raise UsageError(
                f"The input artifact '{name}' of the pipeline '{spec.name}' is missing.",
                help=f"Give its path or URI: --set {name}=PATH",
            )
    return TaskInputs(values, found)


def _item_input(task: Spec) -> str | None:
    """The input that each iteration of a loop receives; None if the task is not a loop."""
    for kind in ("parameterIterator", "artifactIterator"):
        if kind in task:
            return str(task[kind]["itemInput"])
    return None


def _iterations(path: str, task: Spec, component: Spec, inputs: TaskInputs) -> list[TaskInputs]:
    """The inputs of each iteration."""
    import json

    if "artifactIterator" in task:
        iterator = task["artifactIterator"]
        values = inputs.artifacts.get(iterator["items"]["inputArtifact"], [])
        source = inputs.sources.get(iterator["items"]["inputArtifact"], ())
        return [
            replace(
                inputs,
                artifacts={**inputs.artifacts, iterator["itemInput"]: [value]},
                sources={**inputs.sources, iterator["itemInput"]: source},
            )
            for value in values
        ]
    iterator = task["parameterIterator"]
    name = iterator["items"].get("inputParameter")
    items = inputs.parameters.get(name) if name is not None else iterator["items"]["raw"]
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except ValueError as error:
            raise UsageError(f"The loop '{path}' iterates over {items!r}, which is not a list.", help=_LIST) from error
    if not isinstance(items, list):
        raise UsageError(f"The loop '{path}' iterates over {items!r}, which is not a list.", help=_LIST)
    if len(items) > _MOST_ELEMENTS:
        raise UsageError(f"The loop '{path}' has {len(items):,} elements; the most is {_MOST_ELEMENTS:,}.", help=_LIST)
    item = iterator["itemInput"]
    definition = {item: (component.get("inputDefinitions") or {}).get("parameters", {}).get(item, {})}
    source = inputs.sources.get(str(name), ())
    return [
        replace(
            inputs,
            parameters={**inputs.parameters, **complete({item: plain(value)}, definition, f"the loop '{path}'")},
            sources={**inputs.sources, item: source},
        )
        for value in items
    ]


_LIST = "Loop over a list of values, or over an output that is one."


def _failure(spec: PipelineSpec, outcome: TaskOutcome) -> StepError:
    names = ", ".join(outcome.steps[-1:])
    error = StepError(outcome.reason or f"The pipeline '{spec.name}' failed at '{names}'.")
    if isinstance(outcome.error, EverloopError):
        error = StepError(outcome.error.message, help=outcome.error.help)
        error.__cause__ = outcome.error
    return error


def _job(spec: PipelineSpec, run: str, store: Store, folder: Path) -> dict[str, str]:
    now = store.now().strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "pipeline_job_name": f"{spec.name}-{run}",
        "pipeline_job_resource_name": f"{spec.name}-{run}",
        "pipeline_job_uuid": run,
        "pipeline_root": str(folder),
        "pipeline_job_create_time_utc": now,
        "pipeline_job_schedule_time_utc": now,
        "workspace_path": str(folder / "workspace"),
    }


def _packages_folder() -> Path:
    """Packages that components ask for are kept for the user, beside other programs' caches."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "everloop" / "kubeflow"


def _places() -> int:
    return max(2, min(os.cpu_count() or 2, _MOST_PROCESSES))
