"""Compare a candidate with another version, for gates and for rollouts.

On the same rows the comparison is paired. Otherwise the intervals of two independent values are combined.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everloop.loop.gates.gate_protocol import GateOutcome

if TYPE_CHECKING:
    import numpy as np

    from everloop.loop.comparison.champions import ComparedVersion
    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.records import Json, Outcome
    from everloop.training.intervals import Interval


def compare_with_alias(context: GateContext, alias: str, metric: str | None, margin: float) -> GateOutcome | None:
    """Compare the candidate with the version that holds an alias, on the same rows if possible.

    Args:
        metric: name of a metric. None: the metric that decided the evaluation.
        margin: the loss that is tolerated. If negative, the gain that is required.

    Returns:
        None if no version has the alias, or the candidate itself does.
    """
    import numpy as np

    from everloop.training.metrics import get_metric

    holder = context.compared_with(alias)
    if holder is None:
        return None
    metric = metric or context.metric
    get_metric(metric, context.task)
    pairs = holder.pairs
    if pairs is None:
        return compare_unpaired(context.labels, context.judged(metric), holder, metric, margin, holder.why)
    candidate_scores, holder_scores = pairs.judged(metric)
    missing = int((~np.isfinite(holder_scores)).sum())
    if missing:
        # This speaks against the other version, not against the candidate.
        text = f"{missing:,} predictions of {holder.version} for the candidate's rows are not numbers"
        return GateOutcome("undecided", text, {"champion": holder.version, "metric": metric, "not_numbers": missing})
    if holder_scores.ndim == 2 and "multiclass" not in get_metric(metric).tasks:
        why = f"{metric} is not for {holder_scores.shape[1]} classes"
        return compare_unpaired(context.labels, context.judged(metric), holder, metric, margin, why)
    outcome = compare(pairs.labels, candidate_scores, holder_scores, metric, margin, holder.version)
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
        "candidate_value": finite(candidate_value),
        "champion_value": finite(champion_value),
        "gain": finite(gain),
        "low": finite(low),
        "high": finite(high),
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
        evidence = {"champion": holder.version, "metric": metric, "candidate_value": finite(own.value), "why": why}
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
        "candidate_value": finite(own.value),
        "champion_value": finite(other.value),
        "gain": finite(gain),
        "low": finite(low),
        "high": finite(high),
        "margin": margin,
        "paired": False,
        "why": why,
    }
    return GateOutcome(outcome, message, evidence)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
