from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.data.sketches.time_blocks import aligned_grid, moments_of
from everloop.monitoring import build_baseline
from everloop.monitoring.window_counts import (
    count_frame,
    counts_of,
    join_windows,
    pack_correlations,
    pack_window_counts,
    subject_of,
    unpack_correlations,
    unpack_window_counts,
)

START = datetime(2024, 1, 1)
DAY = timedelta(days=1)

tables = st.dictionaries(
    st.text(min_size=1, max_size=5), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30), max_size=5
)


def frame(seed: int, days: int = 5, rows: int = 40) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    number = days * rows
    return pl.DataFrame(
        {
            "at": [START + DAY * index / rows for index in range(number)],
            "x": generator.normal(size=number),
            "y": generator.normal(size=number),
            "c": generator.choice(["a", "b"], number),
            "prediction": generator.normal(size=number),
            "score": generator.random(number),
        }
    )


@settings(max_examples=100, deadline=None)
@given(tables)
def test_counts_survive_packing(table: dict[str, list[int]]) -> None:
    counts = {name: np.array(cells, dtype=float) for name, cells in table.items()}
    cells = {name: len(found) for name, found in counts.items()}
    found = unpack_window_counts(pack_window_counts(counts), cells)
    assert found is not None
    assert {name: values.tolist() for name, values in found.items()} == table
    assert unpack_window_counts(pack_window_counts(counts), {**cells, "one more": 3}) is None


def test_correlations_survive_packing() -> None:
    values = np.array([0.5, -1.25, np.nan])
    assert unpack_correlations(pack_correlations(values)) == pytest.approx(values, nan_ok=True)
    assert pack_correlations(None) is None
    assert unpack_correlations(None) is None


def test_windows_count_what_sketches_count() -> None:
    rows = frame(1)
    features = ["x", "y", "c", "prediction"]
    baseline = build_baseline(rows, features, time="at", scored=rows.select("score", "at"))
    grid = aligned_grid(START.replace(tzinfo=UTC), (START + 4 * DAY).replace(tzinfo=UTC), DAY)
    windows = count_frame(baseline, rows, moments_of(rows, "at"), grid, score="score")
    assert windows.rows.tolist() == [40] * 5
    assert set(windows.counts) == {"x", "y", "c", "input_prediction", "prediction"}
    second = rows[40:80]
    sketches = sketch_frame(second, baseline.bins)
    assert baseline.score is not None
    score = sketch_frame(second, {"score": baseline.score.sketches["prediction"].bins})["score"]
    expected = counts_of(baseline, sketches, score)
    assert {name: counts[1].tolist() for name, counts in windows.counts.items()} == {
        name: counts.tolist() for name, counts in expected.items()
    }
    assert windows.correlations is not None
    # The pair of features, against SciPy on the same day is tested with the correlations; here: one row per window.
    assert windows.correlations.shape[0] == 5
    assert windows.seconds()[1] - windows.seconds()[0] == 86_400


def test_a_feature_may_be_called_like_the_score() -> None:
    rows = frame(2)
    with_score = build_baseline(rows, ["prediction"], scored=rows.select("score"))
    without = build_baseline(rows, ["prediction"])
    assert subject_of("prediction", with_score) == "input_prediction"
    assert subject_of("prediction", without) == "prediction"
    assert subject_of("x", with_score) == "x"


def test_windows_that_are_not_known_have_no_rows() -> None:
    starts = [START.replace(tzinfo=UTC) + index * DAY for index in range(3)]
    last = {"x": np.array([1.0, 2.0]), "y": np.array([3.0])}
    joined = join_windows(starts, DAY, [{"x": np.array([5.0, 0.0])}, None, last])
    assert joined.counts["x"].tolist() == [[5, 0], [0, 0], [1, 2]]
    assert joined.counts["y"].tolist() == [[0], [0], [3]]
    assert joined.rows.tolist() == [5, 0, 3]
    assert joined.correlations is None
    pairs = join_windows(starts, DAY, [None, None, last], [np.zeros(2), None, np.array([0.5])])
    assert pairs.correlations == pytest.approx(np.array([[np.nan], [np.nan], [0.5]]), nan_ok=True)
    empty = join_windows(starts[:1], DAY, [{}])
    assert (empty.rows.tolist(), dict(empty.counts)) == ([0], {})
