"""Metrics of scores against labels, in vectorised NumPy.

A metric is prepared once for a sample (sorting, binning, losses of rows) and then evaluated for any row weights. A
resample is just another set of weights, so five hundred bootstrap replicates cost one sort and five hundred linear
passes.

The definitions are those of scikit-learn, and the tests compare the two. A metric that is undefined for a sample, such
as the area under the ROC curve of a single class, is NaN and not an error, because slices and resamples often have a
single class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.training.class_decisions import PLAIN, votes
from everloop.training.metric_tasks import METRIC_TASKS, check_metric, metrics_of as metrics_of

if TYPE_CHECKING:
    from everloop.training.trained_model import Task

Array = NDArray[np.float64]
Statistic = Callable[[Array | None], float]
"""A function from row weights, shape (n,), to the metric of a prepared sample. None gives all rows the same weight."""

ECE_BINS = 10
_TINY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Metric:
    """A metric of scores against labels."""

    name: str
    tasks: tuple[Task, ...]
    greater_is_better: bool
    make: Callable[[Array, Array], Statistic]
    of_labels: bool = False
    """The metric uses the predicted classes alone. See `scores_for`."""

    def prepare(self, y: ArrayLike, scores: ArrayLike) -> Statistic:
        """Check a sample, and compute everything that does not depend on the row weights.

        Args:
            y: labels, shape (n,): 0/1 for binary, the class index for multiclass, the value for regression.
            scores: shape (n,) or (n, k), as from `Model.predict_scores`.

        Raises:
            EmptySampleError: there are no rows.
            DataError: the lengths differ, or a value is NaN or not a number.
            UsageError: the metric does not fit these labels.
        """
        try:
            labels = np.ascontiguousarray(y, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{self.name} takes labels as numbers, not as {np.asarray(y).dtype}.",
                help="Pass 0 and 1, the index of the class, or the value for a regression.",
            ) from None
        values = np.ascontiguousarray(scores, dtype=np.float64)
        if labels.ndim != 1 or values.ndim not in (1, 2) or len(labels) != len(values):
            raise DataError(
                f"{self.name} needs as many labels as scores, not {labels.shape} and {values.shape}.",
                help="Pass y of shape (n,) and scores of shape (n,) or (n, classes).",
            )
        if len(labels) == 0:
            raise EmptySampleError(
                f"{self.name} cannot be measured without rows.", help="Choose a longer window or a larger slice."
            )
        for name, numbers in (("labels", labels), ("scores", values)):
            missing = int(np.isnan(numbers).sum())
            if missing:
                raise DataError(f"{missing} of {numbers.size} {name} are not numbers.", help="Drop or fill them first.")
        if values.ndim == 2 and "multiclass" not in self.tasks:
            raise UsageError(
                f"{self.name} is not for multiclass targets.", help=f"Use one of: {', '.join(metrics_of('multiclass'))}"
            )
        if "regression" not in self.tasks:
            self._check_classes(labels, values)
        return self.make(labels, values)

    def _check_classes(self, labels: Array, scores: Array) -> None:
        """Raise UsageError if labels are not class indices. Otherwise any number above 0 would count as positive."""
        most = 1 if scores.ndim == 1 else scores.shape[1] - 1
        strange = labels[(labels < 0) | (labels > most) | (labels != np.floor(labels))]
        if len(strange):
            classes = "0 and 1" if most == 1 else f"the classes 0 to {most}"
            raise UsageError(
                f"{self.name} is for classes, but the labels are not {classes}: {strange[0]:g}.",
                help=f"For a regression, use one of: {', '.join(metrics_of('regression'))}",
            )

    def gain(self, a: float, b: float) -> float:
        """Return by how much `a` is better than `b`, in the unit of the metric. Above zero, `a` is better."""
        return a - b if self.greater_is_better else b - a


def score(metric: str | Metric, y: ArrayLike, scores: ArrayLike) -> float:
    """Return the value of a metric on a sample.

    Args:
        metric: a name in `METRICS`, or a metric.
        y: labels, shape (n,).
        scores: shape (n,) or (n, k).

    Raises:
        EmptySampleError: there are no rows.
        DataError: the lengths differ, or a value is NaN.
        UsageError: the metric does not exist, or does not fit these labels.
    """
    return get_metric(metric).prepare(y, scores)(None)


def higher_is_better(metric: str | Metric) -> bool:
    """Return whether a larger value of the metric is better.

    Raises:
        UsageError: the metric does not exist.
    """
    return get_metric(metric).greater_is_better


def get_metric(metric: str | Metric, task: Task | None = None) -> Metric:
    """Return the metric with a name. If a task is given, check that the metric fits it.

    Raises:
        UsageError: the metric does not exist, or does not fit the task.
    """
    if not isinstance(metric, Metric):
        check_metric(metric, task)
        return METRICS[metric]
    if task is not None and task not in metric.tasks:
        raise UsageError(f"{metric.name} is not for {task} targets.", help=f"Use one of: {', '.join(metrics_of(task))}")
    return metric


def scores_for(metric: str | Metric, scores: ArrayLike, places: ArrayLike | None) -> Array:
    """Return the input of a metric, so that metrics of labels judge the predicted classes and not the scores.

    Args:
        scores: shape (n,) or (n, k).
        places: index of the predicted class of each row; None if it follows from the scores.

    Returns:
        The scores; for a metric of labels, scores of 0 and 1 that name the predicted class.
    """
    values = np.asarray(scores, dtype=np.float64)
    if places is None or not get_metric(metric).of_labels:
        return values
    return votes(np.asarray(places, dtype=np.intp), 2 if values.ndim == 1 else values.shape[1])


# -- means over rows ----------------------------------------------------------------------------------------------


def _mean(losses: Array, finish: Callable[[float], float] | None = None) -> Statistic:
    def value(weights: Array | None) -> float:
        mean = float(losses.mean()) if weights is None else _over(dot(weights, losses), float(weights.sum()))
        return finish(mean) if finish else mean

    return value


def _log_loss(y: Array, scores: Array) -> Statistic:
    if scores.ndim == 1:
        probability = np.where(y > 0, scores, 1.0 - scores)
    else:
        probability = scores[np.arange(len(y)), y.astype(np.intp)]
    return _mean(-np.log(np.clip(probability, _TINY, 1.0 - _TINY)))


def _brier(y: Array, scores: Array) -> Statistic:
    return _mean((scores - y) ** 2)


def _accuracy(y: Array, scores: Array) -> Statistic:
    return _mean((decide(scores) == y).astype(np.float64))


def _rmse(y: Array, scores: Array) -> Statistic:
    return _mean((scores - y) ** 2, lambda mean: float(np.sqrt(mean)))


def _mae(y: Array, scores: Array) -> Statistic:
    return _mean(np.abs(scores - y))


def _mape(y: Array, scores: Array) -> Statistic:
    return _mean(np.abs(scores - y) / np.maximum(np.abs(y), _TINY))


# -- ranking ------------------------------------------------------------------------------------------------------


def _roc_auc(y: Array, scores: Array) -> Statistic:
    """The probability that a positive row scores above a negative one; ties count half (Hanley and McNeil 1982).

    For several classes, the mean over all classes, each against the rest. Classes without rows on both sides are left
    out.
    """
    if scores.ndim == 2:
        by_class = [_roc_auc((y == k).astype(np.float64), scores[:, k].copy()) for k in range(scores.shape[1])]
        return lambda weights: _mean_defined([statistic(weights) for statistic in by_class])
    order, starts = _ascending(scores)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array | None) -> float:
        w = np.ones(len(order)) if weights is None else weights[order]
        positives, total = _tie_sums(w * positive, starts), _tie_sums(w, starts)
        negatives = np.subtract(total, positives, out=total)
        below = np.cumsum(negatives)
        below -= 0.5 * negatives
        return _over(dot(positives, below), float(positives.sum()) * float(negatives.sum()))

    return value


def _average_precision(y: Array, scores: Array) -> Statistic:
    """The sum over thresholds of the precision times the increase in recall, without interpolation."""
    order, starts = _ascending(-scores)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array | None) -> float:
        w = np.ones(len(order)) if weights is None else weights[order]
        positives = _tie_sums(w * positive, starts)
        total = np.cumsum(_tie_sums(w, starts))
        hits = np.cumsum(positives)
        precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return _over(dot(positives, precision), float(hits[-1]))

    return value


def _ascending(scores: Array) -> tuple[NDArray[np.intp], NDArray[np.intp] | None]:
    """Return the order by score, and where each run of equal scores starts (None if there are no ties)."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    new = ranked[1:] != ranked[:-1]
    if bool(new.all()):
        return order, None
    return order, np.flatnonzero(np.concatenate(([True], new)))


