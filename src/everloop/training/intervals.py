"""How sure a metric is: DeLong's interval for the area under the curve, Wilson's for rates, bootstrap for the rest.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves", Biometrics 44 (1988), computed through mid-ranks as in Sun and Xu, "Fast implementation of
DeLong's algorithm", IEEE Signal Processing Letters 21 (2014). Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapter 13 (percentile interval). Wilson, JASA 22 (1927) for rates; Brown, Cai and DasGupta,
"Interval estimation for a binomial proportion", Statistical Science 16 (2001), on why. Samples whose rows all agree, as
those of a perfect score do, have no spread to resample: see `agreement`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everloop.errors import DataError
from everloop.training.class_decisions import THRESHOLD
from everloop.training.metrics import Metric, dot, get_metric
from everloop.training.unanimous_intervals import agreement_bounds, agreement_of_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Array = NDArray[np.float64]

LEVEL = 0.95
_NO_SPREAD = 1e-12
"""Up to here replicates differ by rounding only."""
BUCKETS = 20_000
"""Larger samples are resampled in this many random buckets of rows: same spread, a fraction of the draws."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval. `low` and `high` are NaN where the sample cannot say."""

    value: float
    low: float
    high: float
    standard_error: float
    level: float = LEVEL
    method: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None."""
        return {
            "value": _json(self.value),
            "low": _json(self.low),
            "high": _json(self.high),
            "standard_error": _json(self.standard_error),
            "level": self.level,
            "method": self.method,
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The metric of `a` less the metric of `b` on the same rows.

    The sign is the metric's own: above zero speaks for `a` where greater is better, for `b` where it is an error.
    """

    metric: str
    value: float
    """On the sample itself."""
    mean: float
    """Over the replicates."""
    low: float
    high: float
    standard_error: float
    p_worse: float
    """Share of the replicates in which `a` was worse; ties count half."""
    replicates: int
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; NaN becomes None."""
        return {
            "metric": self.metric,
            "value": _json(self.value),
            "mean": _json(self.mean),
            "low": _json(self.low),
            "high": _json(self.high),
            "standard_error": _json(self.standard_error),
            "p_worse": _json(self.p_worse),
            "replicates": self.replicates,
            "level": self.level,
        }


def delong_covariance(y: ArrayLike, *scores: ArrayLike) -> tuple[Array, Array]:
    """Areas under the curves of several models on the same rows, and the covariance of those areas.

    Args:
        y: shape (n,), 0/1.
        scores: each of shape (n,).

    Returns:
        Shapes (m,) and (m, m) for m models. The covariance is NaN with fewer than two rows of a class.
    """
    truth = np.asarray(y, dtype=np.float64) > 0
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if positives == 0 or negatives == 0:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    # Structural components: for each positive the share of negatives below it, for each negative the share of
    # positives above it. Both fall out of mid-ranks within the class and within all.
    above, below = np.empty((len(scores), positives)), np.empty((len(scores), negatives))
    for i, given in enumerate(scores):
        values = np.asarray(given, dtype=np.float64)
        joint = mid_ranks(values)
        above[i] = (joint[truth] - mid_ranks(values[truth])) / negatives
        below[i] = 1.0 - (joint[~truth] - mid_ranks(values[~truth])) / positives
    areas = above.mean(axis=1)
    if positives < 2 or negatives < 2:
        return areas, np.full((len(scores), len(scores)), np.nan)
    return areas, _covariance(above) / positives + _covariance(below) / negatives


def _covariance(components: Array) -> Array:
    """Sample covariance of the rows, shape (m, m)."""
    apart = components - components.mean(axis=1, keepdims=True)
    products = np.array([[dot(a, b) for b in apart] for a in apart])
    spread: Array = products / (components.shape[1] - 1)
    return spread


def mid_ranks(values: Array) -> Array:
    """Ranks from 1, equal values sharing the mean of theirs. Shape (n,)."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(0.5 * (starts + ends + 1), ends - starts)
    return ranks


