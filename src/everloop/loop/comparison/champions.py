"""Compare a candidate with the version that holds an alias, even if their columns or classes differ.

From one version to the next, columns are added, removed, renamed or change their type, and a target may gain a class.
Two models are compared on the same rows if possible:

* The test rows have every column that the holder needs, including those that the candidate does not use.
* Or the missing columns are taken from the holder's own held-out rows with the same keys. Neither model was trained on
  those rows.
* A class that one of the models does not know gets the probability 0 from it.

Otherwise each model is measured on its own held-out rows. This is less precise, so the interval is wider.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, NotFoundError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import polars as pl

    from everloop.packages import Predictor
    from everloop.packages.signature import Signature
    from everloop.records import Json, ModelVersion
    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = np.ndarray[Any, Any]

LEAST_SHARED = 0.5
"""At least this share of the test rows must be among the holder's own held-out rows to take columns from there."""


@dataclass(frozen=True)
class Pairs:
    """Predictions of both models for the same rows: scores and predicted classes, with the same list of classes."""

    labels: Array
    candidate: ClassScores
    holder: ClassScores
    remark: str = ""
    """Which rows these are, if they are not simply all test rows."""

    def judged(self, metric: str) -> tuple[Array, Array]:
        """The input of a metric for candidate and holder: scores, or predicted classes if the metric needs those."""
        from everloop.training.metrics import scores_for

        return scores_for(metric, *self.candidate), scores_for(metric, *self.holder)


@dataclass(frozen=True)
class ComparedVersion:
    """The holder of an alias. `pairs` is None if it cannot score the candidate's rows; `why` gives the reason."""

    version: str
    pairs: Pairs | None = None
    why: str = ""
    same_classes: bool = True
    metrics: dict[str, dict[str, Json]] = field(default_factory=dict)
    """Its metrics on its own held-out rows, each with `value`, `low` and `high`."""


def deciding_metric(version: ModelVersion) -> str:
    """Return the metric that decided a version's evaluation, otherwise the default metric of its task."""
    from everloop.training.metric_tasks import metrics_of

    metric = version.evaluation.get("metric")
    return metric if isinstance(metric, str) else metrics_of(version.signature.get("task", "binary"))[0]


def score_holder(
    store: Store,
    holder: ModelVersion,
    candidate: Predictor,
    test: pl.DataFrame,
    labels: Array,
    predictions: ClassScores,
    *,
    target: str,
    key: str | None,
) -> ComparedVersion:
    """Score the candidate's test rows with the holder of an alias, as far as its columns allow.

    Args:
        test: the candidate's held-out rows.
        labels: labels of the test rows, encoded by the candidate's classes.
        predictions: the candidate's predictions for the test rows.
        target: the column with the labels.
        key: the column that identifies a row, if there is one.

    Raises:
        ConflictError: the holder predicts another kind of target.
    """
    from everloop.packages.signature import Signature
    from everloop.registry import load_model

    measured = holder.evaluation.get("metrics")
    metrics = dict(measured) if isinstance(measured, dict) else {}
    signature = Signature.from_json(holder.signature) if holder.signature.get("inputs") else None
    if signature is not None:
        check_same_target(holder.key, signature, candidate.task, candidate.classes, target)
    same = signature is None or same_classes(signature.classes, candidate.classes)
    try:
        model = load_model(store, holder.key)
    except NotFoundError as error:
        return ComparedVersion(holder.key, why=error.message.rstrip("."), same_classes=same, metrics=metrics)
    rows, indices, remark = _rows_for_holder(store, holder, model.signature, test, target=target, key=key)
    if rows is None:
        return ComparedVersion(holder.key, why=remark, same_classes=same, metrics=metrics)
    try:
        holder_predictions = model.answer_frame(rows)
    except RequestError as error:
        # A column has kept its name but changed its type.
        return ComparedVersion(holder.key, why=error.message.rstrip("."), same_classes=same, metrics=metrics)
    if indices is not None:
        labels, predictions = labels[indices], predictions.take(indices)
    if not same:
        every = classes_of_both(candidate, model)
        predictions = spread(predictions, candidate.classes, every)
        holder_predictions = spread(holder_predictions, model.classes, every)
        added = [repr(one) for one in every if _class_index(one, model.classes) is None]
        removed = [repr(one) for one in every if _class_index(one, candidate.classes) is None]
        remarks = [remark] if remark else []
        remarks += [f"{holder.key} does not know {', '.join(added)}"] if added else []
        remarks += [f"the candidate does not know {', '.join(removed)}"] if removed else []
        remark = "; ".join(remarks)
    pairs = Pairs(labels, predictions, holder_predictions, remark)
    return ComparedVersion(holder.key, pairs, same_classes=same, metrics=metrics)


