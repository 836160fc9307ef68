"""Check the gates that a candidate must pass before it gets traffic.

The outcome of a gate is pass, fail or undecided, with the evidence. A failed gate rejects the candidate. If a gate is
undecided, the candidate may only enter a canary, where live evidence decides.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.gates.gate_declarations import AtLeast, Gate, Latency, NotWorseThan, Slices

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.loop.comparison.champions import ComparedVersion
    from everloop.records import Json, Outcome
    from everloop.training.intervals import Interval
    from everloop.training.trained_model import Task


_LATENCY_PASSES = 3


@dataclass(frozen=True)
class GateOutcome:
    """The outcome of a gate, with a message for people and the evidence."""

    outcome: Outcome
    message: str
    evidence: dict[str, Json]


@dataclass(frozen=True)
class GateInput:
    """What the gates judge: a candidate's predictions for its held-out rows.

    `labels` and `scores` have one entry per row of `rows`. `champions` maps an alias to its holder; an alias that no
    version holds is absent.
    """

    rows: pl.DataFrame
    labels: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    champions: dict[str, ComparedVersion]
    metric: str
    task: Task
    predict: Any
    """The packaged model's `predict(frame)`."""
    features: Sequence[str]
    places: np.ndarray[Any, Any] | None = None
    """Index of the class that the candidate predicts for each row; None: it follows from the scores."""

    def judged(self, metric: str) -> np.ndarray[Any, Any]:
        """The input of a metric: the candidate's scores, or its predicted classes if the metric needs those."""
        from everloop.training.metrics import scores_for

        return scores_for(metric, self.scores, self.places)


@singledispatch
def judge(gate: Gate, candidate: GateInput) -> GateOutcome:
    """Check one gate for a candidate."""
    raise UsageError(f"{gate!r} is not a gate.", help="Use el.AtLeast, el.NotWorseThan, el.Slices or el.Latency.")


@judge.register(AtLeast)
def _(gate: AtLeast, candidate: GateInput) -> GateOutcome:
    from everloop.training.intervals import interval
    from everloop.training.metrics import get_metric

    upward = get_metric(gate.metric, candidate.task).greater_is_better
    found = interval(candidate.labels, candidate.judged(gate.metric), gate.metric)
    value, low, _high = (found.value, found.low, found.high) if upward else (-found.value, -found.high, -found.low)
    bar = gate.value if upward else -gate.value
    outcome: Outcome = "pass" if low >= bar else "undecided" if value >= bar else "fail"
    message = f"{gate.metric} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], required {gate.value:g}"
    evidence = {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "bar": gate.value,
        "rows": candidate.rows.height,
    }
    return GateOutcome(outcome, message, evidence)


@judge.register(NotWorseThan)
def _(gate: NotWorseThan, candidate: GateInput) -> GateOutcome:
    from everloop.training.metrics import get_metric

    holder = candidate.champions.get(gate.alias)
    if holder is None:
        return GateOutcome("pass", f"no {gate.alias} yet", {"champion": None})
    metric = gate.metric or candidate.metric
    get_metric(metric, candidate.task)
    pairs = holder.pairs
    if pairs is None:
        return compare_unpaired(candidate.labels, candidate.judged(metric), holder, metric, gate.margin, holder.why)
    candidate_scores, holder_scores = pairs.judged(metric)
    if holder_scores.ndim == 2 and "multiclass" not in get_metric(metric).tasks:
        why = f"{metric} is not for {holder_scores.shape[1]} classes"
        return compare_unpaired(candidate.labels, candidate.judged(metric), holder, metric, gate.margin, why)
    outcome = compare(pairs.labels, candidate_scores, holder_scores, metric, gate.margin, holder.version)
    if not pairs.remark:
        return outcome
    evidence = {**outcome.evidence, "remark": pairs.remark}
    return GateOutcome(outcome.outcome, f"{outcome.message} ({pairs.remark})", evidence)


