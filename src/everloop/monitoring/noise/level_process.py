"""Learn how the level of a direction wanders from one block of the reference to the next.

A deviation is modelled as y = μ + level + chance. The level is a stationary first-order autoregression with standard
deviation τ and correlation ρ between neighbouring blocks. The likelihood of each pair (τ, ρ) of a grid comes from a
Kalman filter, with μ unknown. The prior of the pairs is learned from all directions together (empirical Bayes), because
features of a stream wander alike. A short reference says little about ρ, so slow processes keep some weight, and the
variance that windows are expected to have is larger than the reference's own: this is the inflation for long memory.

Sources: J. Durbin, S. J. Koopman, Time Series Analysis by State Space Methods (2012), ch. 4 and section 5.7 (diffuse
mean); H. Robbins, An empirical Bayes approach to statistics (1956).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CORRELATIONS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
_RATIOS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 1e6, 1e7)
"""τ² in units of the variance by chance of a typical block. In blocks of a hundred million rows, chance is tiny."""
RATIOS: Array = np.array([0.0, *(ratio for ratio in _RATIOS for _ in _CORRELATIONS)])
CORRELATIONS: Array = np.array([0.0, *(rho for _ in _RATIOS for rho in _CORRELATIONS)])
_GUESS = 1 + _CORRELATIONS.index(0.8)
"""Index of a pair with ρ = 0.8, for levels that are assumed."""
_NO_LEVEL = 0.25
"""Prior probability that the level does not wander, before the data."""
_PENALTY = 0.4
_EM_STEPS = 100
_LEAST_WEIGHT = 1.0
_TOGETHER = 20
"""Directions whose courses are integrated out at the same time, so that they fit into the processor's cache."""
_SHARE_OF_PRIOR = 0.02
"""The prior before the data weighs as much as a fiftieth of the directions, and at least as much as one."""


@dataclass(frozen=True, slots=True)
class LevelProcess:
    """What the reference says about each of m directions, on a grid of g pairs (τ, ρ).

    Attributes:
        weights: posterior probability of each pair, shape (m, g).
        level_variances: τ² of each pair, shape (m, g), in squared units of the direction.
        mean: the mean of the direction over the reference, shape (m,).
        mean_variances: variance of the estimated mean, given each pair, shape (m, g).
    """

    weights: Array
    level_variances: Array
    mean: Array
    mean_variances: Array
    mean_spread: Array
    """Variance of the estimated mean over all pairs, shape (m,)."""

    def variance(self, blocks: float) -> Array:
        """Return the variance of the mean of that many consecutive blocks, without chance, shape (m,).

        It includes that the reference's mean is known only roughly.
        """
        level = (self.weights * self.level_variances * variance_of_mean(blocks, CORRELATIONS)).sum(axis=1)
        return np.asarray(level + self.mean_spread)

    @property
    def steady(self) -> Array:
        """Posterior probability that the level does not wander, shape (m,)."""
        return np.asarray(self.weights[:, 0])

    def correlation(self) -> Array:
        """Return the expected correlation of neighbouring blocks, shape (m,)."""
        level = self.weights * self.level_variances
        total = level.sum(axis=1)
        return np.asarray(np.divide(level @ CORRELATIONS, total, out=np.zeros(len(total)), where=total > 0))


def variance_of_mean(blocks: float, correlations: Array) -> Array:
    """Return the variance of the mean of n consecutive values of an autoregression with variance 1, by correlation.

    For n below 1 it is 1. Source: any textbook, e.g. Brockwell and Davis, Time Series (1991), section 7.1.
    """
    n = max(1, round(blocks))
    lags = np.arange(1, n)
    return np.asarray((1 + 2 * ((1 - lags / n) * correlations[:, None] ** lags).sum(axis=1)) / n)


