"""Check that a table has what the later stages of its loop need, before time is spent on training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from everloop.stores import Store


def check_purpose(store: Store, table: pl.DataFrame, target: str, purpose: Mapping[str, Any]) -> None:
    """Check a table against the requirements of the later stages.

    Args:
        purpose: the requirements: `columns` that gates slice by; `gate_columns`, pairs of a gate and a column that it
            needs; `positive`, if it is declared; `automatic`, whether training infers its task from the target. If so,
            also `task`, if it is declared; `metrics` of training, gates and watches; and `model` and `aliases`, whose
            versions must predict the same kind of target.

    Raises:
        UsageError: a gate slices by a column that the table lacks, or a metric does not fit the target.
        TrainingError: training is a step of the user, and the declared positive class is not one of two of the target.
        ConflictError: the version with one of the aliases predicts another kind of target.
    """
    from everloop.training.targets import find_classes, infer_task

    wanted = [("Slices", column) for column in purpose.get("columns", ())]
    for gate, column in [*wanted, *purpose.get("gate_columns", ())]:
        if column not in table.columns:
            raise UsageError(
                f"{gate}('{column}'): the dataset has no such column.", help=f"It has: {', '.join(table.columns)}"
            )
    if not purpose.get("automatic"):
        if "positive" in purpose:
            find_classes(table[target], infer_task(table[target]), purpose["positive"])
        return  # a training step of the user decides for itself how to use the target
    try:
        task = purpose.get("task") or infer_task(table[target])
        classes = find_classes(table[target], task, purpose.get("positive"))
    except (TrainingError, DataError):
        return  # the split or the training raises an error that explains the problem and its remedy
    _check_metrics(purpose.get("metrics", ()), task, target)
    _check_holders(store, purpose, task, classes, target)


def _check_metrics(metrics: Any, task: Any, target: str) -> None:
    from everloop.training.metrics import get_metric, metrics_of

    for metric in metrics:
        if task not in get_metric(metric).tasks:
            kind = {"regression": "amounts", "binary": "two classes", "multiclass": "several classes"}[task]
            raise UsageError(
                f"'{metric}' is not for {task} targets, and '{target}' has {kind}.",
                help=f"In train=, gates= and watch= of loop.py, use one of: {', '.join(metrics_of(task))}",
            )


def _check_holders(store: Store, purpose: Mapping[str, Any], task: Any, classes: Any, target: str) -> None:
    from everloop.loop.comparison.champions import check_same_target
    from everloop.packages import Signature
    from everloop.registry import find_alias, get_version

    for alias in purpose.get("aliases", ()):
        holder = find_alias(store, purpose["model"], alias)
        if holder is None:
            continue
        version = get_version(store, holder.version)
        if version.signature.get("inputs"):
            check_same_target(version.key, Signature.from_json(version.signature), task, classes, target)
