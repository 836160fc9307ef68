"""The noise model of a reference: what its directions do by chance, by wandering levels and by season.

Everything is learned once for a baseline, a length of windows and a rough number of rows. After that, any number of
windows is measured with array operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.monitoring.noise.declared_seasons import DeclaredSeason, SeasonCourse
from everloop.monitoring.noise.directions import (
    CORRELATION,
    LOCATION,
    MISSING,
    NEW,
    OUTSIDE,
    REST,
    SCALE,
    Deviations,
    Directions,
    cube_root_score,
)
from everloop.monitoring.noise.level_process import LevelProcess, assume_levels, learn_levels
from everloop.monitoring.noise.reference_seasons import Season, can_learn, effect_of, learn_seasons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set
    from datetime import timedelta

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.data.sketches.pair_correlations import PairMoments

    Accepted = tuple[Sketch, float, float]
    AcceptedCorrelation = tuple[float, int, float, float]

Array = npt.NDArray[np.float64]

CALM_SURPRISE = 4.6
"""−ln of the p-value below which a direction is calm: p above 0.01."""

SCALES = (1, 3, 7)
"""How many consecutive windows are also judged together, so that a small shift is found if it lasts."""

_ASSUMED_LEVEL = 0.05
"""Standard deviation of the level if the reference has no times: a twentieth of the feature's own."""
_ASSUMED_REST = 0.5
_DEVIATES = 2.6
"""Standard deviations above which it matters whether the deviation of several windows is over."""
_NEWEST = {3: (1, 2), 7: (1, 3, 5, 6)}
"""By scale, how many of the newest windows may show that a change is over."""
_OVER = 2.0
"""How much larger the log-likelihood must be for that."""
_TOGETHER = 64
"""Directions that are judged at the same time, so that a thousand windows fit into the processor's cache."""
_LEAST_WINDOWS = 20
"""Blocks of the reference are merged into windows if there are at least as many windows."""
_KINDS = frozenset({LOCATION, SCALE, MISSING, OUTSIDE, NEW, REST, CORRELATION})
_NORMAL = 200.0
"""Degrees of freedom above which tails count as normal."""
_LEAST_FOR_TAILS = 12
_POOLED_BLOCKS = 100
_LARGEST_INFLATION = 5.0
_LEAST_FREEDOM = 0.5
_LEAST_RESIDUALS = 6
_SHARE_FOR_PAIRS = 0.2
_SHARE_FOR_SCORE = 0.15


@dataclass(frozen=True, slots=True)
class ReferenceCounts:
    """What the noise model learns from: sketches by subject, and counts by block.

    Attributes:
        sketches: the whole reference, by subject.
        blocks: counts by block, shape (blocks, cells), by subject; empty if the reference has no times.
        starts: start of each block, in seconds as `seconds_of` gives them, shape (blocks,).
        span: length of a block.
        pairs: features whose correlations are monitored.
        block_pairs: how they move together in each block; None if it is not known.
        reference_correlations: Fisher-transformed, of the whole reference, shape (pairs,).
    """

    sketches: Mapping[str, Sketch]
    blocks: Mapping[str, Array]
    starts: Array
    span: timedelta
    score: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    block_pairs: PairMoments | None = None
    reference_correlations: Array | None = None


@dataclass(frozen=True, slots=True)
class _Rest:
    """Moments of the chi-square of the cells: expected overdispersion by row, and effective degrees of freedom."""

    freedom: int
    overdispersion: float
    effective: float
    inflation: float = 1.0


