"""Listing the files of runs and logged models, and what is not offered: signed and multipart addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.server.mlflow.artifact_root import relative_path, safe_parts
from everloop.server.mlflow.asking import Ask, Route
from everloop.server.mlflow.logged_models import find_logged_model
from everloop.server.mlflow.proxy import listing
from everloop.server.mlflow.registry import get_model_version
from everloop.server.mlflow.reply import artifact_uri
from everloop.server.mlflow.runs import find_run
from everloop.server.mlflow.versions import storage_of
from everloop.server.mlflow.wire import MlflowError

_PRESIGNED = "2.0/mlflow-artifacts/presigned/{path}"


def list_artifacts(ask: Ask) -> Mapping[str, Any]:
    name, path = ask.fields.run_id(), ask.fields.text("path", required=False)
    safe_parts(path)
    uri = artifact_uri(find_run(ask.store, name))
    return {**listing(ask.artifacts, below(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_model_artifacts(ask: Ask) -> Mapping[str, Any]:
    path = ask.fields.text("artifact_directory_path", required=False)
    safe_parts(path)
    uri = find_logged_model(ask.store, ask.path["model_id"]).artifacts_at
    return {**listing(ask.artifacts, below(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_proxied(ask: Ask) -> Mapping[str, Any]:
    return listing(ask.artifacts, ask.fields.text("path", required=False))


def delete_proxied(ask: Ask) -> Mapping[str, Any]:
    ask.artifacts.delete(ask.path["path"])
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


def run_file(ask: Ask) -> str:
    """Where below the root the file is that `/get-artifact` asks for."""
    path = ask.fields.text("path")
    safe_parts(path)
    return below(artifact_uri(find_run(ask.store, ask.fields.run_id())), path)


def version_file(ask: Ask) -> str:
    path = ask.fields.text("path")
    safe_parts(path)
    version = get_model_version(ask.store, ask.fields.text("name"), ask.fields.text("version"))
    return below(storage_of(ask.store, version), path)


def below(uri: str, path: str) -> str:
    """A path below the root, for a path below a run's or model's URI.

    Raises:
        MlflowError: the URI does not lead below the root: only the client can reach those files.
    """
    within = relative_path(uri)
    if within is None:
        raise MlflowError(f"The files at '{uri}' are not kept by this server.")
    return f"{within.rstrip('/')}/{path}" if path else within


ROUTES = (
    Route("GET", "2.0/mlflow/artifacts/list", list_artifacts, "read", slow=True),
    Route("POST", "2.0/mlflow/artifacts/presigned-upload-url", presign_upload, "write"),
    Route("POST", "2.0/mlflow/artifacts/presigned-download-url", presign_download, "read"),
    Route("GET", "2.0/mlflow/logged-models/{model_id}/artifacts/directories", list_model_artifacts, "read", slow=True),
    Route("GET", "2.0/mlflow-artifacts/artifacts", list_proxied, "read", slow=True),
    Route("GET", "2.0/mlflow-artifacts/artifacts/{path}", None, "read"),
    Route("PUT", "2.0/mlflow-artifacts/artifacts/{path}", None, "write"),
    Route("DELETE", "2.0/mlflow-artifacts/artifacts/{path}", delete_proxied, "delete", slow=True),
    Route("POST", "2.0/mlflow-artifacts/mpu/create/{path}", multipart, "write"),
    Route("POST", "2.0/mlflow-artifacts/mpu/complete/{path}", multipart, "write"),
    Route("POST", "2.0/mlflow-artifacts/mpu/abort/{path}", multipart, "write"),
    Route("GET", _PRESIGNED, presigned, "read"),
)
