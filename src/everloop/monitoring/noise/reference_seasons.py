"""Learn the seasons of a reference: hours of the day, days of the week, the course of the year, and declared cycles.

A season is only used as far as the reference shows it: the means by hour and by weekday are shrunk towards zero by as
much as chance explains them, and the course of the year (two harmonics) must raise the likelihood of the reference
beyond what a wandering level explains. Source of the shrinkage: W. James, C. Stein, Estimation with quadratic loss
(1961), in its F-statistic form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.monitoring.noise.declared_seasons import YEAR
from everloop.monitoring.noise.level_process import log_evidence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.monitoring.noise.declared_seasons import DeclaredSeason

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 5, tzinfo=UTC)
"""A Monday."""
_LEAST_CYCLES = 3
"""A season needs this many cycles in the reference; the year needs most of one."""
_LEAST_YEAR = 0.8
_BUILT_IN = ((timedelta(hours=1), DAY), (DAY, 7 * DAY))
"""Phases of the cycles that are always looked for."""
_LEAST_F = 1.5
_MOST_STEPS = 31
_HARMONICS = 2


@dataclass(frozen=True, slots=True)
class CyclicSeason:
    """Means by phase of a cycle of `steps` phases, each `phase` long.

    `effects`: shape (steps, directions). `variance`: of an effect, shape (directions,).
    """

    phase: timedelta
    steps: int
    effects: Array
    variance: Array

    def at(self, starts: Array, span: timedelta) -> Array:
        """Return the mean effect over windows, shape (windows, directions)."""
        count = max(1, round(span / self.phase))
        length = self.phase.total_seconds()
        first = (
            np.rint(starts / length) if span >= self.phase else np.floor((starts + span.total_seconds() / 2) / length)
        )
        first = first.astype(np.int64)
        if count % self.steps == 0:
            return np.zeros((len(starts), self.effects.shape[1]))
        sums = [self.effects[(first + step) % self.steps] for step in range(count % self.steps)]
        return np.asarray(sum(sums) / count)


@dataclass(frozen=True, slots=True)
class LearnedCycle:
    """Means by phase of a declared season. `effects`: shape (steps, directions)."""

    season: DeclaredSeason
    effects: Array
    variance: Array

    def number(self, middles: Array) -> Integers:
        """Return the step of each moment."""
        return _step_of(self.season, len(self.effects), middles)

    def at(self, starts: Array, span: timedelta) -> Array:
        """Return the mean effect over windows, shape (windows, directions)."""
        parts = max(1, round(span / self.season.length * len(self.effects)))
        length = span.total_seconds() / parts
        sums = [self.effects[self.number(starts + (part + 0.5) * length)] for part in range(parts)]
        return np.asarray(sum(sums) / parts)


@dataclass(frozen=True, slots=True)
class YearlySeason:
    """The course of the year as harmonics; `coefficients`: shape (2 · harmonics, directions)."""

    coefficients: Array
    variance: Array

    def at(self, starts: Array, span: timedelta) -> Array:
        return _harmonics(starts + span.total_seconds() / 2) @ self.coefficients


Season = CyclicSeason | LearnedCycle | YearlySeason


def can_learn(season: DeclaredSeason, blocks: int, span: timedelta) -> bool:
    """Return whether a reference of this many blocks is long enough, and its blocks short enough, to show a season."""
    return 2 * span <= season.length and blocks * span >= season.length * (
        _LEAST_YEAR if season.length == YEAR else _LEAST_CYCLES
    )


def learn_seasons(
    values: Array, variances: Array, starts: Array, span: timedelta, declared: Sequence[DeclaredSeason] = ()
) -> list[Season]:
    """Return the seasons that the reference's blocks show.

    Args:
        values: deviations by block and direction, shape (blocks, directions).
        variances: their variances by chance; infinite for a block without rows.
        starts: start of each block in seconds since the epoch of this module, see `seconds_of`.
        span: length of a block.
        declared: further cycles to look for. Those for which the reference is too short are not looked for.
    """
    seasons: list[Season] = []
    known = np.asarray(np.isfinite(variances))
    residual = np.where(known, values, 0.0)
    length = span * len(values)
    for phase, cycle in _BUILT_IN:
        if span <= phase and length >= _LEAST_CYCLES * cycle:
            steps = cycle // phase
            number = (np.floor(starts / phase.total_seconds()) % steps).astype(np.int64)
            found = _means_by_step(residual, known, number, steps)
            if found is not None:
                seasons.append(CyclicSeason(phase, steps, *found))
                residual = np.where(known, residual - seasons[-1].at(starts, span), 0.0)
    for season in declared:
        built_in = season.length == YEAR or any(season.length == cycle and span <= unit for unit, cycle in _BUILT_IN)
        if not built_in and can_learn(season, len(values), span):
            steps = min(_MOST_STEPS, int(season.length / span))
            found = _means_by_step(residual, known, _step_of(season, steps, starts + span.total_seconds() / 2), steps)
            if found is not None:
                seasons.append(LearnedCycle(season, *found))
                residual = np.where(known, residual - seasons[-1].at(starts, span), 0.0)
    if length >= _LEAST_YEAR * YEAR:
        year = _yearly(residual, variances, known, starts, span)
        if year is not None:
            seasons.append(year)
    return seasons


def effect_of(seasons: list[Season], starts: Array, span: timedelta, directions: int) -> tuple[Array, Array]:
    """Return the seasonal deviation of windows, shape (windows, directions), and its variance, shape (directions,)."""
    effect, variance = np.zeros((len(starts), directions)), np.zeros(directions)
    for season in seasons:
        effect += season.at(starts, span)
        variance += season.variance
    return effect, variance


def seconds_of(moment: datetime) -> float:
    """Return the seconds since a Monday midnight (UTC) in 1970."""
    return (moment - _EPOCH).total_seconds()


def _step_of(season: DeclaredSeason, steps: int, middles: Array) -> Integers:
    # A moment on the border of two steps belongs to the later one, whatever its phase is rounded to.
    return np.minimum(np.floor(season.phase(middles) * steps + 1e-9), steps - 1).astype(np.int64)


def _means_by_step(values: Array, known: Flags, number: Integers, steps: int) -> tuple[Array, Array] | None:
    """Return the shrunk effect of each step, shape (steps, directions), and its variance; None if there are none."""
    counts, sums, squares = (np.zeros((steps, values.shape[1])) for _ in range(3))
    np.add.at(counts, number, known)
    np.add.at(sums, number, values)
    np.add.at(squares, number, values * values)
    total, occupied = counts.sum(axis=0), (counts > 0).sum(axis=0)
    freedom = total - occupied
    means = sums / np.maximum(counts, 1)
    centre = sums.sum(axis=0) / np.maximum(total, 1)
    effects = np.where(counts > 0, means - centre, 0.0)
    within = np.maximum((squares - counts * means**2).sum(axis=0), 0.0) / np.maximum(freedom, 1)
    between = (counts * effects**2).sum(axis=0) / np.maximum(occupied - 1, 1)
    ratio = np.divide(between, within, out=np.zeros(len(within)), where=within > 0)
    shown = (ratio >= _LEAST_F) & (freedom > 1) & (occupied > 1)
    if not shown.any():
        return None
    shrinkage = np.where(shown, 1 - 1 / np.maximum(ratio, 1.0), 0.0)
    return effects * shrinkage, shrinkage * within * steps / np.maximum(total, 1)


def _yearly(values: Array, variances: Array, known: Flags, starts: Array, span: timedelta) -> Season | None:
    design = _harmonics(starts + span.total_seconds() / 2)
    design = design - design.mean(axis=0)
    coefficients = np.linalg.lstsq(design, values, rcond=None)[0]
    residual = values - design @ coefficients
    # Bayesian information criterion: half the logarithm of the number of blocks for each coefficient.
    penalty = 0.5 * design.shape[1] * math.log(max(2, len(values)))
    gain = log_evidence(residual, variances) - log_evidence(values, variances)
    # Directions that have no rows in much of the year, such as a score on held-out days, show no course of it.
    shown = (gain > penalty) & (known.mean(axis=0) >= _LEAST_YEAR)
    if not shown.any():
        return None
    spread = residual.var(axis=0) * design.shape[1] / len(values)
    return YearlySeason(np.where(shown, coefficients, 0.0), np.where(shown, spread, 0.0))


def _harmonics(middles: Array) -> Array:
    angles = 2 * np.pi * middles[:, None] / YEAR.total_seconds() * np.arange(1, _HARMONICS + 1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
