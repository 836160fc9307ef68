"""Mounts MLflow's REST API as route handlers of the control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import MediaType, get
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from everloop.integrations.mlflow.tracking_api.files.presigned_urls import PATH as SIGNED
from everloop.integrations.mlflow.tracking_api.genai.otlp import PATH
from everloop.integrations.mlflow.tracking_api.mlflow_app import FILES, GRAPHQL, MOUNTS, MlflowApp
from everloop.integrations.mlflow.tracking_api.server_info_routes import PROTOCOL

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store


def server_routes(store: Store, options: ServerOptions) -> list[Any]:
    """Return the routes of MLflow's API for a control plane, with the artifact locations of its options."""
    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations, open_folder

    locations = ArtifactLocations(
        open_folder(options.artifacts_destination or store.home / "artifacts"),
        options.default_artifact_root,
        options.allowed_artifact_roots,
    )
    return make_routes(store, locations, options)


def page_routes(folder: Path) -> list[Any]:
    """Return the routes of MLflow's web page at `/`, from the folder of its files."""
    from everloop.integrations.mlflow.tracking_api.web_page.page_files import MlflowPage

    return MlflowPage(folder).routes()


def make_routes(store: Store, artifacts: ArtifactLocations, options: ServerOptions | None = None) -> list[Any]:
    """Return the handlers for all routes of MLflow's API, for `Litestar(route_handlers=[…])`.

    Args:
        store: used by requests for which no middleware has set a store in the name of their user.
    """
    app = MlflowApp(store, artifacts, options)
    mounts = [path for mount in MOUNTS for path in (mount, mount.replace("/api/", "/ajax-api/"))]

    @asgi(mounts, is_mount=True, copy_scope=True, opt={"role": "viewer", "body": "upload"})
    async def mlflow_protocol(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)  # type: ignore[arg-type]

    @asgi(list(FILES), copy_scope=True, opt={"role": "viewer"})
    async def mlflow_files(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)  # type: ignore[arg-type]

    @asgi(PATH, copy_scope=True, opt={"role": "editor"})
    async def opentelemetry_traces(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)  # type: ignore[arg-type]

    @asgi(SIGNED, copy_scope=True, opt={"role": "anyone", "body": "upload"})
    async def signed_artifacts(scope: Scope, receive: Receive, send: Send) -> None:
        # The URL itself is the permission: it was created for a user with the needed role.
        await app(scope, receive, send)  # type: ignore[arg-type]

    @asgi(GRAPHQL, copy_scope=True, opt={"role": "viewer"})
    async def graphql_queries(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)  # type: ignore[arg-type]

    @get("/version", opt={"role": "anyone"}, media_type=MediaType.TEXT, sync_to_thread=False, include_in_schema=False)
    def version() -> str:
        return PROTOCOL

    return [mlflow_protocol, mlflow_files, opentelemetry_traces, graphql_queries, signed_artifacts, version]
