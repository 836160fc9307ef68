"""MLflow's wire protocol over everloop's own records: its clients log here, and everloop sees runs, metrics, models.

What a client makes is no copy: its run is a `Run`, its registered version a `ModelVersion`, its alias an `Alias`
with a history. `make_routes` gives the handlers for the control plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.server.mlflow.app import ROUTES, MlflowApp, access_of
    from everloop.server.mlflow.files.places import ArtifactPlaces, open_folder
    from everloop.server.mlflow.files.root import ArtifactRoot
    from everloop.server.mlflow.mounting import make_routes

_HOME = {
    "ROUTES": "app",
    "ArtifactPlaces": "files.places",
    "ArtifactRoot": "files.root",
    "MlflowApp": "app",
    "access_of": "app",
    "make_routes": "mounting",
    "open_folder": "files.places",
}

__all__ = ["ROUTES", "ArtifactPlaces", "ArtifactRoot", "MlflowApp", "access_of", "make_routes", "open_folder"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