def delong(y: ArrayLike, scores: ArrayLike, *, level: float = LEVEL) -> Interval:
    """The area under the ROC curve with DeLong's interval, cut to [0, 1].

    Classes that are parted completely, or tied completely, have no spread in the sample; the ends then are those of
    `agreement_bounds`: of as many successes in a row as the smaller class has rows.
    """
    areas, covariance = delong_covariance(y, scores)
    area, error = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if error <= _NO_SPREAD:
        truth, given = np.asarray(y, dtype=np.float64) > 0, np.asarray(scores, dtype=np.float64)
        low, high = agreement_bounds("roc_auc", truth.astype(np.float64), given, area, level)
        error = (high - low) / (2 * _quantile(level))
    else:
        low, high = max(0.0, area - _quantile(level) * error), min(1.0, area + _quantile(level) * error)
        if np.isnan(error):
            low = high = float("nan")
    return Interval(value=area, low=low, high=high, standard_error=error, level=level, method="delong")


def bootstrap(
    y: ArrayLike, scores: ArrayLike, metric: str | Metric, *, n: int = 500, seed: int = 0, level: float = LEVEL
) -> Interval:
    """A metric with its percentile bootstrap interval.

    Args:
        y: shape (n,).
        scores: shape (n,) or (n, k).
        metric: a name of `METRICS` or a metric.
        n: replicates.
        seed: the same seed gives the same interval.
        level: confidence.
    """
    found = get_metric(metric)
    return _bootstrap(y, scores, [found], n, seed, level)[found.name]


def interval(
    y: ArrayLike, scores: ArrayLike, metric: str | Metric, *, n: int = 500, seed: int = 0, level: float = LEVEL
) -> Interval:
    """A metric with the interval that fits it best: DeLong for the binary area under the curve, Wilson for rates
    (accuracy; precision and recall of two classes), else bootstrap."""
    return intervals(y, scores, [metric], n=n, seed=seed, level=level)[get_metric(metric).name]


