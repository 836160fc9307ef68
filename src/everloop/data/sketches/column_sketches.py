"""Sketch the features of a window: the number of rows in each cell, in a few hundred bytes per feature.

Sketches with the same cells can be added, so the sketch of a month is the sum of those of its days. A frame is sketched
in one pass over its columns, in threads if it is large. The pass numbers the cell of each row. `sketch_cells` keeps
these numbers for callers that count cells together.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass, field
from functools import reduce
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
from everloop.data.sketches.cell_codes import category_codes, chunks, code_type, count_cells, numeric_codes
from everloop.data.sketches.column_threads import over_columns
from everloop.errors import EmptySampleError, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from everloop.data.sketches.cell_codes import Codes
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
        return add_sketches([self, other])

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
            tuple(map(int, data["counts"])),
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
    return sketch_cells(frame, bins, columns=columns)[0]


def sketch_cells(
    frame: pl.DataFrame | pl.LazyFrame,
    bins: Mapping[str, Bins],
    *,
    columns: Mapping[str, str] | None = None,
    keep: Container[str] = (),
) -> tuple[dict[str, Sketch], dict[str, Codes]]:
    """Sketch the features of one window, and keep the number of the cell of each row for some of them.

    The other arguments and errors are those of `sketch_frame`.

    Args:
        keep: features whose cell numbers are returned.

    Returns:
        The sketches, and by kept feature an array of shape (rows,): indices into `bins.labels`, 0 for missing values.
    """
    import polars as pl

    window = frame.collect() if isinstance(frame, pl.LazyFrame) else frame
    if window.height == 0:
        raise EmptySampleError("A window without rows cannot be sketched.", help="Choose a longer window.")
    present = set(window.columns)

    def one(name: str) -> tuple[Sketch, Codes | None]:
        column = (columns or {}).get(name, name)
        kept = name in keep
        values = window[column] if column in present else None
        if values is None or column_kind(values.dtype) is None:
            return _all_missing(bins[name], window.height, kept)
        cells = bins[name]
        if isinstance(cells, NumericBins):
            return _numeric_sketch(as_numbers(values), cells, kept)
        if kept:
            return _coded_categories(values, cells)
        return _categorical_sketch(values, cells), None

    found = dict(zip(bins, over_columns(one, bins, window.height), strict=True))
    codes = {name: codes for name, (_, codes) in found.items() if codes is not None}
    return {name: sketch for name, (sketch, _) in found.items()}, codes


def add_sketches(sketches: Sequence[Sketch]) -> Sketch:
    """Return the sketch of the rows of several windows; at least one.

    Raises:
        UsageError: they have different cells.
    """
    first = sketches[0]
    if any(sketch.bins is not first.bins and sketch.bins != first.bins for sketch in sketches):
        raise UsageError(
            "Sketches with different cells cannot be added.", help="Sketch both with the bins of the baseline."
        )
    known = [sketch.moments for sketch in sketches if sketch.moments is not None]
    # No unseen value is dropped here, otherwise the result would depend on the order of the additions.
    unseen: Counter[str] = Counter()
    for sketch in sketches:
        if sketch.unseen:
            unseen.update(sketch.unseen)
    counts = tuple(map(sum, zip(*(sketch.counts for sketch in sketches), strict=True)))
    return Sketch(first.bins, counts, reduce(operator.add, known) if known else None, dict(sorted(unseen.items())))


def add_all(windows: Iterable[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    """Add the sketches of several windows, feature by feature."""
    total: dict[str, list[Sketch]] = {}
    for window in windows:
        for name, sketch in window.items():
            total.setdefault(name, []).append(sketch)
    return {name: add_sketches(sketches) for name, sketches in total.items()}


def _all_missing(cells: Bins, rows: int, kept: bool) -> tuple[Sketch, Codes | None]:
    import numpy as np

    sketch = Sketch(cells, (rows, *[0] * (cells.cells - 1)))
    return sketch, np.zeros(rows, dtype=code_type(cells.cells)) if kept else None


def _numeric_sketch(values: pl.Series, cells: NumericBins, kept: bool) -> tuple[Sketch, Codes | None]:
    import numpy as np

    numbers = values.to_numpy()
    edges = np.asarray(cells.edges, dtype=np.float64)
    counts = np.zeros(cells.cells, dtype=np.int64)
    moments: Moments | None = None
    parts: list[Codes] = []
    with np.errstate(all="ignore"):
        for chunk in chunks(numbers):
            if kept:
                parts.append(numeric_codes(chunk, edges))
                counts += np.bincount(parts[-1], minlength=cells.cells)
            else:
                counts += count_cells(chunk, edges)
            part = _moments(chunk)
            moments = moments + part if moments is not None and part is not None else moments or part
    if moments is not None and not math.isfinite(moments.m2):
        # The values are so large that their squares overflow.
        moments = None
    return Sketch(cells, tuple(counts.tolist()), moments), np.concatenate(parts) if kept else None


def _moments(values: npt.NDArray[np.float64]) -> Moments | None:
    import numpy as np

    total = float(values.sum())
    if not math.isfinite(total):
        values = values[np.isfinite(values)]
        total = float(values.sum())
    if len(values) == 0:
        return None
    mean = total / len(values)
    gaps = values - mean
    np.multiply(gaps, gaps, out=gaps)
    return Moments(len(values), mean, float(gaps.sum()), float(values.min()), float(values.max()))


def _coded_categories(values: pl.Series, bins: CategoryBins) -> tuple[Sketch, Codes]:
    import numpy as np
    import polars as pl

    codes = category_codes(values, bins)
    counts = np.bincount(codes, minlength=bins.cells).tolist()
    others = values.filter(pl.Series(codes == bins.cells - 1)) if counts[-1] else values.clear()
    return Sketch(bins, tuple(counts), None, _categorical_sketch(others, bins).unseen), codes


def _categorical_sketch(values: pl.Series, bins: CategoryBins) -> Sketch:
    import polars as pl

    counted = values.rename("value").value_counts()
    tally = dict(zip(counted["value"].cast(pl.String).to_list(), counted["count"].to_list(), strict=True))
    missing = int(tally.pop(None, 0))
    known = tuple(int(tally.pop(category, 0)) for category in bins.categories)
    # If the list of categories is incomplete, a value that is not on it may have been in the reference.
    unseen = sorted(tally.items(), key=lambda item: (-item[1], item[0])) if bins.complete else []
    return Sketch(bins, (missing, *known, sum(tally.values())), None, dict(unseen[:UNSEEN]))
