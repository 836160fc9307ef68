"""Serializers: runs, experiments and models in the JSON form of MLflow's API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.integrations.mlflow.tracking_api.codec import ms_of, number_out, pairs_out

if TYPE_CHECKING:
    from everloop.records import Alias, Experiment, Json, LoggedModel, ModelVersion, RegisteredModel, Run

STATUS_OF = {
    "scheduled": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "lost": "FAILED",
}
STATE_OF = {
    "SCHEDULED": "scheduled",
    "RUNNING": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
}
MODEL_STATUS = {
    "pending": "LOGGED_MODEL_PENDING",
    "ready": "LOGGED_MODEL_READY",
    "failed": "LOGGED_MODEL_UPLOAD_FAILED",
}
DEFAULT = "0"


def wire_id(record_id: str) -> str:
    """Return a record's id as MLflow writes it: without hyphens."""
    return record_id.replace("-", "")


def record_id(text: str) -> str:
    """Return the record's id of an id that MLflow wrote."""
    if len(text) == 32 and text.isalnum():
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    return text


def artifact_uri(run: Run) -> str:
    if run.artifacts_at is not None:
        return run.artifacts_at
    return f"mlflow-artifacts:/{run.experiment or DEFAULT}/{wire_id(run.id)}/artifacts"


def lifecycle(record: Run | Experiment | LoggedModel) -> str:
    return "active" if record.archived_at is None else "deleted"


def run_info(run: Run) -> dict[str, Any]:
    name = wire_id(run.id)
    info: dict[str, Any] = {
        "run_uuid": name,
        "run_id": name,
        "experiment_id": run.experiment or DEFAULT,
        "run_name": run.name,
        "user_id": run.user,
        "status": STATUS_OF[run.state],
        "start_time": ms_of(run.started_at),
    }
    if run.ended_at is not None:
        info["end_time"] = ms_of(run.ended_at)
    info["artifact_uri"] = artifact_uri(run)
    info["lifecycle_stage"] = lifecycle(run)
    return info


def run_out(run: Run) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if run.metrics:
        data["metrics"] = [metric_out(key, value, *_when(run, key)) for key, value in run.metrics.items()]
    if run.params:
        data["params"] = pairs_out({key: param_text(value) for key, value in run.params.items()})
    if run.tags:
        data["tags"] = pairs_out(run.tags)
    datasets = [entry["dataset"] for entry in run.inputs if "dataset" in entry]
    models_in = [entry["model_input"] for entry in run.inputs if "model_input" in entry]
    models_out = [entry["model_output"] for entry in run.inputs if "model_output" in entry]
    inputs: dict[str, Any] = {}
    if datasets:
        inputs["dataset_inputs"] = datasets
    if models_in:
        inputs["model_inputs"] = models_in
    payload = {"info": run_info(run), "data": data, "inputs": inputs}
    if models_out:
        payload["outputs"] = {"model_outputs": models_out}
    return payload


def param_text(value: Json) -> str:
    """Return a parameter as a string: numbers and booleans as Python prints them, other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return str(value)


def metric_out(key: str, value: float, step: int, at_ms: int) -> dict[str, Any]:
    return {"key": key, "value": number_out(value), "timestamp": at_ms, "step": step}


def _when(run: Run, key: str) -> tuple[int, int]:
    """Return step and time of a metric's latest value.

    For runs that were not logged through MLflow's API, the time is the end of the run.
    """
    known = run.metric_at.get(key)
    return known if known is not None else (0, ms_of(run.ended_at or run.started_at))


def experiment_out(experiment: Experiment) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "experiment_id": str(experiment.number),
        "name": experiment.name,
        "artifact_location": experiment.artifacts_at,
        "lifecycle_stage": lifecycle(experiment),
        "last_update_time": ms_of(experiment.updated_at),
        "creation_time": ms_of(experiment.created_at),
    }
    if experiment.tags:
        payload["tags"] = pairs_out(experiment.tags)
    return payload


def model_id(model: LoggedModel) -> str:
    return f"m-{wire_id(model.id)}"


def logged_model_out(model: LoggedModel, versions: Iterable[ModelVersion] = ()) -> dict[str, Any]:
    info: dict[str, Any] = {
        "model_id": model_id(model),
        "experiment_id": model.experiment,
        "name": model.name,
        "creation_timestamp_ms": ms_of(model.created_at),
        "last_updated_timestamp_ms": ms_of(model.updated_at),
        "artifact_uri": model.artifacts_at,
        "status": MODEL_STATUS[model.state],
        "model_type": model.type,
    }
    if model.run:
        info["source_run_id"] = wire_id(model.run)
    info["tags"] = pairs_out(model.tags)
    data: dict[str, Any] = {}
    if model.params:
        data["params"] = pairs_out(model.params)
    if model.metrics:
        data["metrics"] = [model_metric_out(model, metric) for metric in model.metrics]
    return {"info": info, "data": data}


def model_metric_out(model: LoggedModel, metric: Mapping[str, Any]) -> dict[str, Any]:
    payload = {
        **metric_out(metric["key"], metric["value"], metric["step"], metric["at"]),
        "model_id": model_id(model),
    }
    for name in ("dataset_name", "dataset_digest", "run_id"):
        if metric.get(name):
            payload[name] = metric[name]
    return payload


def version_out(version: ModelVersion, aliases: Iterable[str] = ()) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "name": version.model,
        "version": str(version.version),
        "creation_timestamp": ms_of(version.created_at),
        "last_updated_timestamp": ms_of(version.updated_at or version.created_at),
        "user_id": version.user,
        "current_stage": version.stage,
        "description": version.description,
        "source": source_of(version),
        "run_id": wire_id(version.run) if version.run else "",
        "status": "READY",
        "run_link": version.run_link,
    }
    if version.tags:
        payload["tags"] = pairs_out(version.tags)
    if names := sorted(aliases):
        payload["aliases"] = names
    if version.logged_model:
        payload["model_id"] = version.logged_model
    return payload


def source_of(version: ModelVersion) -> str:
    """Return the URI of a version's files; everloop's own packages are named by their digest."""
    return version.source if version.source is not None else f"everloop:/{version.package}"


def model_out(
    model: RegisteredModel, latest: Iterable[ModelVersion], aliases: Iterable[Alias], held: Mapping[str, list[str]]
) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "name": model.name,
        "creation_timestamp": ms_of(model.created_at),
        "last_updated_timestamp": ms_of(model.updated_at),
        "description": model.description,
    }
    if versions := [version_out(version, held.get(version.key, ())) for version in latest]:
        payload["latest_versions"] = versions
    if model.tags:
        payload["tags"] = pairs_out(model.tags)
    if entries := [{"alias": a.name, "version": a.version.rpartition("@")[2]} for a in aliases]:
        payload["aliases"] = entries
    return payload
