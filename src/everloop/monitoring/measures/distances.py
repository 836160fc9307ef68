"""Measure distances between a reference and live windows, from shares or counts of the same cells.

All functions take `reference` of shape (cells,) and `live` of shape (…, cells) and return shape (…), so one call
measures one window or thousands of simulated ones. Shares are along the last axis and sum to 1. Every distance is 0 if
the two are equal. `wasserstein` and `ks` need ordered cells; the others ignore the order.
`DISTANCES` lists them all.

The textbook PSI is infinite if a cell is empty on one side. `smoothed_shares` and `live_shares` keep it finite without
making small windows look like drift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.bins import NumericBins
from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.tail_probabilities import chi_square_tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.data.sketches.column_sketches import Sketch

Array = npt.NDArray[np.float64]
DistanceName = Literal["psi", "jensen_shannon", "hellinger", "total_variation", "wasserstein", "ks", "chi_square"]


def smoothed_shares(counts: Array) -> Array:
    """Return the shares of the reference, shape (cells,). An empty cell counts as half a row, because it is possible.

    Raises:
        EmptySampleError: the reference has no rows.
    """
    if counts.sum() <= 0:
        raise EmptySampleError("The reference has no rows.")
    smoothed = np.maximum(counts, 0.5)
    return np.asarray(smoothed / smoothed.sum())


def live_shares(counts: Array, reference: Array) -> Array:
    """Return the shares of live windows, shape (…, cells).

    An empty cell counts as its expected number of rows, but as at most half a row. So a rare cell without rows in a
    small window adds nothing to a distance. A cell that should have had rows adds a finite amount that does not
    dominate the others.

    Args:
        counts: shape (…, cells).
        reference: the reference's shares, shape (cells,), none of them 0.

    Raises:
        EmptySampleError: a window has no rows.
    """
    rows = counts.sum(axis=-1, keepdims=True)
    if not np.all(rows > 0):
        raise EmptySampleError("The window has no rows.")
    smoothed = np.where(counts > 0, counts, np.minimum(rows * reference, 0.5))
    return np.asarray(smoothed / smoothed.sum(axis=-1, keepdims=True))


def psi(reference: Array, live: Array) -> Array:
    """Return the population stability index in nats: Σ (q − p) · ln(q / p).

    It is 0 or above, symmetric, and infinite if a cell is empty on one side. It equals the Jeffreys divergence
    KL(p‖q) + KL(q‖p). A rule of thumb from credit scoring calls a PSI below 0.1 a small change and above 0.25 a large
    one. In small windows, chance alone gives (cells − 1)/rows, so everloop derives the limit from the noise floor.
    Source: N. Siddiqi, Credit Risk Scorecards (2006), ch. 9; H. Jeffreys (1946).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (live - reference) * (np.log(live) - np.log(reference))
    # For a cell that is empty on both sides the limit of the term is 0, but the formula gives 0 · (∞ − ∞).
    terms = np.where((live == 0) & (reference == 0), 0.0, terms)
    return np.asarray(terms.sum(axis=-1))


def jensen_shannon(reference: Array, live: Array) -> Array:
    """Return the Jensen-Shannon distance with base 2, between 0 and 1.

    It is the root of the mean divergence of the two from their mixture.
    Source: J. Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37 (1991). Endres and
    Schindelin (2003) proved that it is a metric.
    """
    middle = (reference + live) / 2
    divergence = (_relative_entropy(reference, middle) + _relative_entropy(live, middle)) / 2
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0) / np.log(2)))


def hellinger(reference: Array, live: Array) -> Array:
    """Return the Hellinger distance ‖√p − √q‖ / √2, between 0 and 1. It is a metric and finite for empty cells.

    Source: E. Hellinger (1909); A. W. van der Vaart, Asymptotic Statistics (1998), section 14.5.
    """
    gap = np.sqrt(live) - np.sqrt(reference)
    return np.asarray(np.sqrt((gap * gap).sum(axis=-1) / 2))


def total_variation(reference: Array, live: Array) -> Array:
    """Return the total variation distance ½ Σ |q − p|: the share of rows that would have to change cells, 0 to 1.

    Source: D. A. Levin, Y. Peres, Markov Chains and Mixing Times (2017), proposition 4.2.
    """
    return np.asarray(np.abs(live - reference).sum(axis=-1) / 2)


def ks(reference: Array, live: Array) -> Array:
    """Return the Kolmogorov-Smirnov distance: the largest gap between the two distribution functions, 0 to 1.

    It is measured at the borders of the cells, so it is at most the gap over all values. The two are equal if every
    distinct value has its own cell.
    """
    return np.asarray(np.abs(np.cumsum(live - reference, axis=-1)).max(axis=-1))


def wasserstein(reference: Array, live: Array, borders: Array) -> Array:
    """Return the Wasserstein-1 (earth mover's) distance ∫ |F − G| dx, in the unit of the borders.

    Values are assumed to be spread evenly within each cell. The error is at most the sum over cells of the width times
    the larger share, so the distance is rough if much of the window is outside the range of the reference.

    Args:
        reference: shares of the ordered cells, shape (cells,).
        live: shape (…, cells).
        borders: the borders of the cells, rising, shape (cells + 1,).
    """
    gap = np.cumsum(live - reference, axis=-1)
    right = gap
    left = np.concatenate([np.zeros_like(gap[..., :1]), gap[..., :-1]], axis=-1)
    # Within a cell, F − G is linear. If it changes sign there, its area is two triangles instead of a trapezium.
    total = np.abs(left) + np.abs(right)
    crossing = np.divide(left * left + right * right, total, out=np.zeros_like(total), where=total > 0)
    area = np.where(left * right < 0, crossing, total) / 2
    return np.asarray((area * np.diff(borders)).sum(axis=-1))


