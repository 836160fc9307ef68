"""Move a rollout by one step, if its evidence allows: what a tick of the reconciler does about a release."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.loop.comparison.champions import deciding_metric
from everloop.loop.comparison.schema_compatibility import schema_coverage
from everloop.loop.releases.live_evidence import live_evidence
from everloop.loop.releases.rollout import apply_evidence, find_rolling, hold_release, step_started_at
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.gates.gate_checks import GateOutcome
    from everloop.loop.loop_definition import Loop
    from everloop.loop.releases.release_declarations import Endpoint
    from everloop.records import Release
    from everloop.stores import Store


def move_rollout(loop: Loop, endpoint: Endpoint, store: Store) -> Release | None:
    """Advance, hold or end the rollout under way at an endpoint; None if nothing was decided."""
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