def _tie_sums(values: Array, starts: NDArray[np.intp] | None) -> Array:
    return values if starts is None else np.add.reduceat(values, starts)


# -- decisions ----------------------------------------------------------------------------------------------------


def decide(scores: Array) -> Array:
    """Return the class index that follows from the scores, shape (n,).

    For two classes this is the second class from a score of one half, for several the one with the largest score.
    """
    return PLAIN.places(scores).astype(np.float64)


def _of_counts(finish: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array], Statistic]:
    """Return a metric of the numbers of hits, predicted rows and actual rows of each class.

    For two classes only the positive one counts; for several classes the metric is the mean over all.
    """

    def make(y: Array, scores: Array) -> Statistic:
        decided = decide(scores)
        classes = [1.0] if scores.ndim == 1 else [float(k) for k in range(scores.shape[1])]
        predicted = np.stack([decided == k for k in classes]).astype(np.float64)
        actual = np.stack([y == k for k in classes]).astype(np.float64)
        hits = predicted * actual

        def value(weights: Array | None) -> float:
            w = np.ones(len(y)) if weights is None else weights
            counts = _row_sums(hits, w), _row_sums(predicted, w), _row_sums(actual, w)
            present = (counts[1] > 0) | (counts[2] > 0)
            if scores.ndim == 1:
                return float(finish(*counts)[0])
            return float(finish(*counts)[present].mean()) if present.any() else float("nan")

        return value

    return make


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