def compare(
    labels: np.ndarray[Any, Any],
    candidate: np.ndarray[Any, Any],
    champion: np.ndarray[Any, Any],
    metric: str,
    margin: float,
    name: str,
) -> GateOutcome:
    """Compare two models on the same rows by paired bootstrap, for gates and for rollouts.

    The outcome is pass if the 95 % interval of the gain is above `-margin`, fail if it is below, and undecided
    otherwise.

    Args:
        labels: labels of the rows.
        candidate: what `scores_for` returns for the metric: scores, or predicted labels as 0 and 1.
        champion: the same for the champion.
        metric: name of the metric.
        margin: the loss that is tolerated, in the unit of the metric.
        name: key of the champion's version.
    """
    from everloop.training.intervals import paired_bootstrap
    from everloop.training.metrics import get_metric, score

    difference = paired_bootstrap(labels, candidate, champion, metric)
    sign = 1.0 if get_metric(metric).greater_is_better else -1.0
    gain, (low, high) = sign * difference.value, sorted((sign * difference.low, sign * difference.high))
    outcome: Outcome = "pass" if low >= -margin else "fail" if high < -margin else "undecided"
    candidate_value, champion_value = score(metric, labels, candidate), score(metric, labels, champion)
    message = (
        f"{metric} {candidate_value:.3f} against {champion_value:.3f} of {name} on {len(labels):,} rows: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    evidence = {
        "champion": name,
        "metric": metric,
        "candidate_value": _finite(candidate_value),
        "champion_value": _finite(champion_value),
        "gain": _finite(gain),
        "low": _finite(low),
        "high": _finite(high),
        "margin": margin,
        "rows": len(labels),
    }
    return GateOutcome(outcome, message, evidence)


def compare_unpaired(
    labels: np.ndarray[Any, Any],
    candidate: np.ndarray[Any, Any],
    holder: ComparedVersion,
    metric: str,
    margin: float,
    why: str,
) -> GateOutcome:
    """Compare a candidate with a version that cannot score its rows: each on its own held-out rows.

    If the classes differ, the two values are not comparable, so the outcome is undecided.

    Args:
        why: the reason that the two cannot score the same rows.
    """
    from everloop.training.intervals import Interval, interval

    own = interval(labels, candidate, metric)
    recorded = holder.metrics.get(metric) or {}
    value, low, high = (recorded.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, int | float) or not isinstance(low, int | float) or not isinstance(high, int | float):
        reason = f"not comparable on the same rows: {why}"
        message = f"{reason}; and the evaluation of {holder.version} has no interval of {metric}"
        evidence = {"champion": holder.version, "metric": metric, "candidate_value": _finite(own.value), "why": why}
        return GateOutcome("undecided", message, evidence)
    other = Interval(value=value, low=low, high=high, standard_error=math.nan, method="as evaluated")
    outcome = judge_unpaired(own, other, metric, margin, holder.version, why)
    outcome.evidence["rows"] = len(labels)
    return outcome if holder.same_classes else GateOutcome("undecided", outcome.message, outcome.evidence)


def judge_unpaired(own: Interval, other: Interval, metric: str, margin: float, name: str, why: str) -> GateOutcome:
    """Compare two values of a metric that were measured on different rows, by the rule of `compare`.

    The interval of the gain is combined from the intervals of the two values, which are taken as independent.
    Source: Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008).

    Args:
        own: the candidate's value.
        other: the other version's value.
        name: key of the other version.
        why: the reason that the two did not score the same rows.
    """
    from everloop.training.metrics import get_metric

    a, b = (own.value, own.low, own.high), (other.value, other.low, other.high)
    if not get_metric(metric).greater_is_better:
        a, b = (-a[0], -a[2], -a[1]), (-b[0], -b[2], -b[1])
    gain = a[0] - b[0]
    low = gain - math.hypot(a[0] - a[1], b[2] - b[0])
    high = gain + math.hypot(a[2] - a[0], b[0] - b[1])
    # Comparisons with NaN are false, so an undefined interval leaves the outcome undecided.
    outcome: Outcome = "pass" if low >= -margin else "fail" if high < -margin else "undecided"
    message = (
        f"{metric} {own.value:.3f} against {other.value:.3f} of {name}, each on its own rows: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]; not comparable on the same rows: {why}"
    )
    evidence: dict[str, Json] = {
        "champion": name,
        "metric": metric,
        "candidate_value": _finite(own.value),
        "champion_value": _finite(other.value),
        "gain": _finite(gain),
        "low": _finite(low),
        "high": _finite(high),
        "margin": margin,
        "paired": False,
        "why": why,
    }
    return GateOutcome(outcome, message, evidence)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@judge.register(Slices)
