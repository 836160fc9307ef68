"""Divide a feature into cells, once from the reference, for all windows that are compared with it.

The cells never change, so counts of two windows can be compared and added. A numeric feature is divided at the
quantiles of the reference, so that each bin holds about the same share of it. A categorical feature has one cell for
each category of the reference. Every feature also has a cell for missing values, and cells for values that the
reference does not have: below its minimum, above its maximum, or in another category.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from everloop.data.sketches.column_threads import over_columns
from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.records import Json

BINS = 20
CATEGORIES = 100


@dataclass(frozen=True, slots=True)
class NumericBins:
    """Cells `missing | below | (e0, e1] | (e1, e2] | … | above` between rising edges, in the unit of the feature.

    NaN counts as missing. Booleans are categories, not numbers. The first edge is the largest float below the minimum
    of the reference, so that the minimum is in the first bin. A value that many rows share gets its own bin.
    """

    edges: tuple[float, ...]

    @property
    def cells(self) -> int:
        return len(self.edges) + 2

    @property
    def labels(self) -> tuple[str, ...]:
        texts = [f"{edge + 0.0:.6g}" for edge in (self.smallest, *self.edges[1:])]
        bins = tuple(low if low == high else f"{low} to {high}" for low, high in pairwise(texts))
        return ("missing", f"{'≤' if self.smallest == self.edges[0] else '<'} {texts[0]}", *bins, f"> {texts[-1]}")

    @property
    def smallest(self) -> float:
        """The lower end as a person writes it.

        The first edge is mostly the float just below the smallest value. If that value is round, it is meant.
        """
        above = math.nextafter(self.edges[0], math.inf) + 0.0
        return above if float(f"{above:.6g}") == above else self.edges[0]


@dataclass(frozen=True, slots=True)
class CategoryBins:
    """Cells `missing | category, … | other`, the most frequent category first.

    `complete`: the reference had no other categories, so any value in `other` is new.
    """

    categories: tuple[str, ...]
    complete: bool = True

    @property
    def cells(self) -> int:
        return len(self.categories) + 2

    @property
    def labels(self) -> tuple[str, ...]:
        return ("missing", *self.categories, "new" if self.complete else "other")


Bins = NumericBins | CategoryBins
ColumnKind = Literal["numeric", "categorical"]


def column_kind(dtype: pl.DataType) -> ColumnKind | None:
    """Return how a column of this type is monitored; None if it is not (lists, structs, bytes, dates and times).

    Dates and times always move forward, which is not drift. Durations and times of day are numeric.
    """
    import polars as pl

    if dtype.is_numeric() or dtype in (pl.Duration, pl.Time):
        return "numeric"
    if dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum):
        return "categorical"
    return None


def as_numbers(values: pl.Series) -> pl.Series:
    """Return the values as 64-bit floats: times of day and durations in seconds, texts that are not numbers as null."""
    import polars as pl

    if values.dtype == pl.Float64:
        return values
    if values.dtype == pl.Duration:
        return values.dt.total_microseconds().cast(pl.Float64) / 1e6
    if values.dtype == pl.Time:
        return values.cast(pl.Int64).cast(pl.Float64) / 1e9
    if values.dtype in (pl.Categorical, pl.Enum):
        # The number of a category within its type has no meaning.
        values = values.cast(pl.String)
    return values.cast(pl.Float64, strict=False)


def choose_bins(
    frame: pl.DataFrame, features: Sequence[str], *, bins: int = BINS, categories: int = CATEGORIES
) -> tuple[dict[str, Bins], dict[str, str]]:
    """Choose the cells of each feature from the reference.

    Args:
        frame: the reference, one row per case.
        features: columns of `frame`.
        bins: the most quantile bins of a numeric feature. Features with fewer distinct values get fewer.
        categories: how many categories get their own cell; the rest share one.

    Returns:
        The bins by feature, and the reason for each feature that cannot be monitored.

    Raises:
        EmptySampleError: the reference has no rows.
        UsageError: a feature is not a column, `bins` is below 2 or `categories` is below 1.
    """
    if frame.height == 0:
        raise EmptySampleError("A baseline needs rows, but the reference has none.")
    if bins < 2 or categories < 1:
        raise UsageError(
            f"A baseline needs at least 2 bins and 1 category, not {bins} and {categories}.",
            help="Pass larger `bins` and `categories`.",
        )
    missing = [name for name in features if name not in frame.columns]
    if missing:
        raise UsageError(f"The reference has no column '{missing[0]}'.", help=f"Columns: {', '.join(frame.columns)}")
    found = over_columns(lambda name: _bins_of(frame[name], bins, categories), features, frame.height)
    chosen: dict[str, Bins] = {}
    skipped: dict[str, str] = {}
    for name, cells in zip(features, found, strict=True):
        if isinstance(cells, str):
            skipped[name] = cells
        else:
            chosen[name] = cells
    return chosen, skipped


def bins_to_json(bins: Bins) -> dict[str, Json]:
    if isinstance(bins, NumericBins):
        return {"edges": list(bins.edges)}
    return {"categories": list(bins.categories), "complete": bins.complete}


def bins_from_json(data: Mapping[str, Json]) -> Bins:
    if "edges" in data:
        return NumericBins(tuple(float(edge) for edge in data["edges"]))
    return CategoryBins(tuple(data["categories"]), bool(data["complete"]))


def _bins_of(values: pl.Series, bins: int, categories: int) -> Bins | str:
    """Return the cells of a column, or why it has none."""
    kind = column_kind(values.dtype)
    if kind is None:
        what = "dates and times" if values.dtype.is_temporal() else f"columns of type {values.dtype}"
        return f"{what} are not monitored"
    if kind == "categorical":
        return _frequent_categories(values, categories)
    edges = _quantile_edges(values, bins)
    return NumericBins(edges) if edges else "it has no finite value in the reference"


def _quantile_edges(values: pl.Series, bins: int) -> tuple[float, ...]:
    import sys

    import numpy as np

    numbers = as_numbers(values).to_numpy()
    finite = np.isfinite(numbers)
    if not finite.all():
        numbers = numbers[finite]
    if len(numbers) == 0:
        return ()
    # Order statistics without interpolation, so that every edge is a value that occurs.
    ranks = sorted({max(0, math.ceil(step * len(numbers) / bins) - 1) for step in range(1, bins + 1)})
    # As whole numbers, the two zeros have an order, so that an edge at zero does not depend on the order of rows.
    ordered = _flip_negative(numbers.view(np.int64))
    _select(ordered, sorted({0, *ranks}))
    low, *uppers = _flip_negative(ordered[[0, *ranks]]).view(np.float64).tolist()
    # An infinite edge could not be stored as JSON, so the smallest of all floats is "below" its own bin.
    below = max(math.nextafter(low, -math.inf), -sys.float_info.max)
    return tuple(sorted({below, *uppers}))


def _select(values: npt.NDArray[np.int64], positions: Sequence[int]) -> None:
    """Reorder values so that those at some positions, which rise, are where sorting would put them.

    One position at a time, in ever smaller parts, is three times as fast as all at once: NumPy selects a single one
    with vector instructions.
    """
    if not positions:
        return
    middle = len(positions) // 2
    position = positions[middle]
    values.partition(position)
    _select(values[:position], positions[:middle])
    _select(values[position + 1 :], [later - position - 1 for later in positions[middle + 1 :]])


def _flip_negative(bits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Map the bits of floats to whole numbers in the same order, or back. The result is a copy."""
    flipped = bits >> 63
    flipped &= 0x7FFF_FFFF_FFFF_FFFF
    flipped ^= bits
    return flipped


def _frequent_categories(values: pl.Series, most: int) -> CategoryBins:
    import polars as pl

    counted = values.rename("x").drop_nulls().value_counts().with_columns(pl.col("x").cast(pl.String))
    counted = counted.sort(["count", "x"], descending=[True, False])
    return CategoryBins(tuple(counted["x"].head(most).to_list()), complete=counted.height <= most)
