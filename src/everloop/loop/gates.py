"""Gates: what a candidate must show before it meets a customer.

Each gate answers pass, fail or undecided, with the evidence. A candidate with a failed gate is rejected; an
undecided one may only enter a canary, where live evidence decides.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from everloop.errors import UsageError
from everloop.loop.declarations import AtLeast, Gate, Latency, NotWorseThan, Slices

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.loop.champions import ComparedVersion
    from everloop.records import Json, Outcome
    from everloop.training.intervals import Interval
    from everloop.training.trained_model import Task


_LATENCY_PASSES = 3


@dataclass(frozen=True)
class GateOutcome:
    """What a gate said."""

    outcome: Outcome
    message: str
    evidence: dict[str, Json]


@dataclass(frozen=True)
class Trial:
    """What the gates may look at.

    `truth` and `scores` have one entry per row of `rows`: the candidate's held-out rows. `champions` maps an
    alias to its holder; an alias without a holder is absent.
    """

    rows: pl.DataFrame
    truth: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    champions: dict[str, ComparedVersion]
    metric: str
    task: Task
    predict: Any
    """The packaged model's `predict(frame)`."""
    features: Sequence[str]
    places: np.ndarray[Any, Any] | None = None
    """The class that the candidate predicts for each row, by its place; None reads it off the scores."""

    def judged(self, metric: str) -> np.ndarray[Any, Any]:
        """The candidate's scores, or for a metric of labels its predicted classes."""
        from everloop.training.metrics import scores_for

        return scores_for(metric, self.scores, self.places)


@singledispatch
def judge(gate: Gate, trial: Trial) -> GateOutcome:
    """Put one gate's question to a candidate."""
    raise UsageError(f"No way to judge {gate!r}.")


@judge.register(AtLeast)
def _(gate: AtLeast, trial: Trial) -> GateOutcome:
    from everloop.training.intervals import interval
    from everloop.training.metrics import get_metric

    upward = get_metric(gate.metric, trial.task).greater_is_better
    found = interval(trial.truth, trial.judged(gate.metric), gate.metric)
    value, low, _high = (found.value, found.low, found.high) if upward else (-found.value, -found.high, -found.low)
    bar = gate.value if upward else -gate.value
    outcome: Outcome = "pass" if low >= bar else "undecided" if value >= bar else "fail"
    message = f"{gate.metric} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], asked {gate.value:g}"
    evidence = {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "bar": gate.value,
        "rows": trial.rows.height,
    }
    return GateOutcome(outcome, message, evidence)


@judge.register(NotWorseThan)
def _(gate: NotWorseThan, trial: Trial) -> GateOutcome:
    from everloop.training.metrics import get_metric

    holder = trial.champions.get(gate.alias)
    if holder is None:
        return GateOutcome("pass", f"no {gate.alias} yet", {"champion": None})
    metric = gate.metric or trial.metric
    get_metric(metric, trial.task)
    pairs = holder.pairs
    if pairs is None:
        return compare_apart(trial.truth, trial.judged(metric), holder, metric, gate.margin, holder.why)
    own, other = pairs.judged(metric)
    if other.ndim == 2 and "multiclass" not in get_metric(metric).tasks:
        why = f"{metric} is not for {other.shape[1]} classes"
        return compare_apart(trial.truth, trial.judged(metric), holder, metric, gate.margin, why)
    answer = compare(pairs.truth, own, other, metric, gate.margin, holder.version)
    if not pairs.remark:
        return answer
    evidence = {**answer.evidence, "remark": pairs.remark}
    return GateOutcome(answer.outcome, f"{answer.message} ({pairs.remark})", evidence)


