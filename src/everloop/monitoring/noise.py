"""The noise floor: which distances occur in windows of n rows when nothing has changed.

Three things move a window away from the reference without any drift, and all three are simulated:

- chance in the window: its counts are multinomial;
- chance in the reference: its true shares are not known better than its rows allow (gamma weights, which makes the
  shares Dirichlet around the counts);
- the world's own restlessness: seasons, weekdays, campaigns. The reference is cut into blocks of the window's
  length; what they differ by beyond chance is drawn on top, by moving the shares towards a block.

An alarm needs the same subject to stand out in two of three windows, and these are no independent trials: the
reference's luck is the same in all of them, and a season lasts. So three windows in a row are simulated together, with
one luck and with neighbouring blocks, and a p-value is the root of the chance that two of them both lie so far out. It
is the plain p-value where windows are independent, larger where they are not, and two looks at levels a and b agree by
chance at most a · b times (by Cauchy and Schwarz).

Beyond what the draws resolve, the tail is a power of a gamma distribution's (sums of squares, as PSI and chi-square
are, have gamma tails) that is fitted to the draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.distances import smoothed_shares
from everloop.monitoring.tail_probabilities import gamma_tail

if TYPE_CHECKING:
    from collections.abc import Callable

Array = npt.NDArray[np.float64]

DRAWS = 1000
WINDOWS = 3
"""Windows in a row that are simulated together: those that an alarm looks at."""

_ANCHORS = (0.3, 0.08)
"""P-values between which the tail's power is read off; below the second one the fitted tail takes over."""
_LEAST_BLOCKS = 6
_LEAST_BLOCK_ROWS = 30
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class NoiseFloor:
    """Distances when nothing has changed.

    Attributes:
        mean: of one window.
        shape, scale: of the gamma distribution with one window's mean and variance; 0 where all draws agree.
        pairs: the smaller distance of each pair of windows, rising.
        start, power: where the fitted tail begins, and its power of the gamma distribution's tail.
    """

    mean: float
    shape: float
    scale: float
    pairs: Array
    start: float
    power: float

    @classmethod
    def of(cls, draws: Array) -> NoiseFloor:
        """Learn the floor from distances of windows in a row, shape (draws, `WINDOWS`)."""
        mean, variance = float(draws.mean()), float(draws.var())
        ranked = np.sort(draws, axis=1)
        # Of three windows' three pairs, the middle one is the smaller of one pair and the lowest of two.
        pairs = np.sort(np.concatenate([ranked[:, 1], ranked[:, 0], ranked[:, 0]]))
        upper, start = (float(np.quantile(pairs, 1 - anchor**2)) for anchor in _ANCHORS)
        if variance <= (_NEGLIGIBLE * mean) ** 2 or start <= upper:
            return cls(mean, 0.0, 0.0, pairs, start, 1.0)
        shape, scale = mean * mean / variance, variance / mean
        fall = math.log(gamma_tail(shape, upper / scale)) - math.log(max(gamma_tail(shape, start / scale), 1e-300))
        # Half the power belongs to windows that are all alike, the whole to independent ones.
        power = min(1.0, max(0.5, math.log(_ANCHORS[0] / _ANCHORS[1]) / fall))
        return cls(mean, shape, scale, pairs, start, power)

    def p_value(self, distance: float) -> float:
        """How often, at most, a window lies so far out when nothing has changed; above 0, up to 1.

        A distance that is no number says nothing: 1.
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
        """The distance whose p-value is `probability`: what one would have set as threshold.

        Raises:
            UsageError: the probability is not between 0 and 1.
        """
        if not 0 < probability <= 1:
            raise UsageError(f"A p-value lies between 0 and 1, not {probability}.")
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
    """Simulate windows of `rows` rows in which nothing has changed and measure their distances.

    Args:
        measure: counts of shape (…, cells) to distances of shape (…).
        reference: counts of the reference by cell, shape (cells,).
        rows: how many rows the window has.
        blocks: counts of consecutive stretches of the reference, each as long as the window, shape (blocks, cells).
            Fewer than six, or none, teach nothing about restlessness.
        draws: how many times to simulate three windows in a row.
        seed: the same seed gives the same floor.

    Raises:
        EmptySampleError: the window or the reference has no rows.
    """
    if rows < 1:
        raise EmptySampleError("A window without rows has no noise floor.")
    return NoiseFloor.of(measure(simulate_windows(reference, rows, blocks=blocks, draws=draws, seed=seed)))


def simulate_windows(
    reference: Array, rows: int, *, blocks: Array | None = None, draws: int = DRAWS, seed: int = 0
) -> Array:
    """Counts of windows in a row in which nothing has changed, shape (draws, `WINDOWS`, cells).

    Arguments and errors as for `noise_floor`.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    shares = smoothed_shares(reference)
    weight = restlessness(reference, blocks) if blocks is not None else 0.0
    luck = generator.standard_gamma(shares * reference.sum(), size=(draws, len(shares))) / shares
    if blocks is not None and weight > 0:
        held = blocks[blocks.sum(axis=1) >= _LEAST_BLOCK_ROWS]
        first = generator.integers(len(held) - WINDOWS + 1, size=draws)
        neighbours = held[first[:, None] + np.arange(WINDOWS)]
        centres = (1 - weight) * shares + weight * neighbours / neighbours.sum(axis=-1, keepdims=True)
        truths = luck[:, None, :] * centres
    else:
        truths = np.broadcast_to((luck * shares)[:, None, :], (draws, WINDOWS, len(shares)))
    return generator.multinomial(rows, truths / truths.sum(axis=-1, keepdims=True)).astype(np.float64)


def restlessness(reference: Array, blocks: Array) -> float:
    """How far, between 0 and 1, to move the shares towards a random block so that simulated blocks differ as real ones.

    The squared value is the part of the blocks' chi-square distance from the whole that chance does not explain. It
    is 0 unless that part stands out of its own standard error twice, so that a reference without structure is
    treated as such.

    Args:
        reference: counts of the whole, shape (cells,).
        blocks: counts of its consecutive parts, shape (blocks, cells).
    """
    rows = blocks.sum(axis=1)
    blocks, rows = blocks[rows >= _LEAST_BLOCK_ROWS], rows[rows >= _LEAST_BLOCK_ROWS]
    held = reference > 0
    freedom = int(held.sum()) - 1
    if len(blocks) < _LEAST_BLOCKS or freedom < 1:
        return 0.0
    shares = reference[held] / reference.sum()
    gaps = blocks[:, held] / rows[:, None] - shares
    # Rows · distance, so that blocks of different sizes weigh alike: `freedom` on average where only chance acts.
    statistics = rows * (gaps * gaps / shares).sum(axis=1)
    expected = freedom * (1 - rows / reference.sum())
    excess = float(statistics.sum() - expected.sum())
    by_chance = math.sqrt(2 * freedom * len(blocks))
    if excess <= 2 * by_chance:
        return 0.0
    return math.sqrt(excess / float(statistics.sum()))