def learn_levels(values: Array, variances: Array, groups: Array, guess: Array) -> LevelProcess:
    """Learn the level process of each direction from the reference's blocks.

    Args:
        values: deviations by block and direction, shape (blocks, m).
        variances: their variances by chance, same shape; infinite for a block without rows.
        groups: directions with the same number share a prior, shape (m,).
        guess: τ² of directions that have fewer than two blocks with rows, shape (m,).
    """
    level = _typical(variances)[:, None] * RATIOS
    log_likelihood, mean, mean_variances = _filter(values, variances, level)
    return _process(_posterior(log_likelihood, groups), level, mean, mean_variances, variances, guess)


def learn_levels_and_course(
    values: Array, variances: Array, groups: Array, guess: Array, design: Array, prior: Array
) -> tuple[LevelProcess, Array, Array]:
    """Learn the level process around a course with unknown coefficients, k of them, and what the blocks say about it.

    The coefficients are integrated out, so that a course that follows wandering levels does not hide how far they
    wander.

    Args:
        values, variances, groups, guess: as for `learn_levels`.
        design: what each coefficient is multiplied with, shape (blocks, k).
        prior: precision of each coefficient before the data, shape (m, k); its mean is 0.

    Returns:
        The level process with the mean 0, the precision of the coefficients, shape (m, k, k), and the precision times
        the expected coefficients, shape (m, k).
    """
    m, k = prior.shape
    level = _typical(variances)[:, None] * RATIOS
    log_likelihood = np.empty(level.shape)
    ridge = prior[:, None, :, None] * np.eye(k)
    for first in range(0, m, _TOGETHER):
        part = slice(first, first + _TOGETHER)
        logs, squares, products, units = _sums(values[:, part], variances[:, part], level[part], CORRELATIONS, design)
        precision, product = np.moveaxis(units, (0, 1), (2, 3)) + ridge[part], np.moveaxis(products, 0, 2)
        expected = np.linalg.solve(precision, product[..., None])[..., 0]
        determinant = np.linalg.slogdet(precision)[1]
        log_likelihood[part] = -0.5 * (logs + determinant + squares - (product * expected).sum(axis=2))
    zero = np.zeros_like(level)
    process = _process(_posterior(log_likelihood, groups), level, zero, zero.copy(), variances, guess)
    process.mean_spread[:] = 0.0
    # The course is that around the most probable process, with the expected variance of the level.
    best = process.weights.argmax(axis=1)[:, None]
    expected_level = (process.weights * process.level_variances).sum(axis=1, keepdims=True)
    _, _, products, units = _sums(values, variances, expected_level, CORRELATIONS[best], design)
    return process, np.moveaxis(units[..., 0], 2, 0) + ridge[:, 0], products[..., 0].T


def _process(
    weights: Array, level: Array, mean: Array, mean_variances: Array, variances: Array, guess: Array
) -> LevelProcess:
    """Return the process; it is assumed for directions with fewer than two blocks."""
    centre = (weights * mean).sum(axis=1)
    spread = (weights * (mean_variances + (mean - centre[:, None]) ** 2)).sum(axis=1)
    guessed = assume_levels(guess)
    blind = np.isfinite(variances).sum(axis=0) < 2
    for own, assumed in (
        (weights, guessed.weights),
        (level, guessed.level_variances),
        (mean_variances, guessed.mean_variances),
        (centre, guessed.mean),
        (spread, guessed.mean_spread),
    ):
        own[blind] = assumed[blind]
    return LevelProcess(weights, level, centre, mean_variances, spread)


def assume_levels(level_variances: Array, mean_variances: Array | None = None) -> LevelProcess:
    """Return a level process for directions about which nothing is known but a guess of τ², shape (m,).

    Args:
        mean_variances: variance of the reference itself by chance, shape (m,). Default: 0.
    """
    shape = (len(level_variances), len(RATIOS))
    weights = np.zeros(shape)
    weights[:, _GUESS] = 1.0
    levels = np.broadcast_to(level_variances[:, None], shape).copy()
    zero = np.zeros(len(level_variances))
    spread = zero if mean_variances is None else mean_variances
    return LevelProcess(weights, levels, zero, np.broadcast_to(spread[:, None], shape).copy(), spread)


