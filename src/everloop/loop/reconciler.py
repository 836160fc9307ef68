"""One heartbeat of a loop: fold the logs, watch, move the rollout, and say whether a turn is due.

Everything a tick learns is in the store, so ticks may be skipped, repeated or run by another process: each
continues from the records of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everloop.loop.champions import deciding_metric
from everloop.loop.live_evidence import live_evidence
from everloop.loop.rollout import apply_answer, find_rolling, hold_release
from everloop.loop.schema_compatibility import find_understood
from everloop.loop.triggers import find_due
from everloop.loop.watches import watch
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.declarations import Due, Endpoint
    from everloop.loop.gates import GateOutcome
    from everloop.loop.loop_definition import Loop
    from everloop.records import Finding, Release
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What one heartbeat found and did."""

    folded: int
    """Predictions that moved from journals into the table."""
    findings: list[Finding]
    release: Release | None
    """The rollout, when this tick decided something about it."""
    due: Due | None


def reconcile(loop: Loop, store: Store) -> Reconciliation:
    """Take one heartbeat. Two processes may tick at once: the second finds the work done."""
    if loop.serve is None:
        return Reconciliation(0, [], None, find_due(loop, store))
    from everloop.data.features import watch_freshness
    from everloop.prediction_log import fold_labels, fold_predictions
    from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, table_name

    with store.lock(f"tick-{loop.name}"):
        folded = fold_predictions(store, loop.serve.name)
        if folded + fold_labels(store, loop.serve.name):
            for log in (PREDICTIONS, LABELS):
                store.tables.tidy(table_name(store, log, loop.serve.name))
        findings = [*watch(loop, store), *watch_freshness(store)]
        release = _move_rollout(loop, loop.serve, store)
        return Reconciliation(folded, findings, release, find_due(loop, store))


def _move_rollout(loop: Loop, place: Endpoint, store: Store) -> Release | None:
    from everloop.registry import get_version

    release = find_rolling(store, place.name)
    canary = place.rollout
    if release is None or release.previous is None or release.percent <= 0 or canary is None:
        return None
    decisions = len(release.decisions)
    started = next(decision.at for decision in reversed(release.decisions) if decision.action in ("start", "advance"))
    metric = loop.live_metric or deciding_metric(get_version(store, release.candidate))
    answer = live_evidence(store, release, release.previous, canary, metric)
    impatient = store.now() - started >= parse_duration(canary.patience)
    understood = find_understood(store, release, release.previous)
    told = understood.text() if understood is not None else ""
    evidence = understood.evidence() if understood is not None else {}
    if answer is None:
        both = " that both versions understand" if told else ""
        reason = f"waiting for {canary.least_labels} labelled answers{both}"
        moved = hold_release(store, release, f"{reason}; {told}" if told else reason, evidence)
    else:
        answer = replace(answer, message=f"{answer.message}; {told}" if told else answer.message)
        answer.evidence.update(evidence)
        if understood is not None and understood.would_refuse and _would_complete(release, answer, impatient=impatient):
            reason = f"{answer.message}; alone, {release.candidate} would refuse such requests"
            moved = hold_release(store, release, f"not completed: {reason}", answer.evidence)
        else:
            moved = apply_answer(store, release, answer, impatient=impatient)
    return moved if len(moved.decisions) > decisions else None


def _would_complete(release: Release, answer: GateOutcome, *, impatient: bool) -> bool:
    """Whether this answer gives the candidate all the traffic."""
    gain = answer.evidence.get("gain")
    advances = answer.outcome == "pass" or (
        answer.outcome == "undecided" and impatient and isinstance(gain, float) and gain >= 0
    )
    return advances and not any(release.percent < step < 100 for step in release.steps)
