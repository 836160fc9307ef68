"""everloop keeps machine-learning models alive.

One declaration of a whole life cycle: gather and check data, engineer features, train and tune, evaluate,
package, release, serve, watch, retrain. Importing this package loads the standard library only; each name
brings its room when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.data import Dataset, FeatureView, OnDemand, Window, join_features, read, transformer
    from everloop.loop import (
        AtLeast,
        Canary,
        Drift,
        Endpoint,
        Every,
        Latency,
        Loop,
        NotWorseThan,
        OnDrift,
        OnNewData,
        OnPerformance,
        Performance,
        Slices,
        backfill,
        materialize,
    )
    from everloop.models import load_model, save_model
    from everloop.pipeline import Graph, progress, run_graph, step, trace
    from everloop.stores import open_store
    from everloop.tracking import autolog, compare_runs, current_run, read_history, search_runs, start_run
    from everloop.training import AutoTrain

__version__ = VERSION

_ROOM = {
    "AtLeast": "loop",
    "AutoTrain": "training",
    "Canary": "loop",
    "Dataset": "data",
    "Drift": "loop",
    "Endpoint": "loop",
    "Every": "loop",
    "FeatureView": "data",
    "Graph": "pipeline",
    "Latency": "loop",
    "Loop": "loop",
    "NotWorseThan": "loop",
    "OnDemand": "data",
    "OnDrift": "loop",
    "OnNewData": "loop",
    "OnPerformance": "loop",
    "Performance": "loop",
    "Slices": "loop",
    "Window": "data",
    "autolog": "tracking",
    "backfill": "loop",
    "compare_runs": "tracking",
    "current_run": "tracking",
    "join_features": "data",
    "load_model": "models",
    "materialize": "loop",
    "open_store": "stores",
    "progress": "pipeline",
    "read": "data",
    "run_graph": "pipeline",
    "save_model": "models",
    "read_history": "tracking",
    "search_runs": "tracking",
    "start_run": "tracking",
    "step": "pipeline",
    "trace": "pipeline",
    "transformer": "data",
}

__all__ = [
    "AtLeast",
    "AutoTrain",
    "Canary",
    "Dataset",
    "Drift",
    "Endpoint",
    "EverloopError",
    "Every",
    "FeatureView",
    "Graph",
    "Latency",
    "Loop",
    "NotWorseThan",
    "OnDemand",
    "OnDrift",
    "OnNewData",
    "OnPerformance",
    "Performance",
    "Slices",
    "Window",
    "__version__",
    "autolog",
    "backfill",
    "compare_runs",
    "current_run",
    "join_features",
    "load_model",
    "materialize",
    "open_store",
    "progress",
    "read",
    "read_history",
    "run_graph",
    "save_model",
    "search_runs",
    "start_run",
    "step",
    "trace",
    "transformer",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOM[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
