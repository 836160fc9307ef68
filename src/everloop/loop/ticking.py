"""One heartbeat of a loop: fold the logs, watch, move the rollout, and say whether a turn is due.

Everything a tick learns is in the store, so ticks may be skipped, repeated or run by another process: each
continues from the records of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.loop.gates import Answer, compare
from everloop.loop.rollout import apply_answer, find_rolling, hold_release
from everloop.loop.triggers import find_due
from everloop.loop.watching import watch
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from everloop.loop.declaration import Loop
    from everloop.loop.parts import Canary, Due, Endpoint
    from everloop.records import Finding, Release
    from everloop.stores import Store

_SERVED_APART = 1e-9
"""A served answer that lies further from its package's own is no rounding: it is another model."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What one heartbeat found and did."""

    folded: int
    """Predictions that moved from journals into the table."""
    findings: list[Finding]
    release: Release | None
    """The rollout, when this tick decided something about it."""
    due: Due | None


def tick(loop: Loop, store: Store) -> Tick:
    """Take one heartbeat. Two processes may tick at once: the second finds the work done."""
    if loop.serve is None:
        return Tick(0, [], None, find_due(loop, store))
    from everloop.data.features import watch_freshness
    from everloop.serving import fold_labels, fold_predictions
    from everloop.serving.prediction_log import LABELS, PREDICTIONS, table_name

    with store.lock(f"tick-{loop.name}"):
        folded = fold_predictions(store, loop.serve.name)
        if folded + fold_labels(store, loop.serve.name):
            for log in (PREDICTIONS, LABELS):
                store.tables.tidy(table_name(store, log, loop.serve.name))
        findings = [*watch(loop, store), *watch_freshness(store)]
        release = _move_rollout(loop, loop.serve, store)
        return Tick(folded, findings, release, find_due(loop, store))


def _move_rollout(loop: Loop, place: Endpoint, store: Store) -> Release | None:
    release = find_rolling(store, place.name)
    canary = place.rollout
    if release is None or release.previous is None or release.percent <= 0 or canary is None:
        return None
    decisions = len(release.decisions)
    started = next(decision.at for decision in reversed(release.decisions) if decision.action in ("start", "advance"))
    answer = _live_evidence(store, release, release.previous, canary, loop.live_metric)
    impatient = store.now() - started >= parse_duration(canary.patience)
    if answer is None:
        moved = hold_release(store, release, f"waiting for {canary.least_labels} labelled answers")
    else:
        moved = apply_answer(store, release, answer, impatient=impatient)
    return moved if len(moved.decisions) > decisions else None


def _live_evidence(store: Store, release: Release, previous: str, canary: Canary, metric: str) -> Answer | None:
    """Candidate against champion on the same labelled rows of live traffic since the rollout began.

    Both versions score every logged row, whichever of them answered it: the pairs make a verdict possible with a
    tenth of the rows that two separate samples would need. What the canary really answered must be what its
    package answers; anything else rolls it back.
    """
    import numpy as np
    import polars as pl

    from everloop.models import load_model
    from everloop.serving import read_inputs, read_labelled

    step_began = next(
        decision.at for decision in reversed(release.decisions) if decision.action in ("start", "advance")
    )
    labelled = read_labelled(store, release.endpoint, since=release.created_at).collect()
    rows = labelled.filter(pl.col("actual").is_not_null())
    fresh = rows.filter(pl.col("event_at") >= step_began)
    truth = rows["actual"].to_numpy()
    candidate, champion = (load_model(store, key) for key in (release.candidate, previous))
    if fresh.height < canary.least_labels or (candidate.task != "regression" and len(np.unique(truth)) < 2):
        return None
    own = candidate.predict(read_inputs(rows, candidate.signature))
    other = champion.predict(read_inputs(rows, champion.signature))
    answered = (rows["version"] == release.candidate).to_numpy()
    if candidate.task != "multiclass" and answered.any():
        apart = float(np.abs(own[answered] - rows["score"].to_numpy()[answered]).max())
        if apart > _SERVED_APART:
            evidence = {"largest_difference": apart, "rows": int(answered.sum())}
            return Answer("fail", f"the canary answers {apart:.2g} apart from its own package", evidence)
    answer = compare(truth, own, other, metric, canary.margin, previous)
    answer.evidence["answered_by_canary"] = int(answered.sum())
    answer.evidence["since_step"] = fresh.height
    return answer
