"""Runs one lightweight Python component in a process of its own: `python -m …component_runtime ORDER.json`.

The order holds the component's source file, the name of its function and its executor input. The component's results
are written to the output file that the executor input names. Needs the standard library only, and no kfp.
Source of the protocol: kubeflow/pipelines, kfp/dsl/executor.py.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

from everloop.integrations.kubeflow import dsl_stand_in as dsl


class ComponentCall:
    """One call of a component's function."""

    def __init__(self, function: Any, executor_input: dict[str, Any]) -> None:
        self.function = function
        inputs, outputs = executor_input.get("inputs") or {}, executor_input.get("outputs") or {}
        self.parameters: dict[str, Any] = inputs.get("parameterValues") or {}
        self.output_parameters: dict[str, Any] = outputs.get("parameters") or {}
        self.output_file = str(outputs["outputFile"])
        self.annotations = _annotations(function)
        self.artifacts = {
            name: [_artifact(one, name, _item_class(self.annotations.get(name))) for one in found["artifacts"]]
            for name, found in (inputs.get("artifacts") or {}).items()
        }
        self.made = {
            name: _artifact(found["artifacts"][0], name, _item_class(self.annotations.get(name)))
            for name, found in (outputs.get("artifacts") or {}).items()
            if found["artifacts"]
        }
        self.values: dict[str, Any] = {}

    def run(self) -> None:
        for artifact in self.made.values():
            Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
        arguments = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            found, value = self._argument(name, self.annotations.get(name))
            if found:
                arguments[name] = value
            elif parameter.default is parameter.empty:
                arguments[name] = None
        result = self.function(**arguments)
        if result is not None:
            self._take_result(result)
        self._write()

    def _argument(self, name: str, annotation: Any) -> tuple[bool, Any]:
        annotation = _without_none(annotation)
        role = _role(annotation)
        if isinstance(annotation, dsl.OutputPath):
            path = self.made[name].path if name in self.made else self.output_parameters[name]["outputFile"]
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return True, path
        if isinstance(annotation, dsl.InputPath):
            return name in self.artifacts, self.artifacts[name][0].path if name in self.artifacts else None
        if role == "output":
            return True, self.made[name]
        if role == "embedded":
            return True, self._embedded(annotation)
        if name in self.artifacts:
            artifacts = self.artifacts[name]
            return True, artifacts if _is_list(annotation) else artifacts[0] if artifacts else None
        if name not in self.parameters:
            return False, None
        value = self.parameters[name]
        if annotation is dsl.PipelineTaskFinalStatus:
            error = value.get("error") or {}
            value = dsl.PipelineTaskFinalStatus(
                value.get("state"),
                value.get("pipelineJobResourceName"),
                value.get("pipelineTaskName"),
                error.get("code"),
                error.get("message"),
            )
        elif annotation is dsl.TaskConfig:
            value = dsl.TaskConfig()
        elif annotation is int and isinstance(value, float):
            value = int(value)
        elif annotation is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        return True, value

    def _embedded(self, annotation: Any) -> Any:
        scope = self.function.__globals__
        path = scope.get("__KFP_EMBEDDED_ASSET_FILE") or scope.get("__KFP_EMBEDDED_ASSET_DIR")
        if path is None:
            raise RuntimeError("The component's source holds no embedded files.")
        cls = typing.get_args(annotation)[0]
        artifact = (
            cls() if isinstance(cls, type) and issubclass(cls, dsl.ComponentArtifact) else dsl.ComponentArtifact()
        )
        artifact.uri = str(path)
        return artifact

    def _take_result(self, result: Any) -> None:
        annotation = _without_none(self.annotations.get("return"))
        fields = getattr(annotation, "_fields", None)
        if fields is None:
            self._take("Output", annotation, result)
            return
        values = list(result) if isinstance(result, tuple) else [getattr(result, name) for name in fields]
        if len(values) != len(fields):
            raise RuntimeError(
                f"'{self.function.__name__}' returned {len(values)} values; its annotation has {len(fields)}."
            )
        declared = _annotations(annotation)
        for name, value in zip(fields, values, strict=True):
            self._take(name, declared.get(name), value)

    def _take(self, name: str, annotation: Any, value: Any) -> None:
        if name in self.made:
            if isinstance(value, dsl.ComponentArtifact):
                value.name = value.name or self.made[name].name
                self.made[name] = value
            elif isinstance(value, list) and all(isinstance(one, dsl.ComponentArtifact) for one in value):
                raise RuntimeError(f"'{name}': a component cannot return a list of artifacts.")
            else:
                Path(self.made[name].path).write_text(value if isinstance(value, str) else json.dumps(value))
            return
        expected = typing.get_origin(annotation) or annotation
        if expected is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(expected, type) and expected in (int, float, str, bool) and not isinstance(value, expected):
            raise ValueError(
                f"Function '{self.function.__name__}' returned a value of the type {type(value).__name__} for "
                f"'{name}'; its annotation says {expected.__name__}."
            )
        self.values[name] = value

    def _write(self) -> None:
        output: dict[str, Any] = {"parameterValues": self.values, "artifacts": {}}
        for name, artifact in self.made.items():
            written = {"name": artifact.name, "uri": artifact.uri, "metadata": artifact.metadata}
            if getattr(artifact, "custom_path", None):
                written["custom_path"] = artifact.custom_path
            output["artifacts"][name] = {"artifacts": [written]}
        Path(self.output_file).parent.mkdir(parents=True, exist_ok=True)
        Path(self.output_file).write_text(json.dumps(output), encoding="utf-8")


def main(arguments: list[str]) -> None:
    order = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    dsl.install(order["folder"])
    sys.path.insert(0, str(Path(order["source"]).parent))
    spec = importlib.util.spec_from_file_location(Path(order["source"]).stem, order["source"])
    if spec is None or spec.loader is None:
        raise RuntimeError(f"Cannot load '{order['source']}'.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    ComponentCall(getattr(module, order["function"]), order["executor_input"]).run()


def _annotations(function: Any) -> dict[str, Any]:
    found = dict(getattr(function, "__annotations__", {}))
    scope = getattr(function, "__globals__", {})
    # The code is the component's own; its annotations are texts under `from __future__ import annotations`.
    return {name: eval(one, scope) if isinstance(one, str) else one for name, one in found.items()}  # noqa: S307


def _without_none(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    if type(None) in arguments:
        rest = [one for one in arguments if one is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _role(annotation: Any) -> str | None:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, dsl.Marker):
            return mark.role
    return None


def _is_list(annotation: Any) -> bool:
    inner = typing.get_args(annotation)[0] if _role(annotation) else annotation
    return typing.get_origin(inner) is list or inner is list


def _item_class(annotation: Any) -> Any:
    annotation = _without_none(annotation)
    if _role(annotation):
        annotation = typing.get_args(annotation)[0]
    while typing.get_origin(annotation) is list:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _artifact(found: dict[str, Any], name: str, declared: Any) -> Any:
    title = (found.get("type") or {}).get("schemaTitle", "")
    cls: Any = dsl.ARTIFACT_CLASSES.get(title)
    if cls is None or cls is dsl.ComponentArtifact:
        # A custom type of the component's own code may be built without arguments of another kind.
        cls = declared if isinstance(declared, type) and hasattr(declared, "schema_title") else dsl.ComponentArtifact
    artifact = cls(found.get("name", name), found.get("uri", ""), dict(found.get("metadata") or {}))
    if not hasattr(artifact, "path"):
        artifact.path = found.get("uri", "")
    return artifact


if __name__ == "__main__":
    main(sys.argv[1:])
