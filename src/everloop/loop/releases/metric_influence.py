"""How much each labelled row moves a metric, and the standard error of a difference that follows from it.

A metric of n rows is close to the mean of one number per row, the row's influence value. The difference of two models
on the same rows then has the difference of their influence values, and sums of those over keys and days give a
standard error that several rows of a key, or days that differ as a whole, do not make too small.

Sources: influence values of the area under the ROC curve are the structural components of DeLong, DeLong and
Clarke-Pearson, Biometrics 44 (1988); standard errors by clusters: Liang and Zeger, Biometrika 73 (1986); the variance
over few days is moderated as in Smyth, "Linear models and empirical Bayes methods", SAGMB 3 (2004); the normal
equivalent of a t value is Wallace's, Annals of Mathematical Statistics 30 (1959); the t value of skewed observations is
corrected as in P. Hall, "On the removal of skewness by transformation", JRSS B 54 (1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_PRIOR_FREEDOM = 4.0
"""The variance between days is moderated as if this many more days had shown no difference between days."""
_LEAST_SKEWED = 8
"""With fewer clusters, their skewness cannot be estimated."""
_GROUPS = 200
"""Groups of rows that are left out in turn, for metrics without influence values of their own."""
_MEANS = ("log_loss", "brier", "accuracy")
"""Metrics of classes that are means over rows, so that a rare class does not limit their precision."""


@dataclass(frozen=True, slots=True)
class ProofError:
    """The standard error of an estimate, without any assumption about how much days differ.

    Attributes:
        value: the larger of the standard errors by keys and by days.
        freedom: degrees of freedom: those of the days, because few days do not show how much days differ.
        skewness: of the estimate, from the clusters that it is the mean of.
    """

    value: float
    freedom: float
    skewness: float = 0.0

    def deviations(self, excess: float) -> float:
        """Return how many standard deviations an excess is above 0, as a normal variable.

        If a candidate is usually a little better and on some days far worse, most samples lack such days. Their mean
        is too high and their standard error too small. The correction for skewness lowers the result then. It never
        raises it.
        """
        t = excess / self.value
        return normal_equivalent(min(t, _without_skewness(t, self.skewness)), self.freedom)

    def reach(self, deviations: float) -> float:
        """Return the excess that has these `deviations`; the inverse of them."""
        t = t_equivalent(deviations, self.freedom)
        return self.value * max(t, _with_skewness(t, self.skewness))


@dataclass(frozen=True, slots=True)
class ClusteredError:
    """The standard error of a mean whose rows are not independent; the attributes are those of `MeasuredGain`."""

    value: float
    freedom: float
    units: int
    design_effect: float = 1.0
    proof: ProofError | None = None


@dataclass(frozen=True, slots=True)
class MeasuredGain:
    """By how much a candidate is better than the champion, in the unit of the metric; below zero it is worse.

    Attributes:
        gain: the estimate.
        standard_error: of the estimate, the larger of that by keys and that by days.
        freedom: degrees of freedom of the standard error.
        candidate_value: the candidate's metric.
        champion_value: the champion's metric.
        rows: labelled rows behind the estimate.
        units: independent observations that limit the precision: keys, or rows of the rarest class.
        design_effect: variance by days over variance by keys, at least 1.
        days: the number of days that the rows are of.
        proof: the standard error for a proof of success; default: `standard_error`.
        sampled: the rows are those of one in this many keys.
    """

    gain: float
    standard_error: float
    freedom: float
    candidate_value: float
    champion_value: float
    rows: int
    units: int
    design_effect: float = 1.0
    days: int = 1
    proof: ProofError | None = None
    sampled: int = 1

    @property
    def information(self) -> int:
        """How many rows without a sample would be as new, compared with the rows of earlier looks.

        A smaller sample shares fewer rows with the earlier ones than all rows would. Estimates from m rows and from n
        rows that contain them have the correlation √(m/n). If the second one is from a sample, one in s of the keys, it
        has n rows and m/s of the first ones, so the correlation is √(m/(n·s²)).
        """
        return self.rows * self.sampled**2

    def deviations_above(self, value: float) -> float:
        """Return how many standard deviations the gain is above a value, as a normal variable; NaN if undefined."""
        if not (math.isfinite(self.gain) and self.standard_error > 0 and self.freedom > 0):
            return math.nan
        return normal_equivalent((self.gain - value) / self.standard_error, self.freedom)

    def proven_above(self, value: float) -> float:
        """As `deviations_above`, by the standard error that a proof of success needs."""
        if not math.isfinite(self.deviations_above(value)):
            return math.nan
        return self.error_of_proof.deviations(self.gain - value)

    @property
    def error_of_proof(self) -> ProofError:
        """`proof`, or else `standard_error`."""
        return self.proof or ProofError(self.standard_error, self.freedom)


def measure_gain(
    metric: str,
    labels: Array,
    candidate: Array,
    champion: Array,
    *,
    keys: Array | None = None,
    days: Array | None = None,
) -> MeasuredGain:
    """Compare two models on the same rows.

    Args:
        metric: name of a metric.
        labels: shape (n,), as the metric expects them.
        candidate: what `scores_for` returns for the metric, shape (n,) or (n, classes).
        champion: the same for the champion.
        keys: shape (n,), whole numbers; rows with the same number belong to one key. Default: each row has its own.
        days: shape (n,), whole numbers; rows with the same number belong to one day. Default: all to the same.
    """
    from everloop.training.metrics import get_metric

    groups = _groups_of(len(labels), keys)
    own, own_influence = influence(metric, labels, candidate, groups)
    other, other_influence = influence(metric, labels, champion, groups)
    sign = 1.0 if get_metric(metric).greater_is_better else -1.0
    error = clustered_error(sign * (own_influence - other_influence), keys, days, _rarest(labels, metric))
    return MeasuredGain(
        gain=sign * (own - other),
        standard_error=error.value,
        freedom=error.freedom,
        candidate_value=own,
        champion_value=other,
        rows=len(labels),
        units=error.units,
        design_effect=error.design_effect,
        days=_count_days(days),
        proof=error.proof,
    )


def measure_separate_gain(
    metric: str, candidate: tuple[Array, Array, Array | None], champion: tuple[Array, Array, Array | None]
) -> MeasuredGain:
    """Compare two models that were measured on different rows, each given as labels, scores and days (or None)."""
    import numpy as np

    from everloop.training.metrics import get_metric

    sign = 1.0 if get_metric(metric).greater_is_better else -1.0
    values, errors = [], []
    for toward, (labels, scores, days) in zip((sign, -sign), (candidate, champion), strict=True):
        value, moved = influence(metric, labels, scores, _groups_of(len(labels), None))
        values.append(value)
        errors.append(clustered_error(toward * moved, None, days, _rarest(labels, metric)))
    own, other = errors
    proofs = [error.proof or ProofError(error.value, error.freedom) for error in errors]
    spread = float(np.hypot(proofs[0].value, proofs[1].value))
    third = sum(proof.skewness * proof.value**3 for proof in proofs)
    return MeasuredGain(
        gain=sign * (values[0] - values[1]),
        standard_error=float(np.hypot(own.value, other.value)),
        freedom=min(own.freedom, other.freedom),
        candidate_value=values[0],
        champion_value=values[1],
        rows=len(candidate[0]) + len(champion[0]),
        units=min(own.units, other.units),
        design_effect=max(own.design_effect, other.design_effect),
        days=min(_count_days(days) for _, _, days in (candidate, champion)),
        proof=ProofError(spread, min(proof.freedom for proof in proofs), third / spread**3 if spread > 0 else 0.0),
    )


def influence(metric: str, labels: Array, scores: Array, groups: Array) -> tuple[float, Array]:
    """Return the metric, and by how much n times each row moves it, shape (n,). The influence values add up to 0.

    Args:
        groups: shape (n,), a number from 0 for each row. A metric without a formula is measured without each group in
            turn, and the rows of a group share its influence.
    """
    import numpy as np

    from everloop.training.metrics import get_metric

    y = np.asarray(labels, dtype=np.float64)
    values = np.asarray(scores, dtype=np.float64)
    statistic = get_metric(metric).prepare(y, values)
    whole = float(statistic(None))
    if metric == "roc_auc" and values.ndim == 1:
        return whole, _area_influence(y, values)
    losses = _losses(metric, y, values)
    if losses is not None:
        mean = float(losses.mean())
        moved = losses - mean
        if metric == "rmse":
            moved = moved / (2.0 * math.sqrt(mean)) if mean > 0 else moved
        return whole, moved
    return whole, _left_out(statistic, whole, groups)


def clustered_error(moved: Array, keys: Array | None, days: Array | None, rarest: int) -> ClusteredError:
    """Return the standard error of a mean of influence values; NaN with too few of them.

    Args:
        moved: influence values, shape (n,), with mean 0.
        keys: the key of each row.
        days: the day of each row.
        rarest: rows of the rarest class, which bound the degrees of freedom.
    """
    rows = len(moved)
    by_key = moved if keys is None else _sums(moved, keys)
    units = min(len(by_key), rarest)
    if units < 2:
        return ClusteredError(math.nan, 0.0, units)
    variance = float(by_key @ by_key) * len(by_key) / (len(by_key) - 1) / rows**2
    by_day = moved[:0] if days is None else _sums(moved, days)
    if len(by_day) < 2 or variance <= 0:
        proof = ProofError(math.sqrt(variance), units - 1.0, _skewness_of_mean(by_key))
        return ClusteredError(math.sqrt(variance), units - 1.0, units, proof=proof)
    between = float(by_day @ by_day) / rows**2 * len(by_day) / (len(by_day) - 1)
    proof = ProofError(math.sqrt(max(variance, between)), min(units, len(by_day)) - 1.0, _skewness_of_mean(by_day))
    freedom = _PRIOR_FREEDOM + len(by_day) - 1
    moderated = (_PRIOR_FREEDOM * variance + (len(by_day) - 1) * between) / freedom
    if not moderated > variance:
        return ClusteredError(math.sqrt(variance), units - 1.0, units, proof=proof)
    return ClusteredError(math.sqrt(moderated), min(units - 1.0, freedom), units, moderated / variance, proof)


def _skewness_of_mean(sums: Array) -> float:
    """Return the skewness of a mean of clusters, given their sums; 0 if there are too few to estimate it."""
    import numpy as np

    if len(sums) < _LEAST_SKEWED:
        return 0.0
    centred = sums - sums.mean()
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean(centred**3)) / spread**3 / math.sqrt(len(sums)) if spread > 0 else 0.0


def _without_skewness(t: float, skewness: float) -> float:
    """Hall's transformation of a t value. It rises with t."""
    return t + skewness * t**2 / 3.0 + skewness**2 * t**3 / 27.0 + skewness / 6.0


