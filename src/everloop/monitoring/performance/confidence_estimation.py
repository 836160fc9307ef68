"""Estimate the performance of a classifier before labels arrive, from its own confidence.

A score that is calibrated on labelled reference rows says how likely a row is positive. So the expected value of any
metric follows from the scores of a window alone: each row counts as positive and as negative, with the two
probabilities as weights. This holds as long as rows with equal scores keep their share of positives, as under covariate
shift of a well-fitted model. It cannot notice concept drift; see `ConfidenceEstimator.check`.

Source: confidence-based performance estimation (CBPE) of NannyML. Values are checked against NannyML in
tests/fixtures/nannyml_estimates.json. For several classes, each class is calibrated against the rest, and the
probabilities are divided by their sum: Zadrozny and Elkan (KDD 2002).

The standard errors: labels are drawn from the probabilities (error of the window); the calibration is repeated on
resampled reference rows, and the estimate is compared with the labels of each block of time (error of the reference).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from everloop.errors import CorruptionError, DataError, EmptySampleError, UsageError
from everloop.monitoring.measures.block_spread import spread_beyond_chance
from everloop.monitoring.performance.class_calibration import ClassCalibration
from everloop.monitoring.performance.custom_metrics import metrics_named
from everloop.monitoring.performance.performance_estimates import (
    EstimateCheck,
    PerformanceEstimate,
    compare_with_labels,
    new_estimate,
)
from everloop.monitoring.performance.score_cells import ScoreCells, cells_of
from everloop.training.metrics import METRICS, Metric, Statistic, metrics_of, score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]

FORMAT = 1
_LABEL_DRAWS = 120
MAP_DRAWS = 60
"""How often the calibration is repeated on resampled reference rows."""
_BLOCKS = 12
_LEAST_BLOCK_ROWS = 50
_CIRCULAR = "ece"
_PROBABILITY_METRICS = ("log_loss", "brier")


def _mean_label(y: Array, scores: Array) -> Statistic:
    return lambda weights: float(y.mean() if weights is None else np.average(y, weights=weights))


_RATE = Metric("share of positives", ("binary",), True, _mean_label)


@dataclass(frozen=True)
class ConfidenceEstimator:
    """Calibrated confidence of a classifier. Immutable; `to_json` and `from_json` round-trip.

    Attributes:
        task: "binary" or "multiclass".
        classes: calibration of the positive class, or of every class.
        threshold: scores from here on are predicted positive (two classes only).
        rows: number of labelled reference rows.
        measured: built-in metrics on the reference rows.
        between_blocks: by metric, the standard deviation of the error of the estimate between blocks of time, beyond
            chance. Empty if the reference had no times.
    """

    task: Literal["binary", "multiclass"]
    classes: tuple[ClassCalibration, ...]
    threshold: float
    rows: int
    measured: dict[str, float] = field(default_factory=dict)
    between_blocks: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, scores: ArrayLike, actual: ArrayLike, *, predicted: ArrayLike | None = None, times: ArrayLike | None = None
    ) -> ConfidenceEstimator:
        """Calibrate scores on labelled rows that the model was not fitted on.

        Rows whose score or label is not a finite number are left out.

        Args:
            scores: shape (n,) for two classes, in any unit if higher means more likely positive; (n, k) for k classes.
            actual: shape (n,), 0/1 or the index of the class.
            predicted: shape (n,), index of the predicted class. Default: the second class from a score of one half.
            times: shape (n,), numbers or datetimes. With them, the error of the estimate between blocks of time counts
                as noise. Without them, only chance does.

        Raises:
            EmptySampleError: no row has a score and a label.
            DataError: the shapes differ, a label is not a class, or all labels are of one class.
        """
        values, labels, kept = _labelled_rows(scores, actual)
        votes = None if predicted is None else np.asarray(predicted, dtype=np.float64)[kept]
        present = np.unique(labels)
        if len(present) < 2:
            raise DataError(
                f"All {len(labels)} labels of the reference are of the class {present[0]:g}.",
                help="Pass a longer reference. Confidence can only be calibrated with labels of two classes.",
            )
        if values.ndim == 1:
            threshold = _threshold(values, votes)
            calibrations: tuple[ClassCalibration, ...] = (ClassCalibration.fit(values, labels),)
        else:
            threshold = 0.5
            of_class = [(values[:, k], (labels == k).astype(np.float64)) for k in range(values.shape[1])]
            calibrations = tuple(ClassCalibration.fit(column, positive) for column, positive in of_class)
        found = cls("binary" if values.ndim == 1 else "multiclass", calibrations, threshold, len(labels))
        for metric in found._usable_metrics(values):
            found.measured[metric.name] = found._realised(metric, values, labels, votes)
        if times is not None:
            found.between_blocks.update(found._between_blocks(values, labels, votes, np.asarray(times)[kept]))
        return found

    def probabilities(self, scores: ArrayLike) -> Array:
        """Return the calibrated probability of each class, shape (classes, n). Two classes: negative, positive."""
        return self._mapped(np.asarray(scores, dtype=np.float64), None)

    def estimate(
        self,
        scores: ArrayLike,
        metrics: str | Metric | Sequence[str | Metric] | None = None,
        *,
        counts: ArrayLike | None = None,
        predicted: ArrayLike | None = None,
    ) -> dict[str, PerformanceEstimate]:
        """Estimate metrics of a window from its scores.

        Rows whose score is not a finite number are left out.

        Args:
            scores: shape (n,) or (n, k), one for each row or, with `counts`, for each cell of a histogram.
            metrics: names in `everloop.training.METRICS`, or metrics such as `cost_metric(...)`. Default: all of the
                task that suit the scores.
            counts: shape (n,), rows of each cell. Default: 1 each.
            predicted: shape (n,), index of the predicted class. Default: by the threshold of the reference, or the
                class with the largest score.

        Returns:
            Estimates by the name of the metric.

        Raises:
            EmptySampleError: no row has a score.
            DataError: the shapes do not fit, or the metric needs probabilities and scores are outside [0, 1].
            UsageError: a metric does not exist or does not fit the task.
        """
        cells = cells_of(scores, counts, predicted, self.threshold, classes=self._columns)
        wanted = self._usable_metrics(cells.scores) if metrics is None else metrics_named(metrics, self.task)
        return self._estimate(cells, wanted)

    def expected(self, metric: str | Metric, cells: ScoreCells, draw: int | None = None) -> float:
        """Return the expected value of a metric for cells of scores.

        Args:
            metric: a name in `everloop.training.METRICS`, or a metric.
            cells: scores with their numbers of rows, from `cells_of`.
            draw: number of a resample of the reference, below `MAP_DRAWS`. Default: the reference itself.
        """
        (one,) = metrics_named(metric, self.task)
        probabilities = self._mapped(cells.scores, draw)
        return self._statistic(one, cells)((probabilities * cells.counts).ravel())

    def check(
        self,
        scores: ArrayLike,
        actual: ArrayLike,
        metrics: str | Metric | Sequence[str | Metric] | None = None,
        *,
        predicted: ArrayLike | None = None,
    ) -> list[EstimateCheck]:
        """Compare the estimates of labelled rows with their labels.

        For two classes, the share of positives is tested as well, because a change of concept may leave a metric as it
        was. Rows whose score or label is not a finite number are left out.

        Args:
            scores: shape (n,) or (n, k).
            actual: shape (n,), 0/1 or the index of the class.
            metrics: as in `estimate`.
            predicted: as in `estimate`.

        Raises:
            EmptySampleError: no row has a score and a label.
            DataError: the shapes differ, or a label is not a class.
        """
        values, labels, kept = _labelled_rows(scores, actual)
        votes = None if predicted is None else np.asarray(predicted, dtype=np.float64)[kept]
        wanted = self._usable_metrics(values) if metrics is None else metrics_named(metrics, self.task)
        if self.task == "binary":
            wanted = [*wanted, _RATE]
        cells = cells_of(values, None, votes, self.threshold, classes=self._columns)
        estimates = self._estimate(cells, wanted)
        return compare_with_labels(
            [(estimates[metric.name], self._realised(metric, values, labels, votes)) for metric in wanted]
        )

    def to_json(self) -> dict[str, Json]:
        """Return plain data for JSON."""
        return {
            "format": FORMAT,
            "task": self.task,
            "classes": [one.to_json() for one in self.classes],
            "threshold": self.threshold,
            "rows": self.rows,
            "measured": {name: value if math.isfinite(value) else None for name, value in self.measured.items()},
            "between_blocks": dict(self.between_blocks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ConfidenceEstimator:
        """Read what `to_json` returned.

        Raises:
            CorruptionError: the data is not an estimator, or a newer version of everloop wrote it.
        """
        try:
            if data["format"] > FORMAT:
                raise ValueError(f"format {data['format']} is newer than {FORMAT}")
            return cls(
                data["task"],
                tuple(ClassCalibration.from_json(one) for one in data["classes"]),
                float(data["threshold"]),
                int(data["rows"]),
                {name: math.nan if value is None else float(value) for name, value in data["measured"].items()},
                {name: float(value) for name, value in data["between_blocks"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"The content is not a confidence estimator: {error!r}.") from error

    @property
    def _columns(self) -> int:
        return 1 if self.task == "binary" else len(self.classes)

    @cached_property
    def _resampled(self) -> list[list[ClassCalibration]]:
        rng = np.random.default_rng(0)
        return [[one.resample(rng) for one in self.classes] for _ in range(MAP_DRAWS)]

    def _usable_metrics(self, scores: Array) -> list[Metric]:
        in_unit = bool(((scores >= 0) & (scores <= 1)).all())
        names = [name for name in metrics_of(self.task) if name != _CIRCULAR]
        return [METRICS[name] for name in names if in_unit or name not in _PROBABILITY_METRICS]

    def _mapped(self, scores: Array, draw: int | None) -> Array:
        maps = self.classes if draw is None else self._resampled[draw]
        if self.task == "binary":
            positive = maps[0].apply(scores)
            return np.stack([1.0 - positive, positive])
        stacked = np.stack([one.apply(scores[:, k]) for k, one in enumerate(maps)])
        total = stacked.sum(axis=0)
        found: Array = np.divide(stacked, total, out=np.full_like(stacked, 1 / len(stacked)), where=total > 0)
        return found

    def _statistic(self, metric: Metric, cells: ScoreCells) -> Statistic:
        """Prepare a metric on each cell once with every class as its label; the classes follow one another."""
        if metric.name == _CIRCULAR:
            raise UsageError(
                f"{metric.name} cannot be estimated, because the estimate assumes the calibration of the reference.",
                help="Estimate brier or log_loss, and measure the calibration once labels are there.",
            )
        if metric.name in _PROBABILITY_METRICS and not cells.in_unit:
            raise DataError(
                f"{metric.name} needs probabilities, but the scores reach from {cells.scores.min():g} to "
                f"{cells.scores.max():g}.",
                help="Choose a metric of ranks or decisions, such as roc_auc or f1.",
            )
        judged = cells.judged(metric)
        outputs = 2 if self.task == "binary" else len(self.classes)
        labels = np.repeat(np.arange(outputs, dtype=np.float64), len(cells.counts))
        return metric.prepare(labels, np.concatenate([judged] * outputs))

    def _estimate(
        self, cells: ScoreCells, metrics: Sequence[Metric], maps: int = MAP_DRAWS
    ) -> dict[str, PerformanceEstimate]:
        expected = (self.probabilities(cells.scores) * cells.counts).ravel()
        small, scale = cells.reduced()
        drawn = self._drawn_labels(small)
        resampled = [(self._mapped(small.scores, k) * small.counts).ravel() for k in range(maps)]
        found = {}
        for metric in metrics:
            value = self._statistic(metric, cells)(expected)
            statistic = self._statistic(metric, small)
            window_error = _spread([statistic(weights) for weights in drawn]) * scale
            reference_error = _spread([statistic(weights) for weights in resampled]) if maps else 0.0
            reference_error = math.hypot(reference_error, self.between_blocks.get(metric.name, 0.0))
            rows = round(float(cells.counts.sum()))
            found[metric.name] = new_estimate(metric.name, value, rows, window_error, reference_error, _limits(metric))
        return found

    def _drawn_labels(self, cells: ScoreCells) -> list[Array]:
        probabilities = self.probabilities(cells.scores)
        rng = np.random.default_rng(1)
        rows = np.round(cells.counts).astype(np.int64)
        if self.task == "binary":
            draws = rng.binomial(rows, probabilities[1], size=(_LABEL_DRAWS, len(rows)))
            return [np.concatenate([rows - positives, positives]).astype(np.float64) for positives in draws]
        each = rng.multinomial(rows, probabilities.T / probabilities.sum(axis=0)[:, None], (_LABEL_DRAWS, len(rows)))
        return [draw.T.ravel().astype(np.float64) for draw in each]

    def _realised(self, metric: Metric, scores: Array, labels: Array, votes: Array | None) -> float:
        cells = cells_of(scores, None, votes, self.threshold, classes=self._columns)
        return score(metric, labels, cells.judged(metric))

    def _between_blocks(
        self, scores: Array, labels: Array, votes: Array | None, times: NDArray[np.generic]
    ) -> dict[str, float]:
        blocks = min(_BLOCKS, len(labels) // _LEAST_BLOCK_ROWS)
        if blocks < 2:
            return {}
        metrics = [*self._usable_metrics(scores), *([_RATE] if self.task == "binary" else [])]
        pieces: dict[str, list[tuple[float, float]]] = {metric.name: [] for metric in metrics}
        for rows in np.array_split(np.argsort(times, kind="stable"), blocks):
            chosen = None if votes is None else votes[rows]
            cells = cells_of(scores[rows], None, chosen, self.threshold, classes=self._columns)
            estimates = self._estimate(cells, metrics, maps=0)
            for metric in metrics:
                estimate = estimates[metric.name]
                gap = self._realised(metric, scores[rows], labels[rows], chosen) - estimate.value
                if estimate.window_error > 0 and math.isfinite(gap):
                    pieces[metric.name].append((gap, estimate.window_error))
        return {name: spread_beyond_chance(found) for name, found in pieces.items()}


def _labelled_rows(scores: ArrayLike, actual: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the scores and labels that are finite numbers, and which rows they are."""
    try:
        values, labels = np.asarray(scores, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Scores and labels must be numbers: {error}.", help="Pass labels as 0 and 1, or the index of the class."
        ) from error
    if values.ndim not in (1, 2) or labels.ndim != 1 or len(values) != len(labels):
        raise DataError(
            f"Scores have the shape {values.shape} and labels {labels.shape}.",
            help="Pass scores of shape (n,) or (n, classes), and labels of shape (n,).",
        )
    kept = np.isfinite(labels) & (np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(axis=1))
    values, labels = values[kept], labels[kept]
    if len(labels) == 0:
        raise EmptySampleError(
            "No row has both a score and a label.", help="Wait for labels, or choose a longer period."
        )
    most = 1 if values.ndim == 1 else values.shape[1] - 1
    strange = labels[(labels < 0) | (labels > most) | (labels != np.floor(labels))]
    if len(strange):
        raise DataError(
            f"The label {strange[0]:g} is not one of the classes 0 to {most}.",
            help="Pass the index of the class. For numbers, use LossEstimator.",
        )
    return values, labels, kept


def _threshold(scores: Array, votes: Array | None) -> float:
    """Return the threshold that the predicted classes follow; one half if they follow none."""
    if votes is None:
        return 0.5
    positive, negative = scores[votes > 0], scores[votes <= 0]
    if len(positive) and len(negative) and negative.max() < positive.min():
        low, high = float(negative.max()), float(positive.min())
        return 0.5 if low < 0.5 <= high else (low + high) / 2
    return 0.5


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation of the defined values; NaN if most are undefined."""
    defined = [value for value in values if not math.isnan(value)]
    return float(np.std(defined, ddof=1)) if len(defined) >= max(2, len(values) / 2) else math.nan


def _limits(metric: Metric) -> tuple[float, float]:
    if metric.name == "log_loss":
        return 0.0, math.inf
    return (0.0, 1.0) if metric.name in METRICS or metric is _RATE else (-math.inf, math.inf)
