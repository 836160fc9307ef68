"""Compiled pipelines of Kubeflow (pipeline IR, `PipelineSpec`): reading a file and checking that its parts fit.

A file is YAML (or JSON) with one document of the pipeline, and a second one of Kubernetes settings if it has any.
Source of the format: kubeflow/pipelines, api/v2alpha1/pipeline_spec.proto, schema version 2.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import MissingExtraError, NotFoundError, UsageError
from everloop.pipeline.unknown_names import nearest_names

if TYPE_CHECKING:
    from everloop.records import Json

Spec = dict[str, Any]
"""A message of the format as a dict, with the names that its JSON form has."""


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """A pipeline whose references have been checked: each task has a component, each component a DAG or an executor."""

    name: str
    root: Spec
    components: dict[str, Spec]
    executors: dict[str, Spec]
    default_root: str = ""
    """Where the pipeline says that artifacts go."""
    remarks: tuple[str, ...] = ()
    """Settings of the file that have no meaning on one machine."""

    def component(self, task: Spec) -> Spec:
        return self.components[task["componentRef"]["name"]]

    def executor(self, component: Spec) -> Spec:
        return self.executors[component["executorLabel"]]

    @property
    def parameters(self) -> dict[str, Spec]:
        """Name to definition of the parameters that a run can set."""
        return input_parameters(self.root)


def read_pipeline(path: Path | str) -> PipelineSpec:
    """Read a compiled pipeline.

    Raises:
        NotFoundError: there is no such file.
        UsageError: the file is not a compiled pipeline, or a part of it refers to something that it does not have.
        MissingExtraError: PyYAML is not installed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFoundError(
            f"There is no file '{path}'.", help="Give the path of a pipeline that kfp has compiled."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read '{path}': {error}.", help="Give the path of a compiled pipeline.") from error
    return parse_pipeline(text, str(path))


def parse_pipeline(text: str, source: str = "the text") -> PipelineSpec:
    """Parse the YAML of a compiled pipeline. Errors are those of `read_pipeline`; `source` names the text in them."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "Reading pipelines of Kubeflow needs PyYAML.", help="Install it with: pip install 'everloop[kfp]'"
        ) from error
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"'{source}' is not YAML: {error}", help="Compile the pipeline again with kfp.") from error
    return _check(documents, source)


def input_parameters(component: Spec) -> dict[str, Spec]:
    found: dict[str, Spec] = (component.get("inputDefinitions") or {}).get("parameters") or {}
    return found


def input_artifacts(component: Spec) -> dict[str, Spec]:
    found: dict[str, Spec] = (component.get("inputDefinitions") or {}).get("artifacts") or {}
    return found


def output_parameters(component: Spec) -> dict[str, Spec]:
    found: dict[str, Spec] = (component.get("outputDefinitions") or {}).get("parameters") or {}
    return found


def output_artifacts(component: Spec) -> dict[str, Spec]:
    found: dict[str, Spec] = (component.get("outputDefinitions") or {}).get("artifacts") or {}
    return found


def tasks_of(component: Spec) -> dict[str, Spec]:
    found: dict[str, Spec] = component["dag"].get("tasks") or {}
    return found


def producers_of(task: Spec) -> tuple[str, ...]:
    """Names of the tasks of the same DAG that a task depends on, or whose outputs it takes."""
    found: dict[str, None] = dict.fromkeys(task.get("dependentTasks") or ())
    inputs = task.get("inputs") or {}
    for one in (inputs.get("parameters") or {}).values():
        for kind in ("taskOutputParameter", "taskFinalStatus"):
            if kind in one:
                found[one[kind]["producerTask"]] = None
    for one in (inputs.get("artifacts") or {}).values():
        if "taskOutputArtifact" in one:
            found[one["taskOutputArtifact"]["producerTask"]] = None
    return tuple(found)


def _check(documents: list[Any], source: str) -> PipelineSpec:
    main = next((one for one in documents if isinstance(one, dict) and "root" in one), None)
    if main is None:
        raise UsageError(f"'{source}' is not a compiled pipeline: {_what_it_is(documents)}.", help=_HELP)
    if isinstance(main.get("pipelineSpec"), dict):
        main = main["pipelineSpec"]
    try:
        return _read(main, documents, source)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"'{source}' is not a compiled pipeline: it lacks a part, or a part has another form "
            f"({type(error).__name__}: {error}).",
            help=_HELP,
        ) from error


_HELP = "Compile the pipeline with: kfp dsl compile --py pipeline.py --output pipeline.yaml"


def _what_it_is(documents: list[Any]) -> str:
    kinds = [str(one["kind"]) for one in documents if isinstance(one, dict) and "kind" in one]
    if kinds:
        return f"it is a Kubernetes object of the kind {', '.join(kinds)}"
    if any(isinstance(one, dict) and "implementation" in one for one in documents):
        return "it is a component of kfp 1"
    return "it has no 'root'"


def _read(main: Spec, documents: list[Any], source: str) -> PipelineSpec:
    components: dict[str, Spec] = main.get("components") or {}
    executors: dict[str, Spec] = (main.get("deploymentSpec") or {}).get("executors") or {}
    root: Spec = main["root"]
    if "dag" not in root and "executorLabel" not in root:
        raise KeyError("root.dag")
    for owner, component in [("root", root), *components.items()]:
        if "dag" in component:
            _check_dag(owner, component, components, source)
        elif component.get("executorLabel") not in executors:
            raise UsageError(
                f"Component '{owner}' of '{source}' has the executor {component.get('executorLabel')!r}, "
                "which the file does not have.",
                help=nearest_names(str(component.get("executorLabel")), list(executors)) or _HELP,
            )
    remarks = []
    for document in documents:
        platforms = document.get("platforms") if isinstance(document, dict) else None
        if isinstance(platforms, Mapping):
            names = ", ".join(map(str, platforms))
            remarks.append(f"Settings for the platform {names} are left out: steps run as processes of this machine.")
    return PipelineSpec(
        name=str((main.get("pipelineInfo") or {}).get("name") or "pipeline"),
        root=root,
        components=components,
        executors=executors,
        default_root=str(main.get("defaultPipelineRoot") or ""),
        remarks=tuple(remarks),
    )


def _check_dag(owner: str, component: Spec, components: dict[str, Spec], source: str) -> None:
    tasks = tasks_of(component)
    for name, task in tasks.items():
        wanted = task["componentRef"]["name"]
        if wanted not in components:
            raise UsageError(
                f"Task '{name}' of '{owner}' in '{source}' has the component '{wanted}', which the file does not have.",
                help=nearest_names(wanted, list(components)) or _HELP,
            )
        for need in producers_of(task):
            if need not in tasks:
                raise UsageError(
                    f"Task '{name}' of '{owner}' in '{source}' needs the task '{need}', which is not in its DAG.",
                    help=nearest_names(need, list(tasks)) or _HELP,
                )
    _check_order(owner, tasks, source)


def _check_order(owner: str, tasks: dict[str, Spec], source: str) -> None:
    from graphlib import CycleError, TopologicalSorter

    try:
        TopologicalSorter({name: producers_of(task) for name, task in tasks.items()}).prepare()
    except CycleError as error:
        raise UsageError(
            f"Tasks of '{owner}' in '{source}' need each other: {' → '.join(error.args[1])}.", help=_HELP
        ) from error


def plain(value: Json) -> Json:
    """A value as JSON would carry it through a protobuf Struct: whole floats become integers."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value
