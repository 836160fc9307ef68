"""Measure in which direction a window has moved: location, scale, missing values, new values, shares, and the rest.

A window's counts by cell are turned into a few deviations from the reference, each with the variance that chance gives
it. They are chosen so that what happens in one direction does not show in another:

- *location* and *scale* of a numeric feature are the natural parameters of an exponential family around the reference,
  p(cell) · exp(θ₁ a₁ + θ₂ a₂), where a₁ and a₂ are orthonormal polynomials of the normal scores of the cells. For a
  normal feature that moves by δ standard deviations, θ₁ = δ and θ₂ = 0. They are estimated by Newton's method.
- *missing*, *outside* (beyond the reference's range), *new* (a category that the reference lacks) and the shares of the
  most frequent categories are differences of arcsine-transformed shares, whose variance is 1/rows.
- *rest* is a chi-square over the cells: for a numeric feature, what location and scale do not explain; otherwise over
  the categories that have no direction of their own. A feature with heavy or skewed tails does not move as the family
  says, so the cells' usual answer to location and scale is learned from the reference's blocks, and subtracted.

Sources: F. J. Anscombe, The transformation of Poisson, binomial and negative-binomial data, Biometrika 35 (1948);
J. Neyman, Smooth test for goodness of fit (1937); E. B. Wilson, M. M. Hilferty, The distribution of chi-square (1931).
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.bins import NumericBins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.data.sketches.column_sketches import Sketch

Array = npt.NDArray[np.float64]

LOCATION, SCALE, MISSING, OUTSIDE, NEW, REST = "location", "scale", "missing", "outside", "new", "rest"
CORRELATION = "correlation"
"""Direction of a pair of features."""

_NAMES = (LOCATION, SCALE, MISSING, OUTSIDE, NEW, REST, CORRELATION)

_NEWTON_STEPS = 8
_LARGEST_EXPONENT = 600.0
_LEAST_STEP = 1e-3
"""After a smaller step, the error is of the size of its square, far below chance."""
_LARGEST_PARAMETER = 4.0
_STEADYING_ROWS = 30.0
"""Rows of the reference that each window is given before its location and scale are estimated, and whose weight is
divided out again. The estimate from a few rows alone has several times the variance that it claims."""
_FREQUENT = 8
"""How many categories have a direction of their own."""
_LEAST_EXPECTED = 5.0
"""Cells in which a typical window or the reference has fewer rows are counted together."""
_MISFIT = 0.1
"""The exponential family describes a shift of location by δ only roughly. Other directions are not trusted below a
tenth of δ² (scale) or δ (shares)."""
_ROOT = 3 / 8
_LEAST_BLOCKS = 15
"""Blocks with rows from which the cells' answer to location and scale is learned."""
_LEAST_F = 1.5
_NEAREST = 3
"""Blocks that show how abruptly a feature ends: those whose location is closest to the end."""
_MOST_PUSHED, _MOST_BLURRED = 0.05, 0.25
"""Shares of rows beyond the range. More than the first is a change, however abruptly the feature ends. More than the
second is shown by scale and shape as well."""
_FURTHER = 2.5
"""How much more than on average the cells may answer to a movement further than any in the reference. Such a movement
often lasts for days, so what the average leaves over would add up."""


@dataclass(frozen=True, slots=True)
class Deviations:
    """Deviations of several windows from the reference, for one subject.

    Attributes:
        values: shape (windows, directions), 0 if a window equals the reference.
        variances: the part of their variance that is chance, same shape.
        chi_square: the rest, shape (windows,); all 0 if there are too few cells.
        rows: rows that the chi-square is based on.
        misfit: how much of chi-square/rows is expected only because the location has moved.
    """

    values: Array
    variances: Array
    chi_square: Array
    rows: Array
    misfit: Array


