"""The files of runs and logged models: listing and finding them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.integrations.mlflow.tracking_api.approved_files import check_changeable
from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation, safe_parts
from everloop.integrations.mlflow.tracking_api.files.artifact_proxy import listing
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.logged_model_routes import find_logged_model
from everloop.integrations.mlflow.tracking_api.model_version_routes import files_uri
from everloop.integrations.mlflow.tracking_api.registry_lookup import get_model_version
from everloop.integrations.mlflow.tracking_api.run_routes import find_run
from everloop.integrations.mlflow.tracking_api.serializers import artifact_uri

LARGEST_PAGE_UPLOAD = 10 << 20


def list_artifacts(ask: HandlerContext) -> Mapping[str, Any]:
    name, path = ask.fields.run_id(), ask.fields.text("path", required=False)
    safe_parts(path)
    uri = artifact_uri(find_run(ask.store, name))
    return {**listing(*ask.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_model_artifacts(ask: HandlerContext) -> Mapping[str, Any]:
    path = ask.fields.text("artifact_directory_path", required=False)
    safe_parts(path)
    uri = find_logged_model(ask.store, ask.path["model_id"]).artifacts_at
    return {**listing(*ask.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_proxied(ask: HandlerContext) -> Mapping[str, Any]:
    return listing(ask.artifacts.proxied, ask.fields.text("path", required=False))


def delete_proxied(ask: HandlerContext) -> Mapping[str, Any]:
    path, folder = ask.path["path"], ask.artifacts.proxied
    check_changeable(ask.store, ask.artifacts, folder, path)
    folder.delete(path)
    return {}


def proxied_file(ask: HandlerContext) -> tuple[ArtifactLocation, str]:
    path = ask.path["path"]
    if not safe_parts(path):
        raise MlflowError("Invalid path")
    return ask.artifacts.proxied, path


def run_upload(ask: HandlerContext) -> tuple[ArtifactLocation, str]:
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


def run_file(ask: HandlerContext) -> tuple[ArtifactLocation, str]:
    """The folder and the path below it that `/get-artifact` asks for."""
    path = ask.fields.text("path")
    safe_parts(path)
    return ask.artifacts.find(artifact_uri(find_run(ask.store, ask.fields.run_id())), path)


def version_file(ask: HandlerContext) -> tuple[ArtifactLocation, str]:
    path = ask.fields.text("path")
    safe_parts(path)
    version = get_model_version(ask.store, ask.fields.text("name"), ask.fields.text("version"))
    return ask.artifacts.find(files_uri(ask.store, version), path)


def model_file(ask: HandlerContext) -> tuple[ArtifactLocation, str]:
    """The file of a logged model that MLflow's own page shows."""
    path = ask.fields.text("artifact_file_path")
    safe_parts(path)
    return ask.artifacts.find(find_logged_model(ask.store, ask.path["model_id"]).artifacts_at, path)


ROUTES = (
    HandlerRoute("GET", "2.0/mlflow/artifacts/list", list_artifacts, "read", slow=True),
    HandlerRoute(
        "GET", "2.0/mlflow/logged-models/{model_id}/artifacts/directories", list_model_artifacts, "read", slow=True
    ),
    HandlerRoute("GET", "2.0/mlflow-artifacts/artifacts", list_proxied, "read", slow=True),
    HandlerRoute("GET", "2.0/mlflow-artifacts/artifacts/{path}", proxied_file, "read", streams=True),
    HandlerRoute("PUT", "2.0/mlflow-artifacts/artifacts/{path}", proxied_file, "write", streams=True),
    HandlerRoute("GET", "2.0/mlflow/logged-models/{model_id}/artifacts/files", model_file, "read", streams=True),
    HandlerRoute("POST", "2.0/mlflow/upload-artifact", run_upload, "write", streams=True),
    HandlerRoute("DELETE", "2.0/mlflow-artifacts/artifacts/{path}", delete_proxied, "delete", slow=True),
)
