"""Confidence intervals of metrics: DeLong for the area under the ROC curve, Wilson for rates, bootstrap for the rest.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves", Biometrics 44 (1988), computed through mid-ranks as in Sun and Xu, "Fast implementation of
DeLong's algorithm", IEEE Signal Processing Letters 21 (2014). Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapter 13 (percentile interval). Wilson, JASA 22 (1927) for rates; Brown, Cai and DasGupta,
"Interval estimation for a binomial proportion", Statistical Science 16 (2001), for the comparison of such intervals.
Resampling fails for samples whose rows all agree, as with a perfect score: see `unanimous_intervals`.
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
"""Replicates that differ by no more than this differ by rounding only."""
BUCKETS = 20_000
"""Larger samples are resampled in this many random buckets of rows. The variance is the same with far fewer draws."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval. `low` and `high` are NaN if the sample does not determine them."""

    value: float
    low: float
    high: float
    standard_error: float
    level: float = LEVEL
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. NaN becomes None."""
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
    """The metric of `a` minus the metric of `b` on the same rows.

    The sign is not adjusted: above zero, `a` is better if higher is better, and `b` is better for errors.
    """

    metric: str
    value: float
    """Difference on the sample itself."""
    mean: float
    """Mean difference over the replicates."""
    low: float
    high: float
    standard_error: float
    p_worse: float
    """Share of the replicates in which `a` is worse. Ties count half."""
    replicates: int
    level: float = LEVEL

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. NaN becomes None."""
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
    """Return the areas under the ROC curves of several models on the same rows, and the covariance of these areas.

    Args:
        y: shape (n,), 0/1.
        scores: each of shape (n,).

    Returns:
        Shapes (m,) and (m, m) for m models. The covariance is NaN with fewer than two rows of a class.
    """
    positive = np.asarray(y, dtype=np.float64) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    # Structural components: for each positive the share of negatives below it, and for each negative the share of
    # positives above it. Both are computed from mid-ranks within the class and within all rows.
    above, below = np.empty((len(scores), positives)), np.empty((len(scores), negatives))
    for i, model_scores in enumerate(scores):
        values = np.asarray(model_scores, dtype=np.float64)
        joint = mid_ranks(values)
        above[i] = (joint[positive] - mid_ranks(values[positive])) / negatives
        below[i] = 1.0 - (joint[~positive] - mid_ranks(values[~positive])) / positives
    areas = above.mean(axis=1)
    if positives < 2 or negatives < 2:
        return areas, np.full((len(scores), len(scores)), np.nan)
    return areas, _covariance(above) / positives + _covariance(below) / negatives


def _covariance(components: Array) -> Array:
    """Return the sample covariance of the rows, shape (m, m)."""
    centred = components - components.mean(axis=1, keepdims=True)
    products = np.array([[dot(a, b) for b in centred] for a in centred])
    covariance: Array = products / (components.shape[1] - 1)
    return covariance


def mid_ranks(values: Array) -> Array:
    """Return ranks from 1, shape (n,). Equal values share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(0.5 * (starts + ends + 1), ends - starts)
    return ranks


def delong(y: ArrayLike, scores: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Return the area under the ROC curve with DeLong's interval, limited to [0, 1].

    If the classes are completely separated or completely tied, the sample has no variance. Then the interval is that of
    `agreement_bounds`, for as many consecutive successes as the smaller class has rows.
    """
    areas, covariance = delong_covariance(y, scores)
    area, error = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if error <= _NO_SPREAD:
        labels, values = np.asarray(y, dtype=np.float64) > 0, np.asarray(scores, dtype=np.float64)
        low, high = agreement_bounds("roc_auc", labels.astype(np.float64), values, area, level)
        error = (high - low) / (2 * normal_quantile(level))
    else:
        low, high = max(0.0, area - normal_quantile(level) * error), min(1.0, area + normal_quantile(level) * error)
        if np.isnan(error):
            low = high = float("nan")
    return Interval(value=area, low=low, high=high, standard_error=error, level=level, method="delong")


