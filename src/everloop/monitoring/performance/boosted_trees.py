"""Small gradient-boosted regression trees on binned inputs, in NumPy, stored as plain numbers.

The estimate of a regression's losses needs a model that finds non-linear effects and interactions, works without an
extra, and can be stored as JSON. This is gradient boosting with squared loss on complete trees of depth 3, whose splits
are found from histograms.

Source: Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics 29 (2001), and
"Stochastic gradient boosting", Computational Statistics and Data Analysis 38 (2002); histograms and the L2 term as in
Chen and Guestrin, "XGBoost", KDD 2016, equations 6 and 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Codes = NDArray[np.int32]

DEPTH = 3
_SPLITS = 2**DEPTH - 1
_RATE = 0.1
_L2 = 3.0
_SAMPLE = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class BoostedTrees:
    """An ensemble of complete trees. Splits are in the order of a heap: node i has the children 2i + 1 and 2i + 2.

    Attributes:
        base: mean of the target.
        features: shape (trees, 7), column of each split.
        cuts: shape (trees, 7); a row goes left if its code is not above the cut.
        leaves: shape (trees, 8), what each leaf adds.
    """

    base: float
    features: NDArray[np.int32]
    cuts: NDArray[np.int32]
    leaves: Array

    def predict(self, codes: Codes) -> Array:
        """Return predictions of shape (n,) for codes of shape (n, columns)."""
        rows = np.arange(len(codes))
        found = np.full(len(codes), self.base)
        for features, cuts, leaves in zip(self.features, self.cuts, self.leaves, strict=True):
            node = np.zeros(len(codes), dtype=np.int64)
            for _ in range(DEPTH):
                node = 2 * node + 1 + (codes[rows, features[node]] > cuts[node])
            found += leaves[node - _SPLITS]
        return found

    def to_json(self) -> dict[str, Json]:
        # Six digits are far more than the noise of a loss; they halve the size.
        leaves = [[float(f"{value:.6g}") for value in tree] for tree in self.leaves.tolist()]
        return {"base": self.base, "features": self.features.tolist(), "cuts": self.cuts.tolist(), "leaves": leaves}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> BoostedTrees:
        return cls(
            float(data["base"]),
            np.asarray(data["features"], dtype=np.int32).reshape(-1, _SPLITS),
            np.asarray(data["cuts"], dtype=np.int32).reshape(-1, _SPLITS),
            np.asarray(data["leaves"], dtype=np.float64).reshape(-1, _SPLITS + 1),
        )


def fit_trees(codes: Codes, bins: int, target: Array, *, trees: int, seed: int = 0) -> BoostedTrees:
    """Fit trees to a target.

    Args:
        codes: shape (n, columns), bins of the inputs from 0 to `bins` - 1; n and columns at least 1.
        bins: number of bins, the same for all columns.
        target: shape (n,), finite.
        trees: number of trees.
        seed: seed of the sampling of rows.
    """
    rng = np.random.default_rng(seed)
    rows, columns = codes.shape
    least = max(10.0, rows / 200)
    offsets = codes.astype(np.int64) + np.arange(columns) * bins
    base = float(target.mean())
    rest = target - base
    features = np.zeros((trees, _SPLITS), dtype=np.int32)
    cuts = np.full((trees, _SPLITS), bins, dtype=np.int32)
    leaves = np.zeros((trees, _SPLITS + 1))
    every = np.arange(rows)
    for tree in range(trees):
        drawn = np.flatnonzero(rng.uniform(size=rows) < _SAMPLE)
        if len(drawn) == 0:
            continue
        node = np.zeros(rows, dtype=np.int64)
        for level in range(DEPTH):
            first, width = 2**level - 1, 2**level
            best, cut = _best_splits(offsets[drawn], node[drawn] - first, rest[drawn], width, columns, bins, least)
            features[tree, first : first + width], cuts[tree, first : first + width] = best, cut
            node = 2 * node + 1 + (codes[every, features[tree, node]] > cuts[tree, node])
        leaf = node - _SPLITS
        sums = np.bincount(leaf[drawn], weights=rest[drawn], minlength=_SPLITS + 1)
        counts = np.bincount(leaf[drawn], minlength=_SPLITS + 1)
        leaves[tree] = _RATE * sums / (counts + _L2)
        rest = rest - leaves[tree, leaf]
    return BoostedTrees(base, features, cuts, leaves)


def _best_splits(
    offsets: NDArray[np.int64],
    node: NDArray[np.int64],
    rest: Array,
    width: int,
    columns: int,
    bins: int,
    least: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the column and cut of each node of a level. A cut of `bins` sends every row to the left."""
    size = columns * bins
    cells = (offsets + (node * size)[:, None]).ravel()
    shape = (width, columns, bins)
    counts = np.bincount(cells, minlength=width * size).reshape(shape).astype(np.float64)
    sums = np.bincount(cells, weights=np.repeat(rest, columns), minlength=width * size).reshape(shape)
    left, left_sum = counts.cumsum(axis=2), sums.cumsum(axis=2)
    total, total_sum = left[:, :, -1:], left_sum[:, :, -1:]
    right, right_sum = total - left, total_sum - left_sum
    gain = left_sum**2 / (left + _L2) + right_sum**2 / (right + _L2) - total_sum**2 / (total + _L2)
    gain = np.where((left >= least) & (right >= least), gain, 0.0).reshape(width, size)
    best = gain.argmax(axis=1)
    worth = gain[np.arange(width), best] > 1e-12
    return np.where(worth, best // bins, 0), np.where(worth, best % bins, bins)
