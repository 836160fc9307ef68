"""Correlations of pairs of columns by block: equal to numpy's, mergeable, and NaN where nothing is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.pair_correlations import (
    LEAST_ROWS,
    MOST_PAIRED,
    choose_paired,
    correlate_blocks,
    fisher_transformed,
    pairs_of,
)

NAMES = ("x", "y", "c")


def some_frame(rows: int, seed: int = 0, correlation: float = 0.6) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], rows).T
    return pl.DataFrame({"x": x, "y": np.exp(y), "c": np.where(x + generator.normal(size=rows) > 0.3, "yes", "no")})


def reference_of(frame: pl.DataFrame) -> dict[str, Sketch]:
    return sketch_frame(frame, choose_bins(frame, frame.columns)[0])


REFERENCE = reference_of(some_frame(20_000, 99))


def one_block(frame: pl.DataFrame) -> npt.NDArray[np.int64]:
    return np.zeros(frame.height, dtype=np.int64)


def normal_scores(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Van der Waerden scores: the normal quantiles of the ranks."""
    return np.asarray(stats.norm.ppf(stats.rankdata(values) / (len(np.asarray(values)) + 1)))


def test_correlations_are_those_of_the_normal_scores_of_the_ranks() -> None:
    frame = some_frame(20_000, 99)
    found = correlate_blocks(frame, REFERENCE, NAMES, one_block(frame), 1).correlations()[0]
    assert pairs_of(NAMES) == [("x", "y"), ("x", "c"), ("y", "c")]
    x, y = normal_scores(frame["x"]), normal_scores(frame["y"])
    # Twenty cells lose a little.
    assert np.tanh(found[0]) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.02)
    assert np.tanh(found[0]) == pytest.approx(0.6, abs=0.03)
    assert abs(np.tanh(found[1])) == pytest.approx(abs(np.corrcoef(x, frame["c"] == "yes")[0, 1]), abs=0.02)


@pytest.mark.parametrize("blocks", [1, 3])
def test_they_do_not_depend_on_the_order_of_the_rows_in_any_digit(blocks: int) -> None:
    frame = some_frame(70_000, 4)
    block = np.random.default_rng(5).integers(-1, blocks, frame.height)
    order = np.random.default_rng(6).permutation(frame.height)
    found, mixed = (
        correlate_blocks(frame[rows], REFERENCE, NAMES, block[rows], blocks)
        for rows in (np.arange(frame.height), order)
    )
    for one, other in ((found.means, mixed.means), (found.deviations, mixed.deviations), (found.within, mixed.within)):
        np.testing.assert_array_equal(one, other)


