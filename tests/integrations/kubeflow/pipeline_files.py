"""Small compiled pipelines for tests, written in the form that kfp's compiler writes."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

LAUNCH = (
    'program_path=$(mktemp -d)\n\nprintf "%s" "$0" > "$program_path/ephemeral_component.py"\n'
    "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main "
    '--component_module_path "$program_path/ephemeral_component.py" "$@"\n'
)
PRELUDE = "\nimport kfp\nfrom kfp import dsl\nfrom kfp.dsl import *\nfrom typing import *\n\n"


def python_executor(source: str, function: str) -> dict[str, Any]:
    """The container of a lightweight component."""
    return {
        "container": {
            "image": "python:3.11",
            "command": ["sh", "-ec", LAUNCH, PRELUDE + textwrap.dedent(source)],
            "args": ["--executor_input", "{{$}}", "--function_to_execute", function],
        }
    }


def definitions(parameters: dict[str, Any] | None = None, artifacts: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if parameters:
        found["parameters"] = {
            name: one if isinstance(one, dict) else {"parameterType": one} for name, one in parameters.items()
        }
    if artifacts:
        found["artifacts"] = {
            name: {"artifactType": {"schemaTitle": kind, "schemaVersion": "0.0.1"}} for name, kind in artifacts.items()
        }
    return found


def component(name: str, inputs: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "executorLabel": f"exec-{name}",
        "inputDefinitions": inputs or {},
        "outputDefinitions": outputs or {},
    }


def task(name: str, *, needs: tuple[str, ...] = (), cache: bool = True, **inputs: Any) -> dict[str, Any]:
    """A task; an input is a constant, or a dict that is a source."""
    parameters, artifacts = {}, {}
    for key, value in inputs.items():
        if isinstance(value, dict) and set(value) & {"taskOutputArtifact", "componentInputArtifact"}:
            artifacts[key] = value
        else:
            parameters[key] = value if isinstance(value, dict) else {"runtimeValue": {"constant": value}}
    found: dict[str, Any] = {"componentRef": {"name": f"comp-{name}"}, "taskInfo": {"name": name}}
    if parameters or artifacts:
        found["inputs"] = {"parameters": parameters, "artifacts": artifacts}
    if needs:
        found["dependentTasks"] = list(needs)
    if cache:
        found["cachingOptions"] = {"enableCache": True}
    return found


def output_of(producer: str, key: str = "Output") -> dict[str, Any]:
    return {"taskOutputParameter": {"producerTask": producer, "outputParameterKey": key}}


def artifact_of(producer: str, key: str) -> dict[str, Any]:
    return {"taskOutputArtifact": {"producerTask": producer, "outputArtifactKey": key}}


def input_of(name: str) -> dict[str, Any]:
    return {"componentInputParameter": name}


def pipeline(
    tasks: dict[str, Any],
    components: dict[str, Any],
    executors: dict[str, Any],
    *,
    inputs: dict[str, Any] | None = None,
    outputs: dict[str, tuple[str, str]] | None = None,
) -> str:
    """The YAML of a pipeline. `outputs` maps an output to the task and key that it comes from."""
    dag: dict[str, Any] = {"tasks": tasks}
    root: dict[str, Any] = {"dag": dag}
    if inputs:
        root["inputDefinitions"] = inputs
    if outputs:
        dag["outputs"] = {
            "parameters": {
                name: {"valueFromParameter": {"producerSubtask": producer, "outputParameterKey": key}}
                for name, (producer, key) in outputs.items()
            }
        }
    return yaml.safe_dump(
        {
            "pipelineInfo": {"name": "small"},
            "root": root,
            "components": {f"comp-{name}": one for name, one in components.items()},
            "deploymentSpec": {"executors": {f"exec-{name}": one for name, one in executors.items()}},
            "schemaVersion": "2.1.0",
            "sdkVersion": "kfp-2.14.3",
        }
    )
