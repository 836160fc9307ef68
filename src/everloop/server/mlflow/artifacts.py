"""Finding and listing the files of runs and logged models; what is not offered: signed and multipart addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.server.mlflow.artifact_root import ArtifactRoot, safe_parts
from everloop.server.mlflow.asking import Ask, Route
from everloop.server.mlflow.logged_models import find_logged_model
from everloop.server.mlflow.proxy import listing
from everloop.server.mlflow.registry import get_model_version
from everloop.server.mlflow.reply import artifact_uri
from everloop.server.mlflow.runs import find_run
from everloop.server.mlflow.versions import storage_of
from everloop.server.mlflow.wire import MlflowError

LARGEST_PAGE_UPLOAD = 10 << 20
_PRESIGNED = "2.0/mlflow-artifacts/presigned/{path}"


def list_artifacts(ask: Ask) -> Mapping[str, Any]:
    name, path = ask.fields.run_id(), ask.fields.text("path", required=False)
    safe_parts(path)
    uri = artifact_uri(find_run(ask.store, name))
    return {**listing(*ask.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_model_artifacts(ask: Ask) -> Mapping[str, Any]:
    path = ask.fields.text("artifact_directory_path", required=False)
    safe_parts(path)
    uri = find_logged_model(ask.store, ask.path["model_id"]).artifacts_at
    return {**listing(*ask.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_proxied(ask: Ask) -> Mapping[str, Any]:
    return listing(ask.artifacts.proxied, ask.fields.text("path", required=False))


def delete_proxied(ask: Ask) -> Mapping[str, Any]:
    ask.artifacts.proxied.delete(ask.path["path"])
    return {}


def presign_upload(ask: Ask) -> Mapping[str, Any]:
    run, model = ask.fields.text("run_id", required=False), ask.fields.text("model_id", required=False)
    safe_parts(ask.fields.text("path"))
    if bool(run) == bool(model):
        raise MlflowError("Exactly one of run_id and model_id must be provided.")
    if run:
        find_run(ask.store, run)
    else:
        find_logged_model(ask.store, model)
    raise MlflowError(
        "Presigned upload is not supported for proxied artifact storage (artifact URI scheme: mlflow-artifacts)."
        " This endpoint requires a direct cloud storage artifact URI."
    )


def presign_download(ask: Ask) -> Mapping[str, Any]:
    run = ask.fields.text("run_id")
    safe_parts(ask.fields.text("path"))
    expiration = ask.fields.integer("expiration", 900)
    if not 1 <= expiration <= 604_800:
        raise MlflowError(f"expiration must be between 1 and 604800 seconds (got {expiration}).")
    find_run(ask.store, run)
    raise MlflowError(
        "Presigned download is not supported for runs with proxied artifact storage (artifact URI scheme:"
        " mlflow-artifacts). This endpoint requires a run with a direct cloud storage artifact URI."
    )


def multipart(ask: Ask) -> Mapping[str, Any]:
    safe_parts(ask.path["path"])
    raise MlflowError("Multipart upload is not supported for the current artifact repository", "NOT_IMPLEMENTED")


def presigned(ask: Ask) -> Mapping[str, Any]:
    safe_parts(ask.path["path"])
    raise MlflowError("Multipart download is not supported for the current artifact repository", "NOT_IMPLEMENTED")


def proxied_file(ask: Ask) -> tuple[ArtifactRoot, str]:
    path = ask.path["path"]
    if not safe_parts(path):
        raise MlflowError("Invalid path")
    return ask.artifacts.proxied, path


def run_upload(ask: Ask) -> tuple[ArtifactRoot, str]:
    """Where a file goes that MLflow's own page sends to a run."""
    for name in ("run_uuid", "path"):
        if not ask.fields.text(name, required=False):
            raise MlflowError(f"Request must specify {name}.")
    path = ask.fields.text("path")
    if not safe_parts(path):
        raise MlflowError("Invalid path")
    if not ask.size_bytes:
        raise MlflowError("Request must specify data.")
    if ask.size_bytes > LARGEST_PAGE_UPLOAD:
        raise MlflowError("Artifact size is too large. Max size is 10MB.")
    return ask.artifacts.find(artifact_uri(find_run(ask.store, ask.fields.run_id())), path)


def run_file(ask: Ask) -> tuple[ArtifactRoot, str]:
    """The folder and the path below it that `/get-artifact` asks for."""
    path = ask.fields.text("path")
    safe_parts(path)
    return ask.artifacts.find(artifact_uri(find_run(ask.store, ask.fields.run_id())), path)


def version_file(ask: Ask) -> tuple[ArtifactRoot, str]:
    path = ask.fields.text("path")
    safe_parts(path)
    version = get_model_version(ask.store, ask.fields.text("name"), ask.fields.text("version"))
    return ask.artifacts.find(storage_of(ask.store, version), path)


def model_file(ask: Ask) -> tuple[ArtifactRoot, str]:
    """The file of a logged model that MLflow's own page shows."""
    path = ask.fields.text("artifact_file_path")
    safe_parts(path)
    return ask.artifacts.find(find_logged_model(ask.store, ask.path["model_id"]).artifacts_at, path)


ROUTES = (
    Route("GET", "2.0/mlflow/artifacts/list", list_artifacts, "read", slow=True),
    Route("POST", "2.0/mlflow/artifacts/presigned-upload-url", presign_upload, "write"),
    Route("POST", "2.0/mlflow/artifacts/presigned-download-url", presign_download, "read"),
    Route("GET", "2.0/mlflow/logged-models/{model_id}/artifacts/directories", list_model_artifacts, "read", slow=True),
    Route("GET", "2.0/mlflow-artifacts/artifacts", list_proxied, "read", slow=True),
    Route("GET", "2.0/mlflow-artifacts/artifacts/{path}", proxied_file, "read", streams=True),
    Route("PUT", "2.0/mlflow-artifacts/artifacts/{path}", proxied_file, "write", streams=True),
    Route("GET", "2.0/mlflow/logged-models/{model_id}/artifacts/files", model_file, "read", streams=True),
    Route("POST", "2.0/mlflow/upload-artifact", run_upload, "write", streams=True),
    Route("DELETE", "2.0/mlflow-artifacts/artifacts/{path}", delete_proxied, "delete", slow=True),
    Route("POST", "2.0/mlflow-artifacts/mpu/create/{path}", multipart, "write"),
    Route("POST", "2.0/mlflow-artifacts/mpu/complete/{path}", multipart, "write"),
    Route("POST", "2.0/mlflow-artifacts/mpu/abort/{path}", multipart, "write"),
    Route("GET", _PRESIGNED, presigned, "read"),
)
