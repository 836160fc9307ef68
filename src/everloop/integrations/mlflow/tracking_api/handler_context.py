"""What a handler is given: the request's fields, the store in its asker's name, and where artifacts are kept."""

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
    """One request."""

    store: Store
    fields: Fields
    artifacts: ArtifactLocations
    pending: MetricBuffer
    path: Mapping[str, str] = field(default_factory=dict)
    """Parts of the address, by name; not decoded further than HTTP asks for."""
    size_bytes: int = 0
    options: ServerOptions = field(default_factory=ServerOptions)
    seals: PresignedUrls = field(default_factory=PresignedUrls)
    origin: str = ""
    """How the asker reaches this server: `http://127.0.0.1:8100`."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that is made for one answer."""

    name: str
    body: bytes


Handler = Callable[[HandlerContext], Mapping[str, Any]]
Finder = Callable[[HandlerContext], "tuple[ArtifactLocation, str] | Attachment"]
"""Says in which folder, and where below it, the file is that a request sends or fetches; or makes what is fetched."""


@dataclass(frozen=True, slots=True)
class HandlerRoute:
    """One address of MLflow's protocol: `2.0/mlflow/runs/get`, below `/api` and `/ajax-api`."""

    method: str
    path: str
    handler: Handler | Finder
    access: Access
    slow: bool = False
    """Runs in a thread of its own, since it may read much."""
    streams: bool = False
    """The handler is a `Finder`: the answer is its file, or the request's body becomes it."""

    body_bytes: int = ORDINARY_BODY
    """The longest body that is read as JSON."""

    @property
    def name(self) -> str:
        return self.handler.__name__
