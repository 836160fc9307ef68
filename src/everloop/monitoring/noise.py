"""Estimate the noise floor: the distances that occur in windows of n rows if nothing has changed.

Three things move a window away from the reference without drift. All three are simulated:

- Chance in the window: its counts are multinomial.
- Chance in the reference: its rows determine the true shares only roughly. The shares get gamma weights, which makes
  them Dirichlet-distributed around the counts.
- Natural variation over time, such as seasons, weekdays and campaigns. The reference is divided into blocks of the
  window's length, and the shares are moved towards a random block by as much as the blocks differ beyond chance.

An alarm needs the same subject to be significant in two of three windows, and these are not independent: they share the
chance in the reference, and a season lasts longer than a window. So three windows in a row are simulated together, with
the same gamma weights and with neighbouring blocks. A p-value is the square root of the probability that two of them
are both at least this far from the reference. For independent windows this equals the ordinary p-value, otherwise it is
larger. Two tests at levels a and b are both significant by chance with probability at most a · b, by the
Cauchy-Schwarz inequality.

Beyond the resolution of the draws, the tail is modelled by a power of the tail of a gamma distribution that is fitted
to them. Sums of squares, such as PSI and chi-square, have gamma tails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.distances import smoothed_shares
from everloop.monitoring.measures.tail_probabilities import gamma_tail

if TYPE_CHECKING:
    from collections.abc import Callable

Array = npt.NDArray[np.float64]

DRAWS = 1000
WINDOWS = 3
"""How many windows in a row are simulated together: as many as an alarm depends on."""

_ANCHORS = (0.3, 0.08)
"""P-values between which the power of the tail is fitted. Below the second one, the fitted tail is used."""
_LEAST_BLOCKS = 6
_LEAST_BLOCK_ROWS = 30
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class NoiseFloor:
    """The distribution of distances if nothing has changed.

    Attributes:
        mean: mean distance of one window.
        shape: shape of the gamma distribution with the mean and variance of one window; 0 if all draws are equal.
        scale: scale of that gamma distribution; 0 if all draws are equal.
        pairs: the smaller distance of each pair of windows, ascending.
        start: distance at which the fitted tail begins.
        power: power of the gamma distribution's tail that makes the fitted tail.
    """

    mean: float
    shape: float
    scale: float
    pairs: Array
    start: float
    power: float

    @classmethod
    def of(cls, draws: Array) -> NoiseFloor:
        """Fit the noise floor to distances of windows in a row, shape (draws, `WINDOWS`)."""
        mean, variance = float(draws.mean()), float(draws.var())
        ranked = np.sort(draws, axis=1)
        # Three windows make three pairs. The middle distance is the smaller one of one pair, the lowest of two pairs.
        pairs = np.sort(np.concatenate([ranked[:, 1], ranked[:, 0], ranked[:, 0]]))
        upper, start = (float(np.quantile(pairs, 1 - anchor**2)) for anchor in _ANCHORS)
        if variance <= (_NEGLIGIBLE * mean) ** 2 or start <= upper:
            return cls(mean, 0.0, 0.0, pairs, start, 1.0)
        shape, scale = mean * mean / variance, variance / mean
        decay = math.log(gamma_tail(shape, upper / scale)) - math.log(max(gamma_tail(shape, start / scale), 1e-300))
        # The power is 1 for independent windows and 0.5 for windows with equal distances.
        power = min(1.0, max(0.5, math.log(_ANCHORS[0] / _ANCHORS[1]) / decay))
        return cls(mean, shape, scale, pairs, start, power)

    def p_value(self, distance: float) -> float:
        """Return how often, at most, a window has at least this distance if nothing has changed.

        The result is above 0 and at most 1. For a distance of NaN it is 1.
        """
        if math.isnan(distance):
            return 1.0
        if distance <= self.start or self.shape == 0:
            count = len(self.pairs)
            beyond = count - int(np.searchsorted(self.pairs, distance * (1 - _NEGLIGIBLE), side="left"))
            return math.sqrt((1 + beyond) / (1 + count))
        at_start = gamma_tail(self.shape, self.start / self.scale)
        tail = gamma_tail(self.shape, distance / self.scale) / max(at_start, 1e-300)
        return float(max(_ANCHORS[1] * min(1.0, tail) ** self.power, 1e-300))

    def limit(self, probability: float) -> float:
        """Return the distance whose p-value is `probability`, as a threshold.

        Raises:
            UsageError: the probability is not between 0 and 1.
        """
        if not 0 < probability <= 1:
            raise UsageError(
                f"A p-value must be between 0 and 1, not {probability}.", help="Pass a value such as 0.01."
            )
        if probability >= _ANCHORS[1] or self.shape == 0:
            return float(np.quantile(self.pairs, 1 - probability**2))
        low, high = self.start, 2 * self.start
        while self.p_value(high) > probability and high < 1e12:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.p_value(middle) > probability else (low, middle)
        return high


def noise_floor(
    measure: Callable[[Array], Array],
    reference: Array,
    rows: int,
    *,
    blocks: Array | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> NoiseFloor:
    """Simulate windows of `rows` rows in which nothing has changed, and measure their distances.

    Args:
        measure: a function from counts of shape (…, cells) to distances of shape (…).
        reference: counts of the reference by cell, shape (cells,).
        rows: how many rows the window has.
        blocks: counts of consecutive blocks of the reference, each as long as the window, shape (blocks, cells). With
            fewer than six blocks, variation between blocks is not simulated.
        draws: how many times three windows in a row are simulated.
        seed: the same seed gives the same noise floor.

    Raises:
        EmptySampleError: the window or the reference has no rows.
    """
    if rows < 1:
        raise EmptySampleError("A window without rows has no noise floor.", help="Choose a longer window.")
    return NoiseFloor.of(measure(simulate_windows(reference, rows, blocks=blocks, draws=draws, seed=seed)))


def simulate_windows(
    reference: Array, rows: int, *, blocks: Array | None = None, draws: int = DRAWS, seed: int = 0
) -> Array:
    """Return simulated counts of windows in a row in which nothing has changed, shape (draws, `WINDOWS`, cells).

    The arguments and errors are those of `noise_floor`.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    shares = smoothed_shares(reference)
    weight = between_block_weight(reference, blocks) if blocks is not None else 0.0
    gamma_weights = generator.standard_gamma(shares * reference.sum(), size=(draws, len(shares))) / shares
    if blocks is not None and weight > 0:
        used = blocks[blocks.sum(axis=1) >= _LEAST_BLOCK_ROWS]
        first = generator.integers(len(used) - WINDOWS + 1, size=draws)
        neighbours = used[first[:, None] + np.arange(WINDOWS)]
        centres = (1 - weight) * shares + weight * neighbours / neighbours.sum(axis=-1, keepdims=True)
        simulated = gamma_weights[:, None, :] * centres
    else:
        simulated = np.broadcast_to((gamma_weights * shares)[:, None, :], (draws, WINDOWS, len(shares)))
    return generator.multinomial(rows, simulated / simulated.sum(axis=-1, keepdims=True)).astype(np.float64)


