"""Confidence intervals of metrics: DeLong for the area under the ROC curve, Wilson for rates, bootstrap for the rest.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves", Biometrics 44 (1988), computed through mid-ranks as in Sun and Xu, "Fast implementation of
DeLong's algorithm", IEEE Signal Processing Letters 21 (2014). Efron and Tibshirani, "An Introduction to the
Bootstrap" (1993), chapter 14 (BCa interval). Wilson, JASA 22 (1927) for rates; Brown, Cai and DasGupta,
"Interval estimation for a binomial proportion", Statistical Science 16 (2001), for the comparison of such intervals.
Resampling fails for samples whose rows all agree, as with a perfect score: see `unanimous_intervals`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everloop.errors import DataError
from everloop.training.bootstrap_levels import (
    NO_SPREAD,
    accelerations,
    corrected_levels,
    normal_quantile as normal_quantile,
    student_interval,
)
from everloop.training.class_decisions import THRESHOLD
from everloop.training.metrics import Metric, dot, get_metric
from everloop.training.rate_intervals import LEVEL as LEVEL, newcombe as newcombe, poisson_bound, wilson as wilson
from everloop.training.unanimous_intervals import agreement_bounds, agreement_of_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Array = NDArray[np.float64]

_ADDED_ROWS = 2
"""Rows of each class that are added to the variance of an area under the ROC curve."""
BUCKETS = 20_000
"""Larger samples are resampled in this many random buckets of rows. The variance is the same with far fewer draws."""
_MOST_KEPT_DRAWS = 250_000
"""Draws of a sample that are kept for the next one of its size, eight bytes each."""


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
    above, below = _components(positive, scores)
    areas = above.mean(axis=1)
    if positives < 2 or negatives < 2:
        return areas, np.full((len(scores), len(scores)), np.nan)
    return areas, _covariance(above) / positives + _covariance(below) / negatives


def _components(positive: NDArray[np.bool_], scores: Sequence[ArrayLike]) -> tuple[Array, Array]:
    """Return the structural components of each model, shapes (m, positives) and (m, negatives)."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    # Structural components: for each positive the share of negatives below it, and for each negative the share of
    # positives above it. Both are computed from mid-ranks within the class and within all rows.
    above, below = np.empty((len(scores), positives)), np.empty((len(scores), negatives))
    for i, model_scores in enumerate(scores):
        values = np.asarray(model_scores, dtype=np.float64)
        joint = mid_ranks(values)
        above[i] = (joint[positive] - mid_ranks(values[positive])) / negatives
        below[i] = 1.0 - (joint[~positive] - mid_ranks(values[~positive])) / positives
    return above, below


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
    """Return the area under the ROC curve with DeLong's interval on the scale of its log odds, within [0, 1].

    On the plain scale the interval of an area near 1 is far too short, as in a sample of a few hundred rows whose few
    positives happen to be ranked well. On the scale of log odds it is asymmetric and stays below 1 (Pepe, "The
    Statistical Evaluation of Medical Tests for Classification and Prediction", 2003, section 5.2). Its variance counts
    two more rows of each class with the largest variance that the area allows, area * (1 - area) (Bhatia and Davis, The
    American Mathematical Monthly 107, 2000), as Agresti and Coull count two more successes and failures of a rate. This
    matters for small classes only. `benchmarks/intervals.py` measures the coverage. `standard_error` is DeLong's own.

    If the classes are completely separated or completely tied, the sample has no variance. Then the interval is that of
    `agreement_bounds`, for as many consecutive successes as the smaller class has rows.
    """
    positive = np.asarray(y, dtype=np.float64) > 0
    positives, negatives = int(positive.sum()), int((~positive).sum())
    area = error = low = high = float("nan")
    if positives and negatives:
        above, below = (components[0] for components in _components(positive, [scores]))
        area = float(above.mean())
    if positives > 1 and negatives > 1:
        squares = [(float(((one - one.mean()) ** 2).sum()), len(one)) for one in (above, below)]
        error = float(np.sqrt(sum(total / (rows - 1) / rows for total, rows in squares)))
        largest = area * (1 - area)
        if error <= NO_SPREAD or largest <= 0:
            values = np.asarray(scores, dtype=np.float64)
            low, high = agreement_bounds("roc_auc", positive.astype(np.float64), values, area, level)
            error = (high - low) / (2 * normal_quantile(level))
        else:
            low, high = area_bounds(area, squares, level)
    return Interval(value=area, low=low, high=high, standard_error=error, level=level, method="delong")


def area_bounds(area: float, squares: Sequence[tuple[float, int]], level: float = LEVEL) -> tuple[float, float]:
    """Return the interval of `delong` from sums, for an area strictly between 0 and 1.

    Args:
        squares: for each class, the sum of the squared deviations of its components, and its number of rows.
    """
    largest = area * (1 - area)
    variance = sum((total + _ADDED_ROWS * largest) / (rows - 1 + _ADDED_ROWS) / rows for total, rows in squares)
    odds, reach = np.log(area / (1 - area)), normal_quantile(level) * np.sqrt(variance) / largest
    low, high = (float(1 / (1 + np.exp(-np.clip(odds + end, -500, 500)))) for end in (-reach, reach))
    return low, high


