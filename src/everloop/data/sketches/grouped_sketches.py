"""Sketch many groups of rows at once, such as the hours of a prediction log.

The result for each group equals that of `sketch_frame` for its rows. A column is read once for all groups: the bin of
each value is found by binary search, and one `bincount` counts all groups and bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.bins import Bins, CategoryBins, NumericBins, as_numbers, column_kind
from everloop.data.sketches.column_sketches import UNSEEN, Moments, Sketch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]


def sketch_groups(frame: pl.DataFrame, sizes: Sequence[int], bins: Mapping[str, Bins]) -> list[dict[str, Sketch]]:
    """Sketch each group of rows.

    Args:
        frame: one row per case. The rows of a group follow each other.
        sizes: the number of rows of each group, in the order of the rows; at least 1. Their sum is the frame's height.
        bins: the cells by feature. A feature counts as missing in every row if the frame has no such column, or if its
            type cannot be counted.

    Returns:
        The sketches by feature, for each group.
    """
    heights = np.asarray(sizes, dtype=np.intp)
    group = np.repeat(np.arange(len(heights), dtype=np.intp), heights)
    starts = np.concatenate(([0], np.cumsum(heights)[:-1])).astype(np.intp) if len(heights) else heights
    found: list[dict[str, Sketch]] = [{} for _ in sizes]
    for name, cells in bins.items():
        if name not in frame.columns or column_kind(frame.schema[name]) is None:
            sketches = [Sketch(cells, (size, *[0] * (cells.cells - 1))) for size in sizes]
        elif isinstance(cells, NumericBins):
            numbers = as_numbers(frame[name]).fill_null(float("nan"))
            sketches = _numeric(numbers.to_numpy(), cells, group, starts)
        else:
            sketches = _categorical(frame[name].rename("x"), cells, group, len(heights))
        for one, sketch in zip(found, sketches, strict=True):
            one[name] = sketch
    return found


def _numeric(values: Floats, bins: NumericBins, group: Integers, starts: Integers) -> list[Sketch]:
    places = np.searchsorted(np.asarray(bins.edges), values, side="left") + 1
    places[np.isnan(values)] = 0
    counts = _tally(places, group, len(starts), bins.cells)
    if len(starts) == 0:
        return []
    finite = np.isfinite(values)
    known = np.add.reduceat(finite.astype(np.intp), starts)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(np.where(finite, values, 0.0), starts) / known
        gap = np.where(finite, values - mean[group], 0.0)
        squares = np.add.reduceat(gap * gap, starts)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    # Of values whose squares overflow there are no moments.
    usable = (known > 0) & np.isfinite(mean) & np.isfinite(squares)
    columns = (array.tolist() for array in (counts, usable, known, mean, squares, low, high))
    return [
        Sketch(bins, tuple(row), Moments(count, *numbers) if is_usable else None)
        for row, is_usable, count, *numbers in zip(*columns, strict=True)
    ]


def _categorical(values: pl.Series, bins: CategoryBins, group: Integers, groups: int) -> list[Sketch]:
    import polars as pl

    texts = values.cast(pl.String)
    other = bins.cells - 1
    codes = {category: index + 1 for index, category in enumerate(bins.categories)}
    if codes:
        known = texts.replace_strict(codes, default=other, return_dtype=pl.Int64)
        places = pl.select(pl.when(texts.is_null()).then(0).otherwise(known)).to_series()
    else:
        places = pl.select(pl.when(texts.is_null()).then(0).otherwise(other)).to_series()
    numbers = places.to_numpy().astype(np.intp)
    counts = _tally(numbers, group, groups, bins.cells)
    unseen: list[dict[str, int]] = [{} for _ in range(groups)]
    # If the list of categories is incomplete, a value that is not on it may have been in the reference.
    new = np.flatnonzero((numbers == other) & bins.complete)
    if len(new):
        listed = pl.DataFrame({"group": group[new], "value": texts.gather(new)})
        ranked = listed.group_by("group", "value").len().sort("group", "len", "value", descending=[False, True, False])
        for place, value, count in ranked.group_by("group", maintain_order=True).head(UNSEEN).iter_rows():
            unseen[place][value] = count
    return [Sketch(bins, tuple(row), None, named) for row, named in zip(counts.tolist(), unseen, strict=True)]


def _tally(places: Integers, group: Integers, groups: int, cells: int) -> Integers:
    """Return the number of rows by group and cell, shape (groups, cells)."""
    counted = np.bincount(group * cells + places, minlength=groups * cells)
    return counted.astype(np.intp, copy=False).reshape(groups, cells)


__all__ = ["sketch_groups"]
