"""Sketches: how many rows of a window fall into each cell of a feature, a few hundred bytes a feature.

Sketches of the same cells add up, so a month is the sum of its days and the days need not be read again. A frame is
sketched in one pass over its columns: numeric bins come from counting `x <= edge` for every edge, which Polars does
with vector instructions on all cores and without a sort.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.bins import (
    Bins,
    CategoryBins,
    NumericBins,
    as_numbers,
    bins_from_json,
    bins_to_json,
    column_kind,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.records import Json

UNSEEN = 5
"""How many unseen categories a sketch names."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and spread of the finite values, in the feature's unit. `m2`: sum of squared deviations."""

    count: int
    mean: float
    m2: float
    low: float
    high: float

    @property
    def deviation(self) -> float:
        """Standard deviation; 0 for fewer than two values."""
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0

    def __add__(self, other: Moments) -> Moments:
        # Chan, Golub, LeVeque (1979): updating formulae, stable where sums of squares are not.
        count = self.count + other.count
        gap = other.mean - self.mean
        return Moments(
            count,
            self.mean + gap * other.count / count,
            self.m2 + other.m2 + gap * gap * self.count * other.count / count,
            min(self.low, other.low),
            max(self.high, other.high),
        )


@dataclass(frozen=True, slots=True)
class Sketch:
    """One feature in one window.

    Attributes:
        bins: the cells, as the reference cut them.
        counts: rows by cell, in the order of `bins.labels`; the first is the missing ones.
        moments: of a numeric feature that has finite values.
        unseen: a few categories that the reference did not list, with how many rows each has.
    """

    bins: Bins
    counts: tuple[int, ...]
    moments: Moments | None = None
    unseen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.counts) != self.bins.cells:
            raise UsageError(f"A sketch of {self.bins.cells} cells cannot hold {len(self.counts)} counts.")

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def array(self) -> npt.NDArray[np.float64]:
        """The counts, shape (cells,)."""
        import numpy as np

        return np.asarray(self.counts, dtype=np.float64)

    def __add__(self, other: Sketch) -> Sketch:
        """The sketch of both windows' rows together.

        Raises:
            UsageError: the two are not cut alike.
        """
        if self.bins != other.bins:
            raise UsageError("Sketches with different cells cannot be added.")
        moments = self.moments + other.moments if self.moments and other.moments else self.moments or other.moments
        # All unseen values stay while adding: dropping the rare ones here would make the order of adding matter.
        unseen = Counter(self.unseen) + Counter(other.unseen)
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Sketch(self.bins, counts, moments, dict(sorted(unseen.items())))

    def to_json(self) -> dict[str, Json]:
        return {"bins": bins_to_json(self.bins), **self.counted()}

    def counted(self) -> dict[str, Json]:
        """What `to_json` gives, without the bins: for windows, whose bins are the baseline's."""
        data: dict[str, Json] = {"counts": list(self.counts)}
        if self.moments is not None:
            m = self.moments
            data["moments"] = [m.count, m.mean, m.m2, m.low, m.high]
        if self.unseen:
            data["unseen"] = dict(self.unseen)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Json], bins: Bins | None = None) -> Sketch:
        moments = data.get("moments")
        return cls(
            bins if bins is not None else bins_from_json(data["bins"]),
            tuple(int(count) for count in data["counts"]),
            Moments(int(moments[0]), *map(float, moments[1:])) if moments is not None else None,
            {str(value): int(count) for value, count in data.get("unseen", {}).items()},
        )


