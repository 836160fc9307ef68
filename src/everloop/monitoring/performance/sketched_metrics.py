"""Metrics from sketches of scores and labels, for windows whose rows are not read.

All are equal to those of `everloop.training.metrics` on the rows, except the area under the ROC curve: rows of both
classes in one cell of the score count as ties. It differs from the exact value by at most `roc_auc_error`, half the
share of pairs in one cell. For scores that spread over a fifth of the unit interval this is below 0.01.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.score_sketches import (
    BinaryLabelSketch,
    LabelSketch,
    MulticlassLabelSketch,
    RegressionLabelSketch,
)
from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = npt.NDArray[np.float64]


def sketched_metrics(sketch: LabelSketch) -> tuple[str, ...]:
    """Return the names of the metrics that such a sketch has."""
    return tuple(_metrics_of(sketch))


def sketched_metric(sketch: LabelSketch, metric: str) -> float:
    """Return a metric of the rows in a sketch; NaN if it is undefined for them.

    Raises:
        UsageError: such a sketch does not have this metric.
    """
    found = _metrics_of(sketch).get(metric)
    if found is None:
        raise UsageError(
            f"'{metric}' cannot be computed from hourly aggregates of this model.",
            help=f"Use one of: {', '.join(sketched_metrics(sketch))}. Or measure it on the rows: check_performance.",
        )
    return float(found(sketch)) if sketch.rows else math.nan


def roc_auc_error(sketch: BinaryLabelSketch) -> float:
    """Return the largest possible difference between the area under the ROC curve of a sketch and that of its rows.

    A pair of a positive and a negative row in one cell counts one half, but might count 0 or 1.
    """
    negatives, positives = sketch.ranks.astype(np.float64)
    pairs = negatives.sum() * positives.sum()
    return float(0.5 * (negatives * positives).sum() / pairs) if pairs else math.nan


def _roc_auc(sketch: BinaryLabelSketch) -> float:
    """The probability that a positive row scores above a negative one; ties count half (Hanley and McNeil 1982)."""
    negatives, positives = sketch.ranks.astype(np.float64)
    below = np.cumsum(negatives) - 0.5 * negatives
    pairs = negatives.sum() * positives.sum()
    return float((positives * below).sum() / pairs) if pairs else math.nan


def _confusion(sketch: BinaryLabelSketch | MulticlassLabelSketch) -> tuple[Floats, Floats, Floats]:
    """Return the numbers of hits, predicted rows and actual rows by class. For two classes only the positive one."""
    if isinstance(sketch, BinaryLabelSketch):
        counts = sketch.confusion.astype(np.float64)
        return counts[1:, 1], counts[:, 1:].sum(axis=0), counts[1:].sum(axis=1)
    codes = np.asarray(list(sketch.confusion), dtype=np.int64)
    numbers = np.asarray(list(sketch.confusion.values()), dtype=np.float64)
    actual, predicted = np.divmod(codes, sketch.classes)
    hit = actual == predicted

    def tally(classes: npt.NDArray[np.int64], rows: Floats) -> Floats:
        return np.bincount(classes, weights=rows, minlength=sketch.classes).astype(np.float64, copy=False)

    return tally(actual[hit], numbers[hit]), tally(predicted, numbers), tally(actual, numbers)


def _of_counts(finish: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Any], float]:
    def value(sketch: BinaryLabelSketch | MulticlassLabelSketch) -> float:
        hits, predicted, actual = _confusion(sketch)
        if isinstance(sketch, BinaryLabelSketch):
            return float(finish(hits, predicted, actual)[0])
        present = (predicted > 0) | (actual > 0)
        return float(finish(hits, predicted, actual)[present].mean())

    return value


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _accuracy(sketch: BinaryLabelSketch | MulticlassLabelSketch) -> float:
    if isinstance(sketch, BinaryLabelSketch):
        return float(np.trace(sketch.confusion)) / sketch.rows
    return float(_confusion(sketch)[0].sum()) / sketch.rows


def _ece(sketch: BinaryLabelSketch | MulticlassLabelSketch) -> float:
    return float(np.abs(np.asarray(sketch.gaps)).sum()) / sketch.rows


def _r2(sketch: RegressionLabelSketch) -> float:
    spread = sketch.actual.m2 if sketch.actual is not None else 0.0
    return 1.0 - sketch.squared_error / spread if spread > 0 else math.nan


_OF_CLASSES: dict[str, Callable[[Any], float]] = {
    "log_loss": lambda sketch: sketch.log_loss / sketch.rows,
    "accuracy": _accuracy,
    "f1": _of_counts(lambda hits, predicted, actual: _ratio(2 * hits, predicted + actual)),
    "precision": _of_counts(lambda hits, predicted, actual: _ratio(hits, predicted)),
    "recall": _of_counts(lambda hits, predicted, actual: _ratio(hits, actual)),
    "ece": _ece,
}
_BINARY: dict[str, Callable[[Any], float]] = {
    "roc_auc": _roc_auc,
    "brier": lambda sketch: sketch.squared_error / sketch.rows,
    **_OF_CLASSES,
}
_REGRESSION: dict[str, Callable[[Any], float]] = {
    "rmse": lambda sketch: math.sqrt(sketch.squared_error / sketch.rows),
    "mae": lambda sketch: sketch.absolute_error / sketch.rows,
    "mape": lambda sketch: sketch.relative_error / sketch.rows,
    "r2": _r2,
}


def _metrics_of(sketch: LabelSketch) -> dict[str, Callable[[Any], float]]:
    if isinstance(sketch, BinaryLabelSketch):
        return _BINARY
    return _OF_CLASSES if isinstance(sketch, MulticlassLabelSketch) else _REGRESSION


__all__ = ["roc_auc_error", "sketched_metric", "sketched_metrics"]
