"""Divide a feature into cells, once from the reference, for all windows that are compared with it.

The cells never change, so counts of two windows can be compared and added. A numeric feature is divided at the
quantiles of the reference, so that each bin holds about the same share of it. A categorical feature has one cell for
each category of the reference. Every feature also has a cell for missing values, and cells for values that the
reference does not have: below its minimum, above its maximum, or in another category.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        pairs = pairwise(self.edges)
        bins = tuple(f"({low:.6g}, {high:.6g}]" for low, high in pairs)
        return ("missing", f"≤ {self.edges[0]:.6g}", *bins, f"> {self.edges[-1]:.6g}")


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


def as_numbers(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the column as 64-bit floats: times of day and durations in seconds, texts that are not numbers as null."""
    import polars as pl

    values = pl.col(column)
    if dtype == pl.Duration:
        return values.dt.total_microseconds().cast(pl.Float64) / 1e6
    if dtype == pl.Time:
        return values.cast(pl.Int64).cast(pl.Float64) / 1e9
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
    chosen: dict[str, Bins] = {}
    skipped: dict[str, str] = {}
    for name in features:
        dtype = frame.schema[name]
        kind = column_kind(dtype)
        if kind is None:
            skipped[name] = f"columns of type {dtype} are not monitored"
        elif kind == "numeric":
            edges = _quantile_edges(frame, name, bins)
            if edges:
                chosen[name] = NumericBins(edges)
            else:
                skipped[name] = "it has no finite value in the reference"
        else:
            chosen[name] = _frequent_categories(frame, name, categories)
    return chosen, skipped


def bins_to_json(bins: Bins) -> dict[str, Json]:
    if isinstance(bins, NumericBins):
        return {"edges": list(bins.edges)}
    return {"categories": list(bins.categories), "complete": bins.complete}


def bins_from_json(data: Mapping[str, Json]) -> Bins:
    if "edges" in data:
        return NumericBins(tuple(float(edge) for edge in data["edges"]))
    return CategoryBins(tuple(data["categories"]), bool(data["complete"]))


def _quantile_edges(frame: pl.DataFrame, name: str, bins: int) -> tuple[float, ...]:
    import math

    import polars as pl

    values = _alone(frame, name).select(as_numbers("x", frame.schema[name]))["x"]
    values = values.filter(values.is_finite()).sort()
    if values.is_empty():
        return ()
    # Order statistics without interpolation, so that every edge is a value that occurs.
    indices = [math.ceil(step * len(values) / bins) - 1 for step in range(1, bins + 1)]
    uppers = values.gather(pl.Series(indices, dtype=pl.Int64).clip(0)).unique().sort().to_list()
    return (math.nextafter(values[0], -math.inf), *uppers)


def _frequent_categories(frame: pl.DataFrame, name: str, most: int) -> CategoryBins:
    import polars as pl

    texts = frame[name].cast(pl.String).rename("x").drop_nulls()
    counted = texts.value_counts().sort(["count", "x"], descending=[True, False])
    return CategoryBins(tuple(counted["x"].head(most).to_list()), complete=counted.height <= most)


def _alone(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return one column as `x`, because Polars would read some column names in an expression as a pattern."""
    return frame[name].rename("x").to_frame()