@dataclass(slots=True)
class NoiseModel:
    """The noise of all directions of a reference; m directions in all, in a fixed order.

    Attributes:
        names: subject and direction of each, m of them. A pair of features has the subject `a × b`.
        handicap: by how much the surprise of a direction is lowered, because it belongs to a large family.
        one_sided: directions in which only large values are surprising, shape (m,).
        rising: shares of values that the reference lacks, of which only more are surprising, shape (m,).
        alive: directions that vary at all in the reference, shape (m,).
        residuals: standardised residuals of the reference's blocks, shape (blocks, m), for simulations; brought to
            normal tails.
        calibration: standard deviation that chance has in units of what theory says, shape (m,), by kind of direction.
        tails: degrees of freedom of a t-distribution with the tails of the residuals, shape (m,).
        unknown: directions with too few blocks to tell their residuals, shape (m,); the normal distribution is assumed.
        chance: variance by chance in a typical window, shape (m,).
        course: the course of declared seasons that the reference does not show; None if there are none.
    """

    names: list[tuple[str, str]]
    one_sided: npt.NDArray[np.bool_]
    rising: npt.NDArray[np.bool_]
    handicap: Array
    levels: LevelProcess
    seasons: list[Season]
    season_variance: Array
    span: timedelta
    blocks_per_window: float
    residuals: Array
    tails: Array
    calibration: Array
    alive: npt.NDArray[np.bool_]
    unknown: npt.NDArray[np.bool_]
    chance: Array
    _directions: list[Directions]
    _rests: dict[str, _Rest]
    course: SeasonCourse | None = None
    _pairs: tuple[tuple[str, str], ...] = ()
    _reference_correlations: Array | None = None
    _variances: dict[int, Array] = field(default_factory=dict)
    _centre: Array | None = None
    """Where deviations are measured from; None: the mean of the reference's blocks, shape (m,)."""
    _centre_variance: Array | float = 0.0
    """How uncertain it is, beyond the level's own variance."""

    @classmethod
    def learn(
        cls,
        reference: ReferenceCounts,
        window: timedelta,
        rows: float,
        declared: tuple[DeclaredSeason, ...] = (),
    ) -> NoiseModel:
        """Learn the noise from a reference.

        Args:
            window: length of the windows that will be judged. If it is shorter than a block of the reference, the
                model is that of windows as long as a block.
            rows: rows of a typical window.
            declared: seasons besides hours, weekdays and the year.
        """
        blocks, starts, span, correlations = _merge_blocks(reference, window)
        per_window = max(1.0, window / span) if len(starts) else 1.0
        directions = [Directions(name, sketch, rows) for name, sketch in reference.sketches.items()]
        measured: dict[str, Deviations] = {}
        for item in directions if len(starts) else ():
            item.learn_response(blocks[item.subject])
            measured[item.subject] = item.measure(blocks[item.subject], seen=True)
        rests = {item.subject: _rest_of(item, measured.get(item.subject)) for item in directions}
        names = _names(directions, reference.pairs)
        chance = _chance(directions, rows, len(reference.pairs))
        one_sided = np.array([direction == REST for _, direction in names], dtype=bool)
        model = cls(
            names=names,
            one_sided=one_sided,
            rising=np.array([direction in (OUTSIDE, NEW) for _, direction in names], dtype=bool),
            handicap=_handicaps(names, reference.score),
            levels=assume_levels(np.zeros(len(names))),
            seasons=[],
            season_variance=np.zeros(len(names)),
            span=window,
            blocks_per_window=per_window,
            residuals=np.zeros((0, len(names))),
            tails=np.full(len(names), _NORMAL),
            calibration=np.ones(len(names)),
            alive=np.ones(len(names), dtype=bool),
            unknown=np.zeros(len(names), dtype=bool),
            chance=chance,
            _directions=directions,
            _rests=rests,
            _pairs=reference.pairs,
            _reference_correlations=reference.reference_correlations,
        )
        hidden = tuple(season for season in declared if not can_learn(season, len(starts), span))
        if hidden:
            model.course = SeasonCourse.unseen(hidden, window, one_sided)
        if len(starts) and names:
            model._learn_blocks(measured, correlations, starts, span, declared)
        else:
            # A reference without times says nothing about wandering levels, so a small one is assumed.
            guess = np.where(one_sided, _ASSUMED_REST**2, _ASSUMED_LEVEL**2)
            known = max((item.rows for item in directions), default=1.0)
            own = _chance(directions, known, len(reference.pairs))
            # The rest is already divided by what chance in the window and in the reference explain together.
            model.levels = assume_levels(guess, np.where(one_sided, rows / (rows + known), own))
        if model.course is not None:
            model.course = model.course.with_levels(model.levels, per_window)
        return model

    def recentred(self, accepted: Mapping[str, Accepted], pairs: Mapping[str, AcceptedCorrelation]) -> NoiseModel:
        """Return the model with the same noise around other centres.

        Args:
            accepted: by subject, its sketch in the accepted windows, and their start and end in seconds as
                `seconds_of` gives them.
            pairs: by pair, its Fisher-transformed correlation, the number of rows, and the windows' start and end.
        """
        centre, extra, rests = self.levels.mean.copy(), np.zeros(len(self.names)), dict(self._rests)
        course = self.course
        index_of = {subject: index for index, (subject, kind) in enumerate(self.names) if kind == CORRELATION}
        moved = {
            item.subject: item.recentred(accepted[item.subject][0])
            for item in self._directions
            if item.subject in accepted
        }
        for subject, directions in moved.items():
            sketch, since, until = accepted[subject]
            own = np.array(
                [name == subject and not rest for (name, _), rest in zip(self.names, self.one_sided, strict=True)]
            )
            effect, level, windows = self._accepted_noise(since, until)
            # Shares of cells without rows are not 0, so the accepted windows deviate a little from themselves.
            centre[own] = directions.measure(sketch.array()[None, :]).values[0] - effect[own]
            extra[own] = level[own] + 1 / max(sketch.rows, 1)
            if course is not None:
                course = course.recentred(own, (since + until) / 2, until, extra)
            if subject in rests:
                rests[subject] = replace(rests[subject], inflation=rests[subject].inflation * (1 + 1 / windows))
        correlations = None if self._reference_correlations is None else self._reference_correlations.copy()
        for subject, (value, rows, since, until) in pairs.items():
            if subject in index_of and correlations is not None:
                index = index_of[subject]
                effect, level, _ = self._accepted_noise(since, until)
                correlations[index - len(self.names)] = value
                centre[index] = -effect[index]
                extra[index] = level[index] + 1 / max(rows - 3, 1)
                if course is not None:
                    course = course.recentred(np.arange(len(self.names)) == index, (since + until) / 2, until, extra)
        return replace(
            self,
            _directions=[moved.get(item.subject, item) for item in self._directions],
            _rests=rests,
            _variances={},
            _reference_correlations=correlations,
            _centre=centre,
            _centre_variance=extra,
            course=course,
        )

    def _accepted_noise(self, since: float, until: float) -> tuple[Array, Array, int]:
        """Return the mean seasonal effect of accepted windows, how uncertain their level is, and their number.

        Accepted windows are few, so their mean is known less well than that of the reference.
        """
        length = self.span.total_seconds()
        count = max(1, round((until - since) / length))
        starts = np.asarray(since + length * np.arange(count), dtype=np.float64)
        effect, _ = effect_of(self.seasons, starts, self.span, len(self.names))
        level = self.levels.variance(self.blocks_per_window * count) + self.season_variance / count
        return effect.mean(axis=0), level, count

    def deviations(
        self, counts: Mapping[str, Array], starts: Array, correlations: Array | None = None, rows: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the deviations of windows and their variances by chance, both of shape (windows, m).

        Args:
            counts: counts by subject, shape (windows, cells). A subject that is absent deviates in nothing.
            starts: start of each window, in seconds as `seconds_of` gives them.
            correlations: Fisher-transformed correlations of the pairs, shape (windows, pairs); None: not known.
            rows: rows of each window, for the variance of correlations.
        """
        measured = {
            item.subject: item.measure(counts[item.subject]) for item in self._directions if item.subject in counts
        }
        values, variances = self._stack(measured, len(starts), correlations, rows, reference=False)
        effect, _ = effect_of(self.seasons, starts, self.span, len(self.names))
        return values - effect - (self.levels.mean if self._centre is None else self._centre), variances

    def follow_seasons(self, values: Array, variances: Array, starts: Array) -> tuple[Array, Array | None]:
        """Return deviations from the course of the declared seasons, and how uncertain it is; None without a course.

        Args:
            values, variances: as `deviations` returns them, of windows in a row.
            starts: start of each window, in seconds.
        """
        if self.course is None:
            return values, None
        course, unsure = self.course.expect(values, variances, starts)
        return np.where(np.isfinite(variances), values - course, 0.0), unsure

    def z_scores(self, values: Array, variances: Array, scale: int = 1, unsure: Array | None = None) -> Array:
        """Return standardised deviations, shape (windows, m), of the mean of `scale` windows up to each one.

        The first windows, which have too few before them, get 0.

        Args:
            unsure: variance that windows in a row have in common, as `follow_seasons` returns it.
        """
        total, chance = _rolling(values, variances, scale)
        level = self._variance(scale)
        spread = np.sqrt((level if unsure is None else level + unsure) + chance)
        spread = spread * self.calibration
        return np.asarray(np.divide(total, spread, out=np.zeros_like(total), where=np.isfinite(spread) & (spread > 0)))

    def surprise(self, z_scores: Array, *, normal: bool = False) -> Array:
        """Return −ln of the p-value of standardised deviations, less the handicap of their family.

        Args:
            normal: whether the deviations are normal, as simulated ones are. Otherwise they have the tails of the
                reference's residuals.
        """
        return self._surprise(self._size(z_scores), normal=normal)

    def _size(self, z_scores: Array) -> Array:
        """Return how large deviations are, in the directions in which they are surprising."""
        return np.asarray(np.where(self.one_sided | self.rising, np.maximum(z_scores, 0.0), np.abs(z_scores)))

    def _surprise(self, size: Array, *, normal: bool) -> Array:
        if not normal:
            size = as_normal(size, self.tails)
        # ln of the tail of the normal distribution by Birnbaum's bound, which is within 0.23 at 0 and exact far out.
        square = size * size
        tail = 0.5 * square + np.log((size + np.sqrt(square + 4)) / 2)
        sides = np.where(self.one_sided | self.rising, 0.0, math.log(2))
        return np.asarray(tail + (0.5 * math.log(2 * math.pi) - sides - self.handicap))

    def strongest(
        self, values: Array, variances: Array, *, normal: bool = False, unsure: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the largest surprise over all scales, and that of each window alone, both of shape (windows, m).

        The second one is −ln of the p-value without the handicap. It decides what is calm, and how many other
        directions there are must not matter for that.

        Args:
            unsure: as for `z_scores`.
        """
        strongest, alone = np.empty_like(values), np.empty_like(values)
        for first in range(0, values.shape[1], _TOGETHER):
            part = slice(first, first + _TOGETHER)
            found = self._part(part)._strongest(
                values[:, part], variances[:, part], normal, None if unsure is None else unsure[:, part]
            )
            strongest[:, part], alone[:, part] = found
        return strongest, alone

    def _part(self, part: slice) -> NoiseModel:
        """Return what `_strongest` needs of the model, for some of the directions."""
        if len(self.names) <= _TOGETHER:
            return self
        return replace(
            self,
            one_sided=self.one_sided[part],
            rising=self.rising[part],
            handicap=self.handicap[part],
            calibration=self.calibration[part],
            tails=self.tails[part],
            _variances={scale: self._variance(scale)[part] for scale in range(1, max(SCALES) + 1)},
        )

    def _strongest(self, values: Array, variances: Array, normal: bool, unsure: Array | None) -> tuple[Array, Array]:
        alone = self._size(self.z_scores(values, variances, 1, unsure))
        largest = alone
        for scale in SCALES[1:]:
            size = self._size(self.z_scores(values, variances, scale, unsure))
            self._forget_what_is_over(size, alone, values, variances, scale, unsure)
            largest = np.maximum(largest, size)
        return self._surprise(largest, normal=normal), self._surprise(alone, normal=normal) + self.handicap

    def _forget_what_is_over(
        self, size: Array, alone: Array, values: Array, variances: Array, scale: int, unsure: Array | None
    ) -> None:
        """Lower the deviation of several windows to that of the last one where the newest windows show it is over.

        A mean of seven windows deviates for six windows after a change has ended. The change is over if no deviation
        explains the newest windows better than the deviation of the windows before them does, by `_OVER` in units of
        the log-likelihood. Small changes that last are rarely forgotten, because a few windows cannot show that.

        Args:
            size: size of the deviations of the means of `scale` windows, shape (windows, m); changed in place.
            alone: the same of each window.
        """
        # The first windows have too few before them.
        rows, columns = np.nonzero(size[scale - 1 :] > np.maximum(alone[scale - 1 :], _DEVIATES))
        rows += scale - 1
        if not len(rows):
            return
        over = np.zeros(len(rows), dtype=bool)
        for newest in _NEWEST[scale]:
            before = scale - newest
            recent, recent_chance = _mean_up_to(values, variances, rows, columns, newest)
            earlier, earlier_chance = _mean_up_to(values, variances, rows - newest, columns, before)
            own = self._variance(newest)[columns] + recent_chance
            if unsure is not None:
                own = own + unsure[rows, columns]
            both = own + self._variance(before)[columns] + earlier_chance
            known = np.isfinite(both) & (both > 0) & (own > 0)
            with np.errstate(invalid="ignore", divide="ignore"):
                gain = ((recent - earlier) ** 2 / both - recent**2 / own) / 2
            over |= known & (gain > _OVER)
        size[rows[over], columns[over]] = alone[rows[over], columns[over]]

    def _variance(self, scale: int) -> Array:
        if scale not in self._variances:
            level = self.levels.variance(self.blocks_per_window * scale)
            self._variances[scale] = level + self.season_variance / scale + self._centre_variance
        return self._variances[scale]

    def _stack(
        self,
        measured: Mapping[str, Deviations],
        windows: int,
        correlations: Array | None,
        rows: Array | None,
        *,
        reference: bool,
    ) -> tuple[Array, Array]:
        values: list[Array] = []
        variances: list[Array] = []
        for item in self._directions:
            found = measured.get(item.subject)
            count = len(item.names) + (item.freedom > 0)
            if found is None:
                values.append(np.zeros((windows, count)))
                variances.append(np.full((windows, count), np.inf))
                continue
            values.append(found.values)
            variances.append(found.variances)
            if item.freedom > 0:
                rest = self._rests[item.subject]
                # The reference's own windows are closer to its shares than new ones are.
                share = found.rows / max(item.rows, 1.0)
                own = np.maximum(1 - share, 0.1) if reference else 1 + share
                overdispersion = rest.overdispersion * (1.0 if reference else rest.inflation)
                expected = own * item.freedom
                expected *= np.maximum(1 + found.rows * (overdispersion + found.misfit / item.freedom), 0.1)
                values.append(cube_root_score(found.chi_square / expected, rest.effective)[:, None])
                variances.append(np.where(found.rows > 0, 1.0, np.inf)[:, None])
        if self._pairs:
            shape = (windows, len(self._pairs))
            if correlations is None or rows is None or self._reference_correlations is None:
                values.append(np.zeros(shape))
                variances.append(np.full(shape, np.inf))
            else:
                values.append(np.where(np.isfinite(correlations), correlations - self._reference_correlations, 0.0))
                chance = 1 / np.maximum(rows[:, None] - 3, 1e-9)
                variances.append(np.where(np.isfinite(correlations) & (rows[:, None] > 10), chance, np.inf))
        if not values:
            return np.zeros((windows, 0)), np.zeros((windows, 0))
        # Each direction is contiguous in memory: many windows are judged a few directions at a time.
        return np.concatenate([part.T for part in values]).T, np.concatenate([part.T for part in variances]).T

    def _learn_blocks(
        self,
        measured: Mapping[str, Deviations],
        correlations: Array | None,
        starts: Array,
        span: timedelta,
        declared: tuple[DeclaredSeason, ...],
    ) -> None:
        rows = np.max([found.rows for found in measured.values()], axis=0) if measured else np.zeros(len(starts))
        stacked = self._stack(measured, len(starts), correlations, rows, reference=True)
        # Sums over the blocks depend in their last digit on the order in memory.
        values, variances = (np.ascontiguousarray(part) for part in stacked)
        self.seasons = learn_seasons(values, variances, starts, span, declared)
        effect, self.season_variance = effect_of(self.seasons, starts, span, len(self.names))
        residual = values - effect
        guess = np.where(self.one_sided, _ASSUMED_REST**2, _ASSUMED_LEVEL**2)
        kinds = _families(self.names, {item.subject for item in self._directions if item.numeric})
        if self.course is None:
            self.levels = learn_levels(residual, variances, kinds, guess)
        else:
            self.course, self.levels = self.course.learned(residual, variances, starts, span, kinds, guess)
            residual = residual - self.course.at(starts, span)[0]
        known = np.isfinite(variances)
        own = np.maximum(_variance_of(residual, known) - _mean_of(variances, known), 0.0)
        self._inflate_rests(own, _mean_of(variances, known))
        spread = np.sqrt((self.levels.weights * self.levels.level_variances).sum(axis=1) + variances)
        standard = np.where(known & (spread > 0), (residual - self.levels.mean) / np.where(known, spread, 1.0), 0.0)
        standard = np.where(known, standard - _mean_of(standard, known), 0.0)
        deviation = np.sqrt(_variance_of(standard, known))
        self.unknown = known.sum(axis=0) < _LEAST_RESIDUALS
        self.alive = (deviation > 1e-9) | self.unknown
        # Rare counts vary less than the normal approximation says; the others are brought to variance 1. Blocks
        # without rows have the residual 0, so the others stand for them.
        share = np.sqrt(np.maximum(known.mean(axis=0), 1 / len(starts)))
        self.calibration = _calibrate(self.names, deviation, self.levels.steady, known)
        standard = standard / np.where(deviation > 0.7, deviation, 1.0)
        self.tails = _tails_of(standard, known, self.one_sided)
        self.residuals = np.sign(standard) * as_normal(np.abs(standard), self.tails) / share

    def _inflate_rests(self, own: Array, chance: Array) -> None:
        """Expect more of the rest, as the levels of the same subject will wander further than in the reference."""
        expected = self.levels.variance(1)
        # Directions without any rows have no chance to compare with.
        wandering = (self.levels.steady < 0.5) & (chance > 0)
        for subject, rest in self._rests.items():
            chosen = [
                index
                for index, (name, direction) in enumerate(self.names)
                if name == subject and direction != REST and wandering[index]
            ]
            if chosen:
                ratios = expected[chosen] / np.maximum(own[chosen], 0.1 * chance[chosen])
                inflation = float(np.clip(np.median(ratios), 1.0, _LARGEST_INFLATION))
                self._rests[subject] = _Rest(rest.freedom, rest.overdispersion, rest.effective, inflation)


def _families(names: Sequence[tuple[str, str]], numeric: Set[str]) -> Array:
    """Return numbers of the families of directions whose levels wander alike, shape (m,).

    The share of a category moves with those of the others, and the rest of a feature of categories with its shares. So
    neither says anything about the scales or the missing values of numbers, which are mostly steady.
    """
    families = {REST: 1.0, CORRELATION: 2.0, LOCATION: 0.0, SCALE: 5.0, MISSING: 5.0, OUTSIDE: 5.0, NEW: 5.0}
    return np.array(
        [
            4.0 if direction == REST and subject not in numeric else families.get(direction, 3.0)
            for subject, direction in names
        ]
    )


def _calibrate(
    names: Sequence[tuple[str, str]], deviation: Array, steady: Array, known: npt.NDArray[np.bool_]
) -> Array:
    """Return by how much chance varies more or less than theory says, from the directions whose levels are steady.

    Directions of a kind share a factor, because that of one alone would be rough. It is moved towards 1 by its standard
    error, and lies between 0.8 and 1.2.
    """
    factors = np.ones(len(names))
    kinds = np.array([direction if direction in _KINDS else "share" for _, direction in names])
    usual = (deviation > 0.7) & (steady > 0.5)
    for kind in np.unique(kinds):
        members = usual & (kinds == kind)
        blocks = known[:, members].sum(axis=0)
        if blocks.sum() < _LEAST_FOR_TAILS:
            continue
        # The mean of the blocks has been subtracted, which costs one block.
        variance = float((deviation[members] ** 2 * blocks).sum() / np.maximum(blocks - 1, 1).sum())
        error = math.sqrt(1 / (2 * blocks.sum()))
        gap = math.sqrt(variance) - 1
        gap = math.copysign(max(0.0, abs(gap) - error), gap)
        factors[kinds == kind] = np.clip(1 + gap, 0.8, 1.2)
    return factors


def as_normal(size: Array, tails: Array) -> Array:
    """Return the size of a normal deviation that is as rare as this one of a t-distribution, both of variance 1.

    Args:
        size: absolute deviations, shape (…, m).
        tails: degrees of freedom, above 2, shape (m,).

    Source: D. L. Wallace, Bounds on normal approximations to Student's and the chi-square distributions, Annals of
    Mathematical Statistics 30 (1959).
    """
    return np.asarray((8 * tails + 1) / (8 * tails + 3) * np.sqrt(tails * np.log1p(size * size / (tails - 2))))


def _tails_of(residuals: Array, known: npt.NDArray[np.bool_], one_sided: npt.NDArray[np.bool_]) -> Array:
    """Return the degrees of freedom of t-distributions with the kurtosis of the residuals, shape (m,).

    The kurtosis of few blocks is uncertain, so that of each direction is moved towards the mean of its kind.
    Source: a t-distribution with f degrees of freedom has the excess kurtosis 6/(f − 4).
    """
    count = known.sum(axis=0)
    variance = _mean_of(residuals**2, known)
    fourth = _mean_of(residuals**4, known)
    usual = (variance > 0.5) & (count >= _LEAST_FOR_TAILS)
    excess = np.where(usual, fourth / np.maximum(variance, 0.5) ** 2 - 3, 0.0)
    pooled = np.zeros(len(excess))
    for kind in (False, True):
        members = usual & (one_sided == kind)
        pooled[one_sided == kind] = excess[members].mean() if members.any() else 0.0
    weight = count / (count + _POOLED_BLOCKS)
    # What one standard error of the kurtosis explains does not count as heavy tails.
    excess = weight * excess + (1 - weight) * pooled - weight * np.sqrt(24 / np.maximum(count, 1))
    return np.where(excess > 6 / (_NORMAL - 4), 4 + 6 / np.maximum(excess, 6 / (_NORMAL - 4)), _NORMAL)


def _merge_blocks(
    reference: ReferenceCounts, window: timedelta
) -> tuple[dict[str, Array], Array, timedelta, Array | None]:
    """Merge blocks of the reference into windows if that leaves enough of them.

    Returns:
        Counts by subject, starts, the length of a block, and the correlations by block.
    """
    blocks = {name: np.asarray(counts, dtype=np.float64) for name, counts in reference.blocks.items()}
    starts, span, pairs = reference.starts, reference.span, reference.block_pairs
    size = round(window / span) if span else 1
    if size <= 1 or len(starts) // size < _LEAST_WINDOWS:
        return blocks, starts, span, pairs.correlations() if pairs is not None else None
    # Blocks are merged as windows are cut: a window of a day starts at midnight.
    offset = int((-round(starts[0] / span.total_seconds())) % size)
    used = (len(starts) - offset) // size * size
    cut = slice(offset, offset + used)
    merged = {name: counts[cut].reshape(-1, size, counts.shape[1]).sum(axis=1) for name, counts in blocks.items()}
    # Windows have the correlations of their rows, which are not the mean of those within blocks.
    correlations = pairs.part(cut).merged(size).correlations() if pairs is not None else None
    return merged, starts[cut][::size], span * size, correlations


def _rest_of(item: Directions, measured: Deviations | None) -> _Rest:
    freedom = item.freedom
    if measured is None or freedom < 1:
        return _Rest(freedom, 0.0, float(max(freedom, 1)))
    known = measured.rows > 0
    rows, chi_square = measured.rows[known], measured.chi_square[known]
    if len(rows) < 2:
        return _Rest(freedom, 0.0, float(freedom))
    own = np.maximum(1 - rows / max(item.rows, 1.0), 0.1)
    overdispersion = max(0.0, float((chi_square / own / freedom - 1).mean() / rows.mean()))
    expected = own * np.maximum(1 + rows * (overdispersion + measured.misfit[known] / freedom), 0.1)
    spread = float((chi_square / expected).var())
    # A chi-square with f degrees of freedom has variance 2 f. More variance means that fewer directions vary.
    effective = 2 * freedom * freedom / spread if spread > 0 else freedom
    return _Rest(freedom, overdispersion, float(np.clip(effective, _LEAST_FREEDOM, freedom)))


def pair_subject(one: str, other: str) -> str:
    """Return how the correlation of two features is called among the subjects."""
    return f"{one} × {other}"


def _names(directions: Sequence[Directions], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    for item in directions:
        names += [(item.subject, direction) for direction in item.names]
        names += [(item.subject, REST)] if item.freedom > 0 else []
    return [*names, *((pair_subject(one, other), CORRELATION) for one, other in pairs)]


def _chance(directions: Sequence[Directions], rows: float, pairs: int) -> Array:
    """Return the variance by chance in a typical window, shape (m,)."""
    values: list[float] = []
    for item in directions:
        present = rows * item.present_share if item.numeric else rows
        values += [1 / max(present, 1.0) if name in (LOCATION, SCALE) else 1 / max(rows, 1.0) for name in item.names]
        values += [1.0] if item.freedom > 0 else []
    return np.array([*values, *[1 / max(rows - 3, 1.0)] * pairs])


def _handicaps(names: Sequence[tuple[str, str]], score: str | None) -> Array:
    """Return the handicap of each direction: pairs and the score have fixed shares of the needless incidents."""
    family = np.array([2 if direction == CORRELATION else int(subject == score) for subject, direction in names])
    shares = {1: _SHARE_FOR_SCORE, 2: _SHARE_FOR_PAIRS}
    sizes = {number: int((family == number).sum()) for number in (0, 1, 2)}
    used = {number: share for number, share in shares.items() if sizes[number]}
    if not sizes[0] or not used:
        return np.zeros(len(names))
    used[0] = 1 - sum(used.values())
    each = np.array([math.log(sizes[number] / used.get(number, 1.0)) if sizes[number] else 0.0 for number in (0, 1, 2)])
    return np.asarray((each - each[0])[family])


def _rolling(values: Array, variances: Array, scale: int) -> tuple[Array, Array]:
    """Return the means of `scale` windows in a row, weighted by their precision, and their variances by chance."""
    if scale == 1:
        return values, variances
    weights = np.divide(1.0, variances, out=np.zeros_like(variances), where=variances > 0)
    sums = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), weights]), axis=0)
    totals = np.cumsum(np.concatenate([np.zeros((1, values.shape[1])), weights * values]), axis=0)
    mean, chance = np.zeros_like(values), np.full_like(variances, np.inf)
    if len(values) >= scale:
        precision = sums[scale:] - sums[:-scale]
        precision = np.where(precision > 1e-12 * np.maximum(sums[-1], 1e-300), precision, 0.0)
        some = precision > 0
        chance[scale - 1 :] = np.divide(1.0, precision, out=np.full_like(precision, np.inf), where=some)
        summed = totals[scale:] - totals[:-scale]
        mean[scale - 1 :] = np.divide(summed, precision, out=np.zeros_like(precision), where=some)
    return mean, chance


def _mean_up_to(
    values: Array,
    variances: Array,
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    count: int,
) -> tuple[Array, Array]:
    """Return the means of `count` windows up to each of some cells, weighted by precision, and their variances."""
    window = rows[:, None] - np.arange(count)
    weights = np.divide(1.0, variances[window, columns[:, None]], out=np.zeros(window.shape), where=window >= 0)
    weights = np.where(np.isfinite(weights), weights, 0.0)
    precision = weights.sum(axis=1)
    some = precision > 0
    mean = np.divide(
        (weights * values[window, columns[:, None]]).sum(axis=1), precision, out=np.zeros(len(rows)), where=some
    )
    return mean, np.divide(1.0, precision, out=np.full(len(rows), np.inf), where=some)


def _mean_of(values: Array, known: npt.NDArray[np.bool_]) -> Array:
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def _variance_of(values: Array, known: npt.NDArray[np.bool_]) -> Array:
    centre = _mean_of(values, known)
    return _mean_of((np.where(known, values, 0.0) - centre) ** 2, known)
