"""MLflow's REST API over everloop's own records, so that MLflow's clients can log runs, metrics and models here.

Nothing is copied: a client's run is a `Run`, its registered version is a `ModelVersion`, and its alias is an `Alias`
with a history. `make_routes` returns the route handlers for the control plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import (
        ArtifactLocations as ArtifactLocations,
        open_folder as open_folder,
    )
    from everloop.integrations.mlflow.tracking_api.files.local_files import ArtifactRoot as ArtifactRoot
    from everloop.integrations.mlflow.tracking_api.mlflow_app import (
        ROUTES as ROUTES,
        MlflowApp as MlflowApp,
        access_of as access_of,
    )
    from everloop.integrations.mlflow.tracking_api.mounting import make_routes as make_routes

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "files.allowed_locations": ["ArtifactLocations", "open_folder"],
        "files.local_files": ["ArtifactRoot"],
        "mlflow_app": ["MlflowApp", "ROUTES", "access_of"],
        "mounting": ["make_routes"],
    },
)
