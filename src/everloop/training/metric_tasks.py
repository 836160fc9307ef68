"""Which metrics there are and which tasks they fit: names only, so that declarations can be checked without NumPy."""

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
"""Every metric by name, with the tasks that it fits; for each task the usual first choice first."""


def metrics_of(task: Task) -> list[str]:
    """Names of the metrics that fit a task, the usual first choice first."""
    return [name for name, tasks in METRIC_TASKS.items() if task in tasks]


def check_metric(name: str, task: Task | None = None) -> None:
    """Raise UsageError unless there is such a metric and, where a task is given, it fits the task."""
    if name not in METRIC_TASKS:
        near = get_close_matches(str(name), METRIC_TASKS, n=1)
        start = f"Did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"No metric called '{name}'.", help=f"{start}There are: {', '.join(METRIC_TASKS)}")
    if task is not None and task not in METRIC_TASKS[name]:
        raise UsageError(f"{name} is not for {task} targets.", help=f"There are: {', '.join(metrics_of(task))}")


__all__ = ["METRIC_TASKS", "check_metric", "metrics_of"]