def bootstrap(
    y: ArrayLike, scores: ArrayLike, metric: str | Metric, *, n: int = 500, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return a metric with its bootstrap interval: BCa, expanded for small samples; see `corrected_levels`.

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
    intervals would hide. The interval is symmetric, see `student_interval`. Two models without a difference on these
    rows, such as two perfect ones, may still differ on other rows. Then the interval is that of `agreement_of_pairs`.

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
    low, high, error = student_interval(value, differences, level, _independent_rows(found, y))
    if low == high:
        pair = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        labels, values = np.asarray(y, dtype=np.float64), (first(None), second(None))
        low, high = agreement_of_pairs(found.name, labels, pair, values, level)
        error = (high - low) / (2 * normal_quantile(level))
    defined = differences[~np.isnan(differences)]
    worse = defined < 0 if found.greater_is_better else defined > 0
    p_worse = float(worse.mean() + 0.5 * (defined == 0).mean()) if len(defined) else float("nan")
    return Difference(
        metric=found.name,
        value=value,
        mean=float(defined.mean()) if len(defined) else float("nan"),
        low=low,
        high=high,
        standard_error=error,
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
    if rows > 0:
        low = min(low, poisson_bound(value * rows, rows, level))
        high = max(high, 1 - poisson_bound((1 - value) * rows, rows, level))
    error = (high - low) / (2 * normal_quantile(level))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="wilson")


def _bootstrap(
    y: ArrayLike, scores: ArrayLike, metrics: Sequence[Metric], n: int, seed: int, level: float
) -> dict[str, Interval]:
    if not metrics:
        return {}
    statistics = [metric.prepare(y, scores) for metric in metrics]
    values = np.array([[value(weights) for value in statistics] for weights in _resamples(len(np.asarray(y)), n, seed)])
    rows = len(np.asarray(y))
    skews = accelerations(statistics, rows, seed)
    found = {}
    for index, (metric, statistic) in enumerate(zip(metrics, statistics, strict=True)):
        resampled = _percentiles(statistic(None), values[:, index], level, rows, float(skews[index]))
        constant = resampled.low == resampled.high
        found[metric.name] = _widened(metric.name, y, scores, resampled) if constant else resampled
    return found


def _widened(metric: str, y: ArrayLike, scores: ArrayLike, resampled: Interval) -> Interval:
    """Return the interval of a metric that is the same in every resample."""
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    low, high = agreement_bounds(metric, labels, values, resampled.value, resampled.level)
    error = (high - low) / (2 * normal_quantile(resampled.level))
    return replace(resampled, low=low, high=high, standard_error=error, method="agreement")


def _resamples(rows: int, replicates: int, seed: int) -> Iterable[Array]:
    """Return for each replicate how often each row is drawn, shape (rows,)."""
    if rows * replicates <= _MOST_KEPT_DRAWS:
        return _kept_resamples(rows, replicates, seed)
    return _drawn_resamples(rows, replicates, seed)


@lru_cache(maxsize=4)
def _kept_resamples(rows: int, replicates: int, seed: int) -> Array:
    """Keep the few draws of small samples, because many evaluations in one process have as many rows."""
    drawn = np.array(list(_drawn_resamples(rows, replicates, seed)))
    drawn.flags.writeable = False
    return drawn


def _drawn_resamples(rows: int, replicates: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    if rows <= BUCKETS:
        for _ in range(replicates):
            yield np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)
        return
    bucket = rng.permutation(rows) % BUCKETS
    for _ in range(replicates):
        yield np.bincount(rng.integers(BUCKETS, size=BUCKETS), minlength=BUCKETS).astype(np.float64)[bucket]


def _percentiles(value: float, replicates: Array, level: float, rows: int, acceleration: float = 0.0) -> Interval:
    defined = replicates[~np.isnan(replicates)]
    # If the metric is undefined in most resamples, there is no valid interval.
    if len(defined) < max(2, len(replicates) / 2):
        low = high = error = float("nan")
    else:
        low, high = (
            float(v) for v in np.quantile(defined, corrected_levels(value, defined, rows, acceleration, level))
        )
        if np.ptp(defined) <= NO_SPREAD * max(1.0, abs(value)):
            low = high = value
        error = float(defined.std(ddof=1))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="bootstrap")


def _independent_rows(metric: Metric, y: ArrayLike) -> int:
    """The rows of the rarest class, or all rows for amounts."""
    labels = np.asarray(y)
    if "regression" in metric.tasks:
        return len(labels)
    return int(np.unique(labels, return_counts=True)[1].min())


def _json(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
