"""Calibration of one class: a rising function from scores to probabilities, and the reference rows behind it.

The reference is kept as a few hundred cells of scores, which is enough to repeat the calibration on resampled rows.
Scores that already are good probabilities are used as they are: calibrating them would only add noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from everloop.monitoring.performance.isotonic_calibration import IsotonicMap, fit_isotonic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]

CELLS = 400
"""About as many cells are kept: three quarters of them by rank, and one by value, so that tails are resolved."""
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class ClassCalibration:
    """Scores of reference rows in rising cells, and the map to probabilities; None: scores are probabilities."""

    scores: tuple[float, ...]
    """Mean score of each cell."""
    counts: tuple[float, ...]
    positives: tuple[float, ...]
    mapping: IsotonicMap | None

    @classmethod
    def fit(cls, scores: Array, positive: Array) -> ClassCalibration:
        """Calibrate scores of shape (n,), finite, with labels of 0 and 1."""
        unique, place = np.unique(scores, return_inverse=True)
        counts = np.bincount(place).astype(np.float64)
        positives = np.bincount(place, weights=positive)
        mapping = None if _are_probabilities(scores, positive) else fit_isotonic(unique, positives / counts, counts)
        if len(unique) > CELLS:
            cell = _cells(unique, counts)
            unique = np.bincount(cell, weights=unique * counts) / np.bincount(cell, weights=counts)
            positives = np.bincount(cell, weights=positives)
            counts = np.asarray(np.bincount(cell, weights=counts), dtype=np.float64)
        return cls(tuple(unique.tolist()), tuple(counts.tolist()), tuple(positives.tolist()), mapping)

    def apply(self, scores: Array) -> Array:
        """Return the probability of the class, shape (n,)."""
        return np.clip(scores, 0.0, 1.0) if self.mapping is None else self.mapping.apply(scores)

    def resample(self, rng: np.random.Generator) -> ClassCalibration:
        """Return the calibration on as many resampled reference rows (Poisson bootstrap)."""
        counts, positives = np.asarray(self.counts), np.asarray(self.positives)
        hits, misses = rng.poisson(positives).astype(np.float64), rng.poisson(counts - positives).astype(np.float64)
        total = hits + misses
        if not total.any():
            return self
        rates = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return replace(self, mapping=fit_isotonic(self.scores, rates, total))

    def to_json(self) -> dict[str, Json]:
        return {
            "scores": list(self.scores),
            "counts": list(self.counts),
            "positives": list(self.positives),
            "mapping": self.mapping.to_json() if self.mapping else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ClassCalibration:
        return cls(
            tuple(map(float, data["scores"])),
            tuple(map(float, data["counts"])),
            tuple(map(float, data["positives"])),
            IsotonicMap.from_json(data["mapping"]) if data["mapping"] is not None else None,
        )


def _are_probabilities(scores: Array, positive: Array) -> bool:
    """Return whether the scores predict labels at least as well as calibrated ones do on rows left out (Brier)."""
    if len(scores) < 2 * _FOLDS or scores.min() < 0 or scores.max() > 1:
        return False
    fold = np.random.default_rng(0).permutation(len(scores)) % _FOLDS
    calibrated = np.empty_like(scores)
    for k in range(_FOLDS):
        calibrated[fold == k] = fit_isotonic(scores[fold != k], positive[fold != k]).apply(scores[fold == k])
    return bool(np.mean((scores - positive) ** 2) <= np.mean((calibrated - positive) ** 2))


def _cells(scores: Array, counts: Array) -> NDArray[np.intp]:
    """Return the cell of each rising score. An edge of a cell is at one half if scores are between 0 and 1."""
    middle = np.cumsum(counts) - counts / 2
    by_rank = (middle / counts.sum() * (3 * CELLS // 4)).astype(np.intp)
    low, high = float(scores[0]), float(scores[-1])
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    by_value = np.floor((scores - low) / (high - low) * (CELLS // 4)).astype(np.intp)
    new = (np.diff(by_rank) > 0) | (np.diff(by_value) > 0)
    cells: NDArray[np.intp] = np.concatenate(([0], np.cumsum(new)))
    return cells
