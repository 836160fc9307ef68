"""Measures of calibration with their intervals: the expected calibration error, and Cox's intercept and slope.

Sources: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (ICML 2017), equation 3. Cox, "Two
further applications of a model for binary regression", Biometrika 45 (1958).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everloop.training.class_decisions import THRESHOLD
from everloop.training.intervals import LEVEL, Interval, normal_quantile
from everloop.training.metrics import ECE_BINS

Array = NDArray[np.float64]

_DRAWS = 2000
_STEPS = 50
_TINY = 1e-12


def calibration_interval(y: ArrayLike, scores: ArrayLike, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """Return the expected calibration error over ten bins, with an interval that is valid near 0.

    Sampling noise moves the observed share of each bin, and the error sums the absolute distances, so even a perfectly
    calibrated model has an error above 0. A bootstrap adds that bias once more. Here the two ends are derived from the
    noise of the bins alone. With d the observed and e the expected distance of a bin, s its standard error and w its
    share of the rows:

    - sum w |e| - sum w |d| <= sum w sign(e) (e - d), which is normal with variance sum w² s²: the upper end.
    - sum w |d| - sum w |e| <= sum w |d - e|, whose quantile is drawn from normal deviations: the lower end.

    Each bound is missed with a probability of at most (1 - level) / 2, whatever the true distances are.

    Args:
        y: 0/1, or the index of the class, shape (n,).
        scores: the probability of the second class, shape (n,), or of each class, shape (n, k).
        level: confidence level.
        seed: the same seed gives the same interval.
    """
    labels, values = np.asarray(y, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if values.ndim == 1:
        confidence, observed = values, labels
    else:
        confidence, observed = values.max(axis=1), (values.argmax(axis=1) == labels).astype(np.float64)
    bins = np.clip((confidence * ECE_BINS).astype(np.intp), 0, ECE_BINS - 1)
    rows = np.bincount(bins, minlength=ECE_BINS).astype(np.float64)
    used = rows > 0
    rows = rows[used]
    hits = np.bincount(bins, weights=observed, minlength=ECE_BINS)[used]
    gaps = np.bincount(bins, weights=observed - confidence, minlength=ECE_BINS)[used] / rows
    # Agresti and Coull's two added successes and failures: bins whose rows all agree are not certain either.
    rate = (hits + 2) / (rows + 4)
    errors = np.sqrt(rate * (1 - rate) / rows)
    weights = rows / rows.sum()
    value = float(weights @ np.abs(gaps))
    upper = normal_quantile(level) * float(np.sqrt(((weights * errors) ** 2).sum()))
    noise = np.abs(np.random.default_rng(seed).standard_normal((_DRAWS, len(rows)))) @ (weights * errors)
    lower = float(np.quantile(noise, (1 + level) / 2))
    low, high = max(0.0, value - lower), min(1.0, value + upper)
    error = (high - low) / (2 * normal_quantile(level))
    return Interval(value=value, low=low, high=high, standard_error=error, level=level, method="binned")


def calibration_slope(y: ArrayLike, scores: ArrayLike, *, level: float = LEVEL) -> tuple[Interval, Interval]:
    """Return the calibration slope and intercept: a logistic regression of the labels on the scores' log odds.

    A calibrated model has the slope 1 and the intercept 0. The intervals are Wald's. If the classes are separated, or
    all scores are equal, the slope is not determined, and everything is NaN.

    Args:
        y: 0/1, shape (n,).
        scores: the probability of the second class, shape (n,). Values are limited to [1e-12, 1 - 1e-12].
        level: confidence level.
    """
    labels = np.asarray(y, dtype=np.float64)
    chances = np.clip(np.asarray(scores, dtype=np.float64), _TINY, 1 - _TINY)
    x = np.column_stack([np.ones(len(labels)), np.log(chances / (1 - chances))])
    fitted = _logistic(x, labels)
    z, intervals = normal_quantile(level), []
    for at in (1, 0):
        value, error = (float("nan"), float("nan")) if fitted is None else fitted[at]
        intervals.append(
            Interval(value=value, low=value - z * error, high=value + z * error, standard_error=error, level=level,
                     method="wald")
        )  # fmt: skip
    return intervals[0], intervals[1]


def _logistic(x: Array, y: Array) -> list[tuple[float, float]] | None:
    """Return coefficients and standard errors by Newton's method; None if they are not determined."""
    if np.unique(y).size < 2 or np.ptp(x[:, 1]) == 0 or _separated(x[:, 1], y):
        return None
    beta = np.array([0.0, 1.0])
    deviance = _deviance(x, y, beta)
    for _ in range(_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(x @ beta, -500, 500)))
        information = (x * (chances * (1 - chances))[:, None]).T @ x
        try:
            step = np.linalg.solve(information, x.T @ (y - chances))
        except np.linalg.LinAlgError:
            return None
        shrink = 1.0
        while _deviance(x, y, beta + shrink * step) > deviance + 1e-12 * abs(deviance) and shrink > 1e-6:
            shrink /= 2
        beta = beta + shrink * step
        deviance = _deviance(x, y, beta)
        if np.abs(step).max() * shrink < 1e-10 * (1 + np.abs(beta).max()):
            covariance = np.linalg.inv(information)
            return [(float(b), float(np.sqrt(v))) for b, v in zip(beta, np.diag(covariance), strict=True)]
    return None


def _separated(x: Array, y: Array) -> bool:
    """Whether a threshold divides the classes, so that the likelihood has no maximum."""
    zeros, ones = x[y <= THRESHOLD], x[y > THRESHOLD]
    return bool(zeros.max() <= ones.min() or ones.max() <= zeros.min())


def _deviance(x: Array, y: Array, beta: Array) -> float:
    linear = x @ beta
    return float((np.logaddexp(0, linear) - y * linear).sum())