def _(gate: Slices, candidate: GateInput) -> GateOutcome:
    import numpy as np

    from everloop.training.intervals import interval
    from everloop.training.metrics import get_metric, score

    if gate.column not in candidate.rows.columns:
        columns = ", ".join(candidate.rows.columns)
        raise UsageError(f"Slices('{gate.column}'): the dataset has no such column.", help=f"It has: {columns}")
    metric = gate.metric or candidate.metric
    sign = 1.0 if get_metric(metric, candidate.task).greater_is_better else -1.0
    judged_scores = candidate.judged(metric)
    overall = score(metric, candidate.labels, judged_scores)
    values = candidate.rows[gate.column].cast(str).fill_null("null").to_numpy()
    judged: dict[str, Json] = {}
    worst: tuple[float, str] | None = None
    failed: list[str] = []
    uncertain: list[str] = []
    for value in np.unique(values):
        mask = values == value
        if mask.sum() < gate.least_rows or (candidate.task == "binary" and len(np.unique(candidate.labels[mask])) < 2):
            continue
        found = interval(candidate.labels[mask], judged_scores[mask], metric)
        gap = sign * (overall - found.value)
        # The gap at the better end of the slice's confidence interval.
        least_gap = min(sign * (overall - found.low), sign * (overall - found.high))
        judged[str(value)] = {"value": found.value, "low": found.low, "high": found.high, "rows": int(mask.sum())}
        if worst is None or gap > worst[0]:
            worst = (gap, str(value))
        if least_gap > gate.worst_gap:
            failed.append(str(value))
        elif gap > gate.worst_gap:
            uncertain.append(str(value))
    evidence = {"whole": overall, "slices": judged, "worst_gap": worst[0] if worst else None, "allowed": gate.worst_gap}
    if worst is None:
        classes = " and both classes" if candidate.task == "binary" else ""
        message = f"no slice of {gate.column} has {gate.least_rows} rows{classes}"
        return GateOutcome("undecided", message, evidence)
    message = f"worst slice: {worst[1]}, {worst[0]:.3f} worse than all rows ({overall:.3f}); allowed {gate.worst_gap:g}"
    return GateOutcome("fail" if failed else "undecided" if uncertain else "pass", message, evidence)


@judge.register(Latency)
def _(gate: Latency, candidate: GateInput) -> GateOutcome:
    import numpy as np

    rows = [[row] for row in candidate.rows.select(candidate.features).head(gate.rows).to_dicts()]
    candidate.predict(rows[0])  # warm-up: the first call initialises the model
    passes = []
    for _ in range(_LATENCY_PASSES):
        times_ms = []
        for row in rows:
            started = time.perf_counter()
            candidate.predict(row)
            times_ms.append((time.perf_counter() - started) * 1000)
        passes.append(np.percentile(times_ms, [50, 99]))
    # Other load can only slow us down, so the fastest pass is the best estimate.
    p50, p99 = (float(value) for value in min(passes, key=lambda pair: pair[1]))
    outcome: Outcome = "pass" if p99 <= gate.p99_ms else "fail"
    message = f"p99 {p99:.2g} ms over {len(rows)} single rows, allowed {gate.p99_ms:g} ms"
    return GateOutcome(outcome, message, {"p50_ms": p50, "p99_ms": p99, "allowed_ms": gate.p99_ms, "rows": len(rows)})
