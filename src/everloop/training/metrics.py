"""How good scores are, as vectorised NumPy.

A metric is prepared once for a sample (sorting, binning, per-row losses) and then asked for its value under any row
weights. Resampling is nothing but other weights, so five hundred bootstrap replicates cost one sort and five hundred
linear passes.

Definitions follow scikit-learn's, and the tests hold them against it. A metric that the sample leaves undefined (the
area under the curve of one class only) is NaN, not an error: slices and bootstrap replicates meet that every day.
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
"""The metric of one prepared sample under row weights, shape (n,); None weighs all rows alike."""

ECE_BINS = 10
_TINY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Metric:
    """A named measure of scores against truth."""

    name: str
    tasks: tuple[Task, ...]
    greater_is_better: bool
    make: Callable[[Array, Array], Statistic]
    of_labels: bool = False
    """It looks at the predicted classes alone. See `scores_for`."""

    def prepare(self, y: ArrayLike, scores: ArrayLike) -> Statistic:
        """Do once what does not depend on the weights.

        Args:
            y: shape (n,): 0/1 for binary, class index for multiclass, the value for regression.
            scores: shape (n,) or (n, k), as `Model.predict_scores` gives them.

        Raises:
            EmptySampleError: no rows.
            DataError: lengths differ, or a value is NaN or not a number.
            UsageError: the metric is for other targets than these.
        """
        try:
            truth = np.ascontiguousarray(y, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{self.name} takes truths as numbers, not as {np.asarray(y).dtype}.",
                help="Give 0 and 1 or the index of the class, and the value for a regression.",
            ) from None
        given = np.ascontiguousarray(scores, dtype=np.float64)
        if truth.ndim != 1 or given.ndim not in (1, 2) or len(truth) != len(given):
            raise DataError(
                f"{self.name} needs as many truths as scores, not {truth.shape} and {given.shape}.",
                help="Give y of shape (n,) and scores of shape (n,) or (n, classes).",
            )
        if len(truth) == 0:
            raise EmptySampleError(f"{self.name} was asked of no rows.", help="Widen the window or the slice.")
        for what, values in (("truths", truth), ("scores", given)):
            bad = int(np.isnan(values).sum())
            if bad:
                raise DataError(f"{bad} of {values.size} {what} are not numbers.", help="Drop or fill them first.")
        if given.ndim == 2 and "multiclass" not in self.tasks:
            raise UsageError(
                f"{self.name} is not for multiclass targets.", help=f"There are: {', '.join(metrics_of('multiclass'))}"
            )
        if "regression" not in self.tasks:
            self._check_classes(truth, given)
        return self.make(truth, given)

    def _check_classes(self, truth: Array, given: Array) -> None:
        """Refuse truths that are not classes: every value above 0 would count as one, and none of it would be said."""
        most = 1 if given.ndim == 1 else given.shape[1] - 1
        strange = truth[(truth < 0) | (truth > most) | (truth != np.floor(truth))]
        if len(strange):
            classes = "0 and 1" if most == 1 else f"the classes 0 to {most}"
            raise UsageError(
                f"{self.name} is for classes, and the truths are not {classes}: {strange[0]:g}.",
                help=f"For the targets of a regression there are: {', '.join(metrics_of('regression'))}",
            )

    def gain(self, a: float, b: float) -> float:
        """By how much `a` is better than `b`, in the metric's unit; positive is better."""
        return a - b if self.greater_is_better else b - a


def score(metric: str | Metric, y: ArrayLike, scores: ArrayLike) -> float:
    """The value of one metric on a sample.

    Raises:
        EmptySampleError: no rows.
        DataError: lengths differ, or a value is NaN.
        UsageError: no such metric.
    """
    return get_metric(metric).prepare(y, scores)(None)


def higher_is_better(metric: str | Metric) -> bool:
    """Whether a larger value of the metric is the better one.

    Raises:
        UsageError: no such metric.
    """
    return get_metric(metric).greater_is_better


def get_metric(metric: str | Metric, task: Task | None = None) -> Metric:
    """The metric of that name, checked against the task if one is given.

    Raises:
        UsageError: no such metric, or it does not fit the task.
    """
    if not isinstance(metric, Metric):
        check_metric(metric, task)
        return METRICS[metric]
    if task is not None and task not in metric.tasks:
        raise UsageError(f"{metric.name} is not for {task} targets.", help=f"There are: {', '.join(metrics_of(task))}")
    return metric


def scores_for(metric: str | Metric, scores: ArrayLike, places: ArrayLike | None) -> Array:
    """What a metric is given, so that it judges the classes that were predicted and not those that the scores suggest.

    Args:
        scores: shape (n,) or (n, k).
        places: the predicted class of each row, by its place; None where it follows from the scores.

    Returns:
        The scores; for a metric of labels, scores of 0 and 1 that say the predicted class.
    """
    given = np.asarray(scores, dtype=np.float64)
    if places is None or not get_metric(metric).of_labels:
        return given
    return votes(np.asarray(places, dtype=np.intp), 2 if given.ndim == 1 else given.shape[1])


