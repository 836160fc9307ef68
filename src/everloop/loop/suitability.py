"""Whether a table can serve what its loop is declared for, said before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from everloop.stores import Store


def check_purpose(store: Store, table: pl.DataFrame, target: str, purpose: Mapping[str, Any]) -> None:
    """Check what later stages ask of the table.

    Args:
        purpose: `columns` that gates slice by; `automatic`, whether training infers its task from the target, and
            then `task`, if it is declared, and `metrics` of training, gates and watches; `model` and `aliases`, whose
            holders must answer the same question.

    Raises:
        UsageError: a gate slices by a column that is not there, or a metric does not fit the target.
        ConflictError: the holder of an alias answers another question.
    """
    for column in purpose.get("columns", ()):
        if column not in table.columns:
            raise UsageError(
                f"Slices('{column}'): no such column in the dataset.", help=f"There are: {', '.join(table.columns)}"
            )
    if not purpose.get("automatic"):
        return  # the user's own step decides what it makes of the target
    from everloop.training.targets import find_classes, infer_task

    try:
        task = purpose.get("task") or infer_task(table[target])
        classes = find_classes(table[target], task)
    except (TrainingError, DataError):
        return  # the split or the training says what is wrong with the target, and what helps
    _check_metrics(purpose.get("metrics", ()), task, target)
    _check_holders(store, purpose, task, classes, target)


def _check_metrics(metrics: Any, task: Any, target: str) -> None:
    from everloop.training.metrics import get_metric, metrics_of

    for metric in metrics:
        if task not in get_metric(metric).tasks:
            kind = {"regression": "amounts", "binary": "two classes", "multiclass": "classes"}[task]
            raise UsageError(
                f"'{metric}' is not for {task} targets, and '{target}' holds {kind}.",
                help=f"In train=, gates= and watch= of loop.py use one of: {', '.join(metrics_of(task))}",
            )


def _check_holders(store: Store, purpose: Mapping[str, Any], task: Any, classes: Any, target: str) -> None:
    from everloop.loop.champions import refuse_other_question
    from everloop.packages import Signature
    from everloop.registry import find_alias, get_version

    for alias in purpose.get("aliases", ()):
        holder = find_alias(store, purpose["model"], alias)
        if holder is None:
            continue
        version = get_version(store, holder.version)
        if version.signature.get("inputs"):
            refuse_other_question(version.key, Signature.from_json(version.signature), task, classes, target)
