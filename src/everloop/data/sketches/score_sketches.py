"""Sketch scores together with their labels, so that metrics of any window can be computed without its rows.

A sketch of two classes counts the rows of each class in fine cells of the score, which ranks them, and keeps sums for
everything that is a mean over rows. A sketch of several classes has the confusion counts, one of a regression the
moments of labels and predictions and the sums of errors. Sketches of the same kind can be added. The sums are those of
`everloop.training.metrics`, so metrics that follow from them are exact; only ranks within one cell are unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.column_sketches import Moments
from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

STEPS_PER_UNIT = 128
"""Cells of a score per unit of its log-odds: neighbouring cells differ by 0.8 % in the odds."""
_LARGEST = 16
SCORE_CELLS = 2 * _LARGEST * STEPS_PER_UNIT
"""Number of cells. The first and the last also hold scores below 1.1e-7 and above 1 - 1.1e-7."""
CALIBRATION_BINS = 10
_TINY = float(np.finfo(np.float64).eps)


def score_cells(scores: Floats) -> npt.NDArray[np.intp]:
    """Return the cell of each score, shape (n,). Scores are probabilities; others count as 0 or 1."""
    clipped = np.clip(scores, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        log_odds = np.log(clipped) - np.log1p(-clipped)
    cells = np.floor((np.clip(log_odds, -_LARGEST, _LARGEST) + _LARGEST) * STEPS_PER_UNIT)
    places: npt.NDArray[np.intp] = np.minimum(cells, SCORE_CELLS - 1).astype(np.intp)
    return places


@dataclass(frozen=True, slots=True, eq=False)
class BinaryLabelSketch:
    """Scores and labels of two classes.

    Attributes:
        ranks: rows by class and cell of the score, shape (2, SCORE_CELLS); row 1 is the positive class.
        confusion: rows by actual and predicted class, shape (2, 2).
        log_loss: sum over rows of -log of the probability of the actual class.
        squared_error: sum over rows of (score - label)².
        gaps: sum over rows of score - label, by tenth of the score, shape (CALIBRATION_BINS,).
        unknown: labels that are not a class of the model. They count nowhere else.
    """

    ranks: Integers
    confusion: Integers
    log_loss: float = 0.0
    squared_error: float = 0.0
    gaps: Floats = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    unknown: int = 0

    @property
    def rows(self) -> int:
        return int(self.confusion.sum())

    def __add__(self, other: BinaryLabelSketch) -> BinaryLabelSketch:
        return BinaryLabelSketch(
            self.ranks + other.ranks,
            self.confusion + other.confusion,
            self.log_loss + other.log_loss,
            self.squared_error + other.squared_error,
            self.gaps + other.gaps,
            self.unknown + other.unknown,
        )

    def to_plain(self) -> list[Any]:
        """Return the sketch as lists, numbers and bytes; `label_sketch_from_plain` restores it."""
        used = np.flatnonzero(self.ranks.any(axis=0))
        # Steps between used cells are small numbers, which take fewer bytes.
        ranks = [pack_counts(row) for row in (np.diff(used, prepend=0), self.ranks[0, used], self.ranks[1, used])]
        confusion = self.confusion.ravel().tolist()
        return [2, ranks, confusion, self.log_loss, self.squared_error, self.gaps.tolist(), self.unknown]


@dataclass(frozen=True, slots=True)
class MulticlassLabelSketch:
    """Predictions and labels of several classes.

    Attributes:
        classes: number of classes, at least 2.
        confusion: rows by `actual * classes + predicted`, without zeros.
        log_loss: as for two classes; NaN if the probabilities of all classes were not logged.
        gaps: sum over rows of largest score - 1 if the prediction is correct, by tenth of the largest score.
        unknown: labels that are not a class of the model.
    """

    classes: int
    confusion: dict[int, int]
    log_loss: float = 0.0
    gaps: tuple[float, ...] = (0.0,) * CALIBRATION_BINS
    unknown: int = 0

    @property
    def rows(self) -> int:
        return sum(self.confusion.values())

    def __add__(self, other: MulticlassLabelSketch) -> MulticlassLabelSketch:
        if self.classes != other.classes:
            raise UsageError(
                f"Sketches of {self.classes} and {other.classes} classes cannot be added.",
                help="Add sketches of one model version only.",
            )
        return MulticlassLabelSketch(
            self.classes,
            dict(sorted((Counter(self.confusion) + Counter(other.confusion)).items())),
            self.log_loss + other.log_loss,
            tuple(a + b for a, b in zip(self.gaps, other.gaps, strict=True)),
            self.unknown + other.unknown,
        )

    def to_plain(self) -> list[Any]:
        """Return the sketch as lists and numbers."""
        codes, counts = (np.asarray(list(part), dtype=np.int64) for part in (self.confusion, self.confusion.values()))
        confusion = [pack_counts(np.diff(codes, prepend=0)), pack_counts(counts)]
        return [3, self.classes, confusion, self.log_loss, list(self.gaps), self.unknown]


@dataclass(frozen=True, slots=True)
class RegressionLabelSketch:
    """Predictions and labels of a regression.

    Attributes:
        actual: moments of the labels; None without rows.
        predicted: moments of the predictions; None without rows.
        comoment: sum over rows of (label - mean label) * (prediction - mean prediction).
        absolute_error, squared_error: sums over rows of |e| and e², where e = prediction - label.
        relative_error: sum over rows of |e| / |label|, as `mape` divides: a label of 0 counts as the smallest epsilon.
        unknown: labels that are not numbers.
    """

    actual: Moments | None = None
    predicted: Moments | None = None
    comoment: float = 0.0
    absolute_error: float = 0.0
    squared_error: float = 0.0
    relative_error: float = 0.0
    unknown: int = 0

    @property
    def rows(self) -> int:
        return self.actual.count if self.actual is not None else 0

    def __add__(self, other: RegressionLabelSketch) -> RegressionLabelSketch:
        comoment = self.comoment + other.comoment
        actual, predicted = self.actual or other.actual, self.predicted or other.predicted
        if self.actual and other.actual and self.predicted and other.predicted:
            # The updating formula of Chan, Golub and LeVeque (1979), for two variables.
            weight = self.rows * other.rows / (self.rows + other.rows)
            gaps = (other.actual.mean - self.actual.mean) * (other.predicted.mean - self.predicted.mean)
            comoment += gaps * weight
            actual, predicted = self.actual + other.actual, self.predicted + other.predicted
        return RegressionLabelSketch(
            actual,
            predicted,
            comoment,
            self.absolute_error + other.absolute_error,
            self.squared_error + other.squared_error,
            self.relative_error + other.relative_error,
            self.unknown + other.unknown,
        )

    def to_plain(self) -> list[Any]:
        """Return the sketch as lists and numbers."""
        sums = [self.comoment, self.absolute_error, self.squared_error, self.relative_error, self.unknown]
        return [1, _plain(self.actual), _plain(self.predicted), *sums]


LabelSketch = BinaryLabelSketch | MulticlassLabelSketch | RegressionLabelSketch


def sketch_labels(
    task: Literal["binary", "multiclass", "regression"],
    actual: Floats,
    scores: Floats,
    predicted: Floats | None = None,
    *,
    classes: int = 2,
) -> LabelSketch:
    """Sketch predictions with their labels.

    Args:
        actual: labels, shape (n,): 0/1, the index of the class, or the value. NaN if a label is not a class of the
            model, or not a number.
        scores: shape (n,): probabilities of the positive class, or the predicted values; for several classes, shape
            (n, classes), or (n,) with the probability of the predicted class. Rows with a score that is not finite are
            left out.
        predicted: index of the predicted class, shape (n,). NaN or None: it follows from the scores.
        classes: number of classes, for `multiclass`.
    """
    known = np.isfinite(actual)
    unknown = int(len(actual) - known.sum())
    usable = known & (np.isfinite(scores) if scores.ndim == 1 else np.isfinite(scores).all(axis=1))
    y, p = actual[usable], scores[usable]
    given = predicted[usable] if predicted is not None else np.full(len(y), np.nan)
    if task == "binary":
        return _binary(y, p, np.where(np.isnan(given), p >= 0.5, given), unknown)
    if task == "multiclass":
        return _multiclass(y, p, given, classes, unknown)
    return _regression(y, p, unknown)


def add_label_sketches(sketches: Iterable[LabelSketch]) -> LabelSketch | None:
    """Add sketches of one kind; None if there are none.

    Raises:
        UsageError: they are of different kinds.
    """
    total: LabelSketch | None = None
    for sketch in sketches:
        if total is None:
            total = sketch
        elif isinstance(total, type(sketch)):
            total = total + sketch  # type: ignore[operator]
        else:
            raise UsageError(
                f"A {type(total).__name__} and a {type(sketch).__name__} cannot be added.",
                help="Add sketches of one model version only.",
            )
    return total


def pack_counts(counts: npt.NDArray[np.integer[Any]]) -> bytes:
    """Return counts, which are not negative, as bytes: their width in bytes, then little-endian numbers."""
    width = np.min_scalar_type(int(counts.max(initial=0))).itemsize
    return bytes([width]) + counts.astype(f"<u{width}").tobytes()


def unpack_counts(data: bytes) -> Integers:
    """Restore what `pack_counts` returned, shape (n,)."""
    return np.frombuffer(data, dtype=f"<u{data[0]}", offset=1).astype(np.int64)


def label_sketch_from_plain(data: list[Any]) -> LabelSketch:
    """Restore what `to_plain` returned."""
    kind, *parts = data
    if kind == 2:
        packed, confusion, log_loss, squared_error, gaps, unknown = parts
        steps, negatives, positives = map(unpack_counts, packed)
        ranks = np.zeros((2, SCORE_CELLS), dtype=np.int64)
        used = np.cumsum(steps)
        ranks[0, used], ranks[1, used] = negatives, positives
        counts = np.asarray(confusion, dtype=np.int64).reshape(2, 2)
        return BinaryLabelSketch(ranks, counts, log_loss, squared_error, np.asarray(gaps, dtype=np.float64), unknown)
    if kind == 3:
        classes, (steps, numbers), log_loss, gaps, unknown = parts
        counts_by_code = zip(np.cumsum(unpack_counts(steps)).tolist(), unpack_counts(numbers).tolist(), strict=True)
        return MulticlassLabelSketch(classes, dict(counts_by_code), log_loss, tuple(gaps), unknown)
    actual, predicted, *sums = parts
    return RegressionLabelSketch(_moments(actual), _moments(predicted), *sums)


def _binary(y: Floats, p: Floats, predicted: Floats, unknown: int) -> BinaryLabelSketch:
    positive = y > 0
    side = positive.astype(np.intp)
    ranks = np.bincount(side * SCORE_CELLS + score_cells(p), minlength=2 * SCORE_CELLS)
    confusion = np.bincount(side * 2 + (predicted > 0), minlength=4)
    of_actual = np.clip(np.where(positive, p, 1.0 - p), _TINY, 1.0 - _TINY)
    return BinaryLabelSketch(
        ranks.reshape(2, SCORE_CELLS).astype(np.int64),
        confusion.reshape(2, 2).astype(np.int64),
        float(-np.log(of_actual).sum()),
        float(((p - y) ** 2).sum()),
        _gaps(p, y),
        unknown,
    )


def _multiclass(y: Floats, p: Floats, given: Floats, classes: int, unknown: int) -> MulticlassLabelSketch:
    full = p.ndim == 2
    if len(y) == 0:
        return MulticlassLabelSketch(classes, {}, unknown=unknown)
    largest = p.max(axis=1) if full else p
    if full:
        given = np.where(np.isnan(given), p.argmax(axis=1), given)
    decided = ~np.isnan(given)
    actual, predicted = y[decided].astype(np.int64), given[decided].astype(np.int64)
    codes, counts = np.unique(actual * classes + predicted, return_counts=True)
    log_loss = math.nan
    if full:
        of_actual = p[decided][np.arange(len(actual)), actual]
        log_loss = float(-np.log(np.clip(of_actual, _TINY, 1.0 - _TINY)).sum())
    gaps = _gaps(largest[decided], (actual == predicted).astype(np.float64))
    confusion = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    return MulticlassLabelSketch(classes, confusion, log_loss, tuple(gaps.tolist()), unknown)


def _regression(y: Floats, p: Floats, unknown: int) -> RegressionLabelSketch:
    if len(y) == 0:
        return RegressionLabelSketch(unknown=unknown)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(p - y)
        return RegressionLabelSketch(
            _moments_of(y),
            _moments_of(p),
            float(((y - y.mean()) * (p - p.mean())).sum()),
            float(errors.sum()),
            float((errors * errors).sum()),
            float((errors / np.maximum(np.abs(y), _TINY)).sum()),
            unknown,
        )


def _gaps(confidence: Floats, observed: Floats) -> Floats:
    bins = np.clip((confidence * CALIBRATION_BINS).astype(np.intp), 0, CALIBRATION_BINS - 1)
    sums = np.bincount(bins, weights=confidence - observed, minlength=CALIBRATION_BINS)
    return sums.astype(np.float64, copy=False)


def _moments_of(values: Floats) -> Moments:
    mean = float(values.mean())
    return Moments(len(values), mean, float(((values - mean) ** 2).sum()), float(values.min()), float(values.max()))


def _plain(moments: Moments | None) -> list[float] | None:
    return None if moments is None else [moments.count, moments.mean, moments.m2, moments.low, moments.high]


def _moments(data: list[float] | None) -> Moments | None:
    return None if data is None else Moments(int(data[0]), *data[1:])


__all__ = [
    "BinaryLabelSketch",
    "LabelSketch",
    "MulticlassLabelSketch",
    "RegressionLabelSketch",
    "add_label_sketches",
    "label_sketch_from_plain",
    "pack_counts",
    "score_cells",
    "sketch_labels",
    "unpack_counts",
]
