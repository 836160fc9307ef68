import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.bins import Bins, CategoryBins, NumericBins, choose_bins
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.grouped_sketches import sketch_groups

NUMBERS = st.one_of(st.none(), st.integers(-5, 5).map(float), st.sampled_from([float("nan"), float("inf"), -1e9]))
TEXTS = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "new"]))
BINS: dict[str, Bins] = {
    "x": NumericBins((-2.5, -1.0, 0.0, 2.0)),
    "c": CategoryBins(("a", "b")),
    "d": CategoryBins(("b",), complete=False),
    "gone": NumericBins((0.0, 1.0)),
}


def same(one: Sketch, other: Sketch) -> None:
    assert (one.bins, one.counts, one.unseen) == (other.bins, other.counts, other.unseen)
    assert (one.moments is None) == (other.moments is None)
    if one.moments is not None and other.moments is not None:
        assert (one.moments.count, one.moments.low, one.moments.high) == (
            other.moments.count,
            other.moments.low,
            other.moments.high,
        )
        assert (one.moments.mean, one.moments.m2) == pytest.approx(
            (other.moments.mean, other.moments.m2), rel=1e-9, abs=1e-9
        )


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.tuples(NUMBERS, TEXTS), min_size=1, max_size=12), min_size=1, max_size=5))
def test_each_group_has_the_sketch_of_its_rows(groups: list[list[tuple[float | None, str | None]]]) -> None:
    schema = {"x": pl.Float64, "c": pl.String}
    frames = [pl.DataFrame(rows, schema=schema, orient="row").with_columns(d="c") for rows in groups]
    found = sketch_groups(pl.concat(frames), [frame.height for frame in frames], BINS)
    for frame, sketches in zip(frames, found, strict=True):
        expected = sketch_frame(frame, BINS)
        assert list(sketches) == list(expected)
        for name, sketch in sketches.items():
            same(sketch, expected[name])


def test_other_types_and_no_groups() -> None:
    frame = pl.DataFrame({"x": ["1", "2", "no"], "c": [True, False, None], "l": [[1], [2], [3]]})
    bins: dict[str, Bins] = {**BINS, "c": CategoryBins(("true",)), "l": CategoryBins(("1",))}
    (found,) = sketch_groups(frame, [3], bins)
    for name, expected in sketch_frame(frame, bins).items():
        same(found[name], expected)
    assert sketch_groups(frame.clear(), [], bins) == []


def test_many_rows_are_counted_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": rng.normal(size=5000)})
    bins, _ = choose_bins(frame, ["x"])
    cells = bins["x"]
    assert isinstance(cells, NumericBins)
    (found,) = sketch_groups(frame, [5000], bins)
    edges = np.asarray(cells.edges)
    inside = np.histogram(-frame["x"].to_numpy(), bins=-edges[::-1])[0][::-1]
    assert found["x"].counts == (0, 0, *inside.tolist(), 0)