@dataclass(frozen=True, slots=True)
class _Response:
    """How the cells answer, on average, to movements of location and scale, beyond what the family says.

    Attributes:
        middle: mean movement in the reference, shape (movements,).
        effects: change of the share of each group of cells by movement, shape (movements, groups).
        inverse: (ZᵀZ)⁻¹ of the movements Z of the reference's blocks.
        noise: chi-square/rows of a block that is left.
        weight: share of the least-squares effects that is used.
        lowest, highest: location and scale that the reference's blocks had, shape (1 or 2,).
        curvature: chi-square/rows that a movement of the location adds, by its square.
    """

    middle: Array
    effects: Array
    inverse: Array
    noise: float
    weight: float
    lowest: Array
    highest: Array
    curvature: float

    def answer(self, parameters: Array, *, seen: bool) -> tuple[Array, Array]:
        """Return by how much the shares of the groups change, and how much of chi-square/rows is uncertain about it.

        Movements beyond those of the reference are answered as its outermost one.
        """
        known = np.clip(parameters, self.lowest, self.highest)
        moved = _movements(known) - self.middle
        # The blocks that it was learned from are closer to it than new windows are.
        factor = self.weight * (self.weight - 2 if seen else self.weight)
        unsure = factor * self.noise * ((moved @ self.inverse) * moved).sum(axis=1)
        beyond = (parameters - known)[:, 0] ** 2
        return moved @ self.effects, unsure + _FURTHER * self.curvature * beyond


