"""Count the rows of columns by block of time and cell: one pass over a column counts all its blocks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.bins import Bins, NumericBins, as_numbers, column_kind
from everloop.data.sketches.cell_codes import category_codes, numeric_codes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

Codes = npt.NDArray[np.int64]


def cell_codes(values: pl.Series, bins: Bins) -> Codes:
    """Return the cell number of each value, shape (rows,), in the order of `bins.labels`.

    All values are missing (cell 0) if the column's type cannot be counted.
    """
    if column_kind(values.dtype) is None:
        return np.zeros(len(values), dtype=np.int64)
    if isinstance(bins, NumericBins):
        numbers = as_numbers(values).cast(float).fill_null(float("nan")).to_numpy()
        return numeric_codes(numbers, np.asarray(bins.edges)).astype(np.int64)
    return category_codes(values, bins).astype(np.int64)


def count_blocks(
    frame: pl.DataFrame,
    bins: Mapping[str, Bins],
    block: npt.NDArray[np.int64],
    blocks: int,
    *,
    columns: Mapping[str, str] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Count the rows by block and cell, shape (blocks, cells) for each feature.

    Args:
        frame: one row per case.
        bins: the cells by feature.
        block: number of the block of each row, from 0; rows with a negative number are left out.
        blocks: how many blocks there are.
        columns: names of columns by feature, if they differ. An absent column counts as missing in every row.
    """
    inside = block >= 0
    chosen = block[inside]
    counts: dict[str, npt.NDArray[np.float64]] = {}
    for name, cells in bins.items():
        column = (columns or {}).get(name, name)
        if column in frame.columns:
            codes = cell_codes(frame[column], cells)[inside]
        else:
            codes = np.zeros(len(chosen), dtype=np.int64)
        flat = np.bincount(chosen * cells.cells + codes, minlength=blocks * cells.cells)
        counts[name] = flat.reshape(blocks, cells.cells).astype(np.float64)
    return counts
