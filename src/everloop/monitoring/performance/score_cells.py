"""Scores of a window as cells with numbers of rows: one cell for each row, or those of a histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import DataError, EmptySampleError
from everloop.training.class_decisions import votes as vote_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from everloop.training.metrics import Metric

    Array = NDArray[np.float64]

_CELLS = 1000
_SAMPLED_ROWS = 1500


@dataclass(frozen=True, slots=True)
class ScoreCells:
    """Cells of equal score and predicted class.

    Attributes:
        scores: shape (n,) for two classes, (n, k) for several.
        counts: shape (n,), rows of each cell.
        predicted: shape (n,), index of the predicted class.
    """

    scores: Array
    counts: Array
    predicted: NDArray[np.intp]

    @property
    def in_unit(self) -> bool:
        """Whether all scores are between 0 and 1."""
        return bool(((self.scores >= 0) & (self.scores <= 1)).all())

    def judged(self, metric: Metric) -> Array:
        """Return the input of a metric: the scores, or the predicted classes for a metric of labels."""
        if not metric.of_labels:
            return self.scores
        return vote_scores(self.predicted, 2 if self.scores.ndim == 1 else self.scores.shape[1])

    def reduced(self) -> tuple[ScoreCells, float]:
        """Return about a thousand cells for the same window, and the factor from their sampling error to its own.

        Scores of two classes are combined with their neighbours. Of several classes, rows are sampled.
        """
        if self.scores.ndim == 2:
            if len(self.counts) <= _SAMPLED_ROWS:
                return self, 1.0
            rows = np.random.default_rng(0).choice(len(self.counts), _SAMPLED_ROWS, replace=False)
            part = ScoreCells(self.scores[rows], self.counts[rows], self.predicted[rows])
            return part, float(np.sqrt(part.counts.sum() / self.counts.sum()))
        if len(self.counts) <= _CELLS:
            return self, 1.0
        order = np.lexsort((self.scores, self.predicted))
        counts = self.counts[order]
        middle = np.cumsum(counts) - counts / 2
        # Neighbours of different predicted classes are never combined.
        key = (middle / counts.sum() * _CELLS).astype(np.intp) + (_CELLS + 1) * self.predicted[order]
        unique, cell = np.unique(key, return_inverse=True)
        total = np.asarray(np.bincount(cell, weights=counts), dtype=np.float64)
        scores = np.bincount(cell, weights=counts * self.scores[order]) / total
        return ScoreCells(scores, total, unique // (_CELLS + 1)), 1.0


def cells_of(
    scores: ArrayLike,
    counts: ArrayLike | None,
    predicted: ArrayLike | None,
    threshold: float,
    *,
    classes: int,
) -> ScoreCells:
    """Check the scores of a window. Cells without rows or without a finite score are left out.

    Args:
        scores: shape (n,) or (n, classes).
        counts: shape (n,), rows of each cell. Default: 1 each.
        predicted: shape (n,), index of the predicted class. Default: by the threshold, or the largest score.
        threshold: scores from here on are predicted positive.
        classes: number of columns of the scores; 1 for two classes.

    Raises:
        EmptySampleError: there is no row with a score.
        DataError: the shapes do not fit, or a count is negative.
    """
    try:
        values = np.asarray(scores, dtype=np.float64)
        mass = np.ones(len(values)) if counts is None else np.asarray(counts, dtype=np.float64)
        chosen = None if predicted is None else np.asarray(predicted, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Scores and their counts must be numbers: {error}.", help="Pass arrays of numbers.") from error
    width = 1 if values.ndim == 1 else values.shape[-1]
    if values.ndim > 2 or width != classes or (values.ndim == 2) != (classes > 1):
        expected = "(n,)" if classes == 1 else f"(n, {classes})"
        raise DataError(
            f"The reference has scores of shape {expected}, but the window {values.shape}.",
            help="Pass scores of the same model.",
        )
    for name, given in (("counts", mass), ("predicted classes", chosen)):
        if given is not None and given.shape != (len(values),):
            raise DataError(f"There are {given.size} {name} for {len(values)} scores.", help="Pass one for each score.")
    if (mass < 0).any():
        raise DataError(f"A count is negative: {mass.min():g}.", help="Pass the number of rows of each cell.")
    kept = (mass > 0) & (np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(axis=1))
    if chosen is not None:
        kept &= np.isfinite(chosen)
    values, mass = values[kept], mass[kept]
    if len(values) == 0:
        raise EmptySampleError("The window has no row with a score.", help="Choose a longer window.")
    if chosen is not None:
        votes = chosen[kept].astype(np.intp)
    elif values.ndim == 2:
        votes = np.argmax(values, axis=1)
    else:
        votes = (values >= threshold).astype(np.intp)
    return ScoreCells(values, mass, votes)
