"""Placeholders in commands, arguments, variables and constants of a compiled pipeline.

    {{$.inputs.parameters['x']}}   {{$.outputs.artifacts['model'].path}}   {{$.json_escape[1]}}   {{$}}
    {"Concat": ["a", …]}           {"IfPresent": {"InputName": "x", "Then": …, "Else": …}}

Source: kubeflow/pipelines, kfp/dsl/placeholders.py and pipeline_spec.proto.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.integrations.kubeflow.parameter_values import as_text

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.records import Json

_PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}", re.DOTALL)
_ESCAPED = re.compile(r"^\.json_escape\[(\d+)\]$")
_PARAMETER = re.compile(r"""^\.(inputs|outputs)\.parameters\[(['"])(.+?)\2\](\.output_file)?$""")
_ARTIFACT = re.compile(
    r"""^\.(inputs|outputs)\.artifacts\[(['"])(.+?)\2\]\.(uri|path|value|name|metadata)(?:\[(['"])(.+?)\5\])?$"""
)
_JOB = re.compile(r"^\.([a-z_]+)$")


@dataclass(frozen=True, slots=True)
class PlaceholderValues:
    """What placeholders of one task stand for."""

    executor_input: Spec
    """`{"inputs": {"parameterValues", "artifacts"}, "outputs": {"parameters", "artifacts", "outputFile"}}`."""
    job: Mapping[str, str] = field(default_factory=dict)
    """Name to text of the values of the run, such as `pipeline_job_name`."""


def fill_in(text: str, values: PlaceholderValues) -> str:
    """A text with its placeholders replaced.

    Raises:
        UsageError: a placeholder names something that the task does not have, or is not known.
    """
    return _PLACEHOLDER.sub(lambda found: _resolve(found[1].strip(), values), text)


def fill_in_words(words: list[Any], values: PlaceholderValues) -> list[str]:
    """The words of a command or its arguments. Optional words that do not apply are left out."""
    found: list[str] = []
    for word in words:
        found += _word(word, values)
    return found


def fill_in_constant(value: Json, parameters: Mapping[str, Json]) -> Json:
    """A constant input. Texts inside may refer to other inputs of the same task."""
    if isinstance(value, str):
        if "{{$" not in value:
            return value
        values = PlaceholderValues({"inputs": {"parameterValues": dict(parameters)}})
        return _PLACEHOLDER.sub(lambda found: _constant_part(found, values), value)
    if isinstance(value, list):
        return [fill_in_constant(one, parameters) for one in value]
    if isinstance(value, dict):
        return {key: fill_in_constant(one, parameters) for key, one in value.items()}
    return value


def _constant_part(found: re.Match[str], values: PlaceholderValues) -> str:
    # Names of the run, such as `{{$.pipeline_job_name}}`, are replaced where the task's command is made.
    return _resolve(found[1], values) if found[1].startswith(".inputs") else found[0]


def _word(word: Any, values: PlaceholderValues) -> list[str]:
    if isinstance(word, str):
        structure = _structure(word)
        if structure is None:
            return [fill_in(word, values)]
        word = structure
    if isinstance(word, list):
        return [text for one in word for text in _word(one, values)]
    if not isinstance(word, dict):
        return [as_text(word)]
    if "Concat" in word:
        return ["".join(text for one in word["Concat"] for text in _word(one, values))]
    if "IfPresent" in word:
        choice = word["IfPresent"]
        part = choice.get("Then") if _is_present(choice["InputName"], values) else choice.get("Else")
        return [] if part is None else _word(part, values)
    return [fill_in(json.dumps(word), values)]


def _structure(word: str) -> Any:
    """`Concat` and `IfPresent` are JSON in a text."""
    if not word.startswith(('{"Concat"', '{"IfPresent"')):
        return None
    try:
        return json.loads(word)
    except ValueError:
        return None


def _is_present(name: str, values: PlaceholderValues) -> bool:
    inputs = values.executor_input.get("inputs") or {}
    return (inputs.get("parameterValues") or {}).get(name) is not None or name in (inputs.get("artifacts") or {})


def _resolve(path: str, values: PlaceholderValues) -> str:
    if path == "":
        return json.dumps(values.executor_input)
    if match := _ESCAPED.match(path):
        text = json.dumps(values.executor_input)
        for _ in range(min(int(match[1]), 8)):
            text = json.dumps(text)[1:-1]
        return text
    if match := _PARAMETER.match(path):
        return _parameter(match[1], match[3], values, path)
    if match := _ARTIFACT.match(path):
        return _artifact(match, values)
    if (match := _JOB.match(path)) and match[1] in values.job:
        return values.job[match[1]]
    raise UsageError(
        f"The placeholder '{{{{${path}}}}}' is not known.",
        help="A task can use its inputs, its outputs, and names of the run such as {{$.pipeline_job_name}}.",
    )


def _parameter(side: str, name: str, values: PlaceholderValues, path: str) -> str:
    executor_input = values.executor_input
    if side == "inputs":
        found = (executor_input.get("inputs") or {}).get("parameterValues") or {}
        if name not in found:
            raise UsageError(
                f"The placeholder '{{{{${path}}}}}' names an input that has no value.",
                help=f"Set the parameter '{name}', or give it a default.",
            )
        return as_text(found[name])
    outputs = (executor_input.get("outputs") or {}).get("parameters") or {}
    if name not in outputs:
        raise UsageError(f"The task has no output parameter '{name}'.", help=f"It has: {', '.join(outputs) or 'none'}")
    return str(outputs[name]["outputFile"])


def _artifact(match: re.Match[str], values: PlaceholderValues) -> str:
    side, name, what, key = match[1], match[3], match[4], match[6]
    artifacts = (values.executor_input.get(side) or {}).get("artifacts") or {}
    found = (artifacts.get(name) or {}).get("artifacts") or []
    if not found:
        raise UsageError(
            f"The task's {side} have no artifact '{name}'.", help=f"They have: {', '.join(artifacts) or 'none'}"
        )
    artifact = found[0]
    if what == "metadata":
        metadata = artifact.get("metadata") or {}
        if key is None:
            return json.dumps(metadata)
        if key not in metadata:
            raise UsageError(
                f"The artifact '{name}' has no metadata '{key}'.", help=f"It has: {', '.join(metadata) or 'none'}"
            )
        return as_text(metadata[key])
    if what == "value":
        from pathlib import Path

        return Path(local_path(artifact["uri"])).read_text(encoding="utf-8")
    if what == "name":
        return str(artifact.get("name", name))
    return local_path(artifact["uri"]) if what == "path" else str(artifact["uri"])


def local_path(uri: str) -> str:
    """Where a component looks for the file of a URI: remote stores appear below `/gcs`, `/minio` and `/s3`."""
    for scheme, folder in (("gs://", "/gcs/"), ("minio://", "/minio/"), ("s3://", "/s3/")):
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return uri.removeprefix("file://")
