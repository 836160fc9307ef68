"""MLflow's wire protocol over everloop's own records: its clients log here, and everloop sees runs, metrics, models.

What a client makes is no copy: its run is a `Run`, its registered version a `ModelVersion`, its alias an `Alias`
with a history. `make_routes` gives the handlers for the control plane.
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
