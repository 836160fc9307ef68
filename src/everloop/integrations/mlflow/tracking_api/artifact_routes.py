"""Routes that list, send and receive the files of runs, logged models and model versions."""

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


def list_artifacts(context: HandlerContext) -> Mapping[str, Any]:
    name, path = context.fields.run_id(), context.fields.text("path", required=False)
    safe_parts(path)
    uri = artifact_uri(find_run(context.store, name))
    return {**listing(*context.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_model_artifacts(context: HandlerContext) -> Mapping[str, Any]:
    path = context.fields.text("artifact_directory_path", required=False)
    safe_parts(path)
    uri = find_logged_model(context.store, context.path["model_id"]).artifacts_at
    return {**listing(*context.artifacts.find(uri, path), below=path.rstrip("/")), "root_uri": uri}


def list_proxied(context: HandlerContext) -> Mapping[str, Any]:
    return listing(context.artifacts.proxied, context.fields.text("path", required=False))


def delete_proxied(context: HandlerContext) -> Mapping[str, Any]:
    path, folder = context.path["path"], context.artifacts.proxied
    check_changeable(context.store, context.artifacts, folder, path)
    folder.delete(path)
    return {}


def proxied_file(context: HandlerContext) -> tuple[ArtifactLocation, str]:
    path = context.path["path"]
    if not safe_parts(path):
        raise MlflowError("Invalid path")
    return context.artifacts.proxied, path


def run_upload(context: HandlerContext) -> tuple[ArtifactLocation, str]:
    """Find the location for a file that MLflow's web page uploads to a run."""
    for name in ("run_uuid", "path"):
        if not context.fields.text(name, required=False):
            raise MlflowError(f"Request must specify {name}.")
    path = context.fields.text("path")
    if not safe_parts(path):
        raise MlflowError("Invalid path")
    if not context.size_bytes:
        raise MlflowError("Request must specify data.")
    if context.size_bytes > LARGEST_PAGE_UPLOAD:
        raise MlflowError("Artifact size is too large. Max size is 10MB.")
    return context.artifacts.find(artifact_uri(find_run(context.store, context.fields.run_id())), path)


def run_file(context: HandlerContext) -> tuple[ArtifactLocation, str]:
    """Find the file that `/get-artifact` requests."""
    path = context.fields.text("path")
    safe_parts(path)
    return context.artifacts.find(artifact_uri(find_run(context.store, context.fields.run_id())), path)


def version_file(context: HandlerContext) -> tuple[ArtifactLocation, str]:
    path = context.fields.text("path")
    safe_parts(path)
    version = get_model_version(context.store, context.fields.text("name"), context.fields.text("version"))
    return context.artifacts.find(files_uri(context.store, version), path)


def model_file(context: HandlerContext) -> tuple[ArtifactLocation, str]:
    """Find the file of a logged model that MLflow's web page shows."""
    path = context.fields.text("artifact_file_path")
    safe_parts(path)
    return context.artifacts.find(find_logged_model(context.store, context.path["model_id"]).artifacts_at, path)


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
