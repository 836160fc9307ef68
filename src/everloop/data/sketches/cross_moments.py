"""Sketch how columns move together: sums of products of scores over all pairs of columns, in a few kilobytes.

Counts per cell say nothing about two columns at once, so a change in correlation alone escapes them. Here, each cell of
a column gets a score, and a window is summed up by Σ s and Σ s·t over its rows for every pair of columns. Windows with
the same scores can be added, so the cross moments of a month are the sum of those of its days.

The score of a cell is its mean normal score under the reference: E[Z | Z in the cell] if the cells, in their order,
divided a standard normal variable in the reference's shares. So the scores of the reference have mean 0, no value is
an outlier, and correlations are rank correlations (van der Waerden). Missing values score 0. Categories are scored in
the order of `CategoryBins`, most frequent first. This order is arbitrary but always the same: it compares frequent with
rare categories and is exact for features with two values.

Scores are whole multiples of 1/256. Their sums are exact, so adding is associative and does not depend on the machine.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from everloop.data.sketches.cell_codes import CHUNK
from everloop.data.sketches.column_sketches import sketch_cells
from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.data.sketches.cell_codes import Codes
    from everloop.data.sketches.column_sketches import Sketch
    from everloop.records import Json

MOST_COLUMNS = 40
"""Cross moments of 40 columns are 820 numbers. More columns would cost more than they tell."""

STEPS = 256
"""Scores are whole multiples of 1/256."""


@dataclass(frozen=True, slots=True)
class CrossMoments:
    """Sums of scores of one window.

    Attributes:
        names: the columns.
        basis: checksum of the scores. Only windows with the same scores can be added.
        rows: number of rows.
        totals: Σ s by column, in steps of 1/256.
        sums: Σ s·t by pair, in steps of 1/256². The upper triangle with the diagonal, row by row.
    """

    names: tuple[str, ...]
    basis: str
    rows: int
    totals: tuple[int, ...]
    sums: tuple[int, ...]

    def __post_init__(self) -> None:
        width = len(self.names)
        if len(self.totals) != width or len(self.sums) != width * (width + 1) // 2:
            raise UsageError(
                f"Cross moments of {width} columns cannot have {len(self.totals)} totals and {len(self.sums)} sums.",
                help="Pass one total for each column and one sum for each pair, including the column with itself.",
            )

    def __add__(self, other: CrossMoments) -> CrossMoments:
        """Return the cross moments of the rows of both windows.

        Raises:
            UsageError: the two have different columns or scores.
        """
        if (self.names, self.basis) != (other.names, other.basis):
            raise UsageError(
                "Cross moments with different columns or scores cannot be added.",
                help="Compute both with the sketches of the same baseline.",
            )
        totals = tuple(a + b for a, b in zip(self.totals, other.totals, strict=True))
        sums = tuple(a + b for a, b in zip(self.sums, other.sums, strict=True))
        return CrossMoments(self.names, self.basis, self.rows + other.rows, totals, sums)

    def correlations(self) -> npt.NDArray[np.float64]:
        """Return the correlations of the scores, shape (columns, columns). A constant column has 0 with all others."""
        import numpy as np

        width = len(self.names)
        products = np.zeros((width, width))
        products[np.triu_indices(width)] = np.asarray(self.sums, dtype=np.float64)
        products = products + np.triu(products, 1).T
        means = np.asarray(self.totals, dtype=np.float64)
        covariances = products - np.outer(means, means) / max(1, self.rows)
        deviations = np.sqrt(np.maximum(np.diag(covariances), 0.0))
        scale = np.outer(deviations, deviations)
        correlations = np.divide(covariances, scale, out=np.zeros_like(scale), where=scale > 0)
        np.fill_diagonal(correlations, 1.0)
        return np.asarray(np.clip(correlations, -1.0, 1.0))

    def to_json(self) -> dict[str, Json]:
        return {
            "names": list(self.names),
            "basis": self.basis,
            "rows": self.rows,
            "totals": list(self.totals),
            "sums": list(self.sums),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> CrossMoments:
        return cls(
            tuple(map(str, data["names"])),
            str(data["basis"]),
            int(data["rows"]),
            tuple(map(int, data["totals"])),
            tuple(map(int, data["sums"])),
        )


def cross_moments(
    frame: pl.DataFrame | pl.LazyFrame, reference: Mapping[str, Sketch], *, columns: Mapping[str, str] | None = None
) -> CrossMoments:
    """Return the cross moments of one window. Use `sketch_cells` and `moments_of_cells` to sketch it in the same pass.

    Args:
        frame: the window, one row per case.
        reference: the reference's sketches of the columns, at most 40. They provide the cells and the scores.
        columns: names of columns by feature, if they differ.

    Raises:
        EmptySampleError: the window has no rows.
        UsageError: there are more than 40 columns.
    """
    bins = {name: sketch.bins for name, sketch in reference.items()}
    return moments_of_cells(sketch_cells(frame, bins, columns=columns, keep=bins)[1], reference)


def moments_of_cells(codes: Mapping[str, Codes], reference: Mapping[str, Sketch]) -> CrossMoments:
    """Return the cross moments of rows whose cells are known.

    Args:
        codes: the cell of each row by column, shape (rows,), as `sketch_cells` returns them. More columns than those of
            `reference` are ignored.
        reference: as in `cross_moments`.

    Raises:
        UsageError: there are more than 40 columns, or one of them has no codes.
    """
    import numpy as np

    names = tuple(reference)
    if len(names) > MOST_COLUMNS:
        raise UsageError(
            f"Cross moments take at most {MOST_COLUMNS} columns, not {len(names)}.",
            help="Choose the columns that matter most to the model.",
        )
    absent = [name for name in names if name not in codes]
    if absent:
        raise UsageError(f"There are no cell numbers of '{absent[0]}'.", help="Name it in `keep` of `sketch_cells`.")
    scores = [np.asarray(cell_scores(reference[name]), dtype=np.float64) for name in names]
    basis = f"{zlib.crc32(np.concatenate([*scores, [0.0]]).astype('<i4').tobytes()):08x}"
    rows = len(codes[names[0]]) if names else 0
    totals = np.zeros(len(names), dtype=np.int64)
    sums = np.zeros((len(names), len(names)), dtype=np.int64)
    block = np.empty((len(names), min(CHUNK, rows)))
    for start in range(0, rows, CHUNK):
        used = block[:, : min(CHUNK, rows - start)]
        for index, (name, table) in enumerate(zip(names, scores, strict=True)):
            used[index] = table[codes[name][start : start + CHUNK]]
        # Whole numbers far below 2^53, so the floating-point products and sums are exact.
        totals += used.sum(axis=1).astype(np.int64)
        sums += (used @ used.T).astype(np.int64)
    upper = sums[np.triu_indices(len(names))]
    return CrossMoments(names, basis, rows, tuple(totals.tolist()), tuple(upper.tolist()))


def cell_scores(reference: Sketch) -> tuple[int, ...]:
    """Return the score of each cell in steps of 1/256, from the counts of the reference; 0 for missing values.

    An empty cell counts as half a row. The mean normal score of the cell between the quantiles a and b is
    (φ(a) − φ(b)) / (Φ(b) − Φ(a)).
    """
    normal = NormalDist()
    counts = [max(count, 0.5) for count in reference.counts[1:]]
    total = sum(counts)
    scores = [0]
    below, density = 0.0, 0.0
    for index, count in enumerate(counts):
        upto = below + count
        last = index == len(counts) - 1 or upto >= total
        density_above = 0.0 if last else normal.pdf(normal.inv_cdf(upto / total))
        scores.append(math.floor((density - density_above) / (count / total) * STEPS + 0.5))
        below, density = upto, density_above
    return tuple(scores)
