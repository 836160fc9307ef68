"""Window aggregates at every moment, each computed from the rows in its window alone.

A running total would be simpler, but it keeps rounding errors: they stay in the sum after a value of 1e9 has left the
window. Here nothing is ever subtracted. Each row counts from one moment to another, and this span is divided into
O(log n) nodes of a segment tree over the moments. Each node has the statistics of its own rows, and a moment merges
those of its ancestors (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 1.5). The
spans of all entities are processed together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Totals:
    """Statistics of the values at each moment, all of shape (moments,). Infinities are counted separately."""

    count: Integers
    total: Floats
    mean: Floats
    squares: Floats
    """Sum of squared deviations from the mean."""
    above: Integers
    """How many values are +inf."""
    below: Integers
    """How many values are -inf."""

    def sum(self) -> Floats:
        """The sum; 0 if there is no value."""
        return self._infinite(self.total)

    def average(self) -> Floats:
        """The mean; NaN if there is no value."""
        return self._infinite(np.where(self.count > 0, self.mean, np.nan))

    def spread(self) -> Floats:
        """The sample standard deviation (n - 1); NaN if there are fewer than two values, or infinite ones."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.sqrt(self.squares / (self.count - 1))
        return np.where((self.count > 1) & (self.above + self.below == 0), found, np.nan)

    def _infinite(self, finite: Floats) -> Floats:
        signed = np.where(self.above > 0, np.inf, np.where(self.below > 0, -np.inf, finite))
        return np.where((self.above > 0) & (self.below > 0), np.nan, signed)


def window_totals(starts: Integers, ends: Integers, values: Floats, moments: int) -> Totals:
    """The statistics, at each moment, of the values that count then.

    Args:
        starts: shape (n,): the index of the first moment at which each value counts.
        ends: shape (n,): the index of the first moment at which it no longer counts, greater than its start.
        values: shape (n,); NaN is a missing value.
        moments: the number of moments.
    """
    known = ~np.isnan(values)
    starts, ends, values = starts[known], ends[known], values[known]
    nodes, rows = _nodes(starts, ends, moments)
    tree = _node_totals(nodes, values[rows], 2 * moments)
    # From the root down, each level merges the statistics of its parents into its nodes. The moments are the leaves.
    level = 2
    while level < 2 * moments:
        nodes = np.arange(level, min(2 * level, 2 * moments))
        merged = _merged(_at(tree, nodes >> 1), _at(tree, nodes))
        for name in Totals.__slots__:
            getattr(tree, name)[nodes[0] : nodes[-1] + 1] = getattr(merged, name)
        level *= 2
    return _at(tree, np.arange(moments, 2 * moments))


def _nodes(starts: Integers, ends: Integers, moments: int) -> tuple[Integers, Integers]:
    """The nodes that cover each span, and the index of its row. Leaf `i` is node `moments + i`, node 0 is unused."""
    left, right, rows = starts + moments, ends + moments, np.arange(len(starts))
    nodes: list[Integers] = []
    owners: list[Integers] = []
    while len(rows):
        odd = (left & 1).astype(bool)
        nodes.append(left[odd])
        owners.append(rows[odd])
        odd = (right & 1).astype(bool)
        nodes.append(right[odd] - 1)
        owners.append(rows[odd])
        left, right = (left + 1) >> 1, right >> 1
        open_ = left < right
        left, right, rows = left[open_], right[open_], rows[open_]
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *nodes]), np.concatenate([empty, *owners])


def _node_totals(nodes: Integers, values: Floats, size: int) -> Totals:
    finite = np.isfinite(values)
    above = np.bincount(nodes[values == np.inf], minlength=size)
    below = np.bincount(nodes[values == -np.inf], minlength=size)
    count = np.bincount(nodes, minlength=size)
    if not finite.all():
        nodes, values = nodes[finite], values[finite]
    finite_count = np.bincount(nodes, minlength=size)
    # The cast matters if there are no rows: bincount then returns integers.
    total = np.bincount(nodes, weights=values, minlength=size).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = total / np.maximum(finite_count, 1)
        # A second pass removes the rounding error of the first.
        mean = mean + np.bincount(nodes, weights=values - mean[nodes], minlength=size) / np.maximum(finite_count, 1)
        squares = np.bincount(nodes, weights=(values - mean[nodes]) ** 2, minlength=size).astype(np.float64)
    return Totals(count, total, mean, squares, above, below)


def _at(tree: Totals, nodes: Integers) -> Totals:
    return Totals(
        tree.count[nodes],
        tree.total[nodes],
        tree.mean[nodes],
        tree.squares[nodes],
        tree.above[nodes],
        tree.below[nodes],
    )


def _merged(one: Totals, other: Totals) -> Totals:
    first = one.count - one.above - one.below
    second = other.count - other.above - other.below
    both = np.maximum(first + second, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        delta = other.mean - one.mean
        mean = np.where(first == 0, other.mean, one.mean + delta * (second / both))
        squares = (
            one.squares + other.squares + np.where((first > 0) & (second > 0), delta**2 * first * second / both, 0)
        )
        total = one.total + other.total
    mean = np.where(second == 0, one.mean, mean)
    return Totals(one.count + other.count, total, mean, squares, one.above + other.above, one.below + other.below)
