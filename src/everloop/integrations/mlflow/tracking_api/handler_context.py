"""Context of a handler (fields, store, artifact locations), and the description of a route."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from everloop.integrations.mlflow.tracking_api.codec import Fields
from everloop.integrations.mlflow.tracking_api.files.presigned_urls import PresignedUrls
from everloop.server.server_options import ServerOptions

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation
    from everloop.integrations.mlflow.tracking_api.metric_buffer import MetricBuffer
    from everloop.stores import Store

ORDINARY_BODY = 4 << 20
LARGE_BODY = 32 << 20
Access = Literal["read", "write", "delete", "admin"]


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """One request, and the services that its handler may use."""

    store: Store
    """Writes in the name of the request's user."""
    fields: Fields
    artifacts: ArtifactLocations
    metric_buffer: MetricBuffer
    path: Mapping[str, str] = field(default_factory=dict)
    """Parameters of the path, by name, percent-decoded once."""
    size_bytes: int = 0
    options: ServerOptions = field(default_factory=ServerOptions)
    presigned_urls: PresignedUrls = field(default_factory=PresignedUrls)
    origin: str = ""
    """The URL by which the client reaches this server: `http://127.0.0.1:8100`."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that is generated for one response."""

    name: str
    body: bytes


Handler = Callable[[HandlerContext], Mapping[str, Any]]
Finder = Callable[[HandlerContext], "tuple[ArtifactLocation, str] | Attachment"]
"""Finds the location and path of the file that a request uploads or downloads, or generates the downloaded file."""


@dataclass(frozen=True, slots=True)
class HandlerRoute:
    """One route of MLflow's REST API: `2.0/mlflow/runs/get`, below `/api` and `/ajax-api`."""

    method: str
    path: str
    handler: Handler | Finder
    access: Access
    slow: bool = False
    """Whether it may read a lot, and so runs in another thread than short handlers."""
    streams: bool = False
    """Whether the handler is a `Finder`: the response is its file, or the request's body is stored in it."""

    body_bytes: int = ORDINARY_BODY
    """Most bytes of a JSON body."""

    @property
    def name(self) -> str:
        return self.handler.__name__