def intervals(
    y: ArrayLike,
    scores: ArrayLike,
    metrics: Sequence[str | Metric],
    *,
    n: int = 500,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Several metrics as `interval` has them, from one set of resamples."""
    found = [get_metric(metric) for metric in metrics]
    two_classes = np.ndim(scores) == 1
    direct = {"accuracy", "roc_auc", "precision", "recall"} if two_classes else {"accuracy"}
    answers = _bootstrap(y, scores, [metric for metric in found if metric.name not in direct], n, seed, level)
    for metric in found:
        if metric.name not in answers:
            value = metric.prepare(y, scores)(None)  # the same refusals as every other metric
            known = delong(y, scores, level=level) if metric.name == "roc_auc" else None
            answers[metric.name] = known or _of_rate(metric.name, y, scores, value, level)
    return {metric.name: answers[metric.name] for metric in found}


def paired_bootstrap(
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    metric: str | Metric,
    *,
    n: int = 500,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """The difference that `a` makes over `b`, both asked on the same resampled rows.

    What the two share (hard rows, the draw's luck) cancels, so small differences show that two separate intervals
    would hide. Two models without a difference on these rows, two perfect ones included, may still differ on others:
    the ends then are those of `agreement_of_pairs`.

    Args:
        y: shape (n,).
        a: scores of the challenger, shape (n,) or (n, k).
        b: scores of the champion, same shape.
        metric: a name of `METRICS` or a metric.
        n: replicates.
        seed: the same seed gives the same answer.
        level: confidence.

    Raises:
        EmptySampleError: no rows.
        DataError: shapes differ, or a score is NaN.
    """
    found = get_metric(metric)
    if np.shape(a) != np.shape(b):
        raise DataError(
            f"The two models must have answered the same rows, not {np.shape(a)} and {np.shape(b)}.",
            help="Score both on one frame.",
        )
    first, second = found.prepare(y, a), found.prepare(y, b)
    apart = np.array([first(weights) - second(weights) for weights in _resamples(len(np.asarray(y)), n, seed)])
    value = first(None) - second(None)
    spread = _percentiles(value, apart, level)
    if spread.low == spread.high:
        pair = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        truth, values = np.asarray(y, dtype=np.float64), (first(None), second(None))
        low, high = agreement_of_pairs(found.name, truth, pair, values, level)
        spread = replace(spread, low=low, high=high, standard_error=(high - low) / (2 * _quantile(level)))
    defined = apart[~np.isnan(apart)]
    lost = defined < 0 if found.greater_is_better else defined > 0
    worse = float(lost.mean() + 0.5 * (defined == 0).mean()) if len(defined) else float("nan")
    return Difference(
        metric=found.name,
        value=value,
        mean=float(defined.mean()) if len(defined) else float("nan"),
        low=spread.low,
        high=spread.high,
        standard_error=spread.standard_error,
        p_worse=worse,
        replicates=len(defined),
        level=level,
    )


def _of_rate(metric: str, y: ArrayLike, scores: ArrayLike, value: float, level: float) -> Interval:
    """Wilson's interval of a share of rows: of all, of the positives (recall), or of those called positive."""
    truth, given = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    rows = float(len(truth))
    if metric != "accuracy":
        rows = float((truth > 0).sum() if metric == "recall" else (given >= THRESHOLD).sum())
    low, high = wilson(value * rows, rows, level=level)
    error = (high - low) / (2 * _quantile(level))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="wilson")


def wilson(successes: float, rows: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a rate: sound for few rows and for rates near 0 and 1."""
    if rows <= 0:
        return float("nan"), float("nan")
    z, rate = _quantile(level), successes / rows
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * float(np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)))
    # At the ends the two sides meet 0 and 1; rounding would leave them a little off.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return low, 1.0 if successes >= rows else min(1.0, middle + half)


def _bootstrap(
    y: ArrayLike, scores: ArrayLike, metrics: Sequence[Metric], n: int, seed: int, level: float
) -> dict[str, Interval]:
    if not metrics:
        return {}
    statistics = [metric.prepare(y, scores) for metric in metrics]
    values = np.array([[one(weights) for one in statistics] for weights in _resamples(len(np.asarray(y)), n, seed)])
    found = {}
    for at, (metric, one) in enumerate(zip(metrics, statistics, strict=True)):
        drawn = _percentiles(one(None), values[:, at], level)
        found[metric.name] = _widened(metric.name, y, scores, drawn) if drawn.low == drawn.high else drawn
    return found


def _widened(metric: str, y: ArrayLike, scores: ArrayLike, drawn: Interval) -> Interval:
    """The interval where every resample gave the same value."""
    truth, given = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    low, high = agreement_bounds(metric, truth, given, drawn.value, drawn.level)
    error = (high - low) / (2 * _quantile(drawn.level))
    return replace(drawn, low=low, high=high, standard_error=error, method="agreement")


def _resamples(rows: int, replicates: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn, once a replicate; shape (rows,)."""
    rng = np.random.default_rng(seed)
    if rows <= BUCKETS:
        for _ in range(replicates):
            yield np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)
        return
    bucket = rng.permutation(rows) % BUCKETS
    for _ in range(replicates):
        yield np.bincount(rng.integers(BUCKETS, size=BUCKETS), minlength=BUCKETS).astype(np.float64)[bucket]


def _percentiles(value: float, replicates: Array, level: float) -> Interval:
    defined = replicates[~np.isnan(replicates)]
    # A metric that most resamples leave undefined has no honest interval.
    if len(defined) < max(2, len(replicates) / 2):
        low = high = error = float("nan")
    else:
        low, high = (float(v) for v in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
        if np.ptp(defined) <= _NO_SPREAD * max(1.0, abs(value)):
            low = high = value
        error = float(defined.std(ddof=1))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="bootstrap")


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
