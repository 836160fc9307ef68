"""How much worse a model has become, estimated from a window without labels: the harm of a drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.data.sketches.bins import NumericBins
from everloop.data.sketches.column_sketches import Sketch
from everloop.errors import DataError, EmptySampleError
from everloop.monitoring.measures.tail_probabilities import normal_quantile
from everloop.monitoring.performance.confidence_estimation import MAP_DRAWS, ConfidenceEstimator
from everloop.monitoring.performance.custom_metrics import metrics_named
from everloop.monitoring.performance.loss_estimation import LossEstimator
from everloop.monitoring.performance.score_cells import cells_of
from everloop.monitoring.performance.score_columns import plain_inputs, scores_of
from everloop.training.metrics import Metric, get_metric

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

_Z = normal_quantile(0.025)
_MOST_TILT = 20.0
_BISECTIONS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """The metric expected before and in a window. Numbers are None if it cannot be estimated; `reason` then says why.

    Attributes:
        metric: name of the metric; None if it cannot be chosen.
        before: the metric on the reference.
        now: the metric expected in the window, with its 95 % interval from `low` to `high`.
        loss: by how much the metric has become worse, in its own unit. Below zero, it has become better.
        loss_low: lower end of the 95 % interval of the loss.
        loss_high: upper end of the 95 % interval of the loss.
        rows: rows of the window with a score.
        reason: why there is no estimate.
    """

    metric: str | None
    before: float | None = None
    now: float | None = None
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    rows: int = 0
    reason: str | None = None


def estimate_harm(
    reference: ConfidenceEstimator | LossEstimator | pl.DataFrame | None,
    window: pl.DataFrame | Sketch | tuple[ArrayLike, ArrayLike] | ArrayLike,
    metric: str | Metric | None = None,
) -> Harm:
    """Estimate how much worse a metric is expected to be in a window than on the reference.

    Nothing is read or stored. What cannot be estimated is a `reason`, not an error.

    Args:
        reference: an estimator; or scored rows of two classes or more, that the model was not fitted on, with the
            columns `score` (or `scores`) and `actual`, to calibrate on; or None if there is none.
        window: scores of shape (n,) or (n, k); scores and their numbers of rows, both of shape (n,); the sketch of the
            scores; or a frame with the column `score` (or `scores`). A `LossEstimator` needs a frame that also has the
            inputs, under their own names or as `input_<name>`.
        metric: a name in `everloop.training.METRICS`, or a metric. Default: log_loss, roc_auc for scores that are not
            probabilities, and rmse (or the first metric of the estimator) for regressions.

    Raises:
        UsageError: the metric does not exist or does not fit the task.
    """
    name = None if metric is None else get_metric(metric).name
    if reference is None:
        return Harm(metric=name, reason="There are no labelled reference rows to learn the performance from.")
    try:
        if isinstance(reference, LossEstimator):
            return _harm_of_losses(reference, window, metric)
        if not isinstance(reference, ConfidenceEstimator):
            if "actual" not in reference.columns:
                return Harm(metric=name, reason="The reference has no labels (no column 'actual').")
            if not {"score", "scores"} & set(reference.columns):
                return Harm(metric=name, reason="The reference has no scores (no column 'score').")
            reference = ConfidenceEstimator.fit(scores_of(reference), reference["actual"].cast(float).to_numpy())
        return _harm_of_confidence(reference, window, metric)
    except (EmptySampleError, DataError) as error:
        return Harm(metric=name, reason=str(error))


def _harm_of_confidence(
    reference: ConfidenceEstimator,
    window: pl.DataFrame | Sketch | tuple[ArrayLike, ArrayLike] | ArrayLike,
    metric: str | Metric | None,
) -> Harm:
    probabilities = "log_loss" in reference.measured
    chosen = metric if metric is not None else "log_loss" if probabilities else "roc_auc"
    (one,) = metrics_named(chosen, reference.task)
    columns = 1 if reference.task == "binary" else len(reference.classes)
    scores, counts = _window_scores(reference, window)
    cells = cells_of(scores, counts, None, reference.threshold, classes=columns)
    now = reference.estimate(cells.scores, one, counts=cells.counts)[one.name]
    small, _ = cells.reduced()
    before = reference.measured.get(one.name, math.nan)
    if reference.task == "binary":
        base = reference.classes[0]
        own = cells_of(base.scores, base.counts, None, reference.threshold, classes=1)
        expected = reference.expected(one, own)
        before = expected if math.isnan(before) else before
        difference = now.value - expected
        paired = [reference.expected(one, small, k) - reference.expected(one, own, k) for k in range(MAP_DRAWS)]
    else:
        difference = now.value - before
        paired = [reference.expected(one, small, k) for k in range(MAP_DRAWS)]
    # The calibration is the same for both, so its error partly cancels in the difference.
    between = reference.between_blocks.get(one.name, 0.0)
    error = math.hypot(float(np.nanstd(paired, ddof=1)), now.window_error, between)
    return _harm(one, before, before + difference, now.standard_error, difference, error, now.rows)


def _harm_of_losses(
    reference: LossEstimator,
    window: pl.DataFrame | Sketch | tuple[ArrayLike, ArrayLike] | ArrayLike,
    metric: str | Metric | None,
) -> Harm:
    import polars as pl

    name = get_metric(metric, "regression").name if metric is not None else None
    if name is None:
        name = "rmse" if "rmse" in reference.metrics else reference.metrics[0]
    if not isinstance(window, pl.DataFrame):
        return Harm(metric=name, reason="The losses of a regression can only be estimated from rows with their inputs.")
    if name not in reference.metrics:
        return Harm(metric=name, reason=f"The model of losses estimates {', '.join(reference.metrics)}, not {name}.")
    if "score" not in window.columns:
        raise DataError("The window has no column 'score'.", help=f"It has: {', '.join(window.columns)}")
    now = reference.estimate(plain_inputs(window), window["score"].cast(float).to_numpy(), name)[name]
    before = reference.measured[name]
    difference = now.value - before
    return _harm(get_metric(name), before, now.value, now.standard_error, difference, now.standard_error, now.rows)


def _harm(
    metric: Metric, before: float, now: float, now_error: float, difference: float, error: float, rows: int
) -> Harm:
    if not all(map(math.isfinite, (before, now, now_error, difference, error))):
        reason = f"{metric.name} is undefined for these {rows} {'row' if rows == 1 else 'rows'}."
        return Harm(metric=metric.name, rows=rows, reason=reason)
    loss = -difference if metric.greater_is_better else difference
    return Harm(
        metric=metric.name,
        before=before,
        now=now,
        low=now - _Z * now_error,
        high=now + _Z * now_error,
        loss=loss,
        loss_low=loss - _Z * error,
        loss_high=loss + _Z * error,
        rows=rows,
    )


def _window_scores(
    reference: ConfidenceEstimator, window: pl.DataFrame | Sketch | tuple[ArrayLike, ArrayLike] | ArrayLike
) -> tuple[ArrayLike, ArrayLike | None]:
    import polars as pl

    if isinstance(window, pl.DataFrame):
        if not {"score", "scores"} & set(window.columns):
            raise DataError("The window has no column 'score'.", help=f"It has: {', '.join(window.columns)}")
        return scores_of(window), None
    if isinstance(window, Sketch):
        if not isinstance(window.bins, NumericBins):
            raise DataError("The scores are classes, not numbers.", help="Log the probabilities of the classes.")
        if reference.task != "binary":
            raise DataError("Harm to several classes needs the scores of all classes.", help="Pass rows.")
        if sum(window.counts[1:]) == 0:
            raise EmptySampleError("The window has no row with a score.", help="Choose a longer window.")
        return _spread_over_cells(reference, window, window.bins)
    if isinstance(window, tuple):
        return window
    return window, None


def _spread_over_cells(reference: ConfidenceEstimator, sketch: Sketch, bins: NumericBins) -> tuple[Array, Array]:
    """Return scores and numbers of rows that a sketch of a window stands for, finer than its bins.

    Within a bin, rows are spread like those of the reference, tilted exponentially so that the mean score is that of
    the window. This is the distribution nearest to the reference (least Kullback-Leibler divergence) with these counts
    and this mean: Csiszár, "I-divergence geometry of probability distributions", Annals of Probability 3 (1975). Rows
    outside the bins are at the extremes of the window.
    """
    scores, mass = np.asarray(reference.classes[0].scores), np.asarray(reference.classes[0].counts)
    edges, counts = np.asarray(bins.edges), sketch.array()[1:]
    place = np.searchsorted(edges, scores, side="left")
    # A bin without a row of the reference has one cell in its middle.
    middles = np.concatenate((edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]))
    if sketch.moments is not None:
        middles[0], middles[-1] = min(middles[0], sketch.moments.low), max(middles[-1], sketch.moments.high)
    empty = np.flatnonzero((np.bincount(place, minlength=len(counts)) == 0) & (counts > 0))
    scores, place = np.concatenate((scores, middles[empty])), np.concatenate((place, empty))
    mass = np.concatenate((mass, np.ones(len(empty))))
    spread = float(scores.std()) or 1.0

    def tilted(power: float) -> Array:
        weights = mass * np.exp(np.clip(power * (scores - scores.mean()) / spread, -300, 300))
        total = np.bincount(place, weights=weights, minlength=len(counts))
        found: Array = weights / total[place] * counts[place]
        return found

    if sketch.moments is None:
        return scores, tilted(0.0)
    low, high = -_MOST_TILT, _MOST_TILT
    for _ in range(_BISECTIONS):
        power = (low + high) / 2
        if float(np.average(scores, weights=tilted(power))) < sketch.moments.mean:
            low = power
        else:
            high = power
    return scores, tilted((low + high) / 2)