def check_same_target(holder: str, signature: Signature, task: str, classes: Sequence[Json], target: str) -> None:
    """Check that a target is of the kind that an existing version predicts.

    Args:
        holder: key of the existing version.
        signature: signature of the existing version.
        task: task of the target.
        classes: classes of the target; empty for a regression.
        target: name of the target's column.

    Raises:
        ConflictError: the tasks differ, or the two have no class in common.
    """
    amounts = "regression" in (task, signature.task)
    if signature.task == task and amounts:
        return
    if not amounts and any(_class_index(one, signature.classes) is not None for one in classes):
        return
    predicted = "amounts" if signature.task == "regression" else f"one of {_listed(signature.classes)}"
    needed = "amounts" if task == "regression" else f"one of {_listed(classes)}"
    model = holder.rpartition("@")[0]
    raise ConflictError(
        f"'{target}' holds {needed}, but {holder} predicts {predicted}: one cannot replace the other.",
        help=f"Start again under new names: el.Loop('{model}-2', …) and serve=el.Endpoint('{model}-2', …). "
        "If only the spelling of the labels has changed, map them to the old ones in the step.",
    )


def _listed(classes: Sequence[Json]) -> str:
    shown = ", ".join(repr(one) for one in classes[:5])
    return f"{shown}, …" if len(classes) > 5 else shown


def _class_index(value: Json, classes: Sequence[Json]) -> int | None:
    """Return the index of a class; None if it is not there. `1` matches `True`, and `"1"` matches `1`."""
    from everloop.training.targets import class_place

    return class_place(value, classes)


def same_classes(one: Sequence[Json], other: Sequence[Json]) -> bool:
    """Whether the scores of two models refer to the same classes in the same order."""
    return len(one) == len(other) and all(_class_index(value, other) == index for index, value in enumerate(one))


def classes_of_both(candidate: Predictor, holder: Predictor) -> list[Json]:
    """Return the candidate's classes in their order, then those that only the other model knows."""
    return [*candidate.classes, *(one for one in holder.classes if _class_index(one, candidate.classes) is None)]


def spread(predictions: ClassScores, classes: Sequence[Json], every: Sequence[Json]) -> ClassScores:
    """Convert predictions over `classes` to predictions over `every`, which contains all of them.

    Classes that are missing from `classes` get the probability 0.
    """
    import numpy as np

    from everloop.training.class_decisions import ClassScores

    if same_classes(classes, every):
        return predictions

    scores, chosen = predictions
    indices = [index for value in classes if (index := _class_index(value, every)) is not None]
    wide = np.zeros((len(scores), len(every)))
    wide[:, indices] = np.column_stack([1.0 - scores, scores]) if scores.ndim == 1 else scores
    moved = None if chosen is None else np.array(indices, dtype=np.intp)[chosen]
    # Two classes are scored by one column, the probability of the second class.
    return ClassScores(wide[:, 1].copy() if len(every) == 2 else wide, moved)


def _rows_for_holder(
    store: Store, holder: ModelVersion, signature: Signature, test: pl.DataFrame, *, target: str, key: str | None
) -> tuple[pl.DataFrame | None, Array | None, str]:
    """Return the rows that the holder can score, their indices among the test rows (None: all), and a remark.

    The rows are None if the holder can score too few; the remark then says why.
    """
    import polars as pl

    missing = [name for name in signature.names if name not in test.columns]
    if not missing:
        return _as_numbers(test, signature), None, ""
    lacks = f"the test rows lack {', '.join(map(repr, missing))}, which {holder.key} needs"
    earlier = stored_part(store, holder, "test")
    if earlier is None or key is None or any(name not in earlier.columns for name in (key, target, *missing)):
        return None, None, lacks
    if earlier.schema[key] != test.schema[key] or earlier.schema[target] != test.schema[target]:
        return None, None, lacks
    # The target is part of the join, because a row whose label has changed since is another observation.
    shared = (
        test.with_row_index("#row")
        .join(earlier.select(key, target, *missing).unique(key, keep="first"), on=[key, target], how="inner")
        .sort("#row")
    )
    if shared.height < LEAST_SHARED * test.height:
        return None, None, lacks
    rows = _as_numbers(shared.drop("#row"), signature)
    remark = f"{', '.join(map(repr, missing))} taken from the held-out rows of {holder.key} with the same '{key}'"
    return rows, shared["#row"].cast(pl.Int64).to_numpy(), remark


def stored_part(store: Store, holder: ModelVersion, part: str) -> pl.DataFrame | None:
    """Return the rows of a part of the split that made a version; None if they are no longer stored.

    Args:
        part: `train`, `valid` or `test`, the held-out rows.
    """
    import polars as pl

    from everloop.pipeline.artifacts import load_value
    from everloop.records import Artifact, StepRun

    if holder.run is None:
        return None
    steps = store.records.find(StepRun, ("run", "=", holder.run), ("name", "=", "split"), limit=1)
    artifact_id = steps[0].outputs.get(part) if steps else None
    artifacts = store.records.find(Artifact, ("id", "=", artifact_id), limit=1) if artifact_id else []
    if not artifacts:
        return None
    try:
        rows = load_value(artifacts[0], store.objects)
    except NotFoundError:
        return None  # removed by garbage collection
    return rows if isinstance(rows, pl.DataFrame) else None


def _as_numbers(rows: pl.DataFrame, signature: Signature) -> pl.DataFrame:
    """Convert text columns to numbers if the model takes numbers there and every text is one."""
    import polars as pl

    for item in signature.inputs:
        if item.type in ("float", "int") and isinstance(rows.schema[item.name], pl.String):
            parsed = rows[item.name].str.strip_chars().cast(pl.Float64, strict=False)
            if parsed.null_count() == rows[item.name].null_count():
                rows = rows.with_columns(parsed)
    return rows
