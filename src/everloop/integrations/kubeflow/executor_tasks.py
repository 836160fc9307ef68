"""One task that has an executor: a container or an importer, from its inputs to its outputs."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError, StepError, UsageError
from everloop.integrations.kubeflow.component_process import ContainerTask, run_container
from everloop.integrations.kubeflow.parameter_values import as_text, convert, type_of
from everloop.integrations.kubeflow.pipeline_spec import (
    output_artifacts,
    output_parameters,
    plain,
)
from everloop.integrations.kubeflow.placeholders import PlaceholderValues, fill_in, fill_in_constant
from everloop.integrations.kubeflow.task_recorder import TaskRecorder, is_remote
from everloop.integrations.kubeflow.task_values import ArtifactValue, TaskInputs, TaskOutcome
from everloop.pipeline import fingerprint as fp
from everloop.pipeline.artifacts import load_value

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import PipelineSpec, Spec

_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What all tasks of a run share."""

    folder: Path
    """Where tasks have their folders."""
    packages: Path
    job: dict[str, str]
    """Name to text of the placeholders of the run."""
    places: threading.Semaphore
    """Limits how many processes run at the same time."""
    stop: threading.Event = field(default_factory=threading.Event)
    cache: bool = True


def run_executor_task(
    name: str,
    task: Spec,
    component: Spec,
    spec: PipelineSpec,
    inputs: TaskInputs,
    needs: tuple[str, ...],
    recorder: TaskRecorder,
    settings: TaskSettings,
) -> TaskOutcome:
    """Run a task, or take its result from the cache, and record it.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    executor = spec.executor(component)
    cached = settings.cache and bool((task.get("cachingOptions") or {}).get("enableCache"))
    parts = recorder.parts(executor, component, inputs)
    if cached and "importer" not in executor:
        found = recorder.find(name, parts, inputs, needs)
        if found is not None:
            return found
    reason = fp.FIRST_RUN if cached else fp.NOT_CACHED
    recorder.listener.on_start(name, reason)
    began = time.perf_counter()
    policy = task.get("retryPolicy") or {}
    tries = 1 + int(policy.get("maxRetryCount") or 0)
    for attempt in range(1, tries + 1):
        try:
            with settings.places:
                parameters, made = _run_once(name, executor, component, inputs, recorder, settings, attempt)
        except KeyboardInterrupt:
            recorder.end(name, "interrupted", reason, parts=parts, inputs=inputs, needs=needs, attempts=attempt)
            raise
        except (EverloopError, OSError) as error:
            if attempt < tries and not isinstance(error, UsageError):
                wait_s = _wait_s(policy, attempt)
                recorder.listener.on_retry(name, error, wait_s)
                settings.stop.wait(wait_s)
                continue
            seconds = time.perf_counter() - began
            recorder.end(
                name,
                "failed",
                reason,
                parts=parts,
                inputs=inputs,
                needs=needs,
                error=str(error),
                attempts=attempt,
                seconds=seconds,
            )
            return TaskOutcome("failed", reason=str(error), error=error, steps=(name,))
        return recorder.succeed(
            name,
            parts,
            inputs,
            needs,
            parameters,
            made,
            reason=reason,
            attempts=attempt,
            seconds=time.perf_counter() - began,
        )
    raise AssertionError("a task has at least one attempt")


def _run_once(
    name: str,
    executor: Spec,
    component: Spec,
    inputs: TaskInputs,
    recorder: TaskRecorder,
    settings: TaskSettings,
    attempt: int,
) -> tuple[dict[str, Any], dict[str, ArtifactValue]]:
    if "importer" in executor:
        return {}, _import(name, executor["importer"], component, inputs)
    if "container" not in executor:
        kind = ", ".join(executor) or "nothing"
        raise StepError(
            f"Task '{name}' is run by {kind}, which needs its own platform.", help="Run the pipeline on that platform."
        )
    folder = settings.folder.joinpath(*_folder_names(name), f"attempt-{attempt}")
    folder.mkdir(parents=True)
    executor_input = _executor_input(component, inputs, folder, recorder)
    job = {
        **settings.job,
        "pipeline_task_name": name.rpartition("/")[2],
        "pipeline_task_uuid": f"{settings.job['pipeline_job_uuid']}-{name}",
        "outputs.output_file": executor_input["outputs"]["outputFile"],
    }
    values = PlaceholderValues(executor_input, job)
    given = executor_input["inputs"]["parameterValues"]
    executor_input["inputs"]["parameterValues"] = {
        key: fill_in(value, values) if isinstance(value, str) and "{{$.pipeline" in value else value
        for key, value in given.items()
    }
    run_container(ContainerTask(name, executor["container"], values, folder, settings.packages, settings.stop))
    return _collect(name, component, executor_input)


def _executor_input(component: Spec, inputs: TaskInputs, folder: Path, recorder: TaskRecorder) -> Spec:
    artifacts = {}
    for key, values in inputs.artifacts.items():
        found = []
        for value in values:
            uri = value.uri
            if value.stored is not None and not (uri and Path(uri).exists()):
                uri = str(load_value(value.stored, recorder.store.objects))
            elif not uri:
                # It consists of metadata only.
                uri = str(folder / "inputs" / key)
            found.append(value.to_runtime(uri))
        artifacts[key] = {"artifacts": found}
    made = {}
    for key, definition in output_artifacts(component).items():
        kind = definition.get("artifactType") or {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
        path = folder / "outputs" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        made[key] = {"artifacts": [{"name": key, "type": kind, "uri": str(path), "metadata": {}}]}
    outputs = {key: {"outputFile": str(folder / "parameters" / key)} for key in output_parameters(component)}
    (folder / "parameters").mkdir()
    return {
        "inputs": {"parameterValues": dict(inputs.parameters), "artifacts": artifacts},
        "outputs": {
            "parameters": outputs,
            "artifacts": made,
            "outputFile": str(folder / "executor_output.json"),
        },
    }


def _collect(name: str, component: Spec, executor_input: Spec) -> tuple[dict[str, Any], dict[str, ArtifactValue]]:
    """What a process has written: its output file, the files of its parameters, and its artifacts."""
    outputs = executor_input["outputs"]
    written = _output_file(name, Path(outputs["outputFile"]))
    values = written.get("parameterValues") or {}
    definitions = output_parameters(component)
    parameters: dict[str, Any] = {}
    for key, definition in definitions.items():
        path = Path(outputs["parameters"][key]["outputFile"])
        value = values.get(key)
        if value is None and path.is_file():
            value = path.read_text(encoding="utf-8")
        if value is None:
            continue
        try:
            parameters[key] = convert(value, type_of(definition), f"The output '{key}' of task '{name}'")
        except UsageError as error:
            raise StepError(str(error), help="Change what the component writes, or the type of its output.") from error
    made: dict[str, ArtifactValue] = {}
    for key, declared in outputs["artifacts"].items():
        first = declared["artifacts"][0]
        found = ((written.get("artifacts") or {}).get(key) or {}).get("artifacts") or [{}]
        merged = {**first, **{field: one for field, one in found[0].items() if one}}
        uri = str(merged.get("custom_path") or merged["uri"])
        metadata = {str(field): plain(one) for field, one in (merged.get("metadata") or {}).items()}
        made[key] = ArtifactValue(str(merged["name"]), first["type"], uri.removeprefix("file://"), metadata)
    return parameters, made


def _output_file(name: str, path: Path) -> Spec:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StepError(
            f"Task '{name}' wrote an output file that is not JSON: {error}.", help="Let kfp's executor write it."
        ) from error
    if not isinstance(found, dict):
        raise StepError(
            f"Task '{name}' wrote an output file that is not an object.", help="Let kfp's executor write it."
        )
    return found


def _import(name: str, importer: Spec, component: Spec, inputs: TaskInputs) -> dict[str, ArtifactValue]:
    source = importer.get("artifactUri") or {}
    uri = inputs.parameters.get(source["runtimeParameter"]) if "runtimeParameter" in source else source.get("constant")
    if not isinstance(uri, str) or not uri:
        raise StepError(f"Importer '{name}' has no URI: {uri!r}.", help="Pass a path or URI as text.")
    texts = {**inputs.parameters}
    values = PlaceholderValues({"inputs": {"parameterValues": texts}})
    uri = fill_in(uri, values).removeprefix("file://")
    metadata = _import_metadata(importer.get("metadata") or {}, inputs)
    key, definition = next(iter(output_artifacts(component).items()))
    kind = definition.get("artifactType") or importer.get("typeSchema") or {"schemaTitle": "system.Artifact"}
    if not is_remote(uri):
        path = Path(uri).expanduser()
        if not path.exists():
            raise StepError(f"Importer '{name}' cannot find '{uri}'.", help="Pass the path of a file or folder.")
        uri = str(path.absolute())
    return {key: ArtifactValue(key, kind, uri, metadata)}


def _import_metadata(metadata: Spec, inputs: TaskInputs) -> dict[str, Any]:
    found = {}
    for key, value in metadata.items():
        name = as_text(fill_in_constant(key, inputs.parameters))
        found[name] = plain(fill_in_constant(value, inputs.parameters))
    return found


def _wait_s(policy: Spec, attempt: int) -> float:
    """Seconds before the next attempt: the wait grows by a factor, up to a maximum."""
    first = _seconds(policy.get("backoffDuration"), 0.0)
    factor = float(policy.get("backoffFactor") or 2.0)
    longest = _seconds(policy.get("backoffMaxDuration"), 3600.0)
    return float(min(first * factor ** (attempt - 1), longest, _LONGEST_WAIT_S))


def _seconds(text: Any, default: float) -> float:
    try:
        return float(str(text).removesuffix("s")) if text else default
    except ValueError:
        return default


def _folder_names(name: str) -> list[str]:
    """A task's name as folder names. Names in a pipeline's file are not paths, so they must not lead elsewhere."""
    return ["".join(c if c.isalnum() or c in "-_[]" else "_" for c in part) or "_" for part in name.split("/")]
