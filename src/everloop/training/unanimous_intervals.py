"""Confidence intervals for samples whose rows all agree: all predictions correct, all wrong, or without any error.

Every resample of such a sample gives the same value. A bootstrap interval would have no width, as if a model that was
correct on thirty rows were always correct. But n equal rows do not exclude other rows in the population. With
confidence 1 - a, at most a share 1 - (a / 2) ** (1 / n) of the population differs from them. This is the exact binomial
bound of Clopper and Pearson, Biometrika 26 (1934), for n successes in n trials. At 95 % it is about 3.7 / n; the "rule
of three" of Hanley and Lippman-Hand, JAMA 249 (1983), is its one-sided form. The interval covers the values that the
metric has if rows up to that share are as bad, or as good, as a row can be.

For metrics over pairs or classes (areas under curves, recall, F1), n is the number of rows of the smallest class. This
is conservative: Obuchowski and Lieber, "Confidence bounds when the estimated ROC area is 1.0", Academic Radiology 9
(2002). The error of a regression has no upper bound, so the range of the observed targets and predictions is used.

Two models that predict every row alike, or that are both correct on every row, also form such a sample: n pairs without
a difference. With the same confidence, the models differ on at most that share of the population (Clopper and Pearson
for no discordant pair among n; McNemar's test counts discordant pairs, Psychometrika 12 (1947)). On such rows, one
model may be as good and the other as bad as possible. On all others they are unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Array = NDArray[np.float64]

_WORST_LOG_LOSS = float(-np.log(np.finfo(np.float64).eps))
"""The largest log loss of a row, because `log_loss` clips probabilities."""
_BY_ROW = ("accuracy", "brier", "ece")


def room(rows: int, level: float) -> float:
    """Return the largest share of the population, at this confidence, that may differ from n equal rows."""
    return 1.0 if rows < 1 else float(1.0 - ((1.0 - level) / 2) ** (1.0 / rows))


def agreement_bounds(metric: str, y: Array, scores: Array, value: float, level: float) -> tuple[float, float]:
    """Return the interval of a metric that is the same in every resample; NaN if it cannot be bounded.

    Args:
        metric: a name in `METRICS`. Any other metric is assumed to be between 0 and 1.
        y: labels, shape (n,).
        scores: shape (n,) or (n, k).
        value: the metric of the sample.
        level: confidence level.
    """
    if metric in _OF_ERRORS:
        low, high = _OF_ERRORS[metric](y, scores, value, room(len(y), level))
        return low, high
    if metric == "log_loss":
        share = room(len(y), level)
        # By rounding, the value may be slightly larger than the largest loss of a row.
        return (1 - share) * value, max(value, (1 - share) * value + share * _WORST_LOG_LOSS)
    share = room(len(y) if metric in _BY_ROW else _smallest_class(metric, y, scores), level)
    if metric == "f1" and value == 0.0:
        # F1 for a recall of `share` and a precision of 1.
        return 0.0, 2 * share / (1 + share)
    return (1 - share) * value, (1 - share) * value + share


def agreement_of_pairs(
    metric: str, y: Array, pair: tuple[Array, Array], values: tuple[float, float], level: float
) -> tuple[float, float]:
    """Return the interval of a difference between two models' metrics that is the same in every resample.

    Args:
        metric: a name in `METRICS`. Any other metric is assumed to be between 0 and 1.
        y: labels, shape (n,).
        pair: scores of both models, each of shape (n,) or (n, k).
        values: the metric of both models on the sample. The difference is the first minus the second.
        level: confidence level.
    """
    if metric in _LARGEST_CHANGE:
        # A share of the rows may change these metrics by more than the share.
        share = room(len(y), level)
        smallest = len(y) if metric == "ece" else min(_smallest_class(metric, y, one) for one in pair)
        width = _LARGEST_CHANGE[metric](share * len(y) / max(smallest, 1))
        difference = values[0] - values[1]
        return max(-1.0, difference - width), min(1.0, difference + width)
    first, second = (agreement_bounds(metric, y, one, value, level) for one, value in zip(pair, values, strict=True))
    return first[0] - second[1], first[1] - second[0]


def _smallest_class(metric: str, y: Array, scores: Array) -> int:
    if metric in ("recall", "f1", "precision") and scores.ndim == 1:
        positive = scores >= 0.5 if metric == "precision" else y > 0
        return int(positive.sum())
    return int(np.unique(y, return_counts=True)[1].min())


def _span(y: Array, scores: Array) -> float:
    """Return the largest error that is assumed possible; NaN if all targets and predictions are the same number."""
    widest = max(float(y.max()), float(scores.max())) - min(float(y.min()), float(scores.min()))
    return widest if widest > 0 else float("nan")


def _mae(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    return (1 - share) * value, (1 - share) * value + share * _span(y, scores)


def _rmse(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    low, high = (1 - share) * value**2, (1 - share) * value**2 + share * _span(y, scores) ** 2
    return float(np.sqrt(low)), float(np.sqrt(high))


def _median_ae(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    # If fewer than half of the rows change, the median stays between two quantiles of the unchanged rows.
    if share >= 0.5:
        return 0.0, _span(y, scores)
    low, high = np.quantile(np.abs(scores - y), [(0.5 - share) / (1 - share), 0.5 / (1 - share)])
    return min(value, float(low)), max(value, float(high))


def _mape(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    least = float(np.abs(y).min())
    worst = _span(y, scores) / least if least > 0 else float("nan")
    return (1 - share) * value, (1 - share) * value + share * worst


def _r2(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    variance = float(y.var())
    if variance == 0:
        return float("nan"), float("nan")
    error = (1 - value) * variance
    return 1 - ((1 - share) * error + share * _span(y, scores) ** 2) / variance, 1 - (1 - share) * error / variance


def _roc_auc_change(share: float) -> float:
    # Every pair with one of these rows may change, whatever its class.
    return share


def _f1_change(share: float) -> float:
    # The change is largest if one model has an F1 of 0 and the other finds only these rows.
    return 2 * share / (1 + share)


def _average_precision_change(share: float) -> float:
    # The rows themselves change. In addition, k of them above the h-th positive change its precision by at most
    # k / (h + k), which is summed over h.
    return share * (1 + float(np.log1p(1 / share)))


def _ece_change(share: float) -> float:
    # The error of one model may fall by these rows while that of the other rises by them.
    return 2 * share


_LARGEST_CHANGE: dict[str, Callable[[float], float]] = {
    "roc_auc": _roc_auc_change,
    "f1": _f1_change,
    "average_precision": _average_precision_change,
    "ece": _ece_change,
}
"""The largest difference between two models that agree on all rows except for this share of the smallest class."""

_OF_ERRORS: dict[str, Callable[[Array, Array, float, float], tuple[float, float]]] = {
    "mae": _mae,
    "rmse": _rmse,
    "median_ae": _median_ae,
    "mape": _mape,
    "r2": _r2,
}
