"""Evaluate a model on rows that it was not trained on: metrics, intervals, slices, calibration, confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.training.class_decisions import answer_frame
from everloop.training.intervals import Interval, interval, intervals, wilson
from everloop.training.metrics import decide, get_metric, metrics_of, scores_for
from everloop.training.targets import encode_target, find_classes, infer_task
from everloop.training.training_tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    from everloop.records import Json
    from everloop.training.trained_model import LeftOut, Task

    Array = NDArray[np.float64]

REPLICATES = 300
MOST_SLICES = 20
"""The most frequent values of a slice column that are shown as slices. All others are in the slice `other values`."""
LEAST_SLICE_ROWS = 10
"""For slices with fewer rows, the metric is not measured."""
CALIBRATION_BINS = 10


class ScoreFunction(Protocol):
    """Anything that scores a frame, such as `Model` and `Trained`. Its `answer_frame`, if any, also gives classes."""

    def predict_scores(self, frame: pl.DataFrame) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class SliceScore:
    """The metric on the rows with one value of a column."""

    column: str
    value: str
    rows: int
    share: float
    metric: Interval | None
    """None if the slice has too few rows or a single class."""
    mean_score: float | None
    mean_truth: float | None
    """Share of positives or mean of the target; None for several classes."""

    def to_dict(self) -> dict[str, Json]:
        return {
            "column": self.column,
            "value": self.value,
            "rows": self.rows,
            "share": self.share,
            "metric": self.metric.to_dict() if self.metric else None,
            "mean_score": self.mean_score,
            "mean_truth": self.mean_truth,
        }


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Rows with scores from `low` to `high`: the mean score and the observed rate."""

    low: float
    high: float
    rows: int
    told: float
    """Mean score."""
    came: float
    """Share of positives; for several classes, share of correct predictions; for a regression, mean of the target."""
    came_low: float | None
    """Lower end of Wilson's interval of the share; None for a regression."""
    came_high: float | None
    """Upper end of Wilson's interval of the share; None for a regression."""

    def to_dict(self) -> dict[str, Json]:
        return {
            "low": self.low,
            "high": self.high,
            "rows": self.rows,
            "told": self.told,
            "came": self.came,
            "came_low": self.came_low,
            "came_high": self.came_high,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of an evaluation. A model version stores it in the form of `to_dict`."""

    task: Task
    metric: str
    """The metric that decides."""
    rows: int
    metrics: dict[str, Interval]
    slices: list[SliceScore] = field(default_factory=list)
    calibration: list[CalibrationBin] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    """Numbers of rows by true class (rows) and predicted class (columns); empty for a regression."""
    classes: list[Json] = field(default_factory=list)
    unlabelled: int = 0
    """How many rows were left out because their target is null."""
    left_out: tuple[LeftOut, ...] = ()
    """Columns that training did not use, each with the reason; empty if the model does not list them."""

    @property
    def value(self) -> float:
        """The value of the deciding metric."""
        return self.metrics[self.metric].value

    def worst_slice(self, column: str) -> SliceScore | None:
        """Return the slice of a column with the worst value of the deciding metric; None if none was measured."""
        measured = [one for one in self.slices if one.column == column and one.metric is not None]
        sign = 1.0 if get_metric(self.metric).greater_is_better else -1.0
        return min(measured, key=lambda one: sign * _metric_value(one), default=None)

    def to_dict(self) -> dict[str, Json]:
        """Return plain data for JSON. NaN becomes None."""
        return {
            "task": self.task,
            "metric": self.metric,
            "rows": self.rows,
            "unlabelled": self.unlabelled,
            "left_out": [one.to_dict() for one in self.left_out],
            "classes": list(self.classes),
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "slices": [one.to_dict() for one in self.slices],
            "calibration": [one.to_dict() for one in self.calibration],
            "confusion": [list(row) for row in self.confusion],
        }


def evaluate(
    model: ScoreFunction,
    frame: pl.DataFrame | pl.LazyFrame,
    target: str,
    *,
    task: Task | None = None,
    metric: str | None = None,
    classes: Sequence[Json] | None = None,
    slices: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Score labelled rows with a model, and evaluate the scores.

    Args:
        model: anything with `predict_scores(frame)`. Its `task`, `metric` and `classes` are the defaults, if it has
            them.
        frame: rows that the model was not trained on, with the target.
        target: the column with the labels. Rows without a label are left out.
        task: default: the model's, otherwise inferred from the target.
        metric: the metric that decides and is measured by slice. Default: the model's, otherwise that of the task.
        classes: the classes in the order of the scores. Default: the model's.
        slices: columns whose values define slices. Numbers and times with many values are divided into quarters.
        seed: seed of the bootstrap.

    Raises:
        EmptySampleError: no row has a label.
        DataError: a column is missing, or a label is not a class of the model.
    """
    rows = table(frame)
    for name in (target, *slices):
        if name not in rows.columns:
            raise DataError(f"The rows have no column '{name}'.", help=f"They have: {', '.join(rows.columns)}")
    column = rows[target]
    task = task or getattr(model, "task", None) or infer_task(column)
    classes = list(classes if classes is not None else getattr(model, "classes", None) or find_classes(column, task))
    labels = encode_target(column, task, classes)
    labelled = ~np.isnan(labels)
    if not labelled.all():
        rows, labels = rows.filter(labelled), labels[labelled]
    if rows.height == 0:
        raise EmptySampleError(f"No row has a '{target}'.", help="Wait for labels, or widen the window.")
    scores, places = answer_frame(model, rows)
    found = evaluate_scores(
        labels,
        scores,
        places=places,
        task=task,
        metric=metric or getattr(model, "metric", None),
        slices={name: rows[name] for name in slices},
        classes=classes,
        seed=seed,
    )
    return replace(found, unlabelled=int((~labelled).sum()), left_out=tuple(getattr(model, "left_out", ())))


def evaluate_scores(
    y: ArrayLike,
    scores: ArrayLike,
    *,
    task: Task,
    places: ArrayLike | None = None,
    metric: str | None = None,
    slices: Mapping[str, pl.Series] | None = None,
    classes: Sequence[Json] = (),
    seed: int = 0,
) -> Evaluation:
    """Evaluate existing scores, such as those in the prediction log.

    Args:
        y: labels as from `encode_target`, shape (n,), without NaN.
        scores: shape (n,) or (n, k).
        task: the task of the scores.
        places: index in `classes` of the predicted class of each row. Default: it follows from the scores.
        metric: the metric that decides. Default: that of the task.
        slices: values of slice columns by name, n each.
        classes: the classes in the order of the scores, for the record.
        seed: seed of the bootstrap.

    Raises:
        EmptySampleError: there are no rows.
        DataError: the lengths differ, or a value is NaN.
        UsageError: the shape of the scores does not fit the task.
    """
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    names = metrics_of(task)
    deciding = get_metric(metric or names[0], task).name
    if (task == "multiclass") != (values.ndim == 2):
        raise UsageError(f"Scores of shape {values.shape} are not those of a {task} model.", help="Check `task`.")
    predicted = None if places is None else np.asarray(places, dtype=np.intp)
    if predicted is not None and predicted.shape != labels.shape:
        raise DataError(
            f"There are {len(predicted)} predicted classes for {len(labels)} rows.", help="Pass one for each row."
        )
    outputs = 0 if task == "regression" else 2 if values.ndim == 1 else values.shape[1]
    judged = scores_for(deciding, values, predicted)
    return Evaluation(
        task=task,
        metric=deciding,
        rows=len(labels),
        metrics=_intervals(labels, values, predicted, names, seed),
        slices=[
            one
            for name, column in (slices or {}).items()
            for one in _slice(name, column, labels, values, judged, deciding, seed)
        ],
        calibration=calibration_table(labels, values, task, places=predicted),
        confusion=_confusion(labels, values, predicted, outputs) if outputs else [],
        classes=list(classes),
    )


def calibration_table(
    y: ArrayLike, scores: ArrayLike, task: Task, *, places: ArrayLike | None = None
) -> list[CalibrationBin]:
    """Divide rows by their scores into ten bins of equal size, with the mean score and the observed rate of each.

    Rows with equal scores are in the same bin.

    Args:
        places: for several classes, the index of the predicted class. Default: the class with the largest score.
    """
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if values.ndim == 2:
        chosen = decide(values).astype(np.intp) if places is None else np.asarray(places, dtype=np.intp)
        labels, values = (chosen == labels).astype(np.float64), values[np.arange(len(values)), chosen]
    edges = np.unique(np.quantile(values, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values, side="right")
    found = []
    for k in np.unique(bins):
        inside = bins == k
        rows, observed = int(inside.sum()), float(labels[inside].mean())
        low, high = wilson(observed * rows, rows) if task != "regression" else (None, None)
        found.append(
            CalibrationBin(
                low=float(values[inside].min()),
                high=float(values[inside].max()),
                rows=rows,
                told=float(values[inside].mean()),
                came=observed,
                came_low=low,
                came_high=high,
            )
        )
    return found


def slice_labels(values: pl.Series) -> pl.Series:
    """Return the name of each row's slice: its value, `null`, `other values`, or a quarter of many numbers or times."""
    import polars as pl

    many = values.n_unique() > MOST_SLICES
    if many and (values.dtype.is_numeric() or values.dtype.is_temporal()):
        cuts = [values.quantile(q, "nearest") for q in (0.25, 0.5, 0.75)]
        known = values.drop_nulls()
        edges = [known.min(), *cuts, known.max()]
        name = pl.lit("null")
        for low, high in zip(reversed(edges[:-1]), reversed(edges[1:]), strict=True):
            inside = (pl.lit(values) <= pl.lit(high)) & (pl.lit(values) >= pl.lit(low))
            name = pl.when(inside).then(pl.lit(f"{low!s} to {high!s}")).otherwise(name)
        return pl.select(name).to_series()
    text = values.cast(pl.String)
    if many:
        top = text.drop_nulls().value_counts(sort=True, name="rows").head(MOST_SLICES)[text.name].to_list()
        known_or_null = pl.lit(text).is_in(top) | pl.lit(text).is_null()
        text = pl.select(pl.when(known_or_null).then(pl.lit(text)).otherwise(pl.lit("other values"))).to_series()
    return text.fill_null("null")


def _intervals(labels: Array, scores: Array, places: Any, names: list[str], seed: int) -> dict[str, Interval]:
    """Measure every metric: those of labels on the predicted classes, the others on the scores."""
    of_labels = [name for name in names if get_metric(name).of_labels and places is not None]
    of_scores = [name for name in names if name not in of_labels]
    found = intervals(labels, scores, of_scores, n=REPLICATES, seed=seed)
    if of_labels:
        found |= intervals(labels, scores_for(of_labels[0], scores, places), of_labels, n=REPLICATES, seed=seed)
    return {name: found[name] for name in names}


def _slice(
    name: str, values: pl.Series, labels: Array, scores: Array, judged_scores: Array, metric: str, seed: int
) -> list[SliceScore]:
    found = []
    slice_values, indices = np.unique(slice_labels(values).to_numpy(), return_inverse=True)
    for k in np.argsort(-np.bincount(indices), kind="stable"):
        inside = indices == k
        rows = int(inside.sum())
        measured: Interval | None = None
        if rows >= LEAST_SLICE_ROWS:
            measured = interval(labels[inside], judged_scores[inside], metric, n=REPLICATES, seed=seed)
        single = scores.ndim == 1
        found.append(
            SliceScore(
                column=name,
                value=str(slice_values[k]),
                rows=rows,
                share=rows / len(labels),
                metric=measured if measured is not None and not np.isnan(measured.value) else None,
                mean_score=float(scores[inside].mean()) if single else None,
                mean_truth=float(labels[inside].mean()) if single else None,
            )
        )
    return found


def _confusion(labels: Array, scores: Array, places: Any, outputs: int) -> list[list[int]]:
    pairs = labels.astype(np.intp) * outputs + (decide(scores).astype(np.intp) if places is None else places)
    counts: list[list[int]] = np.bincount(pairs, minlength=outputs * outputs).reshape(outputs, outputs).tolist()
    return counts


def _metric_value(one: SliceScore) -> float:
    assert one.metric is not None  # noqa: S101  (filtered by the caller)
    return one.metric.value