def between_block_weight(reference: Array, blocks: Array) -> float:
    """Return how far to move the shares towards a random block, so that simulated blocks vary as the real ones do.

    The weight is between 0 and 1. Its square is the part of the blocks' chi-square distance from the reference that
    chance does not explain. The weight is 0 unless this part is more than two standard errors, so a reference without
    variation over time is treated as constant.

    Args:
        reference: counts of the reference by cell, shape (cells,).
        blocks: counts of its consecutive blocks, shape (blocks, cells).
    """
    rows = blocks.sum(axis=1)
    blocks, rows = blocks[rows >= _LEAST_BLOCK_ROWS], rows[rows >= _LEAST_BLOCK_ROWS]
    occupied = reference > 0
    freedom = int(occupied.sum()) - 1
    if len(blocks) < _LEAST_BLOCKS or freedom < 1:
        return 0.0
    shares = reference[occupied] / reference.sum()
    gaps = blocks[:, occupied] / rows[:, None] - shares
    # Rows · distance gives blocks of different sizes the same weight. By chance alone it is `freedom` on average.
    statistics = rows * (gaps * gaps / shares).sum(axis=1)
    expected = freedom * (1 - rows / reference.sum())
    excess = float(statistics.sum() - expected.sum())
    by_chance = math.sqrt(2 * freedom * len(blocks))
    if excess <= 2 * by_chance:
        return 0.0
    return math.sqrt(excess / float(statistics.sum()))