def test_they_do_not_change_with_the_scale_of_a_column_or_with_outliers() -> None:
    frame = some_frame(2000, 3)
    moved = frame.with_columns(y=pl.col("y").log())
    found = [
        correlate_blocks(one, reference_of(one), NAMES, one_block(one), 1).correlations() for one in (frame, moved)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.02)
    wild = frame.with_columns(y=pl.when(pl.col("y") == pl.col("y").max()).then(1e300).otherwise("y"))
    assert correlate_blocks(wild, REFERENCE, NAMES, one_block(wild), 1).correlations() == pytest.approx(
        correlate_blocks(frame, REFERENCE, NAMES, one_block(frame), 1).correlations(), abs=0.02
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_each_block_has_the_correlations_of_its_own_rows(rows: int, blocks: int, seed: int) -> None:
    frame = some_frame(max(rows, 1), seed).head(rows)
    block = np.random.default_rng(seed).integers(-1, blocks, rows)
    found = correlate_blocks(frame, REFERENCE, NAMES, block, blocks).correlations()
    assert found.shape == (blocks, 3)
    for number in range(blocks):
        part = frame.filter(pl.Series(block == number))
        alone = correlate_blocks(part, REFERENCE, NAMES, one_block(part), 1).correlations()[0]
        assert found[number] == pytest.approx(alone, nan_ok=True)
        if part.height < LEAST_ROWS:
            assert np.isnan(alone).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_merged_blocks_are_those_of_all_their_rows(size: int, number: int, seed: int) -> None:
    """Also if blocks have few rows or none, differ in level, or do not vary."""
    generator = np.random.default_rng(seed)
    blocks = size * number
    frame = some_frame(40 * blocks, seed)
    block = np.minimum(generator.geometric(0.3, frame.height) - 1, blocks - 1)
    frame = frame.with_columns(x=pl.col("x") + pl.Series(block % 3 - 1.0), c=pl.Series(block).cast(pl.String))
    frame = frame.with_columns(c=pl.when(pl.col("c") == "0").then(pl.lit("yes")).otherwise(pl.lit("no")))
    fine = correlate_blocks(frame, REFERENCE, NAMES, block, blocks)
    coarse = correlate_blocks(frame, REFERENCE, NAMES, block // size, number)
    merged = fine.merged(size)
    assert merged.rows.tolist() == coarse.rows.tolist()
    assert merged.means == pytest.approx(coarse.means)
    assert merged.deviations == pytest.approx(coarse.deviations, abs=1e-7)
    assert merged.correlations() == pytest.approx(coarse.correlations(), nan_ok=True, abs=1e-7)
    assert fine.part(slice(0, size)).merged(size).correlations() == pytest.approx(
        coarse.correlations()[:1], nan_ok=True, abs=1e-7
    )


def test_two_columns_with_the_same_course_of_the_day_are_related_over_the_day_only() -> None:
    generator = np.random.default_rng(4)
    hour = np.repeat(np.arange(24), 100)
    level = np.sin(hour / 24 * 2 * np.pi)
    x, y = generator.normal(size=(2, 2400)) + 2 * level
    frame = pl.DataFrame({"x": x, "y": y})
    hours = correlate_blocks(frame, reference_of(frame), ("x", "y"), hour, 24)
    assert np.abs(hours.correlations()).mean() < 0.15
    assert np.tanh(hours.merged(24).correlations()) == pytest.approx(np.corrcoef(x, y)[:1, 1:], abs=0.05)


@pytest.mark.parametrize("value", [None, 1.0, float("nan"), float("inf")])
def test_a_column_that_does_not_vary_or_is_absent_has_no_correlation(value: float | None) -> None:
    frame = some_frame(200).with_columns(y=pl.lit(value, dtype=pl.Float64))
    for live in (frame, frame.drop("y")):
        found = correlate_blocks(live, REFERENCE, NAMES, one_block(live), 1).correlations()[0]
        assert np.isnan(found).tolist() == [True, False, True]


@pytest.mark.parametrize("rows", [0, 1, LEAST_ROWS - 1])
def test_few_rows_have_no_correlation(rows: int) -> None:
    frame = some_frame(LEAST_ROWS).head(rows)
    found = correlate_blocks(frame, REFERENCE, NAMES, one_block(frame), 1).correlations()
    assert np.isnan(found).all()
    enough = some_frame(LEAST_ROWS)
    assert np.isfinite(correlate_blocks(enough, REFERENCE, NAMES, one_block(enough), 1).correlations()).all()


def test_equal_columns_have_a_finite_transform() -> None:
    frame = some_frame(500).select("x", twin="x", mirror=-pl.col("x"))
    reference = reference_of(frame)
    found = correlate_blocks(frame, reference, tuple(frame.columns), one_block(frame), 1).correlations()[0]
    assert np.isfinite(found).all()
    assert np.tanh(found) == pytest.approx([0.999, -0.999, -0.999], abs=0.005)


def test_columns_have_other_names_in_the_frame() -> None:
    frame = some_frame(300)
    renamed = frame.rename({name: f"input_{name}" for name in NAMES})
    columns = {name: f"input_{name}" for name in NAMES}
    found = correlate_blocks(renamed, REFERENCE, NAMES, one_block(frame), 1, columns=columns).correlations()
    assert found == pytest.approx(correlate_blocks(frame, REFERENCE, NAMES, one_block(frame), 1).correlations())


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_their_variance_is_fishers(correlation: float) -> None:
    """1/(rows − 3), whatever the correlation is; scores of a few cells vary a little differently."""
    blocks, rows = 1500, 60
    frame = some_frame(blocks * rows, 5, correlation)
    block = np.repeat(np.arange(blocks), rows)
    found = correlate_blocks(frame.select("x", "y"), REFERENCE, ("x", "y"), block, blocks).correlations()[:, 0]
    assert found.var() * (rows - 3) == pytest.approx(1.0, abs=0.2)
    standard = (found - found.mean()) / found.std()
    assert stats.kurtosis(standard) == pytest.approx(0, abs=0.5)


def test_the_transform_is_the_inverse_hyperbolic_tangent() -> None:
    values = np.array([-1.0, -0.999, -0.5, 0.0, 0.3, 0.999, 1.0])
    assert np.tanh(fisher_transformed(values)) == pytest.approx(values, abs=0.0011)
    assert np.isfinite(fisher_transformed(values)).all()


def test_the_first_columns_that_vary_are_paired() -> None:
    frame = some_frame(100).with_columns(constant=pl.lit(1.0), empty=pl.lit(None, dtype=pl.Float64))
    sketches = reference_of(frame.select("constant", "empty", *NAMES))
    assert choose_paired(sketches) == NAMES
    many = pl.DataFrame({f"f{number}": np.random.default_rng(number).normal(size=50) for number in range(30)})
    assert choose_paired(reference_of(many)) == tuple(f"f{number}" for number in range(MOST_PAIRED))
    assert choose_paired({}) == ()
    assert pairs_of(("x",)) == []