# -- means of per-row losses --------------------------------------------------------------------------------------


def _mean(losses: Array, finish: Callable[[float], float] | None = None) -> Statistic:
    def value(weights: Array | None) -> float:
        mean = float(losses.mean()) if weights is None else _over(dot(weights, losses), float(weights.sum()))
        return finish(mean) if finish else mean

    return value


def _log_loss(y: Array, scores: Array) -> Statistic:
    if scores.ndim == 1:
        chance = np.where(y > 0, scores, 1.0 - scores)
    else:
        chance = scores[np.arange(len(y)), y.astype(np.intp)]
    return _mean(-np.log(np.clip(chance, _TINY, 1.0 - _TINY)))


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
    """The chance that a positive outscores a negative, ties counting half (Hanley and McNeil 1982).

    Multiclass: the plain mean over classes, each against the rest; classes without rows on both sides are left out.
    """
    if scores.ndim == 2:
        each = [_roc_auc((y == k).astype(np.float64), scores[:, k].copy()) for k in range(scores.shape[1])]
        return lambda weights: _mean_defined([one(weights) for one in each])
    order, starts = _ascending(scores)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array | None) -> float:
        w = np.ones(len(order)) if weights is None else weights[order]
        up, both = _tie_sums(w * positive, starts), _tie_sums(w, starts)
        down = np.subtract(both, up, out=both)
        below = np.cumsum(down)
        below -= 0.5 * down
        return _over(dot(up, below), float(up.sum()) * float(down.sum()))

    return value


def _average_precision(y: Array, scores: Array) -> Statistic:
    """Sum over thresholds of precision times the gain in recall, without interpolation."""
    order, starts = _ascending(-scores)
    positive = (y[order] > 0).astype(np.float64)

    def value(weights: Array | None) -> float:
        w = np.ones(len(order)) if weights is None else weights[order]
        up = _tie_sums(w * positive, starts)
        total = np.cumsum(_tie_sums(w, starts))
        hits = np.cumsum(up)
        precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return _over(dot(up, precision), float(hits[-1]))

    return value


def _ascending(scores: Array) -> tuple[NDArray[np.intp], NDArray[np.intp] | None]:
    """Order by score, and where each run of equal scores starts (None if there are no ties)."""
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
    """The class index that the scores speak for: shape (n,), binary from one half on, else the largest."""
    return PLAIN.places(scores).astype(np.float64)


def _of_counts(finish: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array], Statistic]:
    """A metric of (hits, predicted, actual) rows a class: the positive one for binary, else the plain mean over all."""

    def make(y: Array, scores: Array) -> Statistic:
        said = decide(scores)
        classes = [1.0] if scores.ndim == 1 else [float(k) for k in range(scores.shape[1])]
        predicted = np.stack([said == k for k in classes]).astype(np.float64)
        actual = np.stack([y == k for k in classes]).astype(np.float64)
        hits = predicted * actual

        def value(weights: Array | None) -> float:
            w = np.ones(len(y)) if weights is None else weights
            counts = _row_sums(hits, w), _row_sums(predicted, w), _row_sums(actual, w)
            seen = (counts[1] > 0) | (counts[2] > 0)
            if scores.ndim == 1:
                return float(finish(*counts)[0])
            return float(finish(*counts)[seen].mean()) if seen.any() else float("nan")

        return value

    return make


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


_precision = _of_counts(lambda hits, predicted, actual: _ratio(hits, predicted))
_recall = _of_counts(lambda hits, predicted, actual: _ratio(hits, actual))
_f1 = _of_counts(lambda hits, predicted, actual: _ratio(2 * hits, predicted + actual))


# -- calibration and fit ------------------------------------------------------------------------------------------


def _ece(y: Array, scores: Array) -> Statistic:
    """Expected calibration error over ten equally wide bins (Guo et al. 2017, equation 3).

    Binary: score against the rate of positives. Multiclass: the largest score against how often it is right.
    """
    if scores.ndim == 1:
        told, came = scores, y
    else:
        told, came = scores.max(axis=1), (decide(scores) == y).astype(np.float64)
    bins = np.clip((told * ECE_BINS).astype(np.intp), 0, ECE_BINS - 1)
    gap = told - came

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
        # The mean of the two middle rows when the weight splits evenly, as the plain median has it.
        half = reached[-1] / 2
        low, high = np.searchsorted(reached, half, "left"), np.searchsorted(reached, half, "right")
        return float(0.5 * (ranked[low] + ranked[min(int(high), len(ranked) - 1)]))

    return value


def dot(a: Array, b: Array) -> float:
    """Sum of products, by one thread.

    BLAS would hand long vectors to several, whose sums differ with their number and who spin while they wait: on a
    busy machine that costs a hundred times what it saves.
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
