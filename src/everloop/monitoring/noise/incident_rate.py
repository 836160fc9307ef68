"""Find the limit of surprise at which incidents are opened without need as often as the user tolerates.

Streams in which nothing changes are simulated from the noise model: levels wander as the reference's may, chance is
that of a typical window, and both are driven by the reference's own residuals, all directions of a block together, so
that correlated features stay correlated. The very rule that opens and closes incidents is applied to them. A part of
each residual is drawn from the blocks as they are, and the rest is Gaussian with the same correlations, because a short
reference has few blocks.

Source of the resampling: P. Bühlmann, Sieve bootstrap for time series, Bernoulli 3 (1997).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.monitoring.noise.level_process import CORRELATIONS, variance_of_mean
from everloop.monitoring.noise.noise_model import CALM_SURPRISE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from everloop.monitoring.noise.noise_model import NoiseModel

Array = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

CALM_WINDOWS = 3
"""An incident is over after this many windows in which nothing that belongs to it is surprising."""
STRONG = 5.0
"""How far beyond the limit a surprise must be to open an incident beside an ongoing one."""
MOST_ONGOING = 3
"""How many incidents of a kind are ongoing at most."""

RULE = 3
"""Number of the rule and of its simulation. Limits that were found under another number do not apply any more."""

_STREAMS = 60
_WINDOWS = 90
_MOST_VALUES = 6_000_000
_LEAST_STREAMS = 12
_GAUSSIAN = 0.8
_LIMITS = 40
_CACHED_VALUES = 20_000
_MOST_TOGETHER = 10


class IncidentRule:
    """Opens, extends and closes the incidents of each of several streams, one window at a time.

    A direction beyond the limit opens an incident if none is ongoing, and joins the newest otherwise. If its surprise
    is far beyond the limit, it opens an incident of its own, so that what is ongoing does not hide it; but no more than
    `MOST_ONGOING` at a time. A direction that has been calm for `CALM_WINDOWS` windows leaves, and an incident that all
    have left is over.
    """

    def __init__(self, streams: int, directions: int) -> None:
        self._incident = np.zeros((streams, directions), dtype=np.int8)
        """Number of the ongoing incident of each direction, from 1; 0 for none."""
        self._calm = np.zeros((streams, directions), dtype=np.int8)
        self._opened = np.zeros((streams, MOST_ONGOING), dtype=np.int32)
        """When the ongoing incident with each number was opened, in windows; numbers are used again."""
        self._window = 0
        self._numbers = np.arange(1, MOST_ONGOING + 1, dtype=np.int8)

    @property
    def ongoing(self) -> Flags:
        """Which streams have an ongoing incident, shape (streams,)."""
        return np.asarray((self._incident > 0).any(axis=1))

    def advance(self, strongest: Array, alone: Array, limit: float | Array) -> Flags:
        """Process one window; return which streams open an incident.

        Args:
            strongest: largest surprise over all scales, shape (streams, m).
            alone: surprise of this window, shape (streams, m).
            limit: surprise above which a direction is a reason to open an incident or to join one; one number, or one
                for each stream, shape (streams, 1).
        """
        beyond = strongest > limit
        new = beyond & (self._incident == 0)
        self._window += 1
        opening = np.zeros(len(new), dtype=bool)
        rows = np.flatnonzero(new.any(axis=1))
        if len(rows):
            # Only in these streams something happens, and they are few.
            own = (new & (strongest > limit + STRONG))[rows].any(axis=1)
            used = (self._incident[rows, :, None] == self._numbers).any(axis=1)
            opens = ~used.all(axis=1) & (own | ~used.any(axis=1))
            number = np.argmin(used, axis=1) + 1
            self._opened[rows[opens], number[opens] - 1] = self._window
            newest = np.argmax(np.where(used, self._opened[rows], 0), axis=1) + 1
            # An opening incident takes all that is new, whether or not it is strong.
            joined = np.where(opens, number, newest).astype(np.int8)
            self._incident[rows] = np.where(new[rows], joined[:, None], self._incident[rows])
            opening[rows] = opens
        restless = beyond | (alone > CALM_SURPRISE)
        self._calm = np.where(restless, 0, np.minimum(self._calm + 1, CALM_WINDOWS)).astype(np.int8)
        self._incident[self._calm >= CALM_WINDOWS] = 0
        return opening


def find_limit(model: NoiseModel, incidents_per_window: float, *, seed: int = 0) -> float:
    """Return the limit of surprise at which this many incidents open per window if nothing changes."""
    generator = np.random.default_rng(seed)
    m = len(model.names)
    least = -math.log(incidents_per_window)
    if not m:
        return least
    streams = int(np.clip(_MOST_VALUES // (_WINDOWS * max(m, 1)), _LEAST_STREAMS, _STREAMS))
    strongest, alone = _simulate(model, streams, generator)
    highest = strongest.max(axis=2).ravel()
    shares = np.geomspace(2 / len(highest), 0.7, _LIMITS)
    limits = np.unique(np.quantile(highest, 1 - shares))[::-1]
    strongest, alone = _only_candidates(strongest, alone, float(limits[-1]))
    before: tuple[float, float] | None = None
    most = (0.0, math.inf)
    for limit, opened in _count_by_limit(strongest, alone, limits):
        rate = opened / (streams * _WINDOWS)
        if rate >= incidents_per_window:
            if before is None:
                # The budget is below what the simulation can show. The tail of a p-value is exponential.
                return limit + math.log(rate / incidents_per_window)
            weight = (incidents_per_window - before[1]) / (rate - before[1])
            return before[0] + (limit - before[0]) * weight
        before = limit, rate
        most = max(most, (rate, limit))
    # Below some limit, incidents last so long that fewer are opened. So the limit that opens most is the lowest that
    # makes sense. Directions that never vary, such as those of a constant feature, open none.
    return most[1] if most[0] > 0 else least


def count_incidents(strongest: Array, alone: Array, limits: Sequence[float]) -> list[int]:
    """Return how many incidents open in streams of windows, shape (streams, windows, m), at each of several limits."""
    streams, windows, m = strongest.shape
    rule = IncidentRule(streams * len(limits), m)
    limit_of = np.repeat(np.asarray(limits, dtype=strongest.dtype), streams)[:, None]
    opened = np.zeros(len(limit_of), dtype=np.int64)
    for window in range(windows):
        highest, own = (np.tile(values[:, window], (len(limits), 1)) for values in (strongest, alone))
        opened += rule.advance(highest, own, limit_of)
    return [int(count) for count in opened.reshape(len(limits), streams).sum(axis=1)]


def _count_by_limit(strongest: Array, alone: Array, limits: Array) -> Iterator[tuple[float, int]]:
    """Count at one limit after the other. Several are counted together, as far as the processor's cache allows."""
    together = int(np.clip(_CACHED_VALUES // max(1, strongest.shape[0] * strongest.shape[2]), 1, _MOST_TOGETHER))
    for first in range(0, len(limits), together):
        part = [float(limit) for limit in limits[first : first + together]]
        yield from zip(part, count_incidents(strongest, alone, part), strict=True)


def _simulate(model: NoiseModel, streams: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return the strongest and the single surprises of simulated streams, shape (streams, windows, m)."""
    levels = model.levels
    m = len(model.names)
    cumulative = levels.weights.cumsum(axis=1)
    strongest = np.empty((streams, _WINDOWS, m), dtype=np.float32)
    alone = np.empty_like(strongest)
    step = model.blocks_per_window
    in_window = variance_of_mean(step, CORRELATIONS)
    chance = model.chance + model.season_variance
    variances = np.broadcast_to(model.chance, (_WINDOWS, m))
    every = np.arange(m)
    root = _root(model.residuals)
    for stream in range(streams):
        chosen = np.minimum((generator.random((m, 1)) > cumulative).sum(axis=1), cumulative.shape[1] - 1)
        correlation = CORRELATIONS[chosen] ** step
        deviation = np.sqrt(levels.level_variances[every, chosen] * in_window[chosen])
        innovation = _innovations(model, root, generator) * np.sqrt(1 - correlation**2)
        level = np.empty((_WINDOWS, m))
        level[0] = _innovations(model, root, generator, 1)[0]
        for window in range(1, _WINDOWS):
            level[window] = correlation * level[window - 1] + innovation[window]
        offset = generator.normal(size=m) * np.sqrt(levels.mean_variances[every, chosen])
        values = level * deviation + _innovations(model, root, generator) * np.sqrt(chance) + offset
        values *= model.alive
        strongest[stream], alone[stream] = model.strongest(values, variances, normal=True)
    return strongest, alone


def _innovations(model: NoiseModel, root: Array, generator: np.random.Generator, windows: int = _WINDOWS) -> Array:
    """Return standardised residuals of as many windows, shape (windows, m), correlated as those of the reference.

    Args:
        root: what `_root` returns for the model.
    """
    residuals = model.residuals
    blocks, m = residuals.shape
    if blocks < 2:
        return generator.standard_normal((windows, m))
    gaussian = generator.standard_normal((windows, len(root))) @ root
    drawn = residuals[generator.integers(blocks, size=windows)]
    values = _GAUSSIAN * gaussian + math.sqrt(1 - _GAUSSIAN**2) * drawn
    if model.unknown.any():
        values[:, model.unknown] = generator.standard_normal((windows, int(model.unknown.sum())))
    return np.asarray(values)


def _root(residuals: Array) -> Array:
    """Return a matrix R with RᵀR = the mean of the products of the residuals, with as few rows as possible."""
    blocks, m = residuals.shape
    scaled = residuals / math.sqrt(max(blocks, 1))
    # The triangle of a QR decomposition has the same products as the matrix.
    return np.asarray(np.linalg.qr(scaled, mode="r")) if blocks > m else scaled


def _only_candidates(strongest: Array, alone: Array, lowest: float) -> tuple[Array, Array]:
    """Leave out directions that never reach the lowest limit; they can neither open nor prolong an incident."""
    # Each stream keeps as many of its directions as the stream with the most candidates has.
    peaks = strongest.max(axis=1)
    most = max(1, int((peaks > lowest).sum(axis=1).max()))
    chosen = np.argsort(-peaks, axis=1)[:, :most]
    index = chosen[:, None, :]
    return np.take_along_axis(strongest, index, axis=2), np.take_along_axis(alone, index, axis=2)
