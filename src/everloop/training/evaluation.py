"""How good a model is on rows that it has not seen: with intervals, by slice, and whether its scores hold true."""

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

    from everloop.training.trained_model import Json, LeftOut, Task

    Array = NDArray[np.float64]

REPLICATES = 300
MOST_SLICES = 20
"""Values of a slice column that are shown by themselves, the most frequent ones; further ones are `other values`."""
LEAST_SLICE_ROWS = 10
"""A slice of fewer rows is counted but not judged."""
CALIBRATION_BINS = 10


class ScoreFunction(Protocol):
    """Whatever answers a frame: a `Model`, a `Trained`. Where it has `answer_frame`, that tells its classes too."""

    def predict_scores(self, frame: pl.DataFrame) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class SliceScore:
    """The metric on the rows that share a value."""

    column: str
    value: str
    rows: int
    share: float
    metric: Interval | None
    """None where the slice has too few rows, or one class only."""
    mean_score: float | None
    mean_truth: float | None
    """Rate of positives or mean of the target; None for several classes."""

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
    """Rows with scores in [`low`, `high`): what was told, and what came."""

    low: float
    high: float
    rows: int
    told: float
    """Mean score."""
    came: float
    """Rate of positives, or of being right; mean of the target in regression."""
    came_low: float | None
    came_high: float | None
    """Wilson's interval of the rate; None in regression."""

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
    """What was found. `to_dict` is what a model version keeps."""

    task: Task
    metric: str
    """The one that decides."""
    rows: int
    metrics: dict[str, Interval]
    slices: list[SliceScore] = field(default_factory=list)
    calibration: list[CalibrationBin] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    """Rows by true class (down) and predicted class (across); empty in regression."""
    classes: list[Json] = field(default_factory=list)
    unlabelled: int = 0
    """Rows that were left out because their target is null."""
    left_out: tuple[LeftOut, ...] = ()
    """Columns that training did not use, each with its reason; empty where the model does not say."""

    @property
    def value(self) -> float:
        """The deciding metric."""
        return self.metrics[self.metric].value

    def worst_slice(self, column: str) -> SliceScore | None:
        """The slice of a column with the worst value of the deciding metric; None if none could be judged."""
        judged = [one for one in self.slices if one.column == column and one.metric is not None]
        better = get_metric(self.metric).greater_is_better
        return min(judged, key=lambda one: _of(one) if better else -_of(one), default=None)

    def to_dict(self) -> dict[str, Json]:
        """JSON-able; NaN becomes None."""
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
    """Ask a model about labelled rows and judge its answers.

    Args:
        model: anything with `predict_scores(frame)`; its `task`, `metric` and `classes` are used where it has them.
        frame: rows that it was not trained on, with the target.
        target: column with the truth; rows without it are left out.
        task: None takes the model's, or infers it.
        metric: the one that decides and is shown by slice; None takes the model's, or the task's usual one.
        classes: in the order of the scores; None takes the model's.
        slices: columns by whose values to look; numbers and times with many values by quarters.
        seed: of the bootstrap.

    Raises:
        EmptySampleError: no labelled row.
        DataError: no such column, or a label that is no class of the model.
    """
    rows = table(frame)
    for name in (target, *slices):
        if name not in rows.columns:
            raise DataError(f"The rows have no column '{name}'.", help=f"There are: {', '.join(rows.columns)}")
    column = rows[target]
    asked = task or getattr(model, "task", None) or infer_task(column)
    known = (
        list(classes) if classes is not None else list(getattr(model, "classes", None) or find_classes(column, asked))
    )
    truth = encode_target(column, asked, known)
    labelled = ~np.isnan(truth)
    if not labelled.all():
        rows, truth = rows.filter(labelled), truth[labelled]
    if rows.height == 0:
        raise EmptySampleError(f"No row has a '{target}'.", help="Wait for labels, or widen the window.")
    scores, places = answer_frame(model, rows)
    found = evaluate_scores(
        truth,
        scores,
        places=places,
        task=asked,
        metric=metric or getattr(model, "metric", None),
        slices={name: rows[name] for name in slices},
        classes=known,
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
    """Judge answers that are already there, such as those of the prediction log.

    Args:
        y: truth, shape (n,), as `encode_target` gives it; no NaN.
        scores: shape (n,) or (n, k).
        task: of the scores.
        places: the predicted class of each row, by its place in `classes`; None reads it off the scores.
        metric: the one that decides; None is the task's usual one.
        slices: column name to its values, n each.
        classes: in the order of the scores, for the record.
        seed: of the bootstrap.

    Raises:
        EmptySampleError: no rows.
        DataError: lengths differ, or a value is NaN.
    """
    truth, given = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    names = metrics_of(task)
    deciding = get_metric(metric or names[0], task).name
    if (task == "multiclass") != (given.ndim == 2):
        raise UsageError(f"Scores of shape {given.shape} are not those of a {task} model.", help="Check `task`.")
    predicted = None if places is None else np.asarray(places, dtype=np.intp)
    if predicted is not None and predicted.shape != truth.shape:
        raise DataError(f"There are {len(predicted)} predicted classes for {len(truth)} rows.")
    outputs = 0 if task == "regression" else 2 if given.ndim == 1 else given.shape[1]
    judged = scores_for(deciding, given, predicted)
    return Evaluation(
        task=task,
        metric=deciding,
        rows=len(truth),
        metrics=_intervals(truth, given, predicted, names, seed),
        slices=[
            one
            for name, values in (slices or {}).items()
            for one in _slice(name, values, truth, given, judged, deciding, seed)
        ],
        calibration=calibration_table(truth, given, task, places=predicted),
        confusion=_confusion(truth, given, predicted, outputs) if outputs else [],
        classes=list(classes),
    )


def calibration_table(
    y: ArrayLike, scores: ArrayLike, task: Task, *, places: ArrayLike | None = None
) -> list[CalibrationBin]:
    """Ten groups of as many rows each, by score: what was told and what came. Equal scores stay together.

    Args:
        places: of several classes the predicted one; None takes the one with the largest score.
    """
    truth, told = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if told.ndim == 2:
        chosen = decide(told).astype(np.intp) if places is None else np.asarray(places, dtype=np.intp)
        truth, told = (chosen == truth).astype(np.float64), told[np.arange(len(told)), chosen]
    edges = np.unique(np.quantile(told, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]))
    place = np.searchsorted(edges, told, side="right")
    found = []
    for k in np.unique(place):
        inside = place == k
        rows, came = int(inside.sum()), float(truth[inside].mean())
        low, high = wilson(came * rows, rows) if task != "regression" else (None, None)
        found.append(
            CalibrationBin(
                low=float(told[inside].min()),
                high=float(told[inside].max()),
                rows=rows,
                told=float(told[inside].mean()),
                came=came,
                came_low=low,
                came_high=high,
            )
        )
    return found