_precision = _of_counts(lambda hits, predicted, actual: _ratio(hits, predicted))
_recall = _of_counts(lambda hits, predicted, actual: _ratio(hits, actual))
_f1 = _of_counts(lambda hits, predicted, actual: _ratio(2 * hits, predicted + actual))


# -- calibration and fit ------------------------------------------------------------------------------------------


def _ece(y: Array, scores: Array) -> Statistic:
    """The expected calibration error over ten bins of equal width (Guo et al. 2017, equation 3).

    For two classes, it compares scores with the share of positives. For several classes, it compares the largest score
    with the share of correct predictions.
    """
    if scores.ndim == 1:
        confidence, observed = scores, y
    else:
        confidence, observed = scores.max(axis=1), (decide(scores) == y).astype(np.float64)
    bins = np.clip((confidence * ECE_BINS).astype(np.intp), 0, ECE_BINS - 1)
    gap = confidence - observed

    def value(weights: Array | None) -> float:
        w = np.ones(len(y)) if weights is None else weights
        return _over(float(np.abs(np.bincount(bins, weights=w * gap)).sum()), float(w.sum()))

    return value


def _r2(y: Array, scores: Array) -> Statistic:
    errors = (scores - y) ** 2

    def value(weights: Array | None) -> float:
        w = np.ones(len(y)) if weights is None else weights
        total = float(w.sum())
        if total <= 0:
            return float("nan")
        spread = dot(w, (y - dot(w, y) / total) ** 2)
        return 1.0 - dot(w, errors) / spread if spread > 0 else float("nan")

    return value


def _median_ae(y: Array, scores: Array) -> Statistic:
    errors = np.abs(scores - y)
    order = np.argsort(errors, kind="stable")
    ranked = errors[order]

    def value(weights: Array | None) -> float:
        if weights is None:
            return float(np.median(errors))
        reached = np.cumsum(weights[order])
        if reached[-1] <= 0:
            return float("nan")
        # If the weight splits evenly, this is the mean of the two middle rows, as for the ordinary median.
        half = reached[-1] / 2
        low, high = np.searchsorted(reached, half, "left"), np.searchsorted(reached, half, "right")
        return float(0.5 * (ranked[low] + ranked[min(int(high), len(ranked) - 1)]))

    return value


def dot(a: Array, b: Array) -> float:
    """Return the sum of products, computed by one thread.

    BLAS splits long vectors over several threads. The result then depends on their number, and threads that busy-wait
    on a loaded machine cost a hundred times what they save.
    """
    return float(np.einsum("i,i->", a, b))


def _row_sums(rows: Array, weights: Array) -> Array:
    sums: Array = np.einsum("kn,n->k", rows, weights)
    return sums


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else float("nan")


def _mean_defined(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _metric(
    name: str, greater_is_better: bool, make: Callable[[Array, Array], Statistic], *, of_labels: bool = False
) -> Metric:
    return Metric(name, METRIC_TASKS[name], greater_is_better, make, of_labels)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _metric("roc_auc", True, _roc_auc),
        _metric("average_precision", True, _average_precision),
        _metric("log_loss", False, _log_loss),
        _metric("brier", False, _brier),
        _metric("accuracy", True, _accuracy, of_labels=True),
        _metric("f1", True, _f1, of_labels=True),
        _metric("precision", True, _precision, of_labels=True),
        _metric("recall", True, _recall, of_labels=True),
        _metric("ece", False, _ece),
        _metric("rmse", False, _rmse),
        _metric("mae", False, _mae),
        _metric("median_ae", False, _median_ae),
        _metric("mape", False, _mape),
        _metric("r2", True, _r2),
    )
}
"""Every metric by name."""
