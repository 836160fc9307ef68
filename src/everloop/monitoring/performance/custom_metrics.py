"""Metrics of your own: what errors cost, or any function of labels and scores.

They are `Metric` objects. Everything that takes a metric's name takes them too: measured performance with its interval,
comparisons of versions, and estimates before labels arrive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import UsageError
from everloop.training.metrics import Metric, Statistic, decide, dot, get_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained_model import Task

    Array = NDArray[np.float64]

_ALL_TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def cost_metric(
    false_positive: float,
    false_negative: float,
    *,
    true_positive: float = 0.0,
    true_negative: float = 0.0,
    name: str = "cost",
) -> Metric:
    """Return the mean cost of a prediction of two classes; lower is better. A gain is a negative cost.

    Args:
        false_positive: cost of a predicted positive that is negative, in any unit, such as euros.
        false_negative: cost of a positive that was not predicted, in the same unit.
        true_positive: cost of a correctly predicted positive.
        true_negative: cost of a correctly predicted negative.
        name: name of the metric in results.

    Raises:
        UsageError: a cost is not a finite number.
    """
    costs = np.array([[true_negative, false_positive], [false_negative, true_positive]], dtype=np.float64)
    if not np.isfinite(costs).all():
        raise UsageError(f"The costs must be finite numbers, not {costs.ravel().tolist()}.", help="Pass numbers.")

    def make(y: Array, scores: Array) -> Statistic:
        losses = costs[(y > 0).astype(np.intp), decide(scores).astype(np.intp)]

        def value(weights: Array | None) -> float:
            if weights is None:
                return float(losses.mean())
            total = float(weights.sum())
            return dot(weights, losses) / total if total > 0 else math.nan

        return value

    return Metric(name, ("binary",), False, make, of_labels=True)


def custom_metric(
    name: str,
    function: Callable[[Array, Array], float],
    *,
    greater_is_better: bool = True,
    tasks: Sequence[Task] = _ALL_TASKS,
) -> Metric:
    """Return a metric that a function computes from labels and scores.

    Args:
        name: name of the metric in results.
        function: takes labels of shape (n,) and scores of shape (n,) or (n, k), and returns a number. It may return NaN
            where the metric is undefined. It also gets resampled rows, so it must not depend on their order.
        greater_is_better: whether a larger value is better.
        tasks: the tasks that the metric fits. Without "regression", labels must be indices of classes.

    Raises:
        UsageError: the name is that of a built-in metric. Later, if the function does not return a number.
    """
    from everloop.training.metric_tasks import METRIC_TASKS

    if name in METRIC_TASKS:
        raise UsageError(f"'{name}' is a built-in metric.", help="Give yours another name.")

    def make(y: Array, scores: Array) -> Statistic:
        def value(weights: Array | None) -> float:
            rows = np.arange(len(y)) if weights is None else _expand(weights)
            if len(rows) == 0:
                return math.nan
            return _number(name, function(y[rows], scores[rows]))

        return value

    return Metric(name, tuple(tasks), greater_is_better, make)


@dataclass(frozen=True, slots=True)
class RowMetric:
    """A metric that also needs other columns of the rows, such as an amount. Only for measured performance.

    Attributes:
        name: name of the metric in results.
        function: takes labels (n,), scores (n,) or (n, k), and a frame of n rows; returns a number. It also gets
            resampled rows, so it must not depend on their order.
        greater_is_better: whether a larger value is better.
        tasks: the tasks that the metric fits.
    """

    name: str
    function: Callable[[Array, Array, pl.DataFrame], float]
    greater_is_better: bool = True
    tasks: tuple[Task, ...] = _ALL_TASKS

    def bind(self, rows: pl.DataFrame) -> Metric:
        """Return the metric for exactly these rows."""

        def make(y: Array, scores: Array) -> Statistic:
            def value(weights: Array | None) -> float:
                places = np.arange(len(y)) if weights is None else _expand(weights)
                return (
                    _number(self.name, self.function(y[places], scores[places], rows[places])) if len(y) else math.nan
                )

            return value

        return Metric(self.name, self.tasks, self.greater_is_better, make)


def metrics_named(metrics: Sequence[str | Metric] | str | Metric, task: Task | None) -> list[Metric]:
    """Return metrics by name or as they are, each once, after checking that they fit the task.

    Raises:
        UsageError: a metric does not exist, does not fit the task, or two of them have the same name.
    """
    given = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    found: dict[str, Metric] = {}
    for one in given:
        metric = get_metric(one, task)
        if found.setdefault(metric.name, metric) is not metric:
            raise UsageError(f"Two metrics have the name '{metric.name}'.", help="Give each a name of its own.")
    return list(found.values())


def _number(name: str, found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError):
        raise UsageError(
            f"The metric '{name}' returned {type(found).__name__}, not a number.", help="Return a float."
        ) from None


def _expand(weights: Array) -> NDArray[np.intp]:
    """Return each row as many times as its weight says: exactly for whole weights, on average for fractions.

    This is systematic sampling, as in Madow, "On the theory of systematic sampling II", Annals of Mathematical
    Statistics 20 (1949).
    """
    reached = np.cumsum(weights)
    total = round(float(reached[-1])) if len(reached) else 0
    rows: NDArray[np.intp] = np.searchsorted(reached, np.arange(total) + 0.5, side="left").clip(0, len(weights) - 1)
    return rows