class Directions:
    """The directions of one subject, from the reference's counts."""

    def __init__(self, subject: str, reference: Sketch, typical_rows: float) -> None:
        """Choose the directions.

        Args:
            typical_rows: rows of a typical window, which decides what cells are too rare to stand alone.
        """
        counts = reference.array()
        self.subject = subject
        self.rows = float(counts.sum())
        self.numeric = isinstance(reference.bins, NumericBins)
        self.present_share = float(1 - counts[0] / max(counts.sum(), 1.0))
        self._shares = np.maximum(counts, 0.5) / np.maximum(counts, 0.5).sum()
        self._scores = np.zeros((len(counts), 0))
        self._present = self._shares.copy()
        self._densities = np.zeros(len(counts))
        """By cell, what a share is multiplied with to be a density per standard deviation; 0 outside of the range."""
        self._ends = 0.0
        """Sum of the densities at both ends of the range, of the reference's blocks that come closest to each."""
        if isinstance(reference.bins, NumericBins):
            self._present[0] = 0.0
            self._present /= self._present.sum()
            self._scores = _orthonormal_scores(self._present)
            self._densities = _densities(reference.bins.edges, self._present)
            self._groups = [[0], [1, len(counts) - 1]]
            names = [MISSING, OUTSIDE]
            cells = np.arange(2, len(counts) - 1)
        else:
            frequent = [int(cell) + 1 for cell in np.argsort(-counts[1:-1], kind="stable")[:_FREQUENT]]
            frequent = [cell for cell in frequent if counts[cell] > 0]
            # Of two categories, the share of one says everything.
            frequent = frequent[:1] if np.count_nonzero(counts[1:-1]) <= 2 else frequent
            self._groups = [[0], [len(counts) - 1], *([cell] for cell in frequent)]
            labels = [reference.bins.labels[cell] for cell in frequent]
            # A category may be called like a direction.
            names = [MISSING, NEW, *(f"'{label}'" if label in _NAMES else label for label in labels)]
            # The shares of frequent categories have directions of their own, so the rest is about the others.
            cells = np.setdiff1d(np.arange(1, len(counts)), [*frequent, len(counts) - 1])
        self.names: tuple[str, ...] = (*(LOCATION, SCALE)[: self._scores.shape[1]], *names)
        self._sums = _merge_rare(cells, self._shares, min(typical_rows, self.rows))
        self.freedom = max(0, self._sums.shape[1] - 1 - self._scores.shape[1])
        self._response: _Response | None = None
        self._range = (-math.inf, math.inf)
        """The lowest and the highest location of the reference's blocks, if it has blocks."""
        self._wandering = 0.0
        """Standard deviation of the location of the reference's blocks beyond chance."""

    def learn_response(self, blocks: Array) -> None:
        """Learn how the cells answer to location and scale from the reference's blocks, shape (blocks, cells).

        Least squares, shrunk as James and Stein (1961) do, and only used if the answer is larger than chance.
        """
        if not self._scores.shape[1]:
            return
        present = np.maximum(blocks.sum(axis=1) - blocks[:, 0], 0.0)
        used = present > 0
        if not used.any():
            return
        parameters, shares = self._moved(blocks[used], present[used])
        self._range = float(parameters[:, 0].min()), float(parameters[:, 0].max())
        chance = float(_inverse(present[used]).mean())
        self._wandering = math.sqrt(max(0.0, float(parameters[:, 0].var()) - chance))
        order = np.argsort(parameters[:, 0])
        lowest, highest = (blocks[used][some].sum(axis=0) for some in (order[:_NEAREST], order[-_NEAREST:]))
        self._ends = self._density_of(lowest, 2, 3) + self._density_of(highest, -2, -3)
        movements = _movements(parameters)
        freedom = len(movements) - movements.shape[1] - 1
        if self.freedom < 1 or len(movements) < _LEAST_BLOCKS:
            return
        found, expected = _grouped(blocks[used] @ self._sums), _grouped(shares @ self._sums)
        weights = (present[used] / present[used].mean())[:, None]
        usual = np.sqrt(np.maximum(expected.mean(axis=0), 1e-9))
        gaps = (found - expected) / usual
        gaps = gaps - (weights * gaps).mean(axis=0)
        middle = (weights * movements).mean(axis=0)
        moved = movements - middle
        inverse = np.linalg.pinv(moved.T @ (weights * moved))
        effects = inverse @ (moved.T @ (weights * gaps))
        explained = float((weights * (moved @ effects) ** 2).sum()) / movements.shape[1]
        noise = float((weights * (gaps - moved @ effects) ** 2).sum()) / freedom
        if noise > 0 and explained / noise >= _LEAST_F:
            weight = 1 - noise / explained
            total = float((weights * (parameters - (weights * parameters).mean(axis=0)) ** 2).sum())
            self._response = _Response(
                middle,
                weight * effects * usual,
                inverse,
                noise,
                weight,
                parameters.min(axis=0),
                parameters.max(axis=0),
                weight * explained * movements.shape[1] / max(total, 1e-300),
            )

    def _density_of(self, counts: Array, last: int, before: int) -> float:
        """Return the density at an end of the range, continued on a line from the last cell and the one before.

        It is 0 for a tail that ends gradually.
        """
        if len(counts) < 7:
            return 0.0
        found = counts / max(float(counts[2:-1].sum()), 1.0) * self._densities
        return float(np.clip(1.5 * found[last] - 0.5 * found[before], 0.0, 1.0))

    def recentred(self, accepted: Sketch) -> Directions:
        """Return the same directions, measured from other shares of the same cells."""
        moved = copy(self)
        counts = np.maximum(accepted.array(), 0.5)
        moved.rows = float(accepted.rows)
        moved._shares = counts / counts.sum()
        moved._present = moved._shares.copy()
        if self.numeric:
            moved._present[0] = 0.0
            moved._present /= moved._present.sum()
            scores = _orthonormal_scores(moved._present)
            # If nearly all rows are in one or two cells, location and scale say nothing; the other directions do.
            moved._scores = scores if scores.shape == self._scores.shape else np.zeros_like(self._scores)
        return moved

    def measure(self, counts: Array, *, seen: bool = False) -> Deviations:
        """Return the deviations of windows from the reference.

        Args:
            counts: shape (windows, cells). A window without rows has the deviation 0 and infinite variance.
            seen: whether these are the blocks from which the answer to movements was learned.
        """
        # Sums of counts are exact in any order, and a product is faster than sums over slices.
        rows = counts @ np.ones(counts.shape[1])
        some = np.maximum(rows, 1.0)
        present = np.maximum(rows - counts[:, 0], 0.0) if self.numeric else rows
        values: list[Array] = []
        variances: list[Array] = []
        shares = np.broadcast_to(self._present, counts.shape)
        misfit = np.zeros(len(counts))
        parameters = np.zeros((len(counts), 0))
        if self._scores.shape[1]:
            parameters, shares = self._moved(counts, present)
            misfit = (_MISFIT * parameters[:, 0] ** 2) ** 2
            chance = _inverse(present)
            values += list(parameters.T)
            blur = self._blur(counts, present)
            variances += [chance, chance + misfit + blur][: self._scores.shape[1]]
            misfit = misfit + blur
        chance = _inverse(rows)
        for group, name in zip(self._groups, self.names[self._scores.shape[1] :], strict=True):
            found = sum((counts[:, cell] for cell in group[1:]), counts[:, group[0]])
            expected, extra = rows * self._shares[group].sum(), 0.0
            if name == OUTSIDE and parameters.shape[1]:
                share = shares[:, group].sum(axis=1)
                expected, extra = present * share, (_MISFIT * parameters[:, 0]) ** 2 * 4 * share
                extra = extra + 4 * self._pushed_outside(parameters[:, 0], present, shares)
            values.append(_root(found, some) - _root(expected, some))
            variances.append(chance + extra)
        chi_square, unsure = self._chi_square(counts, shares, parameters, seen=seen)
        used = counts @ self._sums.sum(axis=1)
        # Each direction is contiguous, because directions are put side by side later.
        return Deviations(np.array(values).T, np.array(variances).T, chi_square, used, misfit + unsure)

    def _pushed_outside(self, location: Array, present: Array, shares: Array) -> Array:
        """Return the share of rows that the location may have moved beyond the reference's range.

        A location that the reference never had moves rows of the outermost cells. Where a feature ends abruptly, more
        rows move, and a wandering location need not be clearly beyond the reference's for that.
        """
        lowest, highest = self._range
        beyond = np.maximum(np.maximum(location - highest, lowest - location), 0.0)
        # Two standard errors of this location, and as many of that of the block at the end.
        chance = np.minimum(4 * np.sqrt(_inverse(present)), self._wandering)
        perhaps = np.maximum(np.maximum(location + chance - highest, lowest + chance - location), 0.0)
        pushed = np.minimum(perhaps * self._ends, _MOST_PUSHED)
        return np.asarray(beyond * shares[:, [1, 2, -2, -1]].sum(axis=1) + pushed)

    def _blur(self, counts: Array, present: Array) -> Array:
        """Return the variance of scale from rows beyond the reference's range, which have a direction of their own.

        If a feature that ends abruptly moves a little, a few such rows, with their extreme scores, look like a change
        of scale and of shape.
        """
        if self._scores.shape[1] < 2:
            return np.zeros(len(counts))
        further = np.abs(self._scores[[1, -1], 1] - self._scores[[2, -2], 1])
        shares = counts[:, [1, -1]] / np.maximum(present, 1.0)[:, None]
        excess = np.maximum(shares - self._present[[1, -1]], 0.0)
        return np.asarray((np.where(excess <= _MOST_BLURRED, excess, 0.0) @ further) ** 2)

    def _moved(self, counts: Array, present: Array) -> tuple[Array, Array]:
        """Return location and scale of windows, and the shares of the cells that the family has there."""
        means = (counts[:, 1:] @ self._scores[1:]) / np.maximum(present, 1.0)[:, None]
        weight = (present / (present + _STEADYING_ROWS))[:, None]
        steadied = _tilt(means * weight, self._scores, self._present)
        parameters = np.divide(steadied, weight, out=np.zeros_like(steadied), where=weight > 0)
        parameters = np.clip(parameters, -_LARGEST_PARAMETER, _LARGEST_PARAMETER)
        return parameters, _tilted(parameters, self._scores, self._present)

    def _chi_square(self, counts: Array, shares: Array, parameters: Array, *, seen: bool) -> tuple[Array, Array]:
        """Return the chi-square of the cells, and how much of chi-square/rows an uncertain answer to movements adds."""
        unsure = np.zeros(len(counts))
        if self.freedom < 1:
            return np.zeros(len(counts)), unsure
        found, expected = counts @ self._sums, _grouped(shares @ self._sums)
        if self._response is not None:
            answer, unsure = self._response.answer(parameters, seen=seen)
            expected = _grouped(np.maximum(expected + answer, 0.2 * expected))
        one = np.ones(found.shape[1])
        rows = (found @ one)[:, None]
        gaps = found / np.maximum(rows, 1.0) - expected
        chi_square = (rows * gaps * gaps / np.maximum(expected, 1e-3 / expected.shape[1])) @ one
        return np.asarray(np.where(rows[:, 0] > 0, chi_square, self.freedom)), unsure


