"""The loop: its declaration, its runs, gates, rollouts, monitoring and retraining triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.loop.gates.data_gates import MeetsContract as MeetsContract, NoLeakage as NoLeakage
    from everloop.loop.gates.function_gate import Check as Check
    from everloop.loop.gates.gate_declarations import (
        AtLeast as AtLeast,
        BetterThan as BetterThan,
        NotWorseThan as NotWorseThan,
        Slices as Slices,
    )
    from everloop.loop.gates.gate_protocol import (
        Gate as Gate,
        GateContext as GateContext,
        GateOutcome as GateOutcome,
        load_gate as load_gate,
    )
    from everloop.loop.gates.package_gates import (
        Latency as Latency,
        PackageParity as PackageParity,
        Size as Size,
    )
    from everloop.loop.gates.probability_gates import Calibrated as Calibrated, Fair as Fair
    from everloop.loop.gates.robustness import Robust as Robust
    from everloop.loop.loop_definition import Loop as Loop
    from everloop.loop.loop_run import LoopRun as LoopRun, explain_run as explain_run, run_loop as run_loop
    from everloop.loop.project import Project as Project, load_project as load_project
    from everloop.loop.project_features import backfill as backfill, materialize as materialize
    from everloop.loop.releases.guards import check_guards as check_guards
    from everloop.loop.releases.promotion import move_alias as move_alias, promote as promote, roll_back as roll_back
    from everloop.loop.releases.release_control import (
        approve_release as approve_release,
        pause_release as pause_release,
        reject_release as reject_release,
        resume_release as resume_release,
    )
    from everloop.loop.releases.release_declarations import Canary as Canary, Endpoint as Endpoint
    from everloop.loop.releases.rollout import abort_release as abort_release, advance_release as advance_release
    from everloop.loop.triggers.commit_trigger import OnCommit as OnCommit
    from everloop.loop.triggers.retrain_limits import RetrainLimits as RetrainLimits
    from everloop.loop.triggers.schedules import Every as Every
    from everloop.loop.triggers.trigger_calls import OnCall as OnCall, call_loop as call_loop
    from everloop.loop.triggers.trigger_checks import (
        TriggerReport as TriggerReport,
        explain_due as explain_due,
        find_due as find_due,
    )
    from everloop.loop.triggers.trigger_declarations import (
        OnDrift as OnDrift,
        OnLabels as OnLabels,
        OnNewData as OnNewData,
        OnPerformance as OnPerformance,
    )
    from everloop.loop.triggers.trigger_protocol import (
        Due as Due,
        Trigger as Trigger,
        TriggerContext as TriggerContext,
        load_trigger as load_trigger,
    )
    from everloop.loop.watches.watch_declarations import Drift as Drift, Performance as Performance, Quality as Quality
    from everloop.loop.watches.watch_protocol import (
        Watch as Watch,
        WatchContext as WatchContext,
        load_watch as load_watch,
    )
    from everloop.loop.worker.reconciler import Reconciliation as Reconciliation, reconcile as reconcile

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "gates.data_gates": ["MeetsContract", "NoLeakage"],
        "gates.function_gate": ["Check"],
        "gates.gate_declarations": ["AtLeast", "BetterThan", "NotWorseThan", "Slices"],
        "gates.gate_protocol": ["Gate", "GateContext", "GateOutcome", "load_gate"],
        "gates.package_gates": ["Latency", "PackageParity", "Size"],
        "gates.probability_gates": ["Calibrated", "Fair"],
        "gates.robustness": ["Robust"],
        "releases.guards": ["check_guards"],
        "releases.release_control": ["approve_release", "pause_release", "reject_release", "resume_release"],
        "releases.release_declarations": ["Canary", "Endpoint"],
        "releases.promotion": ["move_alias", "promote", "roll_back"],
        "releases.rollout": ["abort_release", "advance_release"],
        "triggers.commit_trigger": ["OnCommit"],
        "triggers.retrain_limits": ["RetrainLimits"],
        "triggers.schedules": ["Every"],
        "triggers.trigger_calls": ["OnCall", "call_loop"],
        "triggers.trigger_checks": ["TriggerReport", "explain_due", "find_due"],
        "triggers.trigger_declarations": ["OnDrift", "OnLabels", "OnNewData", "OnPerformance"],
        "triggers.trigger_protocol": ["Due", "Trigger", "TriggerContext", "load_trigger"],
        "watches.watch_declarations": ["Drift", "Performance", "Quality"],
        "watches.watch_protocol": ["Watch", "WatchContext", "load_watch"],
        "worker.reconciler": ["Reconciliation", "reconcile"],
        "loop_definition": ["Loop"],
        "loop_run": ["LoopRun", "explain_run", "run_loop"],
        "project": ["Project", "load_project"],
        "project_features": ["backfill", "materialize"],
    },
)
