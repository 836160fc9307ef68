"""everloop runs the whole life cycle of machine-learning models from one declaration.

It gathers and checks data, engineers features, trains, tunes, evaluates, packages, releases, serves, monitors and
retrains. Importing this package loads only the standard library; each name imports its sub-package on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.lazy_exports import lazy_exports
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.data import (
        Dataset as Dataset,
        FeatureView as FeatureView,
        OnDemand as OnDemand,
        Window as Window,
        join_features as join_features,
        read as read,
        transformer as transformer,
    )
    from everloop.integrations.kubeflow.pipeline_compilation import compile as compile  # noqa: A004
    from everloop.loop import (
        AtLeast as AtLeast,
        BetterThan as BetterThan,
        Calibrated as Calibrated,
        Canary as Canary,
        Check as Check,
        Drift as Drift,
        Due as Due,
        Endpoint as Endpoint,
        Every as Every,
        Fair as Fair,
        Gate as Gate,
        GateContext as GateContext,
        GateOutcome as GateOutcome,
        Latency as Latency,
        Loop as Loop,
        MeetsContract as MeetsContract,
        NoLeakage as NoLeakage,
        NotWorseThan as NotWorseThan,
        OnCall as OnCall,
        OnCommit as OnCommit,
        OnDrift as OnDrift,
        OnLabels as OnLabels,
        OnNewData as OnNewData,
        OnPerformance as OnPerformance,
        PackageParity as PackageParity,
        Performance as Performance,
        Quality as Quality,
        RetrainLimits as RetrainLimits,
        Robust as Robust,
        Size as Size,
        Slices as Slices,
        Trigger as Trigger,
        TriggerContext as TriggerContext,
        Watch as Watch,
        WatchContext as WatchContext,
        backfill as backfill,
        call_loop as call_loop,
        explain_due as explain_due,
        load_gate as load_gate,
        load_trigger as load_trigger,
        load_watch as load_watch,
        materialize as materialize,
    )
    from everloop.pipeline import (
        Graph as Graph,
        progress as progress,
        run_graph as run_graph,
        step as step,
        trace as trace,
    )
    from everloop.registry import load_model as load_model, save_model as save_model
    from everloop.replay import Policy as Policy, replay as replay
    from everloop.stores import open_store as open_store
    from everloop.tracking import (
        autolog as autolog,
        compare_runs as compare_runs,
        current_run as current_run,
        read_history as read_history,
        search_runs as search_runs,
        start_run as start_run,
    )
    from everloop.training import AutoTrain as AutoTrain

__version__ = VERSION

__getattr__, __dir__, _names = lazy_exports(
    __name__,
    {
        "data": ["Dataset", "FeatureView", "OnDemand", "Window", "join_features", "read", "transformer"],
        "loop": [
            "AtLeast",
            "BetterThan",
            "Calibrated",
            "Canary",
            "Check",
            "Drift",
            "Due",
            "Endpoint",
            "Every",
            "Fair",
            "Gate",
            "GateContext",
            "GateOutcome",
            "Latency",
            "Loop",
            "MeetsContract",
            "NoLeakage",
            "NotWorseThan",
            "OnCall",
            "OnCommit",
            "OnDrift",
            "OnLabels",
            "OnNewData",
            "OnPerformance",
            "PackageParity",
            "Performance",
            "Quality",
            "RetrainLimits",
            "Robust",
            "Size",
            "Slices",
            "Trigger",
            "TriggerContext",
            "Watch",
            "WatchContext",
            "backfill",
            "call_loop",
            "explain_due",
            "load_trigger",
            "load_gate",
            "load_watch",
            "materialize",
        ],
        "replay": ["Policy", "replay"],
        "registry": ["load_model", "save_model"],
        "integrations.kubeflow.pipeline_compilation": ["compile"],
        "pipeline": ["Graph", "progress", "run_graph", "step", "trace"],
        "stores": ["open_store"],
        "tracking": ["autolog", "compare_runs", "current_run", "read_history", "search_runs", "start_run"],
        "training": ["AutoTrain"],
    },
)
__all__ = ["EverloopError", "__version__", *_names]