def cube_root_score(ratio: Array, freedom: float) -> Array:
    """Return chi-square/freedom as a standard normal score, by the cube root of Wilson and Hilferty."""
    spread = 2 / (9 * freedom)
    return np.asarray((np.cbrt(ratio) - (1 - spread)) / math.sqrt(spread))


def _movements(parameters: Array) -> Array:
    """Return what the cells may answer to: location, scale and the square of the location."""
    return np.concatenate([parameters, parameters[:, :1] ** 2], axis=1)


def _grouped(sums: Array) -> Array:
    """Return the shares of groups of cells within all groups."""
    return np.asarray(sums / np.maximum(sums @ np.ones(sums.shape[1]), 1e-300)[:, None])


def _orthonormal_scores(shares: Array) -> Array:
    """Return the polynomials of degree 1 and 2 of the cells' normal scores, orthonormal under the shares.

    There are fewer columns if too few cells hold rows.
    """
    normal = NormalDist()
    middle = np.cumsum(shares) - shares / 2
    scores = np.array([normal.inv_cdf(min(max(value, 1e-6), 1 - 1e-6)) for value in middle])
    scores[0] = 0.0
    # With very many cells, each has a small share.
    occupied = int((shares[2:-1] > min(0.01, 0.5 / len(shares))).sum())
    columns: list[Array] = []
    for degree in (1, 2):
        if occupied <= degree:
            break
        column = scores**degree
        column = column - (column * shares).sum()
        for earlier in columns:
            column = column - (column * earlier * shares).sum() * earlier
        column[0] = 0.0
        length = math.sqrt((column * column * shares).sum())
        if length < 1e-6:
            break
        columns.append(column / length)
    return np.stack(columns, axis=1) if columns else np.zeros((len(shares), 0))


