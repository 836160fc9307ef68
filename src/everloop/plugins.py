"""The plugin table: kind -> name -> "module:attribute".

A plugin is imported when it is first loaded. Other packages add plugins through the entry-point group
`everloop.plugins`, with names of the form `kind.name`.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from everloop.errors import NotFoundError, UsageError

TABLE: dict[str, dict[str, str]] = {
    # How to check outside state that a step has read: (spec) -> state.
    "observation": {
        "files": "everloop.data.sources.reading:files_state",
        "sql": "everloop.data.sources.reading:sql_state",
        "remote": "everloop.data.sources.remote_files:remote_state",
        "horizon": "everloop.data.time_travel:horizon_state",
        "version": "everloop.data.sources.snapshot_sources:version_state",
        "cursor": "everloop.data.sources.cursors:cursor_state",
        "predictions": "everloop.prediction_log.prediction_source:answers_state",
        "opened": "everloop.pipeline.outside.outside_state:opened_state",
        "listed": "everloop.pipeline.outside.outside_state:listed_state",
        "environment": "everloop.pipeline.outside.outside_state:environment_state",
        "unseen": "everloop.pipeline.outside.outside_state:unseen_state",
    },
    # How to describe a change of that state: (state before, state after) -> "1 new file".
    "observation_change": {
        "files": "everloop.data.sources.reading:files_change",
        "sql": "everloop.data.sources.reading:sql_change",
        "remote": "everloop.data.sources.remote_files:remote_change",
        "version": "everloop.data.sources.snapshot_sources:version_change",
        "cursor": "everloop.data.sources.cursors:cursor_change",
        "predictions": "everloop.prediction_log.prediction_source:answers_change",
        "opened": "everloop.pipeline.outside.outside_state:opened_change",
        "listed": "everloop.pipeline.outside.outside_state:listed_change",
        "environment": "everloop.pipeline.outside.outside_state:environment_change",
    },
    # What `el.read` opens by a scheme of a room below it: (rest of the URL) -> rows, state.
    "source": {
        "predictions": "everloop.prediction_log.prediction_source:scan_answers",
    },
    # How a value is stored as an artifact; tried in this order.
    "artifact": {
        "frame": "everloop.pipeline.artifacts.frame:FrameFormat",
        "array": "everloop.pipeline.artifacts.array:ArrayFormat",
        "file": "everloop.pipeline.artifacts.paths:PathFormat",
        "tree": "everloop.pipeline.artifacts.paths:TreeFormat",
        "bytes": "everloop.pipeline.artifacts.raw:BytesFormat",
        "json": "everloop.pipeline.artifacts.json:JsonFormat",
        "list": "everloop.pipeline.artifacts.lists:ListFormat",
        "pickle": "everloop.pipeline.artifacts.pickled:PickleFormat",
    },
    # Where steps run.
    "executor": {
        "inline": "everloop.pipeline.executors.inline:InlineExecutor",
        "pool": "everloop.pipeline.executors.pool:PoolExecutor",
        "ray": "everloop.pipeline.executors.ray:RayExecutor",
    },
    # Algorithms that AutoTrain can try.
    "algorithm": {
        "lightgbm": "everloop.training.algorithms.lightgbm:LightGBM",
        "linear": "everloop.training.algorithms.linear:Linear",
    },
    # How a fitted model is written to files and read back.
    "model": {
        "lightgbm": "everloop.training.algorithms.lightgbm:LightGBMModel",
        "linear": "everloop.training.algorithms.linear:LinearModel",
        "skops": "everloop.training.adopted_estimator:AdoptedModel",
        "pickle": "everloop.training.adopted_estimator:PickledModel",
        "sklearn": "everloop.packages.formats.estimator:EstimatorModel",
        "xgboost": "everloop.packages.formats.estimator:EstimatorModel",
        "catboost": "everloop.packages.formats.estimator:EstimatorModel",
        "python": "everloop.packages.formats.estimator:PickledEstimator",
        "onnx": "everloop.packages.formats.onnx:OnnxModel",
        "mojo": "everloop.packages.formats.mojo:MojoModel",
        "keras": "everloop.packages.formats.keras:KerasModel",
        "torch": "everloop.packages.formats.pytorch:TorchModel",
        "pyfunc": "everloop.packages.formats.pyfunc:PyfuncModel",
        "average": "everloop.packages.formats.composite_models:AverageModel",
        "average_code": "everloop.packages.formats.composite_models:CodeAverageModel",
        "processed": "everloop.packages.formats.composite_models:ProcessedModel",
        "compiled": "everloop.packages.compilation.compiled_model:CompiledModel",
    },
    # Protocols of an endpoint, as tables of routes; see everloop.serving.protocols.protocol.
    "protocol": {
        "native": "everloop.serving.protocols.native:ROUTES",
        "inference_v2": "everloop.serving.protocols.inference_v2:ROUTES",
        "kserve_v1": "everloop.serving.protocols.kserve_v1:ROUTES",
        "invocations": "everloop.serving.protocols.invocations:ROUTES",
        "openapi": "everloop.serving.protocols.openapi:ROUTES",
    },
    # Model folders of other systems: read, write and adopt.
    "model_folder": {
        "mlflow": "everloop.integrations.mlflow.model_folders.folder_format:FORMAT",
    },
    # What checks a candidate before it gets traffic; see everloop.loop.gates.gate_protocol.
    "gate": {
        "at_least": "everloop.loop.gates.gate_declarations:AtLeast",
        "not_worse_than": "everloop.loop.gates.gate_declarations:NotWorseThan",
        "slices": "everloop.loop.gates.gate_declarations:Slices",
        "latency": "everloop.loop.gates.package_gates:Latency",
        "better_than": "everloop.loop.gates.gate_declarations:BetterThan",
        "calibrated": "everloop.loop.gates.probability_gates:Calibrated",
        "fair": "everloop.loop.gates.probability_gates:Fair",
        "size": "everloop.loop.gates.package_gates:Size",
        "robust": "everloop.loop.gates.robustness:Robust",
        "no_leakage": "everloop.loop.gates.data_gates:NoLeakage",
        "meets_contract": "everloop.loop.gates.data_gates:MeetsContract",
        "parity": "everloop.loop.gates.package_gates:PackageParity",
        "check": "everloop.loop.gates.function_gate:Check",
    },
    # What checks the windows of an endpoint; see everloop.loop.watches.watch_protocol.
    "watch": {
        "drift": "everloop.loop.watches.watch_declarations:Drift",
        "performance": "everloop.loop.watches.watch_declarations:Performance",
        "quality": "everloop.loop.watches.watch_declarations:Quality",
    },
    # What decides whether a loop runs again; see everloop.loop.triggers.trigger_protocol.
    "trigger": {
        "drift": "everloop.loop.triggers.trigger_declarations:OnDrift",
        "performance": "everloop.loop.triggers.trigger_declarations:OnPerformance",
        "schedule": "everloop.loop.triggers.schedules:Every",
        "new_data": "everloop.loop.triggers.trigger_declarations:OnNewData",
        "labels": "everloop.loop.triggers.trigger_declarations:OnLabels",
        "commit": "everloop.loop.triggers.commit_trigger:OnCommit",
        "call": "everloop.loop.triggers.trigger_calls:OnCall",
    },
    # Protocols of other systems that the control plane serves: (store, options) -> route handlers.
    "server_routes": {
        "mlflow": "everloop.integrations.mlflow.tracking_api.mounting:server_routes",
    },
    # Web pages that the control plane can serve at `/` instead of its own: (folder) -> route handlers.
    "server_page": {
        "mlflow": "everloop.integrations.mlflow.tracking_api.mounting:page_routes",
    },
    # Databases for records, by the scheme of their URL.
    "records": {
        "sqlite": "everloop.stores.records.sqlite:SqliteRecords",
        "postgresql": "everloop.stores.records.postgres:PostgresRecords",
    },
}


def names(kind: str) -> list[str]:
    """All plugin names of one kind, built-in ones first."""
    return [*TABLE.get(kind, {}), *(name for name in _entry_points(kind) if name not in TABLE.get(kind, {}))]


def load(kind: str, name: str) -> Any:
    """Import and return one plugin.

    Raises:
        NotFoundError: no plugin has this kind and name.
    """
    target = TABLE.get(kind, {}).get(name)
    if target is not None:
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    entry = _entry_points(kind).get(name)
    if entry is None:
        known = ", ".join(names(kind)) or "none"
        raise NotFoundError(f"There is no {kind} plugin called '{name}'.", help=f"Available: {known}")
    return entry.load()


def create(kind: str, name: str, options: dict[str, Any]) -> object:
    """Create an object of a plugin that is a class or a function.

    Raises:
        NotFoundError: no plugin has this kind and name.
        UsageError: the options do not fit.
    """
    make = load(kind, name)
    try:
        made: object = make(**options)
    except TypeError as error:
        raise UsageError(f"The {kind} '{name}' cannot be created: {error}.", help="Check its options.") from error
    return made


@lru_cache(maxsize=32)
def _entry_points(kind: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    prefix = f"{kind}."
    return {
        point.name.removeprefix(prefix): point
        for point in entry_points(group="everloop.plugins")
        if point.name.startswith(prefix)
    }
