"""Seasons that a user declares, because the reference is too short to show them.

Within such a season a smooth change is expected. The course of a direction is a constant and a few harmonics of the
season, with a normal prior. It is learned by linear regression from the blocks of the reference and from the windows
that have been logged since. Each window is compared with the course as the windows up to seven before it show it, and
the uncertainty of the course counts as noise. So a slow course is followed, and a step stands out.

Windows that deviate clearly teach little. If seven in a row do, there has been a step, and they teach nothing. The step
gets a coefficient of its own, so that later windows still teach the course, while the step stays a deviation. After a
whole season, the harmonics are known, and so is the same phase of the season before.

Source: C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning (2006), section 2.1 (Bayesian linear
regression). The level wanders, so neighbouring windows are not independent: its variance counts as that of white noise
with the same spectrum at low frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.errors import UsageError
from everloop.monitoring.noise.level_process import LevelProcess, learn_levels_and_course
from everloop.stores.durations import format_duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

YEAR = timedelta(days=365.2425)
LAG = 7
"""A window is compared with the course up to this many windows before, as many as are judged together."""

_MONTH = timedelta(days=31)
_MONDAY = np.datetime64("1970-01-05", "us")
_HARMONICS = 3
_PRIOR = 0.5
"""Standard deviation of the first harmonic, in standard deviations of a feature; that of the n-th is an n-th of it."""
_PRIOR_OF_REST = 2.0
"""The same for what is left of the cells, in standard deviations of chance."""
_DIFFUSE = 1e-6
_SURE = 1e6
_STEP = 0.01
"""Precision of a step before any data: it is hardly limited."""
_USUAL = 3.0
"""Windows that deviate by more standard deviations than this teach less, by the square of what is beyond."""
_UPDATES = 100
"""The course is learned again about this many times in a season."""
_LEAST_MEMORY, _MOST_MEMORY = 60, 800
_EXAMPLES = "Write a length such as '12h', '28d' or '1w', or 'month' for the days of the month, or '1y' for the year."


@dataclass(frozen=True, slots=True)
class DeclaredSeason:
    """A season by its name; `length` is that of one cycle, 31 days for the month of the calendar."""

    name: str
    length: timedelta

    def phase(self, seconds: Array) -> Array:
        """Return the phase of moments within the season, from 0 up to 1.

        Args:
            seconds: moments as `seconds_of` gives them.
        """
        if self.name != "month":
            return np.asarray(seconds / self.length.total_seconds() % 1.0)
        moments = _MONDAY + np.rint(seconds * 1e6).astype("timedelta64[us]")
        return np.asarray((moments - moments.astype("datetime64[M]")) / np.timedelta64(_MONTH))


def parse_season(text: object) -> DeclaredSeason:
    """Return the season that a text names.

    Raises:
        UsageError: it does not name a season.
    """
    if not isinstance(text, str):
        raise UsageError(f"A season is {text!r}, but must be a string.", help=_EXAMPLES)
    name = text.strip().lower()
    if name == "month":
        return DeclaredSeason(name, _MONTH)
    if name == "1y":
        return DeclaredSeason(name, YEAR)
    try:
        length = parse_duration(name)
    except UsageError:
        raise UsageError(f"'{text[:100]}' is not a season.", help=_EXAMPLES) from None
    if not length:
        raise UsageError(f"The season '{text}' has no length.", help=_EXAMPLES)
    return DeclaredSeason(name, length)


def parse_seasons(texts: object, window: timedelta) -> tuple[DeclaredSeason, ...]:
    """Return the seasons that texts name, for windows of this length.

    Raises:
        UsageError: a text does not name a season, two name the same, or a season is not longer than a window.
    """
    if isinstance(texts, str) or not isinstance(texts, (list, tuple)):
        raise UsageError(f"The seasons are {texts!r}, but must be a list.", help="For example: ['1y'] or ['28d', '1y']")
    found = tuple(parse_season(text) for text in texts)
    for index, season in enumerate(found):
        if season.length <= window:
            raise UsageError(
                f"The season '{season.name}' is not longer than a window, which lasts {format_duration(window)}, so it "
                "cannot be seen.",
                help="Leave the season out, or choose shorter windows.",
            )
        if season.length in [other.length for other in found[:index]]:
            raise UsageError(f"The season '{season.name}' is declared twice.", help="Leave one of them out.")
    return found


@dataclass(frozen=True, slots=True)
class SeasonCourse:
    """The courses of m directions in seasons that the reference does not show; k coefficients each.

    Attributes:
        span: length of a window.
        precision: what is known about the coefficients from the prior and the reference, shape (m, k, k).
        product: the precision times the expected coefficients, shape (m, k).
        prior: precision of each coefficient before any data, shape (m, k).
        white: variance per window of white noise that moves the mean of a sixth of the season as much as the level
            does, shape (m,).
        level: variance of the level in a window, shape (m,).
        since: windows that start earlier do not teach, in seconds, shape (m,).
    """

    seasons: tuple[DeclaredSeason, ...]
    span: timedelta
    precision: Array
    product: Array
    prior: Array
    white: Array
    level: Array
    since: Array

    @classmethod
    def unseen(cls, seasons: tuple[DeclaredSeason, ...], span: timedelta, rest: Flags) -> SeasonCourse:
        """Return the courses if the reference has no times: its mean is that of the whole season.

        Args:
            rest: which directions are what is left of the cells, shape (m,).
        """
        prior = _prior(seasons, span, rest)
        m, k = prior.shape
        prior[:, 0] = _SURE
        zero = np.zeros(m)
        precision = prior[:, :, None] * np.eye(k)
        return cls(seasons, span, precision, np.zeros((m, k)), prior, zero, zero, np.full(m, -np.inf))

    def learned(
        self, values: Array, variances: Array, starts: Array, span: timedelta, groups: Array, guess: Array
    ) -> tuple[SeasonCourse, LevelProcess]:
        """Return the courses as the blocks of a reference show them, and the levels that wander around them.

        Args:
            values, variances: deviations by block, shape (blocks, m), and their variances by chance.
            starts: start of each block, in seconds.
            span: length of a block.
            groups, guess: as for `learn_levels`.
        """
        prior = self.prior.copy()
        prior[:, 0] = _DIFFUSE
        design = self._design(starts + span.total_seconds() / 2)
        levels, precision, product = learn_levels_and_course(values, variances, groups, guess, design, prior)
        return replace(self, precision=precision, product=product, prior=prior), levels

    def with_levels(self, levels: LevelProcess, blocks_per_window: float) -> SeasonCourse:
        """Return the same courses, with the levels that wander around them."""
        shortest = min(season.length for season in self.seasons)
        windows = max(1, round(shortest / 6 / self.span))
        one, several = (
            np.maximum(levels.variance(blocks_per_window * count) - levels.mean_spread, 0.0) for count in (1, windows)
        )
        return replace(self, level=one, white=windows * several)

    def recentred(self, own: Flags, moment: float, until: float, variance: Array) -> SeasonCourse:
        """Return the courses around other centres, of which only their phase is known.

        Args:
            own: directions whose centre is the mean of accepted windows, shape (m,).
            moment: middle of these windows, in seconds.
            until: their end.
            variance: how uncertain their mean is, shape (m,).
        """
        design = self._design(np.array([moment]))[0]
        known = design[:, None] * design / np.maximum(variance, 1e-12)[:, None, None]
        prior = self.prior.copy()
        prior[:, 0] = _DIFFUSE
        return replace(
            self,
            precision=np.where(own[:, None, None], prior[:, :, None] * np.eye(prior.shape[1]) + known, self.precision),
            product=np.where(own[:, None], 0.0, self.product),
            since=np.where(own, until, self.since),
        )

    @property
    def memory(self) -> int:
        """How many windows before the one that is judged teach the course."""
        longest = max(season.length for season in self.seasons)
        return min(_MOST_MEMORY, max(_LEAST_MEMORY, math.ceil(2 * longest / self.span)))

    def at(self, starts: Array, span: timedelta) -> tuple[Array, Array]:
        """Return the courses as the reference shows them, and how uncertain they are, shape (windows, m)."""
        return _predicted(self.precision, self.product, self._design(starts + span.total_seconds() / 2))

    def expect(self, values: Array, variances: Array, starts: Array) -> tuple[Array, Array]:
        """Return the course of each window from the reference and the windows before, and how uncertain it is.

        Args:
            values, variances: deviations of windows in a row, shape (windows, m), and their variances by chance.
            starts: start of each window, in seconds.
        """
        count, m = values.shape
        design = self._design(starts + self.span.total_seconds() / 2)
        # The last coefficient is that of a step, which the course of a window is returned without.
        before, after = (np.column_stack([design, np.full(count, part)]) for part in (0.0, 1.0))
        precision, product = _with_step(self.precision), np.pad(self.product, ((0, 0), (0, 1)))
        stepped, outside = np.zeros((count, m), dtype=bool), np.zeros(m, dtype=np.int64)
        weights, course, unsure = np.zeros((count, m)), np.zeros((count, m)), np.zeros((count, m))
        taught = 0
        for first, end in self._parts(starts):
            part, past = slice(first, end), slice(taught, max(taught, first - LAG + 1))
            for columns, own in ((before, ~stepped[past]), (after, stepped[past])):
                precision, product = _add(precision, product, columns[past], values[past], weights[past] * own)
            taught = past.stop
            course[part], unsure[part] = _predicted(precision, product, before[part])
            with_step, unsure_with_step = _predicted(precision, product, after[part])
            for window in range(first, end):
                stepped[window] = stepped[window - 1] if window else False
                own = stepped[window]
                centre = np.where(own, with_step[window - first], course[window])
                variance = np.where(own, unsure_with_step[window - first], unsure[window])
                known = np.isfinite(variances[window]) & (starts[window] >= self.since)
                total = np.maximum(variances[window] + self.level + variance, 1e-12)
                surprising = np.maximum((values[window] - centre) ** 2 / total / _USUAL**2, 1.0)
                noise = np.maximum(variances[window] + self.white, 1e-12) * surprising
                weights[window] = np.where(known, 1 / noise, 0.0)
                outside = np.where(known, np.where(surprising > 1, outside + 1, 0), outside)
                if (outside >= LAG).any():
                    new = outside >= LAG
                    stepped[window, new], outside[new] = True, 0
                    weights[max(0, window - LAG + 1) : window + 1, new] = 0.0
                    precision[new], product[new] = _with_new_step(precision[new], product[new])
        return course, unsure

    def _parts(self, starts: Array) -> list[tuple[int, int]]:
        """Return the first and the last window of each part for which the course is learned again."""
        shortest = min(season.length for season in self.seasons)
        number = np.rint(starts / self.span.total_seconds()) // max(1, int(shortest / self.span / _UPDATES))
        borders = np.flatnonzero(np.diff(number, prepend=-1.0) != 0).tolist()
        return list(zip(borders, [*borders[1:], len(starts)], strict=True))

    def _design(self, middles: Array) -> Array:
        columns = [np.ones(len(middles))]
        for season in self.seasons:
            angles = 2 * np.pi * season.phase(middles)
            for number in range(1, _harmonics(season, self.span) + 1):
                columns += [np.cos(number * angles), np.sin(number * angles)]
        return np.stack(columns, axis=1)


def _harmonics(season: DeclaredSeason, span: timedelta) -> int:
    return max(1, min(_HARMONICS, int(season.length / span / 2)))


def _prior(seasons: Sequence[DeclaredSeason], span: timedelta, rest: Flags) -> Array:
    """Return the precision of each coefficient before any data, shape (m, k)."""
    numbers = [number for season in seasons for number in range(1, _harmonics(season, span) + 1) for _ in range(2)]
    scale = np.where(rest, _PRIOR_OF_REST, _PRIOR)[:, None] / np.array(numbers)
    return np.concatenate([np.full((len(rest), 1), _DIFFUSE), 1 / scale**2], axis=1)


def _add(precision: Array, product: Array, design: Array, values: Array, weights: Array) -> tuple[Array, Array]:
    """Return what is known about the coefficients after more windows."""
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), design.shape[1] ** 2)
    more = (weights.T @ squares).reshape(precision.shape)
    return precision + more, product + (weights * values).T @ design


def _with_step(precision: Array) -> Array:
    padded = np.pad(precision, ((0, 0), (0, 1), (0, 1)))
    padded[:, -1, -1] = _STEP
    return padded


def _with_new_step(precision: Array, product: Array) -> tuple[Array, Array]:
    """Return what is known about the coefficients if the step from now on is another one."""
    column, own = precision[:, :-1, -1:], precision[:, -1:, -1:]
    rest = precision[:, :-1, :-1] - column * column.transpose(0, 2, 1) / own
    left = product[:, :-1] - column[:, :, 0] * product[:, -1:] / own[:, 0]
    return _with_step(rest), np.pad(left, ((0, 0), (0, 1)))


def _predicted(precision: Array, product: Array, design: Array) -> tuple[Array, Array]:
    """Return expected values and their variances, shape (windows, m)."""
    inverse = np.linalg.inv(precision)
    coefficients = (inverse @ product[:, :, None])[:, :, 0]
    spread = np.einsum("tk,mkl,tl->tm", design, inverse, design, optimize=True)
    return design @ coefficients.T, np.maximum(spread, 0.0)
