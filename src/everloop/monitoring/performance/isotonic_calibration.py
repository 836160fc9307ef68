"""Isotonic calibration: the probability of a positive as a rising step function of the score.

Source: Ayer, Brunk, Ewing, Reid and Silverman, "An empirical distribution function for sampling with incomplete
information", Annals of Mathematical Statistics 26 (1955): pooling adjacent violators. Zadrozny and Elkan,
"Transforming classifier scores into accurate multiclass probability estimates" (KDD 2002) for calibration. Between the
steps, probabilities are interpolated as in scikit-learn's IsotonicRegression; the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import EmptySampleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class IsotonicMap:
    """Probabilities at rising scores. Between two scores it is linear, and constant outside."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def apply(self, scores: ArrayLike) -> Array:
        """Return the probability of each score, in the shape of `scores`."""
        values = np.asarray(scores, dtype=np.float64)
        found: Array = np.interp(values, self.scores, self.probabilities)
        return found

    def to_json(self) -> dict[str, Json]:
        return {"scores": list(self.scores), "probabilities": list(self.probabilities)}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> IsotonicMap:
        return cls(tuple(map(float, data["scores"])), tuple(map(float, data["probabilities"])))


def fit_isotonic(scores: ArrayLike, actual: ArrayLike, weights: ArrayLike | None = None) -> IsotonicMap:
    """Fit the rising function with the least weighted sum of squared errors.

    Args:
        scores: shape (n,), finite.
        actual: shape (n,), 0/1 or shares of positives.
        weights: shape (n,), not negative. Default: 1 each. Rows without weight are ignored.

    Raises:
        EmptySampleError: no row has a weight.
    """
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(actual, dtype=np.float64)
    mass = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    weighed = mass > 0
    if not weighed.any():
        raise EmptySampleError("Scores cannot be calibrated without labelled rows.", help="Pass rows with labels.")
    unique, place = np.unique(values[weighed], return_inverse=True)
    total = np.asarray(np.bincount(place, weights=mass[weighed]), dtype=np.float64)
    means = np.bincount(place, weights=mass[weighed] * labels[weighed]) / total
    starts, levels = _pool(means, total)
    # Only the two ends of a constant stretch are needed.
    ends = np.append(starts[1:], len(unique)) - 1
    points = np.unique(np.concatenate((starts, ends)))
    fitted = levels[np.searchsorted(starts, points, side="right") - 1]
    return IsotonicMap(tuple(unique[points].tolist()), tuple(np.clip(fitted, 0.0, 1.0).tolist()))


def _pool(means: Array, weights: Array) -> tuple[NDArray[np.intp], Array]:
    """Return where each pool of neighbours starts, and the mean of the pool."""
    starts: list[int] = []
    levels: list[float] = []
    masses: list[float] = []
    for index, (level, mass) in enumerate(zip(means.tolist(), weights.tolist(), strict=True)):
        start = index
        while levels and levels[-1] >= level:
            below, earlier = masses.pop(), levels.pop()
            level = (earlier * below + level * mass) / (below + mass)
            mass += below
            start = starts.pop()
        starts.append(start)
        levels.append(level)
        masses.append(mass)
    return np.asarray(starts, dtype=np.intp), np.asarray(levels)
