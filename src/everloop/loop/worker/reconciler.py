"""One tick of a loop: fold the logs, check the watches, move the rollout, and see whether a run is due.

All state is in the store, so a tick may be skipped, repeated or run by another process. Each tick continues from the
records of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from everloop.loop.comparison.champions import deciding_metric
from everloop.loop.comparison.schema_compatibility import schema_coverage
from everloop.loop.releases.live_evidence import live_evidence
from everloop.loop.releases.rollout import apply_evidence, find_rolling, hold_release, step_started_at
from everloop.loop.triggers.trigger_checks import find_due
from everloop.loop.watches.watch_runs import watch, watch_views
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.errors import EverloopError
    from everloop.loop.gates.gate_checks import GateOutcome
    from everloop.loop.loop_definition import Loop
    from everloop.loop.releases.release_declarations import Endpoint
    from everloop.loop.triggers.trigger_declarations import Due
    from everloop.records import Finding, Incident, Release
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one tick found and did."""

    folded: int
    """How many predictions were moved from journals into the table."""
    findings: list[Finding]
    release: Release | None
    """The rollout, if this tick made a decision about it."""
    due: Due | None
    """Why a run is due; None if none is."""
    errors: list[EverloopError] = field(default_factory=list)
    """Errors of watches that could not check their windows. They did not stop the rest of the tick."""
    incidents: list[Incident] = field(default_factory=list)
    """Incidents that were opened, joined, escalated or resolved."""


def reconcile(loop: Loop, store: Store) -> Reconciliation:
    """Do one tick of a loop. Two processes may do so at the same time: the second finds the work done."""
    if loop.serve is None:
        return Reconciliation(0, [], None, find_due(loop, store))
    from everloop.prediction_log import fold_labels, fold_predictions
    from everloop.prediction_log.aggregates import fold_aggregates
    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    with store.lock(f"tick-{loop.name}"):
        folded = fold_predictions(store, loop.serve.name)
        if folded + fold_labels(store, loop.serve.name):
            for log in (PREDICTIONS, LABELS):
                store.tables.tidy(table_name(store, log, loop.serve.name))
            fold_aggregates(store, loop.serve.name)
        findings, incidents, errors = watch(loop, store)
        stale, changed = watch_views(store)
        release = _move_rollout(loop, loop.serve, store)
        due = find_due(loop, store)
        return Reconciliation(folded, findings + stale, release, due, errors, incidents + changed)


def _move_rollout(loop: Loop, endpoint: Endpoint, store: Store) -> Release | None:
    from everloop.registry import get_version

    release = find_rolling(store, endpoint.name)
    canary = endpoint.rollout
    if release is None or release.previous is None or release.percent <= 0 or canary is None:
        return None
    decisions = len(release.decisions)
    started = step_started_at(release)
    metric = loop.live_metric or deciding_metric(get_version(store, release.candidate))
    outcome = live_evidence(store, release, release.previous, canary, metric)
    impatient = store.now() - started >= parse_duration(canary.patience)
    coverage = schema_coverage(store, release, release.previous)
    remark = coverage.text() if coverage is not None else ""
    evidence = coverage.evidence() if coverage is not None else {}
    if outcome is None:
        both = " that both versions can score" if remark else ""
        reason = f"waiting for {canary.least_labels} labelled predictions{both}"
        moved = hold_release(store, release, f"{reason}; {remark}" if remark else reason, evidence)
    else:
        outcome = replace(outcome, message=f"{outcome.message}; {remark}" if remark else outcome.message)
        outcome.evidence.update(evidence)
        if coverage is not None and coverage.would_refuse and _would_complete(release, outcome, impatient=impatient):
            reason = f"{outcome.message}; without the champion, {release.candidate} would refuse such requests"
            moved = hold_release(store, release, f"not completed: {reason}", outcome.evidence)
        else:
            moved = apply_evidence(store, release, outcome, impatient=impatient)
    return moved if len(moved.decisions) > decisions else None


def _would_complete(release: Release, outcome: GateOutcome, *, impatient: bool) -> bool:
    """Whether this outcome gives the candidate all the traffic."""
    gain = outcome.evidence.get("gain")
    advances = outcome.outcome == "pass" or (
        outcome.outcome == "undecided" and impatient and isinstance(gain, float) and gain >= 0
    )
    return advances and not any(release.percent < step < 100 for step in release.steps)
