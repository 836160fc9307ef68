"""The loop: its declaration, its runs, gates, rollouts, monitoring and retraining triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.loop.declarations import (
        AtLeast as AtLeast,
        Canary as Canary,
        Drift as Drift,
        Due as Due,
        Endpoint as Endpoint,
        Every as Every,
        Latency as Latency,
        NotWorseThan as NotWorseThan,
        OnDrift as OnDrift,
        OnNewData as OnNewData,
        OnPerformance as OnPerformance,
        Performance as Performance,
        Quality as Quality,
        Slices as Slices,
    )
    from everloop.loop.loop_definition import Loop as Loop
    from everloop.loop.loop_run import LoopRun as LoopRun, explain_run as explain_run, run_loop as run_loop
    from everloop.loop.project import Project as Project, load_project as load_project
    from everloop.loop.project_features import backfill as backfill, materialize as materialize
    from everloop.loop.reconciler import Reconciliation as Reconciliation, reconcile as reconcile
    from everloop.loop.rollout import (
        abort_release as abort_release,
        advance_release as advance_release,
        move_alias as move_alias,
        promote as promote,
        roll_back as roll_back,
    )
    from everloop.loop.watch_protocol import Watch as Watch, WatchContext as WatchContext, load_watch as load_watch

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "declarations": [
            "AtLeast",
            "Canary",
            "Drift",
            "Due",
            "Endpoint",
            "Every",
            "Latency",
            "NotWorseThan",
            "OnDrift",
            "OnNewData",
            "OnPerformance",
            "Performance",
            "Quality",
            "Slices",
        ],
        "loop_definition": ["Loop"],
        "loop_run": ["LoopRun", "explain_run", "run_loop"],
        "project": ["Project", "load_project"],
        "project_features": ["backfill", "materialize"],
        "reconciler": ["Reconciliation", "reconcile"],
        "rollout": ["abort_release", "advance_release", "move_alias", "promote", "roll_back"],
        "watch_protocol": ["Watch", "WatchContext", "load_watch"],
    },
)
