"""What flows between tasks: parameters, artifacts, and how a task ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from everloop.errors import UsageError
from everloop.integrations.kubeflow.parameter_values import convert, is_optional, type_of
from everloop.integrations.kubeflow.pipeline_spec import input_artifacts, input_parameters
from everloop.integrations.kubeflow.placeholders import fill_in_constant

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.pipeline.artifacts import Stored
    from everloop.records import Json

TaskState = Literal["succeeded", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class ArtifactValue:
    """An artifact on its way from task to task."""

    name: str
    type: Spec
    """`schemaTitle` and `schemaVersion`."""
    uri: str
    metadata: dict[str, Json] = field(default_factory=dict)
    stored: Stored | None = None
    """Its bytes in the store; None if they are elsewhere, at `uri`."""

    def to_runtime(self, uri: str | None = None) -> Spec:
        """The form in which components receive it."""
        return {"name": self.name, "type": self.type, "uri": uri or self.uri, "metadata": self.metadata}


@dataclass(frozen=True, slots=True)
class TaskInputs:
    """Parameter to value and artifact to its values. An artifact has one value, a list of artifacts any number."""

    parameters: dict[str, Json] = field(default_factory=dict)
    artifacts: dict[str, list[ArtifactValue]] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Input to the steps that its value comes from, for those that come from steps."""


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a task ended. Outputs that were not made are missing."""

    state: TaskState
    parameters: dict[str, Json] = field(default_factory=dict)
    artifacts: dict[str, list[ArtifactValue]] = field(default_factory=dict)
    reason: str = ""
    """Why it failed or was skipped."""
    error: BaseException | None = None
    steps: tuple[str, ...] = ()
    """The step records that its outputs come from."""


class MissingOutputError(Exception):
    """An input comes from an output that was not made."""


def resolve_inputs(
    name: str,
    task: Spec,
    component: Spec,
    scope: TaskInputs,
    done: Mapping[str, TaskOutcome],
    job: Mapping[str, str],
    *,
    item: str | None = None,
) -> TaskInputs:
    """The inputs of a task from those of its DAG and from the outcomes of other tasks, with defaults filled in.

    Args:
        item: the input that each iteration of a loop receives, which has no value yet.

    Raises:
        MissingOutputError: a needed input comes from an output that does not exist.
        UsageError: a needed input has no value, or a value does not fit its type.
    """
    inputs = task.get("inputs") or {}
    definitions = {key: one for key, one in input_parameters(component).items() if key != item}
    constants: dict[str, Json] = {}
    found: dict[str, Json] = {}
    for key, source in (inputs.get("parameters") or {}).items():
        if "runtimeValue" in source:
            constants[key] = _constant(source["runtimeValue"], scope)
            continue
        try:
            value = _parameter(source, scope, done, job)
        except MissingOutputError:
            if not is_optional(definitions.get(key, {})):
                raise
            continue
        if "parameterExpressionSelector" in source:
            value = _select(value, source["parameterExpressionSelector"], f"Input '{key}' of task '{name}'")
        found[key] = value
    texts = {**scope.parameters, **found}
    found |= {key: fill_in_constant(value, texts) for key, value in constants.items()}
    artifacts: dict[str, list[ArtifactValue]] = {}
    for key, source in (inputs.get("artifacts") or {}).items():
        try:
            artifacts[key] = _artifacts(source, scope, done)
        except MissingOutputError:
            if not input_artifacts(component).get(key, {}).get("isOptional"):
                raise
    sources = {
        key: steps
        for key, source in [*(inputs.get("parameters") or {}).items(), *(inputs.get("artifacts") or {}).items()]
        if (steps := _steps_of(source, scope, done))
    }
    return TaskInputs(complete(found, definitions, f"task '{name}'"), artifacts, sources)


def complete(values: Mapping[str, Json], definitions: Mapping[str, Spec], what: str) -> dict[str, Json]:
    """Values converted to their types, with defaults for those that are missing. Optional ones may stay missing.

    Raises:
        UsageError: a value is missing, or does not fit its type.
    """
    found: dict[str, Json] = {}
    for name, definition in definitions.items():
        value = values.get(name)
        if value is None:
            value = definition.get("defaultValue")
        if value is None:
            if not is_optional(definition):
                raise UsageError(
                    f"The parameter '{name}' of {what} has no value.", help=f"Set it with: --set {name}=VALUE"
                )
            continue
        found[name] = convert(value, type_of(definition), f"The parameter '{name}' of {what}")
    return found


def select_outputs(
    dag: Spec, done: Mapping[str, TaskOutcome]
) -> tuple[dict[str, Json], dict[str, list[ArtifactValue]]]:
    """The outputs of a DAG from the outcomes of its tasks. Outputs of tasks that did not run are missing."""
    outputs = dag.get("outputs") or {}
    parameters: dict[str, Json] = {}
    artifacts: dict[str, list[ArtifactValue]] = {}
    for name, source in (outputs.get("parameters") or {}).items():
        one_of = source.get("valueFromOneof") or source.get("valueFromOneOf")
        selectors = one_of["parameterSelectors"] if one_of else [source["valueFromParameter"]]
        for selector in selectors:
            made = done[selector["producerSubtask"]].parameters
            if selector["outputParameterKey"] in made:
                parameters[name] = made[selector["outputParameterKey"]]
                break
    for name, source in (outputs.get("artifacts") or {}).items():
        for selector in source.get("artifactSelectors") or ():
            values = done[selector["producerSubtask"]].artifacts
            if selector["outputArtifactKey"] in values:
                artifacts[name] = values[selector["outputArtifactKey"]]
                break
    return parameters, artifacts


def _steps_of(source: Spec, scope: TaskInputs, done: Mapping[str, TaskOutcome]) -> tuple[str, ...]:
    for kind in ("taskOutputParameter", "taskOutputArtifact", "taskFinalStatus"):
        if kind in source:
            return done[source[kind]["producerTask"]].steps
    name = source.get("componentInputParameter") or source.get("componentInputArtifact")
    return scope.sources.get(str(name), ())


def _constant(source: Spec, scope: TaskInputs) -> Json:
    if "runtimeParameter" in source:
        return scope.parameters.get(source["runtimeParameter"])
    constant = source.get("constant", source.get("constantValue"))
    if isinstance(constant, dict) and len(constant) == 1:
        # Old versions write the type around the value.
        ((key, value),) = constant.items()
        if key in ("stringValue", "intValue", "doubleValue"):
            return int(value) if key == "intValue" else value
    return constant


def _parameter(source: Spec, scope: TaskInputs, done: Mapping[str, TaskOutcome], job: Mapping[str, str]) -> Json:
    if "componentInputParameter" in source:
        return scope.parameters.get(source["componentInputParameter"])
    if "taskOutputParameter" in source:
        wanted = source["taskOutputParameter"]
        outcome = done[wanted["producerTask"]]
        if wanted["outputParameterKey"] not in outcome.parameters:
            raise MissingOutputError(_missing(wanted["producerTask"], wanted["outputParameterKey"], outcome))
        return outcome.parameters[wanted["outputParameterKey"]]
    if "taskFinalStatus" in source:
        producer = source["taskFinalStatus"]["producerTask"]
        return final_status(producer, done[producer], job)
    raise UsageError(
        f"An input comes from {', '.join(source)}, which is not supported.", help="Compile the pipeline again with kfp."
    )


def final_status(name: str, outcome: TaskOutcome, job: Mapping[str, str]) -> Spec:
    """What an exit handler receives about the task that it handles."""
    status: dict[str, Any] = {
        "state": "FAILED" if outcome.state == "failed" else "SUCCEEDED",
        "pipelineJobResourceName": job.get("pipeline_job_resource_name", ""),
        "pipelineTaskName": name,
        "error": {},
    }
    if outcome.state == "failed":
        status["error"] = {"code": 9, "message": outcome.reason}
    return status


def _artifacts(source: Spec, scope: TaskInputs, done: Mapping[str, TaskOutcome]) -> list[ArtifactValue]:
    if "componentInputArtifact" in source:
        name = source["componentInputArtifact"]
        if name not in scope.artifacts:
            raise MissingOutputError(f"the artifact '{name}' was not passed")
        return scope.artifacts[name]
    wanted = source["taskOutputArtifact"]
    outcome = done[wanted["producerTask"]]
    if wanted["outputArtifactKey"] not in outcome.artifacts:
        raise MissingOutputError(_missing(wanted["producerTask"], wanted["outputArtifactKey"], outcome))
    return outcome.artifacts[wanted["outputArtifactKey"]]


def _missing(task: str, key: str, outcome: TaskOutcome) -> str:
    ended = {"skipped": "was skipped", "failed": "failed", "succeeded": "did not make it"}[outcome.state]
    return f"'{task}' {ended}, so there is no '{key}'"


def _select(value: Json, expression: str, what: str) -> Json:
    """The part of a value that an expression such as `parseJson(string_value)["a"]` selects."""
    import json
    import re

    head = "parseJson(string_value)"
    keys = re.findall(r"""\[\s*(?:"((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|(\d+))\s*\]""", expression)
    rest = expression.removeprefix(head)
    if not expression.startswith(head) or re.sub(
        r"""\[\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\d+)\s*\]""", "", rest
    ):
        raise UsageError(f"{what} selects '{expression}', which is not supported.", help="Select with a key.")
    try:
        found = json.loads(value) if isinstance(value, str) else value
        for double, single, number in keys:
            found = found[int(number) if number else double or single]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"{what} selects '{expression}' of {value!r}, which does not have it.", help="Pass a value with that key."
        ) from error
    return found