def _densities(edges: Sequence[float], shares: Array) -> Array:
    """Return the factors from shares of cells to densities per standard deviation of the feature; 0 outside the range.

    A value that many rows share has a cell without width, and no density.
    """
    factors = np.zeros(len(shares))
    with np.errstate(all="ignore"):
        widths = np.diff(edges)
        inner = shares[2:-1] / max(float(shares[2:-1].sum()), 1e-300)
        middles = np.asarray(edges[:-1]) + widths / 2
        deviation = np.sqrt(inner @ (middles - inner @ middles) ** 2)
        found = np.where(widths > 1e-6 * deviation, deviation / widths, 0.0)
    factors[2:-1] = np.where(np.isfinite(found), found, 0.0)
    return factors


def _tilt(means: Array, scores: Array, shares: Array) -> Array:
    """Return the parameters θ for which p · exp(θ · scores) has these mean scores.

    Args:
        means: mean scores of the windows, shape (windows, 1 or 2).
    """
    theta = means.copy()
    if scores.shape[1] == 2:
        # Second-order expansion: a shift of location moves the mean of the second polynomial as well.
        theta[:, 1] -= 0.5 * (scores[:, 0] ** 2 * scores[:, 1] * shares).sum() * means[:, 0] ** 2
    # Sum, first and second moments of the scores, which one product with the weights gives.
    products = [np.ones(len(shares)), *scores.T, *(scores * scores).T]
    if scores.shape[1] == 2:
        products.append(scores[:, 0] * scores[:, 1])
    moments = np.stack(products, axis=1) * shares[:, None]
    left = np.arange(len(theta))
    for _ in range(_NEWTON_STEPS):
        step = _newton_step(means[left], theta[left], scores, moments)
        theta[left] = np.clip(theta[left] + step, -_LARGEST_PARAMETER, _LARGEST_PARAMETER)
        # Most windows are close to the reference and need few steps.
        left = left[np.abs(step).max(axis=1) > _LEAST_STEP]
        if not len(left):
            break
    return theta


