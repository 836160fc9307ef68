from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.bins import choose_bins
from everloop.data.sketches.block_counts import cell_codes, count_blocks
from everloop.data.sketches.column_sketches import sketch_frame

values = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(-5, 5).map(float))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(values, st.sampled_from(["a", "b", "c", None]), st.integers(-1, 3)), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_blocks_count_what_sketches_count(rows: list[tuple[float | None, str | None, int]], known: int) -> None:
    frame = pl.DataFrame(rows, schema={"x": pl.Float64, "c": pl.String, "block": pl.Int64}, orient="row")
    bins, _ = choose_bins(frame.head(known), ["x", "c"])
    counts = count_blocks(frame, bins, frame["block"].to_numpy(), 4)
    for block in range(4):
        part = frame.filter(pl.col("block") == block)
        expected = sketch_frame(part, bins) if part.height else {}
        for name, cells in bins.items():
            found = counts[name][block]
            assert found.sum() == part.height
            assert tuple(found) == (expected[name].counts if expected else (0,) * cells.cells)


def test_large_columns_are_counted_alike() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=50_000)
    x[generator.random(50_000) < 0.1] = np.nan
    frame = pl.DataFrame({"x": x})
    bins, _ = choose_bins(frame, ["x"])
    block = generator.integers(0, 7, 50_000)
    counts = count_blocks(frame, bins, block, 7)["x"]
    assert tuple(counts.sum(axis=0)) == sketch_frame(frame, bins)["x"].counts
    assert counts.sum(axis=1) == pytest.approx(np.bincount(block))


def test_absent_and_unusable_columns_are_missing() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0], "c": ["a", "b", "a"]})
    bins, _ = choose_bins(frame, ["x", "c"])
    other = pl.DataFrame({"x": [[1.0], [2.0]], "renamed": ["b", "z"]})
    counts = count_blocks(other, bins, np.array([0, 0]), 1, columns={"c": "renamed"})
    assert counts["x"][0, 0] == 2
    assert counts["c"][0].tolist() == [0, 0, 1, 1]
    assert count_blocks(frame.select("x"), bins, np.zeros(3, dtype=np.int64), 1)["c"][0, 0] == 3
    assert cell_codes(pl.Series([None, None]), bins["c"]).tolist() == [0, 0]


def test_no_rows_are_no_counts() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0]})
    bins, _ = choose_bins(frame, ["x"])
    assert count_blocks(frame, bins, np.array([-1, -1]), 3)["x"].sum() == 0
    assert count_blocks(frame.clear(), bins, np.zeros(0, dtype=np.int64), 0)["x"].shape == (0, bins["x"].cells)