def _with_skewness(t: float, skewness: float) -> float:
    """Return the t value that `_without_skewness` transforms into `t`."""
    if abs(skewness) < 1e-9 or not math.isfinite(t):
        return t
    return 3.0 / skewness * (math.cbrt(1.0 + skewness * (t - skewness / 6.0)) - 1.0)


def _count_days(days: Array | None) -> int:
    import numpy as np

    return 1 if days is None else max(1, len(np.unique(days)))


def _sums(moved: Array, groups: Array) -> Array:
    import numpy as np

    return np.bincount(np.unique(groups, return_inverse=True)[1].ravel(), weights=moved)


def normal_equivalent(t: float, freedom: float) -> float:
    """Return the z with about the same tail probability as a t value with these degrees of freedom."""
    factor = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return math.copysign(factor * math.sqrt(freedom * math.log1p(t * t / freedom)), t)


def t_equivalent(z: float, freedom: float) -> float:
    """Return the t value of which `normal_equivalent` is z."""
    if not math.isfinite(z):
        return z
    factor = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    exponent = (z / factor) ** 2 / freedom
    return math.copysign(math.sqrt(freedom * math.expm1(exponent)), z) if exponent < 700 else math.copysign(math.inf, z)


def _area_influence(y: Array, scores: Array) -> Array:
    import numpy as np

    positive = y > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    moved = np.full(len(y), np.nan)
    if not positives or not negatives:
        return moved
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    sizes = np.diff(np.append(starts, len(y)))
    tied = np.add.reduceat(positive[order].astype(np.intp), starts)
    # How many rows of each class are below the rows with a score; a row with the same score counts half.
    lower = np.empty((2, len(y)))
    for part, same in zip(lower, (tied, sizes - tied), strict=True):
        part[order] = np.repeat(np.cumsum(same) - 0.5 * same, sizes)
    above = lower[1][positive] / negatives
    below = 1.0 - lower[0][~positive] / positives
    moved[positive] = (above - above.mean()) * len(y) / positives
    moved[~positive] = (below - below.mean()) * len(y) / negatives
    return moved