def chi_square(reference_counts: Array, live_counts: Array) -> Array:
    """Return Pearson's chi-square statistic for the hypothesis that both samples have the same shares, from counts.

    This is the two-sample form, which includes the sampling noise of the reference. Cells that are empty on both sides
    do not count. Source: any textbook on contingency tables, e.g. A. Agresti, Categorical Data Analysis, section 3.2.
    """
    n_reference = reference_counts.sum(axis=-1, keepdims=True)
    n_live = live_counts.sum(axis=-1, keepdims=True)
    both = reference_counts + live_counts
    gap = reference_counts * np.sqrt(n_live / n_reference) - live_counts * np.sqrt(n_reference / n_live)
    return np.asarray(np.divide(gap * gap, both, out=np.zeros_like(both), where=both > 0).sum(axis=-1))


def chi_square_test(reference_counts: Array, live_counts: Array) -> tuple[float, float]:
    """Return the chi-square statistic of two count vectors and its p-value.

    Raises:
        EmptySampleError: one of them has no rows.
    """
    if reference_counts.sum() <= 0 or live_counts.sum() <= 0:
        raise EmptySampleError("A chi-square test needs rows on both sides.")
    statistic = float(chi_square(reference_counts, live_counts))
    freedom = int(((reference_counts + live_counts) > 0).sum()) - 1
    return statistic, chi_square_tail(statistic, freedom) if freedom > 0 else 1.0


def borders_of(reference: Sketch, live: Sketch) -> Array | None:
    """Return the borders of the ordered cells `below | bins | above`; None for categories.

    The outer borders are the extremes of both sketches.
    """
    if not isinstance(reference.bins, NumericBins):
        return None
    edges = reference.bins.edges
    moments = [sketch.moments for sketch in (reference, live) if sketch.moments is not None]
    low = min([edges[0], *(item.low for item in moments)])
    high = max([edges[-1], *(item.high for item in moments)])
    return np.asarray([low, *edges, high], dtype=np.float64)


def distance_between(name: DistanceName, reference: Sketch, live: Sketch) -> float:
    """Return a smoothed distance between two sketches with the same cells.

    `wasserstein` and `ks` ignore missing values. `wasserstein` is in standard deviations of the reference, or in the
    unit of the feature if the standard deviation is 0.

    Raises:
        EmptySampleError: one side has no rows, or no values for an ordered distance.
        UsageError: the cells differ, the name is unknown, or the distance needs numbers.
    """
    if reference.bins != live.bins:
        raise UsageError(
            "Only sketches with the same cells can be compared.", help="Sketch both with the bins of the baseline."
        )
    measure = distance_function(name, reference, live)
    return float(measure(live.array()))


def distance_function(name: DistanceName, reference: Sketch, live: Sketch) -> Callable[[Array], Array]:
    """Return the distance from `reference` as a function of live counts, shape (…, cells) to (…).

    `live` provides the outer borders for the Wasserstein distance. Its counts are not used.
    """
    if name not in DISTANCES:
        raise UsageError(f"There is no distance '{name}'.", help=f"Use one of: {', '.join(DISTANCES)}")
    counts = reference.array()
    if name == "chi_square":
        return lambda live_counts: chi_square(counts, live_counts)
    if name not in ORDERED_DISTANCES:
        measure = _OF_SHARES[name]
        shares = smoothed_shares(counts)
        return lambda live_counts: measure(shares, live_shares(live_counts, shares))
    borders = borders_of(reference, live)
    if borders is None:
        raise UsageError(f"'{name}' needs ordered values, but these are categories.", help="Use psi or jensen_shannon.")
    ordered = smoothed_shares(counts[1:])
    if name == "ks":
        return lambda live_counts: ks(ordered, live_shares(live_counts[..., 1:], ordered))
    unit = (reference.moments.deviation if reference.moments else 0.0) or 1.0
    return lambda live_counts: wasserstein(ordered, live_shares(live_counts[..., 1:], ordered), borders) / unit


_OF_SHARES: dict[str, Callable[[Array, Array], Array]] = {
    "psi": psi,
    "jensen_shannon": jensen_shannon,
    "hellinger": hellinger,
    "total_variation": total_variation,
}
ORDERED_DISTANCES: tuple[DistanceName, ...] = ("wasserstein", "ks")
"""Distances for numeric features only."""
DISTANCES: tuple[DistanceName, ...] = (
    "psi",
    "jensen_shannon",
    "hellinger",
    "total_variation",
    *ORDERED_DISTANCES,
    "chi_square",
)


def _relative_entropy(p: Array, q: Array) -> Array:
    safe_p, safe_q = np.where(p > 0, p, 1.0), np.where(q > 0, q, 1.0)
    return np.asarray((p * (np.log(safe_p) - np.log(safe_q))).sum(axis=-1))