def sketch_frame(
    frame: pl.DataFrame | pl.LazyFrame, bins: Mapping[str, Bins], *, columns: Mapping[str, str] | None = None
) -> dict[str, Sketch]:
    """Sketch the features of one window.

    Args:
        frame: one row a case.
        bins: the cells by feature.
        columns: the column that holds a feature, where it is not called like it. A feature whose column is absent or
            of a type that cannot be counted is missing in every row.

    Raises:
        EmptySampleError: the window has no rows.
    """
    import polars as pl

    window = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    if window.height == 0:
        raise EmptySampleError("A window without rows has no sketch.")
    column_of = {name: (columns or {}).get(name, name) for name in bins}
    present = {
        name
        for name, column in column_of.items()
        if column in window.columns and column_kind(window.schema[column]) is not None
    }
    numeric = {name: cells for name, cells in bins.items() if name in present and isinstance(cells, NumericBins)}
    # Positions, not names, in the working frame: a feature may be called anything, also like a pattern.
    working = pl.DataFrame([window[column_of[name]].rename(f"n{place}") for place, name in enumerate(numeric)])
    prepared = working.select(as_numbers(column, dtype) for column, dtype in working.schema.items())
    tallies = _numeric_tallies(prepared, list(numeric.values()))
    sketches = dict(zip(numeric, tallies, strict=True))
    for name, cells in bins.items():
        if name not in present:
            sketches[name] = Sketch(cells, (window.height, *[0] * (cells.cells - 1)))
        elif not isinstance(cells, NumericBins):
            sketches[name] = _categorical_sketch(window[column_of[name]], cells)
    return {name: sketches[name] for name in bins}


def add_all(windows: Iterable[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    """The features' sketches over all the windows together."""
    total: dict[str, Sketch] = {}
    for window in windows:
        for name, sketch in window.items():
            total[name] = total[name] + sketch if name in total else sketch
    return total


def _numeric_tallies(frame: pl.DataFrame, bins: list[NumericBins]) -> list[Sketch]:
    import polars as pl

    if not bins:
        return []
    expressions: list[pl.Expr] = []
    for place, cells in enumerate(bins):
        x = pl.col(f"n{place}")
        expressions += [(x <= edge).sum().alias(f"{place}:{step}") for step, edge in enumerate(cells.edges)]
        expressions += [
            (x.null_count() + x.is_nan().sum()).alias(f"{place}:missing"),
            x.mean().alias(f"{place}:mean"),
            x.var().alias(f"{place}:var"),
            x.min().alias(f"{place}:low"),
            x.max().alias(f"{place}:high"),
        ]
    row = frame.select(expressions).row(0, named=True)
    sketches = []
    for place, cells in enumerate(bins):
        upto = [int(row[f"{place}:{step}"]) for step in range(len(cells.edges))]
        missing = int(row[f"{place}:missing"])
        between = [high - low for low, high in itertools.pairwise(upto)]
        counts = (missing, upto[0], *between, frame.height - missing - upto[-1])
        sketches.append(Sketch(cells, counts, _moments(frame, place, row, frame.height - missing)))
    return sketches


def _moments(frame: pl.DataFrame, place: int, row: Mapping[str, float | None], count: int) -> Moments | None:
    mean, low, high = (row[f"{place}:{name}"] for name in ("mean", "low", "high"))
    variance = row[f"{place}:var"] or 0.0
    if count == 0:
        return None
    if mean is None or low is None or high is None or not all(map(math.isfinite, (mean, variance, low, high))):
        # A NaN or an infinity spoils the quick pass; such columns are rare enough to be read twice.
        values = frame[f"n{place}"]
        values = values.filter(values.is_finite())
        if values.is_empty():
            return None
        count = len(values)
        mean, variance = float(values.mean() or 0.0), float(values.var() or 0.0)  # type: ignore[arg-type]
        low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
        if not math.isfinite(variance):
            # Values near the end of the float range: their squares overflow.
            return None
    return Moments(count, mean, variance * (count - 1), low, high)


def _categorical_sketch(values: pl.Series, bins: CategoryBins) -> Sketch:
    import polars as pl

    counted = values.rename("value").value_counts()
    tally = dict(zip(counted["value"].cast(pl.String).to_list(), counted["count"].to_list(), strict=True))
    missing = int(tally.pop(None, 0))
    known = tuple(int(tally.pop(category, 0)) for category in bins.categories)
    # Beside an incomplete list, a value that is not on it is nothing new.
    unseen = sorted(tally.items(), key=lambda item: (-item[1], item[0])) if bins.complete else []
    return Sketch(bins, (missing, *known, sum(tally.values())), None, dict(unseen[:UNSEEN]))
