"""Distances between a reference and a live window, from shares or counts of the same cells.

All take `reference` of shape (cells,) and `live` of shape (…, cells) and return shape (…): one call measures one
window or thousands of simulated ones. Shares are along the last axis and sum to 1. Every function is 0 when the two
agree. `psi` and `jensen_shannon` ignore the order of cells; `wasserstein` and `ks` are for ordered ones.

The textbook PSI is infinite where a cell is empty on one side. `smoothed_shares` and `live_shares` keep it finite in
a way that a small window does not look like drift.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.bins import NumericBins
from everloop.monitoring.tail_probabilities import chi_square_tail

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.monitoring.sketches import Sketch

Array = npt.NDArray[np.float64]
DistanceName = Literal["psi", "jensen_shannon", "wasserstein", "ks", "chi_square"]


def smoothed_shares(counts: Array) -> Array:
    """Shares of the reference, shape (cells,): an empty cell counts as half a row, since it is possible.

    Raises:
        EmptySampleError: there are no rows.
    """
    if counts.sum() <= 0:
        raise EmptySampleError("The reference has no rows.")
    held = np.maximum(counts, 0.5)
    return np.asarray(held / held.sum())


def live_shares(counts: Array, reference: Array) -> Array:
    """Shares of live windows, shape (…, cells): an empty cell counts as half a row, but as no more than expected.

    So a rare cell that a small window misses adds nothing, and one that should have had some rows adds a finite
    amount that does not dwarf the rest.

    Args:
        counts: shape (…, cells).
        reference: the reference's shares, shape (cells,), none of them 0.

    Raises:
        EmptySampleError: a window has no rows.
    """
    rows = counts.sum(axis=-1, keepdims=True)
    if not np.all(rows > 0):
        raise EmptySampleError("The window has no rows.")
    held = np.where(counts > 0, counts, np.minimum(rows * reference, 0.5))
    return np.asarray(held / held.sum(axis=-1, keepdims=True))


def psi(reference: Array, live: Array) -> Array:
    """Population stability index, in nats: Σ (q − p) · ln(q / p). 0 and up; symmetric; infinite at an empty cell.

    It is the Jeffreys divergence KL(p‖q) + KL(q‖p). Rule of thumb from credit scoring: under 0.1 little change, above
    0.25 much; for small windows chance alone gives (cells − 1)/rows, which is why everloop learns the limit.
    Source: N. Siddiqi, Credit Risk Scorecards (2006), ch. 9; H. Jeffreys (1946).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = (live - reference) * (np.log(live) - np.log(reference))
    # Empty on both sides: the limit of the term is 0, the formula gives 0 · (∞ − ∞).
    terms = np.where((live == 0) & (reference == 0), 0.0, terms)
    return np.asarray(terms.sum(axis=-1))


def jensen_shannon(reference: Array, live: Array) -> Array:
    """Jensen-Shannon distance with base 2: the root of the mean divergence from the middle. Between 0 and 1.

    Source: J. Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37 (1991); a metric by
    Endres and Schindelin (2003).
    """
    middle = (reference + live) / 2
    divergence = (_relative_entropy(reference, middle) + _relative_entropy(live, middle)) / 2
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0) / np.log(2)))


def ks(reference: Array, live: Array) -> Array:
    """Kolmogorov-Smirnov distance: the largest gap between the two distribution functions. Between 0 and 1.

    Taken at the cells' borders, so it never exceeds the gap over all values and is equal to it when every distinct
    value has its own cell.
    """
    return np.asarray(np.abs(np.cumsum(live - reference, axis=-1)).max(axis=-1))


def wasserstein(reference: Array, live: Array, borders: Array) -> Array:
    """Wasserstein-1 (earth mover's) distance ∫ |F − G| dx, in the unit of the borders.

    Values are taken as spread evenly within each cell. Its error is at most the sum over cells of width times the
    larger share, so it is rough once much of the window lies outside the reference's range.

    Args:
        reference: shares of the ordered cells, shape (cells,).
        live: shape (…, cells).
        borders: shape (cells + 1,), rising: where the cells begin and end.
    """
    gap = np.cumsum(live - reference, axis=-1)
    right = gap
    left = np.concatenate([np.zeros_like(gap[..., :1]), gap[..., :-1]], axis=-1)
    # Within a cell F − G is linear; where it changes sign its area is two triangles instead of a trapezium.
    total = np.abs(left) + np.abs(right)
    crossing = np.divide(left * left + right * right, total, out=np.zeros_like(total), where=total > 0)
    area = np.where(left * right < 0, crossing, total) / 2
    return np.asarray((area * np.diff(borders)).sum(axis=-1))