def compare(
    truth: np.ndarray[Any, Any],
    candidate: np.ndarray[Any, Any],
    champion: np.ndarray[Any, Any],
    metric: str,
    margin: float,
    name: str,
) -> GateOutcome:
    """Compare two models on the same rows by paired bootstrap; gates and rollouts both decide by it.

    `candidate` and `champion` are what `scores_for` gives for the metric: scores, or the predicted labels as 0 and 1.
    Passes when the 95 % interval of the gain lies above `-margin`, fails when it lies below it, else undecided.
    """
    from everloop.training.intervals import paired_bootstrap
    from everloop.training.metrics import get_metric, score

    difference = paired_bootstrap(truth, candidate, champion, metric)
    sign = 1.0 if get_metric(metric).greater_is_better else -1.0
    gain, (low, high) = sign * difference.value, sorted((sign * difference.low, sign * difference.high))
    outcome: Outcome = "pass" if low >= -margin else "fail" if high < -margin else "undecided"
    own, other = score(metric, truth, candidate), score(metric, truth, champion)
    message = (
        f"{metric} {own:.3f} against {other:.3f} of {name} on {len(truth):,} rows: "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    evidence = {
        "champion": name,
        "metric": metric,
        "candidate_value": _finite(own),
        "champion_value": _finite(other),
        "gain": _finite(gain),
        "low": _finite(low),
        "high": _finite(high),
        "margin": margin,
        "rows": len(truth),
    }
    return GateOutcome(outcome, message, evidence)


def compare_apart(
    truth: np.ndarray[Any, Any],
    candidate: np.ndarray[Any, Any],
    holder: ComparedVersion,
    metric: str,
    margin: float,
    why: str,
) -> GateOutcome:
    """Compare a candidate with a version that cannot be asked about its rows: each on its own held-out rows.

    Where the classes differ, the two values answer different questions, and nothing is decided.
    """
    from everloop.training.intervals import Interval, interval

    own = interval(truth, candidate, metric)
    told = holder.metrics.get(metric) or {}
    value, low, high = (told.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, int | float) or not isinstance(low, int | float) or not isinstance(high, int | float):
        reason = f"not comparable on the same rows: {why}"
        message = f"{reason}; and {holder.version} was judged without an interval of {metric}"
        evidence = {"champion": holder.version, "metric": metric, "candidate_value": _finite(own.value), "why": why}
        return GateOutcome("undecided", message, evidence)
    other = Interval(value=value, low=low, high=high, standard_error=math.nan, method="as evaluated")
    answer = judge_apart(own, other, metric, margin, holder.version, why)
    answer.evidence["rows"] = len(truth)
    return answer if holder.same_classes else GateOutcome("undecided", answer.message, answer.evidence)


def judge_apart(own: Interval, other: Interval, metric: str, margin: float, name: str, why: str) -> GateOutcome:
    """Compare two values of a metric, measured on different rows; decides as `compare` does.

    The interval of the gain is put together from those of the values, as of two samples that are independent.
    Source: Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008).

    Args:
        name: key of the version that `other` was measured for.
        why: the two were not asked about the same rows.
    """
    from everloop.training.metrics import get_metric

    mine, its = (own.value, own.low, own.high), (other.value, other.low, other.high)
    if not get_metric(metric).greater_is_better:
        mine, its = (-mine[0], -mine[2], -mine[1]), (-its[0], -its[2], -its[1])
    gain = mine[0] - its[0]
    low = gain - math.hypot(mine[0] - mine[1], its[2] - its[0])
    high = gain + math.hypot(mine[2] - mine[0], its[0] - its[1])
    # Comparisons with NaN are false: an interval that the rows leave undefined decides nothing.
    outcome: Outcome = "pass" if low >= -margin else "fail" if high < -margin else "undecided"
    message = (
        f"{metric} {own.value:.3f} against {other.value:.3f} of {name}, each on rows of its own: "
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
def _(gate: Slices, trial: Trial) -> GateOutcome:
    import numpy as np

    from everloop.training.intervals import interval
    from everloop.training.metrics import get_metric, score

    if gate.column not in trial.rows.columns:
        columns = ", ".join(trial.rows.columns)
        raise UsageError(f"Slices('{gate.column}'): no such column in the dataset.", help=f"There are: {columns}")
    metric = gate.metric or trial.metric
    sign = 1.0 if get_metric(metric, trial.task).greater_is_better else -1.0
    judged_scores = trial.judged(metric)
    whole = score(metric, trial.truth, judged_scores)
    values = trial.rows[gate.column].cast(str).fill_null("null").to_numpy()
    judged: dict[str, Json] = {}
    worst: tuple[float, str] | None = None
    failed: list[str] = []
    wide: list[str] = []
    for value in np.unique(values):
        mask = values == value
        if mask.sum() < gate.least_rows or (trial.task == "binary" and len(np.unique(trial.truth[mask])) < 2):
            continue
        found = interval(trial.truth[mask], judged_scores[mask], metric)
        gap = sign * (whole - found.value)
        # The best that the slice may still be, given its rows.
        least_gap = min(sign * (whole - found.low), sign * (whole - found.high))
        judged[str(value)] = {"value": found.value, "low": found.low, "high": found.high, "rows": int(mask.sum())}
        if worst is None or gap > worst[0]:
            worst = (gap, str(value))
        if least_gap > gate.worst_gap:
            failed.append(str(value))
        elif gap > gate.worst_gap:
            wide.append(str(value))
    evidence = {"whole": whole, "slices": judged, "worst_gap": worst[0] if worst else None, "allowed": gate.worst_gap}
    if worst is None:
        message = f"no slice of {gate.column} has {gate.least_rows} rows of both classes"
        return GateOutcome("undecided", message, evidence)
    message = f"worst: {worst[1]}, {worst[0]:.3f} below the whole ({whole:.3f}); allowed {gate.worst_gap:g}"
    return GateOutcome("fail" if failed else "undecided" if wide else "pass", message, evidence)


@judge.register(Latency)
def _(gate: Latency, trial: Trial) -> GateOutcome:
    import numpy as np

    rows = [[row] for row in trial.rows.select(trial.features).head(gate.rows).to_dicts()]
    trial.predict(rows[0])  # the first call pays for what is made once
    passes = []
    for _ in range(_LATENCY_PASSES):
        taken = []
        for row in rows:
            started = time.perf_counter()
            trial.predict(row)
            taken.append((time.perf_counter() - started) * 1000)
        passes.append(np.percentile(taken, [50, 99]))
    # What else the machine does only ever adds, so the quietest pass tells most of the model.
    p50, p99 = (float(value) for value in min(passes, key=lambda pair: pair[1]))
    outcome: Outcome = "pass" if p99 <= gate.p99_ms else "fail"
    message = f"p99 {p99:.2g} ms over {len(rows)} single rows, allowed {gate.p99_ms:g} ms"
    return GateOutcome(outcome, message, {"p50_ms": p50, "p99_ms": p99, "allowed_ms": gate.p99_ms, "rows": len(rows)})
