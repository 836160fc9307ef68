"""What the code of lightweight components imports from `kfp` and `kfp.dsl`, for interpreters that do not have kfp.

Artifacts, annotations of inputs and outputs, and the names of placeholders. Declaring pipelines needs kfp itself.
Source of names and fields: kubeflow/pipelines, kfp/dsl/types/artifact_types.py and type_annotations.py.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

T = TypeVar("T")
_PREFIXES = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}


class ComponentArtifact:
    """A file or folder with metadata. `path` is where it is on this machine."""

    schema_title = "system.Artifact"
    schema_version = "0.0.1"

    def __init__(self, name: str | None = None, uri: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        self.name = name or ""
        self.uri = uri or ""
        self.metadata = metadata or {}
        self.custom_path: str | None = None

    @property
    def path(self) -> str:
        if self.custom_path:
            return self.custom_path
        for scheme, folder in _PREFIXES.items():
            if self.uri.startswith(scheme):
                return folder + self.uri.removeprefix(scheme)
        return self.uri

    @path.setter
    def path(self, path: str) -> None:
        for scheme, folder in _PREFIXES.items():
            if path.startswith(folder):
                path = scheme + path.removeprefix(folder)
        self.uri = path


class ComponentDataset(ComponentArtifact):
    schema_title = "system.Dataset"


class ComponentModel(ComponentArtifact):
    schema_title = "system.Model"

    @property
    def framework(self) -> str:
        return str(self.metadata.get("framework", ""))

    @framework.setter
    def framework(self, framework: str) -> None:
        self.metadata["framework"] = framework


class HTML(ComponentArtifact):
    schema_title = "system.HTML"


class Markdown(ComponentArtifact):
    schema_title = "system.Markdown"


class ComponentMetrics(ComponentArtifact):
    schema_title = "system.Metrics"

    def log_metric(self, metric: str, value: float) -> None:
        self.metadata[metric] = value


class ClassificationMetrics(ComponentArtifact):
    """Confidence metrics and a confusion matrix, as lists in the metadata."""

    schema_title = "system.ClassificationMetrics"

    def log_roc_data_point(self, fpr: float, tpr: float, threshold: float) -> None:
        point = {"confidenceThreshold": threshold, "recall": tpr, "falsePositiveRate": fpr}
        self.metadata.setdefault("confidenceMetrics", []).append(point)

    def log_roc_curve(self, fpr: list[float], tpr: list[float], threshold: list[float]) -> None:
        if not len(fpr) == len(tpr) == len(threshold):
            raise ValueError(
                f"Length of fpr, tpr and threshold must be the same. Got lengths {len(fpr)}, {len(tpr)} and "
                f"{len(threshold)} respectively."
            )
        for point in zip(fpr, tpr, threshold, strict=True):
            self.log_roc_data_point(*point)

    def set_confusion_matrix_categories(self, categories: list[str]) -> None:
        rows = [{"row": [0] * len(categories)} for _ in categories]
        specs = [{"displayName": name} for name in categories]
        self.metadata["confusionMatrix"] = {"annotationSpecs": specs, "rows": rows}

    def log_confusion_matrix_row(self, row_category: str, row: list[float]) -> None:
        if len(row) != len(self._categories()):
            raise ValueError(f"Invalid row. Expected size: {len(self._categories())}. Got: {len(row)}.")
        self.metadata["confusionMatrix"]["rows"][self._index(row_category)] = {"row": list(row)}

    def log_confusion_matrix_cell(self, row_category: str, col_category: str, value: int) -> None:
        row = self.metadata["confusionMatrix"]["rows"][self._index(row_category)]["row"]
        row[self._index(col_category)] = value

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[float]]) -> None:
        self.set_confusion_matrix_categories(categories)
        if len(matrix) != len(categories):
            raise ValueError(f"Invalid matrix: {matrix}. The number of rows must be {len(categories)}.")
        for name, row in zip(categories, matrix, strict=True):
            self.log_confusion_matrix_row(name, row)

    def _categories(self) -> list[str]:
        return [spec["displayName"] for spec in self.metadata["confusionMatrix"]["annotationSpecs"]]

    def _index(self, category: str) -> int:
        if category not in self._categories():
            raise ValueError(f"Invalid category: {category}. Expected one of: {self._categories()}.")
        return self._categories().index(category)


class SlicedClassificationMetrics(ComponentArtifact):
    schema_title = "system.SlicedClassificationMetrics"

    def load_roc_readings(self, slice: str, readings: list[list[float]]) -> None:
        for reading in readings:
            self._slice(slice).log_roc_data_point(*reading)

    def log_roc_reading(self, slice: str, threshold: float, tpr: float, fpr: float) -> None:
        self._slice(slice).log_roc_data_point(fpr, tpr, threshold)

    def set_confusion_matrix_categories(self, slice: str, categories: list[str]) -> None:
        self._slice(slice).set_confusion_matrix_categories(categories)

    def log_confusion_matrix_row(self, slice: str, row_category: str, row: list[float]) -> None:
        self._slice(slice).log_confusion_matrix_row(row_category, row)

    def log_confusion_matrix_cell(self, slice: str, row_category: str, col_category: str, value: int) -> None:
        self._slice(slice).log_confusion_matrix_cell(row_category, col_category, value)

    def load_confusion_matrix(self, slice: str, categories: list[str], matrix: list[list[float]]) -> None:
        self._slice(slice).log_confusion_matrix(categories, matrix)

    def _slice(self, name: str) -> ClassificationMetrics:
        slices: list[dict[str, Any]] = self.metadata.setdefault("evaluationSlices", [])
        found = next((one for one in slices if one["slice"] == name), None)
        if found is None:
            found = {"slice": name, "sliceClassificationMetrics": {}}
            slices.append(found)
        return ClassificationMetrics(metadata=found["sliceClassificationMetrics"] or _shared(found))


def _shared(found: dict[str, Any]) -> dict[str, Any]:
    # An empty dict would be replaced by the artifact's own, so it gets an entry that both see.
    metrics: dict[str, Any] = found["sliceClassificationMetrics"]
    metrics["confidenceMetrics"] = []
    return metrics


@dataclass
class PipelineTaskFinalStatus:
    """How a task ended, for exit handlers."""

    state: str
    pipeline_job_resource_name: str
    pipeline_task_name: str
    error_code: int | None = None
    error_message: str | None = None


@dataclass
class TaskConfig:
    """Settings of Kubernetes that a task may pass on. Empty here."""

    affinity: Any = None
    tolerations: Any = None
    node_selector: Any = None
    env: Any = field(default_factory=list)
    volumes: Any = None
    volume_mounts: Any = None
    resources: Any = None


class Marker:
    """Marks an annotation as an input, output or embedded file: `Annotated[Dataset, "input"]`."""

    def __init__(self, role: str) -> None:
        self.role = role


class PathMarker:
    """`InputPath(…)` or `OutputPath(…)`: the function receives a path."""

    role = "input"

    def __init__(self, type: Any = None) -> None:
        self.type = type


class InputPath(PathMarker):
    role = "input"


class OutputPath(PathMarker):
    role = "output"


INPUT, OUTPUT, EMBEDDED = Marker("input"), Marker("output"), Marker("embedded")
Input = Annotated[T, INPUT]
Output = Annotated[T, OUTPUT]
EmbeddedInput = Annotated[T, EMBEDDED]

PLACEHOLDERS = {
    "PIPELINE_JOB_NAME_PLACEHOLDER": "{{$.pipeline_job_name}}",
    "PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER": "{{$.pipeline_job_resource_name}}",
    "PIPELINE_JOB_ID_PLACEHOLDER": "{{$.pipeline_job_uuid}}",
    "PIPELINE_TASK_NAME_PLACEHOLDER": "{{$.pipeline_task_name}}",
    "PIPELINE_TASK_ID_PLACEHOLDER": "{{$.pipeline_task_uuid}}",
    "PIPELINE_TASK_EXECUTOR_OUTPUT_PATH_PLACEHOLDER": "{{$.outputs.output_file}}",
    "PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER": "{{$}}",
    "PIPELINE_ROOT_PLACEHOLDER": "{{$.pipeline_root}}",
    "PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER": "{{$.pipeline_job_create_time_utc}}",
    "PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER": "{{$.pipeline_job_schedule_time_utc}}",
    "WORKSPACE_PATH_PLACEHOLDER": "{{$.workspace_path}}",
}

ARTIFACT_CLASSES = {
    one.schema_title: one
    for one in (
        ComponentArtifact,
        ComponentDataset,
        ComponentModel,
        HTML,
        Markdown,
        ComponentMetrics,
        ClassificationMetrics,
        SlicedClassificationMetrics,
    )
}


def install(folder: str) -> None:
    """Make `import kfp` and `from kfp.dsl import *` work in this process.

    Args:
        folder: where `get_uri` places artifacts that the component makes itself.
    """

    def get_uri(suffix: str = "Output") -> str:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return str(Path(folder) / suffix)

    kfp, dsl = types.ModuleType("kfp"), types.ModuleType("kfp.dsl")
    public: dict[str, Any] = {title.removeprefix("system."): one for title, one in ARTIFACT_CLASSES.items()}
    public |= {one.__name__: one for one in (PipelineTaskFinalStatus, TaskConfig, InputPath, OutputPath)}
    public |= {"Input": Input, "Output": Output, "get_uri": get_uri, **PLACEHOLDERS}
    public["component"] = public["container_component"] = _undecorated
    vars(dsl).update(public, EmbeddedInput=EmbeddedInput, __all__=[*public], __path__=[])
    kfp_types, artifact_types = types.ModuleType("kfp.dsl.types"), types.ModuleType("kfp.dsl.types.artifact_types")
    vars(kfp_types).update(__path__=[], artifact_types=artifact_types)
    vars(artifact_types).update({name: one for name, one in public.items() if name != "Input"}, get_uri=get_uri)
    vars(dsl)["types"] = kfp_types
    vars(kfp).update(dsl=dsl, __version__="0", __path__=[])
    for module in (kfp, dsl, kfp_types, artifact_types):
        sys.modules[module.__name__] = module


def _undecorated(function: Any = None, **options: Any) -> Any:
    """`@dsl.component` inside a component's code changes nothing."""
    return function if function is not None else _undecorated