def chi_square(reference_counts: Array, live_counts: Array) -> Array:
    """Pearson's chi-square statistic for "both samples have the same shares", from counts.

    Two-sample form, so the reference's own sampling noise is part of it. Cells empty on both sides do not count.
    Source: any textbook on contingency tables, e.g. A. Agresti, Categorical Data Analysis, section 3.2.
    """
    n_reference = reference_counts.sum(axis=-1, keepdims=True)
    n_live = live_counts.sum(axis=-1, keepdims=True)
    both = reference_counts + live_counts
    gap = reference_counts * np.sqrt(n_live / n_reference) - live_counts * np.sqrt(n_reference / n_live)
    return np.asarray(np.divide(gap * gap, both, out=np.zeros_like(both), where=both > 0).sum(axis=-1))


def chi_square_test(reference_counts: Array, live_counts: Array) -> tuple[float, float]:
    """The chi-square statistic of two count vectors and its p-value by the chi-square distribution.

    Raises:
        EmptySampleError: one of them has no rows.
    """
    if reference_counts.sum() <= 0 or live_counts.sum() <= 0:
        raise EmptySampleError("A chi-square test needs rows on both sides.")
    statistic = float(chi_square(reference_counts, live_counts))
    freedom = int(((reference_counts + live_counts) > 0).sum()) - 1
    return statistic, chi_square_tail(statistic, freedom) if freedom > 0 else 1.0


def borders_of(reference: Sketch, live: Sketch) -> Array | None:
    """Where the ordered cells `below | bins | above` begin and end, by the extremes of both; None for categories."""
    if not isinstance(reference.bins, NumericBins):
        return None
    edges = reference.bins.edges
    moments = [sketch.moments for sketch in (reference, live) if sketch.moments is not None]
    low = min([edges[0], *(item.low for item in moments)])
    high = max([edges[-1], *(item.high for item in moments)])
    return np.asarray([low, *edges, high], dtype=np.float64)


def distance_between(name: DistanceName, reference: Sketch, live: Sketch) -> float:
    """One distance between two sketches of the same cells, smoothed as above.

    `wasserstein` and `ks` look at the values that are there and pass over the missing ones; `wasserstein` is in
    standard deviations of the reference (in the feature's unit where that is 0).

    Raises:
        EmptySampleError: one side has no rows, or no values for an ordered distance.
        UsageError: the cells differ, the name is unknown, or the distance needs numbers.
    """
    if reference.bins != live.bins:
        raise UsageError("Only sketches of the same cells can be compared.")
    measure = distance_function(name, reference, live)
    return float(measure(live.array()))


def distance_function(name: DistanceName, reference: Sketch, live: Sketch) -> Callable[[Array], Array]:
    """The distance from `reference` as a function of live counts, shape (…, cells) to (…).

    `live` gives the outer borders that a Wasserstein distance needs; its counts do not matter.
    """
    counts = reference.array()
    if name == "chi_square":
        return lambda live_counts: chi_square(counts, live_counts)
    shares = smoothed_shares(counts)
    if name == "psi":
        return lambda live_counts: psi(shares, live_shares(live_counts, shares))
    if name == "jensen_shannon":
        return lambda live_counts: jensen_shannon(shares, live_shares(live_counts, shares))
    if name not in ("ks", "wasserstein"):
        raise UsageError(f"There is no distance '{name}'.", help=f"Distances: {', '.join(DISTANCES)}")
    borders = borders_of(reference, live)
    if borders is None:
        raise UsageError(f"'{name}' needs an order, which categories do not have.", help="Use psi or jensen_shannon.")
    ordered = smoothed_shares(counts[1:])
    if name == "ks":
        return lambda live_counts: ks(ordered, live_shares(live_counts[..., 1:], ordered))
    unit = (reference.moments.deviation if reference.moments else 0.0) or 1.0
    return lambda live_counts: wasserstein(ordered, live_shares(live_counts[..., 1:], ordered), borders) / unit


DISTANCES: tuple[DistanceName, ...] = ("psi", "jensen_shannon", "wasserstein", "ks", "chi_square")


def _relative_entropy(p: Array, q: Array) -> Array:
    safe_p, safe_q = np.where(p > 0, p, 1.0), np.where(q > 0, q, 1.0)
    return np.asarray((p * (np.log(safe_p) - np.log(safe_q))).sum(axis=-1))
