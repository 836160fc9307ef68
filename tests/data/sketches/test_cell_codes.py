import math
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.bins import CategoryBins, NumericBins, choose_bins
from everloop.data.sketches.cell_codes import category_codes, count_cells, numeric_codes
from everloop.data.sketches.column_sketches import add_all, sketch_cells, sketch_frame
from everloop.data.sketches.column_threads import LEAST_ROWS


@pytest.mark.parametrize("rows", [1, 50, 2_000, 40_000])
@pytest.mark.parametrize("edges", [1, 21, 119, 300])
def test_numeric_codes_are_those_of_a_binary_search(rows: int, edges: int) -> None:
    generator = np.random.default_rng(rows + edges)
    borders = np.sort(generator.normal(size=edges).round(2))
    values = generator.normal(size=rows).round(2)
    values[:: max(1, rows // 7)] = [np.nan, np.inf, -np.inf, borders[0], borders[-1], 0.0, -0.0, 1e308][
        : len(values[:: max(1, rows // 7)])
    ]
    expected = np.where(np.isnan(values), 0, np.searchsorted(borders, values, side="left") + 1)
    assert numeric_codes(values, borders).tolist() == expected.tolist()
    assert count_cells(values, borders).tolist() == np.bincount(expected, minlength=edges + 2).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-2.5, -0.0, 0.0, 1.0, 7.25, 1e300, -1e300, 5e-324]), min_size=1, max_size=300))
def test_edges_are_order_statistics_in_any_order_of_the_rows(values: list[float]) -> None:
    ordered = sorted(values, key=lambda value: (value, math.copysign(1, value)))
    ranks = [max(0, math.ceil(step * len(values) / 20) - 1) for step in range(1, 21)]
    below = max(math.nextafter(ordered[0], -math.inf), -sys.float_info.max)
    expected = tuple(sorted({below, *(ordered[rank] for rank in ranks)}))
    for rows in (values, ordered, ordered[::-1]):
        bins = choose_bins(pl.DataFrame({"x": rows}), ["x"])[0]["x"]
        assert isinstance(bins, NumericBins)
        assert [repr(edge) for edge in bins.edges] == [repr(edge) for edge in expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "", "é", "new", None]), min_size=1))
def test_category_codes_count_what_the_sketch_counts(values: list[str | None]) -> None:
    series = pl.Series(values, dtype=pl.String)
    for bins in (CategoryBins(("b", "", "a")), CategoryBins(("é",), complete=False), CategoryBins(())):
        counts = np.bincount(category_codes(series, bins), minlength=bins.cells)
        sketch = sketch_frame(series.to_frame("c"), {"c": bins})["c"]
        assert tuple(counts.tolist()) == sketch.counts
        assert sketch_cells(series.to_frame("c"), {"c": bins}, keep=["c"])[0]["c"] == sketch


def test_kept_codes_agree_with_the_counts_for_every_kind_of_column() -> None:
    frame = pl.DataFrame(
        {
            "x": [1.5, None, float("nan"), 3.0],
            "flag": [True, False, None, True],
            "kind": pl.Series(["u", "v", None, "u"], dtype=pl.Categorical),
            "whole": [1, 2, 2, None],
        }
    )
    bins, _ = choose_bins(frame, frame.columns)
    bins["absent"] = NumericBins((0.0, 1.0))
    bins["was_text"] = CategoryBins(("1", "2"))
    sketches, codes = sketch_cells(frame, bins, columns={"was_text": "whole"}, keep=bins)
    for name, sketch in sketches.items():
        assert tuple(np.bincount(codes[name], minlength=sketch.bins.cells).tolist()) == sketch.counts
    assert sketches["was_text"].counts == (1, 1, 2, 0)
    assert codes["absent"].tolist() == [0, 0, 0, 0]
    assert sketches == sketch_frame(frame, bins, columns={"was_text": "whole"})
    assert set(sketch_cells(frame, bins, keep=["x"])[1]) == {"x"}


def test_a_frame_that_is_handled_in_threads_has_the_sketch_of_its_parts() -> None:
    generator = np.random.default_rng(5)
    rows = LEAST_ROWS + 1
    frame = pl.DataFrame(
        {
            "x": generator.normal(1e6, 1, rows),
            "y": pl.Series(generator.exponential(size=rows)).set(pl.Series(generator.random(rows) < 0.1), None),
            "c": generator.choice(["a", "b", "c"], rows),
        }
    )
    bins, _ = choose_bins(frame, frame.columns)
    assert bins == choose_bins(frame.select(pl.all().shuffle(1)), frame.columns)[0]
    whole = sketch_frame(frame, bins)
    total = add_all(sketch_frame(part, bins) for part in frame.iter_slices(1_234))
    for name, sketch in whole.items():
        assert sketch.counts == total[name].counts
    assert whole["x"].moments is not None
    assert whole["x"].moments.deviation == pytest.approx(frame["x"].std(), rel=1e-9)
    assert whole["y"].moments is not None
    assert whole["y"].moments.deviation == pytest.approx(frame["y"].std(), rel=1e-9)


def test_categories_do_not_become_numbers() -> None:
    frame = pl.DataFrame({"c": pl.Series(["7", "many", "8"], dtype=pl.Categorical)})
    assert sketch_frame(frame, {"c": NumericBins((6.0, 9.0))})["c"].counts == (1, 0, 2, 0)


def test_infinities_and_huge_values_do_not_reach_the_moments() -> None:
    bins = {"x": NumericBins((0.0, 1.0))}
    assert sketch_frame(pl.DataFrame({"x": [1e308, -1e308, 1e308]}), bins)["x"].moments is None
    assert sketch_frame(pl.DataFrame({"x": [float("inf"), None]}), bins)["x"].moments is None
    moments = sketch_frame(pl.DataFrame({"x": [float("inf"), 2.0, float("nan")]}), bins)["x"].moments
    assert moments is not None
    assert (moments.count, moments.mean, moments.m2) == (1, 2.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(2, 9))
def test_edges_are_order_statistics(values: list[float], bins: int) -> None:
    chosen, _ = choose_bins(pl.DataFrame({"x": values}), ["x"], bins=bins)
    ordered = sorted(values)
    uppers = {ordered[max(0, -(-step * len(values) // bins) - 1)] for step in range(1, bins + 1)}
    cells = chosen["x"]
    assert isinstance(cells, NumericBins)
    below = max(math.nextafter(ordered[0], -math.inf), -sys.float_info.max)
    assert cells.edges == tuple(sorted({below, *uppers}))
