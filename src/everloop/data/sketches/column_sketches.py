"""Sketch the features of a window: the number of rows in each cell, in a few hundred bytes per feature.

Sketches with the same cells can be added, so the sketch of a month is the sum of those of its days. A frame is sketched
in one pass over its columns. Numeric bins are counted by `x <= edge` for every edge, which Polars does with vector
instructions on all cores and without sorting.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from everloop.data.sketches.bins import (
    Bins,
    CategoryBins,
    NumericBins,
    as_numbers,
    bins_from_json,
    bins_to_json,
    column_kind,
)
from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.records import Json

UNSEEN = 5
"""How many categories that are not in the reference a sketch lists by name."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of the finite values, in the unit of the feature. `m2` is the sum of squared deviations."""

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
        # The updating formulae of Chan, Golub and LeVeque (1979) are stable where sums of squares are not.
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
    """The distribution of one feature in one window.

    Attributes:
        bins: the cells, from the reference.
        counts: rows by cell, in the order of `bins.labels`. The first cell is that of missing values.
        moments: moments of a numeric feature; None if it has no finite values.
        unseen: a few categories that are not in the reference, with their numbers of rows.
    """

    bins: Bins
    counts: tuple[int, ...]
    moments: Moments | None = None
    unseen: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.counts) != self.bins.cells:
            raise UsageError(
                f"A sketch with {self.bins.cells} cells cannot have {len(self.counts)} counts.",
                help="Pass one count for each label of the bins.",
            )

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def array(self) -> npt.NDArray[np.float64]:
        """Return the counts as an array of shape (cells,)."""
        import numpy as np

        return np.asarray(self.counts, dtype=np.float64)

    def __add__(self, other: Sketch) -> Sketch:
        """Return the sketch of the rows of both windows.

        Raises:
            UsageError: the two have different cells.
        """
        if self.bins != other.bins:
            raise UsageError(
                "Sketches with different cells cannot be added.", help="Sketch both with the bins of the baseline."
            )
        moments = self.moments + other.moments if self.moments and other.moments else self.moments or other.moments
        # No unseen value is dropped here, otherwise the result would depend on the order of the additions.
        unseen = Counter(self.unseen) + Counter(other.unseen)
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Sketch(self.bins, counts, moments, dict(sorted(unseen.items())))

    def to_json(self) -> dict[str, Json]:
        return {"bins": bins_to_json(self.bins), **self.counted()}

    def counted(self) -> dict[str, Json]:
        """Return the same as `to_json` without the bins, for windows whose bins are those of the baseline."""
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
        frame: the window, one row per case.
        bins: the cells by feature.
        columns: names of columns by feature, if they differ. A feature counts as missing in every row if its column is
            absent or of a type that cannot be counted.

    Raises:
        EmptySampleError: the window has no rows.
    """
    import polars as pl

    window = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    if window.height == 0:
        raise EmptySampleError("A window without rows cannot be sketched.", help="Choose a longer window.")
    column_of = {name: (columns or {}).get(name, name) for name in bins}
    present = {
        name
        for name, column in column_of.items()
        if column in window.columns and column_kind(window.schema[column]) is not None
    }
    numeric = {name: cells for name, cells in bins.items() if name in present and isinstance(cells, NumericBins)}
    # The working frame names columns by number, because Polars would read some feature names as a pattern.
    working = pl.DataFrame([window[column_of[name]].rename(f"n{index}") for index, name in enumerate(numeric)])
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
    """Add the sketches of several windows, feature by feature."""
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
    for index, cells in enumerate(bins):
        x = pl.col(f"n{index}")
        expressions += [(x <= edge).sum().alias(f"{index}:{step}") for step, edge in enumerate(cells.edges)]
        expressions += [
            (x.null_count() + x.is_nan().sum()).alias(f"{index}:missing"),
            x.mean().alias(f"{index}:mean"),
            x.var().alias(f"{index}:var"),
            x.min().alias(f"{index}:low"),
            x.max().alias(f"{index}:high"),
        ]
    row = frame.select(expressions).row(0, named=True)
    sketches = []
    for index, cells in enumerate(bins):
        upto = [int(row[f"{index}:{step}"]) for step in range(len(cells.edges))]
        missing = int(row[f"{index}:missing"])
        between = [high - low for low, high in itertools.pairwise(upto)]
        counts = (missing, upto[0], *between, frame.height - missing - upto[-1])
        sketches.append(Sketch(cells, counts, _moments(frame, index, row, frame.height - missing)))
    return sketches


def _moments(frame: pl.DataFrame, index: int, row: Mapping[str, float | None], count: int) -> Moments | None:
    mean, low, high = (row[f"{index}:{name}"] for name in ("mean", "low", "high"))
    variance = row[f"{index}:var"] or 0.0
    if count == 0:
        return None
    if mean is None or low is None or high is None or not all(map(math.isfinite, (mean, variance, low, high))):
        # The quick pass cannot handle NaN and infinities. Such columns are rare, so they are read a second time.
        values = frame[f"n{index}"]
        values = values.filter(values.is_finite())
        if values.is_empty():
            return None
        count = len(values)
        mean, variance = float(values.mean() or 0.0), float(values.var() or 0.0)  # type: ignore[arg-type]
        low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
        if not math.isfinite(variance):
            # The values are so large that their squares overflow.
            return None
    return Moments(count, mean, variance * (count - 1), low, high)


def _categorical_sketch(values: pl.Series, bins: CategoryBins) -> Sketch:
    import polars as pl

    counted = values.rename("value").value_counts()
    tally = dict(zip(counted["value"].cast(pl.String).to_list(), counted["count"].to_list(), strict=True))
    missing = int(tally.pop(None, 0))
    known = tuple(int(tally.pop(category, 0)) for category in bins.categories)
    # If the list of categories is incomplete, a value that is not on it may have been in the reference.
    unseen = sorted(tally.items(), key=lambda item: (-item[1], item[0])) if bins.complete else []
    return Sketch(bins, (missing, *known, sum(tally.values())), None, dict(unseen[:UNSEEN]))
