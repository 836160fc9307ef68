"""Move a rollout by one step, if its evidence allows: what a tick of the reconciler does about a release.

A step forward needs the evidence, no pause, no freeze window, and for the last step an approval if one is declared.
Rollbacks need only the evidence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.loop.comparison.champions import deciding_metric
from everloop.loop.comparison.schema_compatibility import schema_coverage
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.evidence_rows import forget_evidence
from everloop.loop.releases.freeze_windows import frozen_by
from everloop.loop.releases.live_evidence import live_evidence
from everloop.loop.releases.rollout import (
    abort_release,
    apply_evidence,
    find_rolling,
    hold_release,
    is_shadowing,
    step_started_at,
)
from everloop.loop.releases.unlabelled_evidence import unlabelled_problem
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.comparison.schema_compatibility import SchemaCoverage
    from everloop.loop.loop_definition import Loop
    from everloop.loop.releases.release_declarations import Canary, Endpoint
    from everloop.records import Awaited, Json, Release
    from everloop.stores import Store


def move_rollout(loop: Loop, endpoint: Endpoint, store: Store) -> Release | None:
    """Advance, hold or end the rollout under way at an endpoint; None if nothing was decided."""
    release = find_rolling(store, endpoint.name)
    canary = endpoint.rollout
    if release is None or release.previous is None or canary is None:
        return None
    if release.percent <= 0 and not is_shadowing(release):
        return None
    decisions = len(release.decisions)
    moved = _decide(loop, store, release, release.previous, canary)
    if moved.state != "rolling_out":
        forget_evidence(store, endpoint.name)
    return moved if len(moved.decisions) > decisions else None


def _decide(loop: Loop, store: Store, release: Release, previous: str, canary: Canary) -> Release:
    from everloop.registry import get_version

    metric = loop.live_metric or deciding_metric(get_version(store, release.candidate))
    outcome = live_evidence(store, release, previous, canary, metric)
    if outcome is None:
        bad = unlabelled_problem(loop, store, release, previous, canary, metric)
        if bad is not None:
            return abort_release(store, release, bad.message, bad.evidence)
    coverage = schema_coverage(store, release, previous)
    if outcome is None:
        both = " that both versions can score" if coverage is not None and coverage.text() else ""
        outcome = GateOutcome("undecided", f"waiting for {canary.least_labels} labelled predictions{both}", {})
    else:
        looks = outcome.evidence.pop("looks", None)
        if isinstance(looks, list):
            # The look is stored together with what follows from it.
            release = replace(release, looks=tuple(int(rows) for rows in looks))
    if coverage is not None:
        remark = f"; {coverage.text()}" if coverage.text() else ""
        outcome = GateOutcome(outcome.outcome, outcome.message + remark, {**outcome.evidence, **coverage.evidence()})
    if outcome.outcome == "fail":
        return abort_release(store, release, outcome.message, outcome.evidence)
    ran_out = _ran_out(store, release, canary)
    outcome = _step_allowed(store, release, canary, outcome, impatient=bool(ran_out))
    if outcome.outcome != "pass":
        if ran_out and canary.if_undecided == "back":
            reason = f"{ran_out}, so the champion keeps the traffic; {outcome.message}"
            return abort_release(store, release, reason, outcome.evidence)
        return hold_release(store, release, f"not decided yet: {outcome.message}", outcome.evidence)
    missing = _missing(store, release, canary, coverage)
    if missing is not None:
        waits, reason = missing
        held = replace(release, awaits=waits)
        return hold_release(store, held, f"{reason}; {outcome.message}", outcome.evidence)
    return apply_evidence(store, release, outcome, impatient=False)


def _is_last(release: Release) -> bool:
    """Whether the next step gives the candidate all the traffic."""
    return not any(release.percent < step < 100 for step in release.steps)


def _ran_out(store: Store, release: Release, canary: Canary) -> str:
    """Say which limit of time has passed; empty if none has, or if a person has paused the release."""
    now = store.now()
    if canary.longest is not None and now - release.created_at >= parse_duration(canary.longest):
        return f"the longest time of a release ({canary.longest}) has passed"
    # After a pause, patience begins again.
    resumed = [decision.at for decision in release.decisions if decision.action == "resume"]
    since = max([step_started_at(release), *resumed])
    if not release.paused and now - since >= parse_duration(canary.patience):
        return f"patience ({canary.patience}) has run out"
    return ""


def _step_allowed(
    store: Store, release: Release, canary: Canary, outcome: GateOutcome, *, impatient: bool
) -> GateOutcome:
    """Return the outcome for the next step: earlier steps need less evidence than the last one."""
    evidence, message = outcome.evidence, outcome.message
    gain = evidence.get("gain")
    limit = -canary.margin if canary.rule == "not_worse" else canary.margin
    if impatient and canary.if_undecided == "advance" and isinstance(gain, float) and gain >= limit:
        return GateOutcome("pass", f"{_ran_out(store, release, canary)}; {message}", evidence)
    if is_shadowing(release) and canary.shadow is not None:
        left = parse_duration(canary.shadow) - (store.now() - step_started_at(release))
        if left.total_seconds() > 0:
            return GateOutcome("undecided", f"the candidate is a shadow for {canary.shadow}; {message}", evidence)
        harmless = evidence.get("ready") is not False or evidence.get("since_step", 0) == 0
        return GateOutcome("pass" if harmless else "undecided", f"the shadow's time has passed; {message}", evidence)
    if _is_last(release):
        if release.awaits is not None and outcome.outcome == "undecided":
            return GateOutcome("pass", f"proven before the release began to wait; {message}", evidence)
        return outcome
    if evidence.get("ready"):
        return GateOutcome("pass", f"no sign of harm at {release.percent:g} percent; {message}", evidence)
    fresh = evidence.get("since_step")
    if isinstance(fresh, int) and fresh < canary.least_labels:
        message = f"waiting for {canary.least_labels} labelled predictions at this step, {fresh} so far; {message}"
    return GateOutcome("undecided", message, evidence)


def _missing(
    store: Store, release: Release, canary: Canary, coverage: SchemaCoverage | None
) -> tuple[Awaited | None, str] | None:  # fmt: skip
    """Return what else a step forward needs: what the release waits for, if it need not prove itself again, and why."""
    frozen = frozen_by(canary.freeze, store.now())
    last = _is_last(release)
    if release.paused:
        return release.awaits, "paused by a person"
    if coverage is not None and coverage.would_refuse and last:
        return None, f"not completed: without the champion, {release.candidate} would refuse such requests"
    if last and canary.approval and release.approved_by is None:
        return "approval", f"waiting for approval: everloop release approve {release.endpoint}"
    if frozen is not None:
        return ("window" if last else release.awaits), f"no step forward in the freeze window '{frozen}'"
    return None


def needs(release: Release) -> str:
    """Say in a sentence what a release needs for its next step, from its last decision."""
    if release.state != "rolling_out":
        return ""
    if release.paused:
        return f"It is paused. To resume: everloop release resume {release.endpoint}"
    if release.awaits == "approval":
        return f"It waits for an approval: everloop release approve {release.endpoint}"
    if release.awaits == "window":
        return "Success is proven. It takes the next step when the freeze window ends."
    evidence: dict[str, Json] = release.decisions[-1].evidence if release.decisions else {}
    deviations, needed = evidence.get("deviations"), evidence.get("needed")
    days, least_days = evidence.get("days"), evidence.get("least_days")
    proven = isinstance(deviations, float) and isinstance(needed, float) and deviations > needed
    if proven and isinstance(days, int) and isinstance(least_days, int) and days < least_days and _is_last(release):
        return f"The labelled predictions so far are enough, but they are of {days} of at least {least_days} days."
    if isinstance(deviations, float) and isinstance(needed, float) and _is_last(release):
        return (
            f"To complete, the gain has to be {needed:.2f} standard errors above the limit; it is {deviations:.2f}. "
            f"{evidence.get('rows'):,} of about {evidence.get('planned_rows'):,} planned labelled predictions are in."
        )
    if _is_last(release):
        return "To complete, it needs labelled predictions that prove the candidate's quality."
    return "The next step needs enough labelled predictions since the last one, and no sign of harm."


__all__ = ["move_rollout", "needs"]
