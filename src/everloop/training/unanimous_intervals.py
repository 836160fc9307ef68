"""How sure a metric is where every row of the sample agrees: all right, all wrong, no error at all.

Resampling such a sample gives the same value again and again, so a bootstrap interval of it has no width, and says that
a model which was right on thirty rows is right for ever. But n rows of one kind still leave room for others: with
confidence 1 - a, at most a share 1 - (a / 2) ** (1 / n) of the population is unlike them. That is the exact binomial
bound of Clopper and Pearson, Biometrika 26 (1934), for n successes in n trials; at 95 % about 3.7 / n (the "rule of
three" of Hanley and Lippman-Hand, JAMA 249 (1983), is its one-sided form). The interval here is what the metric may
become if rows up to that share are as bad, or as good, as a row can be.

A metric over pairs or classes (areas under curves, recall, F1) counts the rows of its smallest class, which is on the
safe side: Obuchowski and Lieber, "Confidence bounds when the estimated ROC area is 1.0", Academic Radiology 9 (2002).
A regression's error has no bound; here it is taken to be at most the range of the targets and predictions seen.

Two models that answer every row alike, or are both right on every row, are such a sample too: n pairs without a
difference. With the same confidence at most that share of the population tells them apart (Clopper and Pearson for no
discordant pair in n; discordant pairs are what McNemar's test counts, Psychometrika 12 (1947)). On those rows one may
be as good and the other as bad as a row can be; on the others they stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

Array = NDArray[np.float64]

_WORST_LOG_LOSS = float(-np.log(np.finfo(np.float64).eps))
"""Of a row; `log_loss` cuts probabilities there."""
_BY_ROW = ("accuracy", "brier", "ece")


def room(rows: int, level: float) -> float:
    """The largest share of the population, at this confidence, that may be unlike n rows of one kind."""
    return 1.0 if rows < 1 else float(1.0 - ((1.0 - level) / 2) ** (1.0 / rows))


def agreement_bounds(metric: str, y: Array, scores: Array, value: float, level: float) -> tuple[float, float]:
    """The interval of a metric whose value is the same in every resample; NaN where even this cannot say.

    Args:
        metric: a name of `METRICS`; any other is taken to lie between 0 and 1.
        y: shape (n,).
        scores: shape (n,) or (n, k).
        value: the metric of the sample.
    """
    if metric in _OF_ERRORS:
        low, high = _OF_ERRORS[metric](y, scores, value, room(len(y), level))
        return low, high
    if metric == "log_loss":
        share = room(len(y), level)
        # Rounding may leave the worst value a little above the worst row.
        return (1 - share) * value, max(value, (1 - share) * value + share * _WORST_LOG_LOSS)
    share = room(len(y) if metric in _BY_ROW else _smallest_class(metric, y, scores), level)
    if metric == "f1" and value == 0.0:
        # Recall up to `share` with a precision of 1.
        return 0.0, 2 * share / (1 + share)
    return (1 - share) * value, (1 - share) * value + share


def agreement_of_pairs(
    metric: str, y: Array, pair: tuple[Array, Array], values: tuple[float, float], level: float
) -> tuple[float, float]:
    """The interval of the first model's metric less the second's, where that is the same in every resample.

    Args:
        metric: a name of `METRICS`; any other is taken to lie between 0 and 1.
        y: shape (n,).
        pair: scores of both models, each of shape (n,) or (n, k).
        values: the metric of both on the sample.
    """
    if metric in _MOVED:
        # A share of the rows may move these by more than itself.
        share = room(len(y), level)
        smallest = len(y) if metric == "ece" else min(_smallest_class(metric, y, one) for one in pair)
        width = _MOVED[metric](share * len(y) / max(smallest, 1))
        apart = values[0] - values[1]
        return max(-1.0, apart - width), min(1.0, apart + width)
    first, second = (agreement_bounds(metric, y, one, value, level) for one, value in zip(pair, values, strict=True))
    return first[0] - second[1], first[1] - second[0]


def _smallest_class(metric: str, y: Array, scores: Array) -> int:
    if metric in ("recall", "f1", "precision") and scores.ndim == 1:
        named = scores >= 0.5 if metric == "precision" else y > 0
        return int(named.sum())
    return int(np.unique(y, return_counts=True)[1].min())


def _span(y: Array, scores: Array) -> float:
    """The largest error that is thought possible; NaN where all targets and predictions are one number."""
    widest = max(float(y.max()), float(scores.max())) - min(float(y.min()), float(scores.min()))
    return widest if widest > 0 else float("nan")


def _mae(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    return (1 - share) * value, (1 - share) * value + share * _span(y, scores)


def _rmse(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    low, high = (1 - share) * value**2, (1 - share) * value**2 + share * _span(y, scores) ** 2
    return float(np.sqrt(low)), float(np.sqrt(high))


def _median_ae(y: Array, scores: Array, value: float, share: float) -> tuple[float, float]:
    # Rows of fewer than half the population move its median no further than the median of the others lies.
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


def _roc_auc_moved(share: float) -> float:
    # Every pair with one of these rows, of whichever class.
    return share


def _f1_moved(share: float) -> float:
    # Most where F1 is 0 for one model, and the other finds these rows alone.
    return 2 * share / (1 + share)


def _average_precision_moved(share: float) -> float:
    # The rows themselves, and k of them above the h-th positive: at most k / (h + k) of its precision, summed over h.
    return share * (1 + float(np.log1p(1 / share)))


def _ece_moved(share: float) -> float:
    # One model's error may fall by as many rows as the other's rises.
    return 2 * share


_MOVED: dict[str, Callable[[float], float]] = {
    "roc_auc": _roc_auc_moved,
    "f1": _f1_moved,
    "average_precision": _average_precision_moved,
    "ece": _ece_moved,
}
"""By how much two models may differ that answer all rows alike but as many as this share of the smallest class."""

_OF_ERRORS: dict[str, Callable[[Array, Array, float, float], tuple[float, float]]] = {
    "mae": _mae,
    "rmse": _rmse,
    "median_ae": _median_ae,
    "mape": _mape,
    "r2": _r2,
}

__all__ = ["agreement_bounds", "agreement_of_pairs", "room"]
