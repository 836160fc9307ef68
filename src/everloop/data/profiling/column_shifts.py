"""Measure how far the distribution of each column has shifted between two tables.

For numbers and times, this is the greatest distance between the two distribution functions (Kolmogorov-Smirnov). For
text and classes, it is half the sum of the differences of the shares (total variation). Both are between 0 (equal) and
1 (nothing in common), and only shifts that are greater than chance explains are reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from everloop.data.table_inputs import type_name

SAMPLE_ROWS = 200_000
_CERTAINTY = 1.95
"""√(-ln(α/2)/2) for α = 0.001. Times √(1/n + 1/m), it is the distance that two samples of one distribution may have."""
_MAX_CLASSES = 1_000


@dataclass(frozen=True)
class ColumnShift:
    """The shift of one column."""

    distance: float
    """0 to 1."""
    kind: str
    """`ks` for amounts, `tv` for classes, `nulls` if only the share of nulls changed."""
    nulls: tuple[float, float]
    """Share of nulls before and after."""
    before: float | str | None
    """Mean of the numbers, or the most frequent class."""
    after: float | str | None


def find_shifts(before: pl.LazyFrame, after: pl.LazyFrame, rows: tuple[int, int]) -> dict[str, ColumnShift]:
    """The columns of both frames whose distribution has shifted further than chance explains.

    Uses up to about `SAMPLE_ROWS` rows of each frame, evenly spread.
    """
    sides = [
        frame.gather_every(max(1, count // SAMPLE_ROWS)).collect(engine="streaming")
        for frame, count in zip((before, after), rows, strict=True)
    ]
    found: dict[str, ColumnShift] = {}
    for name, dtype in sides[0].schema.items():
        one, two = (side[name] for side in sides)
        if type_name(dtype) != type_name(two.dtype) or not len(one) or not len(two):
            continue
        shift = _shift(one, two)
        if shift is not None:
            found[name] = shift
    return found


def _shift(one: pl.Series, two: pl.Series) -> ColumnShift | None:
    dtype = one.dtype
    nulls = (one.null_count() / len(one), two.null_count() / len(two))
    moved_nulls = abs(nulls[0] - nulls[1]) > _limit(len(one), len(two))
    if dtype.is_numeric() or dtype.is_temporal():
        left, right = (_amounts(side) for side in (one, two))
        kind, distance = "ks", _distance(left, right)
        means = (_mean(left) if dtype.is_numeric() else None, _mean(right) if dtype.is_numeric() else None)
        sizes = len(left), len(right)
        shown: tuple[float | str | None, float | str | None] = means
    elif isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Boolean):
        classes = [side.drop_nulls().cast(pl.String) for side in (one, two)]
        if any(side.n_unique() > _MAX_CLASSES for side in classes):
            return None  # free text, not classes: new rows have new texts
        kind, distance = "tv", _variation(*classes)
        sizes = len(classes[0]), len(classes[1])
        shown = (_most_common(classes[0]), _most_common(classes[1]))
    else:
        return None
    apart = bool(min(sizes)) and distance > _limit(*sizes) * (1 if kind == "ks" else 1.5)
    if not apart and not moved_nulls:
        return None
    if not apart:
        kind, distance = "nulls", abs(nulls[0] - nulls[1])
    return ColumnShift(round(distance, 4), kind, (round(nulls[0], 4), round(nulls[1], 4)), *shown)


def _limit(one: int, two: int) -> float:
    return _CERTAINTY * math.sqrt(1 / one + 1 / two) if one and two else 1.0


def _amounts(values: pl.Series) -> pl.Series:
    plain = values.to_physical() if values.dtype.is_temporal() else values
    floats = plain.cast(pl.Float64).drop_nulls()
    return floats.filter(floats.is_finite())


def _distance(one: pl.Series, two: pl.Series) -> float:
    """The greatest distance between the two empirical distribution functions."""
    if not len(one) or not len(two):
        return 0.0
    steps = pl.concat(
        [
            pl.DataFrame({"value": one, "step": pl.repeat(1 / len(one), len(one), eager=True)}),
            pl.DataFrame({"value": two, "step": pl.repeat(-1 / len(two), len(two), eager=True)}),
        ]
    )
    running = steps.group_by("value").agg(pl.col("step").sum()).sort("value")["step"].cum_sum().abs().max()
    return float(running) if isinstance(running, float) else 0.0


def _variation(one: pl.Series, two: pl.Series) -> float:
    shares = [side.alias("class").to_frame().group_by("class").agg(share=pl.len() / len(side)) for side in (one, two)]
    both = shares[0].join(shares[1], on="class", how="full", suffix="_after", coalesce=True)
    apart = both.select((pl.col("share").fill_null(0) - pl.col("share_after").fill_null(0)).abs().sum()).item()
    return float(apart) / 2


def _mean(values: pl.Series) -> float | None:
    mean = values.mean()
    return round(mean, 6) if isinstance(mean, float) else None


def _most_common(values: pl.Series) -> str | None:
    counted = values.alias("class").to_frame().group_by("class").len().sort("len", "class", descending=[True, False])
    return str(counted["class"][0]) if counted.height else None