def _losses(metric: str, y: Array, scores: Array) -> Array | None:
    """The row's terms of a metric that is a mean over rows, or the root of one; None for any other metric."""
    import numpy as np

    from everloop.training.metrics import decide

    losses: Array | None = None
    tiny = float(np.finfo(np.float64).eps)
    if metric == "accuracy":
        losses = (decide(scores) == y).astype(np.float64)
    elif metric == "log_loss":
        chosen = np.where(y > 0, scores, 1.0 - scores) if scores.ndim == 1 else scores[np.arange(len(y)), y.astype(int)]
        losses = -np.log(np.clip(chosen, tiny, 1.0 - tiny))
    elif scores.ndim != 1:
        losses = None
    elif metric in ("rmse", "brier"):
        losses = (scores - y) ** 2
    elif metric == "mae":
        losses = np.abs(scores - y)
    elif metric == "mape":
        losses = np.abs(scores - y) / np.maximum(np.abs(y), tiny)
    return losses


def _left_out(statistic: Any, whole: float, groups: Array) -> Array:
    """Influence values from leaving out each group of rows in turn (the delete-a-group jackknife)."""
    import numpy as np

    sizes = np.bincount(groups)
    effects = np.zeros(len(sizes))
    weights = np.ones(len(groups))
    for group in np.flatnonzero(sizes):
        inside = groups == group
        weights[inside] = 0.0
        rest = len(groups) - int(sizes[group])
        # A metric that does not exist without the group says nothing about it.
        without = float(statistic(weights)) if rest else whole
        effects[group] = (whole - without) * rest if math.isfinite(without) else 0.0
        weights[inside] = 1.0
    moved: Array = effects[groups] / sizes[groups]
    moved -= moved.mean()
    return moved


def _groups_of(rows: int, keys: Array | None) -> Array:
    """Numbers from 0 to 199 for the rows, the same for the rows of a key."""
    import numpy as np

    numbers = np.arange(rows) if keys is None else np.unique(keys, return_inverse=True)[1].ravel()
    return (numbers % min(_GROUPS, max(rows, 1))).astype(np.intp)


def _rarest(labels: Array, metric: str) -> int:
    """The number of rows that limits the precision: those of the rarest class, unless the metric is a mean."""
    import numpy as np

    from everloop.training.metrics import get_metric

    if metric in _MEANS or "regression" in get_metric(metric).tasks:
        return len(labels)
    _, counts = np.unique(labels, return_counts=True)
    return int(counts.min()) if len(counts) <= 2 else len(labels) // len(counts)


__all__ = [
    "ClusteredError",
    "MeasuredGain",
    "ProofError",
    "clustered_error",
    "influence",
    "measure_gain",
    "measure_separate_gain",
    "normal_equivalent",
    "t_equivalent",
]