def bootstrap(
    y: ArrayLike, scores: ArrayLike, metric: str | Metric, *, n: int = 500, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return a metric with its percentile bootstrap interval.

    Args:
        y: labels, shape (n,).
        scores: shape (n,) or (n, k).
        metric: a name in `METRICS`, or a metric.
        n: number of replicates.
        seed: the same seed gives the same interval.
        level: confidence level.
    """
    found = get_metric(metric)
    return _bootstrap(y, scores, [found], n, seed, level)[found.name]


def interval(
    y: ArrayLike, scores: ArrayLike, metric: str | Metric, *, n: int = 500, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return a metric with the interval that suits it best.

    This is DeLong's for the area under the ROC curve of two classes, Wilson's for rates (accuracy, and precision and
    recall of two classes), and a bootstrap interval for all others. The arguments are those of `bootstrap`.
    """
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
    """Return several metrics with the intervals of `interval`, from one set of resamples."""
    found = [get_metric(metric) for metric in metrics]
    two_classes = np.ndim(scores) == 1
    direct = {"accuracy", "roc_auc", "precision", "recall"} if two_classes else {"accuracy"}
    results = _bootstrap(y, scores, [metric for metric in found if metric.name not in direct], n, seed, level)
    for metric in found:
        if metric.name not in results:
            value = metric.prepare(y, scores)(None)  # also checks the input, as for every other metric
            by_delong = delong(y, scores, level=level) if metric.name == "roc_auc" else None
            results[metric.name] = by_delong or _of_rate(metric.name, y, scores, value, level)
    return {metric.name: results[metric.name] for metric in found}


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
    """Return the difference between the metrics of `a` and `b`, measured on the same resampled rows.

    The noise that both share, such as difficult rows, cancels out. So this detects small differences that two separate
    intervals would hide. Two models without a difference on these rows, such as two perfect ones, may still differ on
    other rows. Then the interval is that of `agreement_of_pairs`.

    Args:
        y: labels, shape (n,).
        a: scores of the challenger, shape (n,) or (n, k).
        b: scores of the champion, of the same shape.
        metric: a name in `METRICS`, or a metric.
        n: number of replicates.
        seed: the same seed gives the same result.
        level: confidence level.

    Raises:
        EmptySampleError: there are no rows.
        DataError: the shapes differ, or a score is NaN.
    """
    found = get_metric(metric)
    if np.shape(a) != np.shape(b):
        raise DataError(
            f"The two models must have scored the same rows, but their scores have shapes {np.shape(a)} and "
            f"{np.shape(b)}.",
            help="Score one frame with both.",
        )
    first, second = found.prepare(y, a), found.prepare(y, b)
    differences = np.array([first(weights) - second(weights) for weights in _resamples(len(np.asarray(y)), n, seed)])
    value = first(None) - second(None)
    result = _percentiles(value, differences, level)
    if result.low == result.high:
        pair = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        labels, values = np.asarray(y, dtype=np.float64), (first(None), second(None))
        low, high = agreement_of_pairs(found.name, labels, pair, values, level)
        result = replace(result, low=low, high=high, standard_error=(high - low) / (2 * normal_quantile(level)))
    defined = differences[~np.isnan(differences)]
    worse = defined < 0 if found.greater_is_better else defined > 0
    p_worse = float(worse.mean() + 0.5 * (defined == 0).mean()) if len(defined) else float("nan")
    return Difference(
        metric=found.name,
        value=value,
        mean=float(defined.mean()) if len(defined) else float("nan"),
        low=result.low,
        high=result.high,
        standard_error=result.standard_error,
        p_worse=p_worse,
        replicates=len(defined),
        level=level,
    )


def _of_rate(metric: str, y: ArrayLike, scores: ArrayLike, value: float, level: float) -> Interval:
    """Return Wilson's interval of a share of all rows, of positives (recall) or predicted positives (precision)."""
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    rows = float(len(labels))
    if metric != "accuracy":
        rows = float((labels > 0).sum() if metric == "recall" else (values >= THRESHOLD).sum())
    low, high = wilson(value * rows, rows, level=level)
    error = (high - low) / (2 * normal_quantile(level))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="wilson")


def wilson(successes: float, rows: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a rate. It is valid for few rows and for rates near 0 and 1."""
    if rows <= 0:
        return float("nan"), float("nan")
    z, rate = normal_quantile(level), successes / rows
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * float(np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)))
    # For rates of 0 and 1 an end of the interval is exactly 0 or 1, which rounding would miss.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return low, 1.0 if successes >= rows else min(1.0, middle + half)


def newcombe(
    hits: float, rows: float, other_hits: float, other_rows: float, *, level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of the difference of two independent rates; NaN if one of them has no rows.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
    17 (1998), method 10.
    """
    if rows <= 0 or other_rows <= 0:
        return float("nan"), float("nan")
    rate, other = hits / rows, other_hits / other_rows
    low, high = wilson(hits, rows, level=level)
    other_low, other_high = wilson(other_hits, other_rows, level=level)
    gap = rate - other
    return gap - float(np.hypot(rate - low, other_high - other)), gap + float(np.hypot(high - rate, other - other_low))


def _bootstrap(
    y: ArrayLike, scores: ArrayLike, metrics: Sequence[Metric], n: int, seed: int, level: float
) -> dict[str, Interval]:
    if not metrics:
        return {}
    statistics = [metric.prepare(y, scores) for metric in metrics]
    values = np.array([[value(weights) for value in statistics] for weights in _resamples(len(np.asarray(y)), n, seed)])
    found = {}
    for index, (metric, statistic) in enumerate(zip(metrics, statistics, strict=True)):
        resampled = _percentiles(statistic(None), values[:, index], level)
        constant = resampled.low == resampled.high
        found[metric.name] = _widened(metric.name, y, scores, resampled) if constant else resampled
    return found


def _widened(metric: str, y: ArrayLike, scores: ArrayLike, resampled: Interval) -> Interval:
    """Return the interval of a metric that is the same in every resample."""
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    low, high = agreement_bounds(metric, labels, values, resampled.value, resampled.level)
    error = (high - low) / (2 * normal_quantile(resampled.level))
    return replace(resampled, low=low, high=high, standard_error=error, method="agreement")


def _resamples(rows: int, replicates: int, seed: int) -> Iterator[Array]:
    """Yield for each replicate how often each row is drawn, shape (rows,)."""
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
    # If the metric is undefined in most resamples, there is no valid interval.
    if len(defined) < max(2, len(replicates) / 2):
        low = high = error = float("nan")
    else:
        low, high = (float(v) for v in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
        if np.ptp(defined) <= _NO_SPREAD * max(1.0, abs(value)):
            low = high = value
        error = float(defined.std(ddof=1))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="bootstrap")


def normal_quantile(level: float) -> float:
    """Return the number of standard errors on each side of a two-sided interval."""
    return NormalDist().inv_cdf((1 + level) / 2)


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
