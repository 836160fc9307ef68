"""Correlations of all pairs of a few columns, by block of time: what counts of single columns cannot show.

Columns are compared by the normal scores of their cells, as in `cross_moments`, so no value is an outlier. Correlations
are Fisher-transformed: their variance is 1/(rows − 3) whatever they are.
Source: R. A. Fisher, On the probable error of a coefficient of correlation, Metron 1 (1921).
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.block_counts import cell_codes
from everloop.data.sketches.cross_moments import STEPS, cell_scores

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
) -> Array:
    """Return the Fisher-transformed correlations by block and pair, shape (blocks, pairs).

    They are NaN in blocks with fewer than 20 rows, and for columns that do not vary in a block.

    Args:
        frame: one row per case.
        reference: sketches whose cells and counts give the scores.
        names: the columns.
        block: number of the block of each row, from 0; rows with a negative number are left out.
        blocks: how many blocks there are.
        columns: names of columns in `frame`, if they differ. An absent column counts as missing in every row.
    """
    upper = np.triu_indices(len(names), 1)
    found = np.full((blocks, len(upper[0])), np.nan)
    order = np.argsort(block, kind="stable")
    borders = np.searchsorted(block[order], np.arange(blocks + 1))
    scores = np.zeros((len(block), len(names)))
    for index, name in enumerate(names):
        column = (columns or {}).get(name, name)
        if column in frame.columns:
            lookup = np.asarray(cell_scores(reference[name]), dtype=np.float64) / STEPS
            scores[:, index] = lookup[cell_codes(frame[column], reference[name].bins)][order]
    for number in range(blocks):
        rows = scores[borders[number] : borders[number + 1]]
        if len(rows) >= LEAST_ROWS:
            found[number] = _correlations(rows)[upper]
    return np.asarray(np.arctanh(np.clip(found, -_LARGEST, _LARGEST)))


def _correlations(rows: Array) -> Array:
    centred = rows - rows.mean(axis=0)
    deviations = np.sqrt((centred * centred).sum(axis=0))
    product = centred.T @ centred
    scale = deviations[:, None] * deviations
    return np.asarray(np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 1e-9))