def slice_labels(values: pl.Series) -> pl.Series:
    """The name of each row's slice: its value, `null`, `other values`, or its quarter of a column of many values."""
    import polars as pl

    many = values.n_unique() > MOST_SLICES
    if many and (values.dtype.is_numeric() or values.dtype.is_temporal()):
        cuts = [values.quantile(q, "nearest") for q in (0.25, 0.5, 0.75)]
        known = values.drop_nulls()
        marks = [known.min(), *cuts, known.max()]
        name = pl.lit("null")
        for low, high in zip(reversed(marks[:-1]), reversed(marks[1:]), strict=True):
            inside = (pl.lit(values) <= pl.lit(high)) & (pl.lit(values) >= pl.lit(low))
            name = pl.when(inside).then(pl.lit(f"{low!s} to {high!s}")).otherwise(name)
        return pl.select(name).to_series()
    text = values.cast(pl.String)
    if many:
        top = text.drop_nulls().value_counts(sort=True, name="rows").head(MOST_SLICES)[text.name].to_list()
        known_or_null = pl.lit(text).is_in(top) | pl.lit(text).is_null()
        text = pl.select(pl.when(known_or_null).then(pl.lit(text)).otherwise(pl.lit("other values"))).to_series()
    return text.fill_null("null")


def _intervals(truth: Array, scores: Array, places: Any, names: list[str], seed: int) -> dict[str, Interval]:
    """Every metric: those of labels on the predicted classes, the others on the scores."""
    ofs = [name for name in names if get_metric(name).of_labels and places is not None]
    rest = [name for name in names if name not in ofs]
    found = intervals(truth, scores, rest, n=REPLICATES, seed=seed)
    if ofs:
        found |= intervals(truth, scores_for(ofs[0], scores, places), ofs, n=REPLICATES, seed=seed)
    return {name: found[name] for name in names}


def _slice(
    name: str, values: pl.Series, truth: Array, scores: Array, judged_scores: Array, metric: str, seed: int
) -> list[SliceScore]:
    labels = slice_labels(values).to_numpy()
    found = []
    kinds, places = np.unique(labels, return_inverse=True)
    for k in np.argsort(-np.bincount(places), kind="stable"):
        inside = places == k
        rows = int(inside.sum())
        judged: Interval | None = None
        if rows >= LEAST_SLICE_ROWS:
            judged = interval(truth[inside], judged_scores[inside], metric, n=REPLICATES, seed=seed)
        single = scores.ndim == 1
        found.append(
            SliceScore(
                column=name,
                value=str(kinds[k]),
                rows=rows,
                share=rows / len(truth),
                metric=judged if judged is not None and not np.isnan(judged.value) else None,
                mean_score=float(scores[inside].mean()) if single else None,
                mean_truth=float(truth[inside].mean()) if single else None,
            )
        )
    return found


def _confusion(truth: Array, scores: Array, places: Any, outputs: int) -> list[list[int]]:
    pairs = truth.astype(np.intp) * outputs + (decide(scores).astype(np.intp) if places is None else places)
    counts: list[list[int]] = np.bincount(pairs, minlength=outputs * outputs).reshape(outputs, outputs).tolist()
    return counts


def _of(one: SliceScore) -> float:
    assert one.metric is not None  # noqa: S101  (filtered by the caller)
    return one.metric.value
