"""Correlations of all pairs of a few columns, by block of time: what counts of single columns cannot show.

Columns are compared by the normal scores of their cells, as in `cell_scores`, so no value is an outlier. Correlations
are Fisher-transformed: their variance is 1/(rows − 3) whatever they are.
Source: R. A. Fisher, On the probable error of a coefficient of correlation, Metron 1 (1921).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.block_counts import cell_codes
from everloop.data.sketches.cell_codes import CHUNK, code_type
from everloop.data.sketches.cell_scores import STEPS, cell_scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch

Array = npt.NDArray[np.float64]

MOST_PAIRED = 16
"""The correlations of 16 columns are 120 numbers. More columns would cost more than they tell."""
LEAST_ROWS = 20
"""The correlation of fewer rows is not measured."""
_LARGEST = 0.999
_LEAST_DEVIATION = 1e-4


@dataclass(frozen=True, slots=True)
class PairMoments:
    """How the scores of columns move together in each block; blocks can be merged without the rows.

    Attributes:
        rows: rows of each block, shape (blocks,).
        means: mean scores, shape (blocks, columns).
        deviations: standard deviations of the scores, shape (blocks, columns).
        within: correlations, shape (blocks, pairs); 0 where a column does not vary.
    """

    rows: Array
    means: Array
    deviations: Array
    within: Array

    def correlations(self) -> Array:
        """Return the Fisher-transformed correlations by block and pair, shape (blocks, pairs).

        They are NaN in blocks with fewer than 20 rows, and for columns that do not vary in a block.
        """
        one, other = np.triu_indices(self.means.shape[1], 1)
        varied = self.deviations > _LEAST_DEVIATION
        known = (self.rows[:, None] >= LEAST_ROWS) & varied[:, one] & varied[:, other]
        return np.where(known, fisher_transformed(self.within), np.nan)

    def merged(self, size: int) -> PairMoments:
        """Return the moments of each `size` blocks in a row together; their number must be a multiple of `size`.

        What differs between the blocks counts as well: two columns with the same course of the day are related.
        """
        one, other = np.triu_indices(self.means.shape[1], 1)

        def total(values: Array) -> Array:
            summed = (values * self.rows.reshape(-1, *[1] * (values.ndim - 1))).reshape(-1, size, *values.shape[1:])
            return np.asarray(summed.sum(axis=1))

        rows = self.rows.reshape(-1, size).sum(axis=1)
        each = np.maximum(rows, 1)[:, None]
        means = total(self.means) / each
        apart = self.means - np.repeat(means, size, axis=0)
        deviations = np.sqrt(total(self.deviations**2 + apart**2) / each)
        covariance = self.within * self.deviations[:, one] * self.deviations[:, other] + apart[:, one] * apart[:, other]
        scale = deviations[:, one] * deviations[:, other]
        within = np.divide(total(covariance) / each, scale, out=np.zeros_like(scale), where=scale > 0)
        return PairMoments(rows, means, deviations, within)

    def part(self, chosen: slice) -> PairMoments:
        """Return some of the blocks."""
        return PairMoments(self.rows[chosen], self.means[chosen], self.deviations[chosen], self.within[chosen])


def fisher_transformed(correlations: Array) -> Array:
    """Return Fisher's z of correlations; those beyond ±0.999 count as ±0.999."""
    return np.asarray(np.arctanh(np.clip(correlations, -_LARGEST, _LARGEST)))


def choose_paired(sketches: Mapping[str, Sketch]) -> tuple[str, ...]:
    """Return the columns whose correlations are measured: the first ones with at least two occupied cells."""
    varied = [name for name, sketch in sketches.items() if sum(count > 0 for count in sketch.counts[1:]) > 1]
    return tuple(varied[:MOST_PAIRED])


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of columns in the order of the correlations."""
    return list(combinations(names, 2))


def correlate_blocks(
    frame: pl.DataFrame,
    reference: Mapping[str, Sketch],
    names: Sequence[str],
    block: npt.NDArray[np.int64],
    blocks: int,
    *,
    columns: Mapping[str, str] | None = None,
) -> PairMoments:
    """Measure how columns move together in each block.

    Args:
        frame: one row per case.
        reference: sketches whose cells and counts give the scores.
        names: the columns.
        block: number of the block of each row, from 0; rows with a negative number are left out.
        blocks: how many blocks there are.
        columns: names of columns in `frame`, if they differ. An absent column counts as missing in every row.
    """
    width = len(names)
    upper = np.triu_indices(width, 1)
    order = np.argsort(block, kind="stable")
    borders = np.searchsorted(block[order], np.arange(blocks + 1))
    cells = max((reference[name].bins.cells for name in names), default=1)
    codes = np.zeros((width, len(block)), dtype=code_type(cells))
    # A column that is absent has the score 0.
    steps = np.zeros((width, cells))
    for index, name in enumerate(names):
        column = (columns or {}).get(name, name)
        if column in frame.columns:
            codes[index] = cell_codes(frame[column], reference[name].bins)[order]
            steps[index, : reference[name].bins.cells] = cell_scores(reference[name])
    means, deviations, within = np.zeros((blocks, width)), np.zeros((blocks, width)), np.zeros((blocks, len(upper[0])))
    for number in range(blocks):
        first, end = int(borders[number]), int(borders[number + 1])
        if first == end:
            continue
        # Scores are whole steps, so these sums are exact, and rows can be added in any order.
        sums, products = np.zeros(width), np.zeros((width, width))
        for start in range(first, end, CHUNK):
            scores = steps[np.arange(width)[:, None], codes[:, start : min(start + CHUNK, end)]]
            sums += scores @ np.ones(scores.shape[1])
            products += scores @ scores.T
        rows = end - first
        means[number] = sums / rows / STEPS
        covariance = (products - np.outer(sums, sums) / rows) / rows / STEPS**2
        deviations[number] = np.sqrt(np.maximum(covariance.diagonal(), 0.0))
        scale = deviations[number][:, None] * deviations[number]
        varied = scale > _LEAST_DEVIATION**2
        within[number] = np.divide(covariance, scale, out=np.zeros_like(scale), where=varied)[upper]
    return PairMoments(np.diff(borders).astype(np.float64), means, deviations, within)
