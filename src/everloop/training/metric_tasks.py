"""List the names of all metrics and the tasks that they fit, so that declarations can be checked without NumPy."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.training.trained_model import Task

_CLASSES: tuple[Task, ...] = ("binary", "multiclass")

METRIC_TASKS: dict[str, tuple[Task, ...]] = {
    "roc_auc": _CLASSES,
    "average_precision": ("binary",),
    "log_loss": _CLASSES,
    "brier": ("binary",),
    "accuracy": _CLASSES,
    "f1": _CLASSES,
    "precision": _CLASSES,
    "recall": _CLASSES,
    "ece": _CLASSES,
    "rmse": ("regression",),
    "mae": ("regression",),
    "median_ae": ("regression",),
    "mape": ("regression",),
    "r2": ("regression",),
}
"""The tasks of every metric, by its name. The first metric of a task is its default."""


def metrics_of(task: Task) -> list[str]:
    """Return the names of the metrics that fit a task. The first one is the default."""
    return [name for name, tasks in METRIC_TASKS.items() if task in tasks]


def check_metric(name: str, task: Task | None = None) -> None:
    """Raise UsageError if the metric does not exist, or does not fit the task, if one is given."""
    if name not in METRIC_TASKS:
        near = get_close_matches(str(name), METRIC_TASKS, n=1)
        start = f"Did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"There is no metric '{name}'.", help=f"{start}Metrics: {', '.join(METRIC_TASKS)}")
    if task is not None and task not in METRIC_TASKS[name]:
        raise UsageError(f"{name} is not for {task} targets.", help=f"Use one of: {', '.join(metrics_of(task))}")
