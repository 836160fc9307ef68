"""Turn inputs of any type into bin numbers and trend columns for the model of losses.

Numbers are divided at the quantiles of the reference. Categories are ordered by the mean loss of their rows, so that a
single cut separates costly ones from the rest. Missing values have a bin of their own. A column that the window does
not have, or that has another type, counts as missing.

Trees cannot continue a trend into a sparse tail. So each number also has a column with its standardised value and one
with its square, within the range of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.data.sketches.bins import (
    Bins,
    NumericBins,
    as_numbers,
    bins_from_json,
    bins_to_json,
    choose_bins,
    column_kind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    from numpy.typing import NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Codes = NDArray[np.int32]

_BINS = 48
_MOST_DEVIATIONS = 4.0
_CATEGORIES = 40
_SHRINKAGE = 20.0
"""Rows of the overall mean that are added to each category."""


@dataclass(frozen=True, slots=True)
class InputCodes:
    """The bins of each input, the rank of each cell, and the mean and standard deviation of each number."""

    bins: dict[str, Bins]
    ranks: dict[str, tuple[int, ...]]
    scales: dict[str, tuple[float, float]]

    @property
    def most(self) -> int:
        """Number of bins of the input that has most."""
        return max((cells.cells for cells in self.bins.values()), default=1)

    @classmethod
    def fit(cls, inputs: pl.DataFrame, losses: Array) -> InputCodes:
        """Choose bins from reference inputs. Columns that have no bins, such as lists and dates, are left out.

        Args:
            inputs: one row for each loss.
            losses: shape (n,), finite; they order the categories.
        """
        chosen, _ = choose_bins(inputs, inputs.columns, bins=_BINS, categories=_CATEGORIES)
        ranks, scales = {}, {}
        for name, cells in chosen.items():
            if isinstance(cells, NumericBins):
                ranks[name] = tuple(range(cells.cells))
                scales[name] = _scale(_numbers(inputs, name), cells)
                continue
            places = _cells(inputs, name, cells)
            counts = np.bincount(places, minlength=cells.cells)
            sums = np.bincount(places, weights=losses, minlength=cells.cells)
            means = (sums + _SHRINKAGE * losses.mean()) / (counts + _SHRINKAGE)
            order = np.argsort(means, kind="stable")
            rank = np.empty(cells.cells, dtype=np.intp)
            rank[order] = np.arange(cells.cells)
            ranks[name] = tuple(rank.tolist())
        return cls(chosen, ranks, scales)

    def encode(self, inputs: pl.DataFrame) -> Codes:
        """Return the codes of rows, shape (n, columns), from 0 to `most` - 1. Without inputs there is a column of 0."""
        columns = [
            np.asarray(self.ranks[name], dtype=np.int32)[_cells(inputs, name, cells)]
            for name, cells in self.bins.items()
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((inputs.height, 1), dtype=np.int32)

    def trend(self, inputs: pl.DataFrame) -> Array:
        """Return the trend columns of rows, shape (n, 1 + 2 numbers): ones, values and squares. Missing ones are 0."""
        columns = [np.ones(inputs.height)]
        for name, (mean, deviation) in self.scales.items():
            bins = self.bins[name]
            low, high = (bins.edges[0], bins.edges[-1]) if isinstance(bins, NumericBins) else (mean, mean)
            values = (np.clip(_numbers(inputs, name), low, high) - mean) / deviation
            values = np.nan_to_num(np.clip(values, -_MOST_DEVIATIONS, _MOST_DEVIATIONS))
            columns += [values, values * values - 1]
        return np.stack(columns, axis=1)

    def to_json(self) -> dict[str, Json]:
        return {
            "bins": {name: bins_to_json(cells) for name, cells in self.bins.items()},
            "ranks": {name: list(ranks) for name, ranks in self.ranks.items()},
            "scales": {name: list(scale) for name, scale in self.scales.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> InputCodes:
        return cls(
            {name: bins_from_json(cells) for name, cells in data["bins"].items()},
            {name: tuple(map(int, ranks)) for name, ranks in data["ranks"].items()},
            {name: (float(scale[0]), float(scale[1])) for name, scale in data["scales"].items()},
        )


def _numbers(inputs: pl.DataFrame, name: str) -> Array:
    """Return a column as numbers; NaN where it has none, is missing, or has a type that is not numeric."""
    import polars as pl

    dtype = inputs.schema.get(name)
    if dtype is None or (column_kind(dtype) is None and dtype != pl.Null):
        return np.full(inputs.height, np.nan)
    return as_numbers(inputs[name]).to_numpy().astype(np.float64)


def _scale(values: Array, bins: NumericBins) -> tuple[float, float]:
    bounded = np.clip(values, bins.edges[0], bins.edges[-1])
    mean, deviation = float(np.nanmean(bounded)), float(np.nanstd(bounded))
    return mean, deviation if deviation > 0 and np.isfinite(deviation) else 1.0


def _cells(inputs: pl.DataFrame, name: str, cells: Bins) -> NDArray[np.intp]:
    """Return the cell of each row, as in the order of `cells.labels`."""
    import polars as pl

    if isinstance(cells, NumericBins):
        numbers = _numbers(inputs, name)
        found = 1 + np.searchsorted(np.asarray(cells.edges), numbers, side="left")
        return np.where(np.isnan(numbers), 0, found)
    if name not in inputs.columns or column_kind(inputs.schema[name]) is None:
        return np.zeros(inputs.height, dtype=np.intp)
    codes = {category: index + 1 for index, category in enumerate(cells.categories)}
    text = inputs[name].cast(pl.String)
    places = text.replace_strict(codes, default=cells.cells - 1, return_dtype=pl.Int64)
    return np.where(text.is_null().to_numpy(), 0, places.to_numpy()).astype(np.intp)