def log_evidence(values: Array, variances: Array) -> Array:
    """Return the logarithm of the likelihood of each direction's blocks, averaged over the prior, shape (m,)."""
    log_likelihood, _, _ = _filter(values, variances, _typical(variances)[:, None] * RATIOS)
    highest = log_likelihood.max(axis=1, keepdims=True)
    return np.asarray(highest[:, 0] + np.log(np.exp(log_likelihood - highest) @ _prior()))


def _typical(variances: Array) -> Array:
    known = np.isfinite(variances)
    totals: Array = np.where(known, variances, 0.0).sum(axis=0)
    counts: Array = np.maximum(known.sum(axis=0), 1).astype(np.float64)
    return totals / counts


def _filter(values: Array, variances: Array, level: Array) -> tuple[Array, Array, Array]:
    """Run the Kalman filter for every direction and every pair of the grid at once.

    The same filter is applied to the values and to a constant 1, which gives the estimate of the mean and the
    likelihood with the mean integrated out.
    """
    logs, squares, (products,), ((units,),) = _sums(values, variances, level, CORRELATIONS, np.ones((len(values), 1)))
    units = np.maximum(units, 1e-300)
    mean = products / units
    log_likelihood = -0.5 * (logs + np.log(units) + squares - products * mean)
    return np.asarray(log_likelihood), np.asarray(mean), np.asarray(1 / units)


def _sums(
    values: Array, variances: Array, level: Array, correlations: Array, design: Array
) -> tuple[Array, Array, Array, Array]:
    """Filter the values and each column of a design; return the logarithms of the variances, the squares of the
    values, their products with the columns, and the products of the columns, all weighted and summed.

    Args:
        level: τ² of each pair, shape (m, g); `correlations` is ρ of each pair, shape (g,) or (m, g).
        design: shape (blocks, k).

    Returns:
        Arrays of shape (m, g), (m, g), (k, m, g) and (k, k, m, g).
    """
    shape, count = level.shape, design.shape[1]
    state, unit = np.zeros(shape), np.zeros((count, *shape))
    uncertainty = level.copy()
    squares, logs = np.zeros(shape), np.zeros(shape)
    products, units = np.zeros((count, *shape)), np.zeros((count, count, *shape))
    squared = correlations**2
    innovation = level * (1 - squared)
    for value, variance, columns in zip(values, variances, design, strict=True):
        known = np.isfinite(variance)[:, None]
        total = np.where(known, uncertainty + variance[:, None], 1.0)
        inverse = known / total
        error, one = np.where(known, value[:, None], 0.0) - state, columns[:, None, None] - unit
        weighted = one * inverse
        squares += error * error * inverse
        products += error * weighted
        units += one[:, None] * weighted
        logs += np.log(total)
        gain = uncertainty * inverse
        state = correlations * (state + gain * error)
        unit = correlations * (unit + gain * one)
        uncertainty = squared * uncertainty * (1 - gain) + innovation
    return logs, squares, products, units


def _prior() -> Array:
    weights: Array = np.full(len(RATIOS), (1 - _NO_LEVEL) / (len(RATIOS) - 1), dtype=np.float64)
    weights[0] = _NO_LEVEL
    return weights


def _posterior(log_likelihood: Array, groups: Array) -> Array:
    # Levels that are hardly distinguishable from none would only blur the limit.
    penalised = log_likelihood - np.where(RATIOS > 0, _PENALTY, 0.0)
    likelihood = np.exp(penalised - penalised.max(axis=1, keepdims=True))
    before = _prior()
    weights: Array = np.empty(likelihood.shape, dtype=np.float64)
    for group in np.unique(groups):
        members = groups == group
        own = likelihood[members]
        strength = max(_LEAST_WEIGHT, _SHARE_OF_PRIOR * len(own))
        prior = before
        for _ in range(_EM_STEPS):
            posterior = own * prior
            posterior /= posterior.sum(axis=1, keepdims=True)
            prior = (posterior.sum(axis=0) + strength * before) / (len(own) + strength)
        posterior = own * prior
        weights[members] = posterior / posterior.sum(axis=1, keepdims=True)
    return weights