def _newton_step(means: Array, theta: Array, scores: Array, moments: Array) -> Array:
    """Return one step towards the parameters with these mean scores, shape (windows, 1 or 2).

    Args:
        moments: the shares times 1, the scores, their squares, and their product if there are two; shape (cells, …).
    """
    found = _weights(theta, scores) @ moments
    found = found[:, 1:] / found[:, :1]
    count = scores.shape[1]
    mean = found[:, :count]
    gap = means - mean
    variance = np.maximum(found[:, count : 2 * count] - mean * mean, 0.02)
    if count == 1:
        step = gap / variance
    else:
        mixed = found[:, 4] - mean[:, 0] * mean[:, 1]
        both = variance[:, 0] * variance[:, 1]
        determinant = np.maximum(both - mixed * mixed, 0.003 * both)
        step = np.stack(
            [
                (variance[:, 1] * gap[:, 0] - mixed * gap[:, 1]) / determinant,
                (variance[:, 0] * gap[:, 1] - mixed * gap[:, 0]) / determinant,
            ],
            axis=1,
        )
    # A long step is shortened, but keeps its direction.
    longest = np.abs(step[:, :1]) if count == 1 else np.maximum(np.abs(step[:, :1]), np.abs(step[:, 1:]))
    return np.asarray(step * np.minimum(1.0, 0.5 / np.maximum(longest, 1e-12)))


def _tilted(theta: Array, scores: Array, shares: Array) -> Array:
    weights = _weights(theta, scores)
    weights *= shares
    weights /= (weights @ np.ones(len(shares)))[:, None]
    return weights


def _weights(theta: Array, scores: Array) -> Array:
    """Return exp(θ · scores), up to a factor for each window."""
    exponents = theta @ scores.T
    if _LARGEST_PARAMETER * np.abs(scores).sum(axis=1).max() > _LARGEST_EXPONENT:
        exponents -= exponents.max(axis=1, keepdims=True)
    return np.asarray(np.exp(exponents))


def _merge_rare(cells: npt.NDArray[np.int64], shares: Array, rows: float) -> Array:
    """Return which cells are counted together, rare ones in the last group; zeros and ones, shape (cells, groups)."""
    if not len(cells):
        return np.zeros((len(shares), 1))
    expected = shares[cells] * rows
    order = np.argsort(-expected, kind="stable")
    frequent = int((expected >= _LEAST_EXPECTED).sum())
    groups = max(frequent, 1)
    # What is too rare even together joins the rarest frequent cell.
    if 0 < frequent < len(cells) and expected[order[frequent:]].sum() >= _LEAST_EXPECTED:
        groups += 1
    sums = np.zeros((len(shares), groups))
    sums[cells[order], np.minimum(np.arange(len(cells)), groups - 1)] = 1.0
    return sums


def _root(count: Array, rows: Array) -> Array:
    return np.asarray(2 * np.arcsin(np.sqrt((count + _ROOT) / (rows + 2 * _ROOT))))


def _inverse(rows: Array) -> Array:
    return np.asarray(np.divide(1.0, rows, out=np.full(len(rows), np.inf), where=rows > 0))
