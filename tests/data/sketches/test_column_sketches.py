import json
import math
from datetime import UTC, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.bins import CategoryBins, NumericBins, choose_bins
from everloop.data.sketches.column_sketches import Sketch, add_all, sketch_frame
from everloop.errors import EmptySampleError, UsageError

numbers = st.lists(st.one_of(st.none(), st.floats(allow_nan=True, width=32)), min_size=1, max_size=60)


def bins_of(frame: pl.DataFrame, **options: int) -> dict[str, NumericBins | CategoryBins]:
    bins, skipped = choose_bins(frame, frame.columns, **options)
    assert not skipped
    return bins


def test_quantile_bins_hold_equal_shares_of_the_reference() -> None:
    frame = pl.DataFrame({"x": np.random.default_rng(0).normal(size=10_000)})
    sketch = sketch_frame(frame, bins_of(frame))["x"]
    assert sketch.counts == (0, 0, *[500] * 20, 0)
    assert sketch.rows == 10_000


def test_numeric_counts_are_numpys() -> None:
    generator = np.random.default_rng(1)
    bins = bins_of(pl.DataFrame({"x": generator.normal(size=1000)}))
    live = generator.normal(0.5, 2, size=5000)
    edges = np.array(bins["x"].edges)  # type: ignore[union-attr]
    expected = np.bincount(np.searchsorted(edges, live, side="left"), minlength=len(edges) + 1)
    sketch = sketch_frame(pl.DataFrame({"x": live}), bins)["x"]
    assert sketch.counts == (0, *expected.tolist())
    assert sketch.moments is not None
    assert sketch.moments.mean == pytest.approx(live.mean())
    assert sketch.moments.deviation == pytest.approx(live.std(ddof=1))


def test_labels_have_round_numbers_where_values_are_round() -> None:
    bins = bins_of(pl.DataFrame({"rain": [0.0] * 8 + [0.1, 0.41], "score": [0.1234567891] * 9 + [0.5]}), bins=4)
    assert bins["rain"].labels == ("missing", "< 0", "0", "0 to 0.41", "> 0.41")
    assert bins["rain"].smallest == 0
    assert bins["score"].labels == ("missing", "≤ 0.123457", "0.123457", "0.123457 to 0.5", "> 0.5")


def test_values_outside_the_reference_have_their_own_cells() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "c": ["a", "b", "b", None]})
    bins = bins_of(frame, bins=2)
    live = pl.DataFrame(
        {"x": [0.5, 1.0, 9.0, None, float("nan"), math.inf, -math.inf], "c": ["b", "z", "z", "y", None, "a", "a"]}
    )
    sketches = sketch_frame(live, bins)
    assert dict(zip(bins["x"].labels, sketches["x"].counts, strict=True)) == {
        "missing": 2,
        "< 1": 2,
        "1 to 2": 1,
        "2 to 4": 0,
        "> 4": 2,
    }
    assert dict(zip(bins["c"].labels, sketches["c"].counts, strict=True)) == {
        "missing": 1,
        "b": 1,
        "a": 2,
        "new": 3,
    }
    assert sketches["c"].unseen == {"z": 2, "y": 1}
    moments = sketches["x"].moments
    assert moments is not None
    assert (moments.count, moments.low, moments.high) == (3, 0.5, 9.0)


def test_a_constant_feature_has_one_bin() -> None:
    frame = pl.DataFrame({"x": [7.0] * 50})
    bins = bins_of(frame)
    assert sketch_frame(frame, bins)["x"].counts == (0, 0, 50, 0)
    live = pl.DataFrame({"x": [7.0, math.nextafter(7.0, 0), math.nextafter(7.0, 8)]})
    assert sketch_frame(live, bins)["x"].counts == (0, 1, 1, 1)


def test_a_value_that_many_rows_share_has_its_own_bin() -> None:
    frame = pl.DataFrame({"x": [0.0] * 60 + list(np.linspace(0.01, 1, 40))})
    counts = sketch_frame(frame, bins_of(frame, bins=10))["x"].counts
    assert counts[:3] == (0, 0, 60)


def test_whole_numbers_get_one_bin_per_value() -> None:
    frame = pl.DataFrame({"x": [1, 2, 2, 3, 3, 3] * 10}, schema={"x": pl.Int16})
    assert sketch_frame(frame, bins_of(frame))["x"].counts == (0, 0, 10, 20, 30, 0)


def test_other_types_are_counted_too() -> None:
    frame = pl.DataFrame(
        {
            "flag": [True, False, True, None],
            "kind": pl.Series(["a", "b", "a", "a"], dtype=pl.Categorical),
            "wait": [timedelta(seconds=s) for s in (1, 2, 3, 4)],
            "at": [time(1), time(2), time(3), time(4)],
        }
    )
    sketches = sketch_frame(frame, bins_of(frame, bins=2))
    assert sketches["flag"].counts == (1, 2, 1, 0)
    assert sketches["kind"].counts == (0, 3, 1, 0)
    assert sketches["wait"].moments is not None
    assert sketches["wait"].moments.mean == pytest.approx(2.5)
    assert sketches["at"].counts == (0, 0, 2, 2, 0)
    # The unit of a duration is no drift.
    again = sketch_frame(frame.with_columns(pl.col("wait").cast(pl.Duration("ms"))), bins_of(frame, bins=2))
    assert again["wait"] == sketches["wait"]


def test_columns_that_cannot_be_monitored_are_listed_with_the_reason() -> None:
    frame = pl.DataFrame(
        {
            "ok": [1, 2],
            "when": [datetime(2024, 1, 1, tzinfo=UTC)] * 2,
            "list": [[1], [2]],
            "nothing": [None, None],
            "nan": [float("nan"), None],
        }
    )
    bins, skipped = choose_bins(frame, frame.columns)
    assert list(bins) == ["ok"]
    assert set(skipped) == {"when", "list", "nothing", "nan"}
    assert skipped["nan"] == "it has no finite value in the reference"
    assert "List" in skipped["list"]


def test_many_categories_are_counted_together() -> None:
    frame = pl.DataFrame({"c": ["a"] * 5 + ["b"] * 3 + ["c", "d"]})
    bins = bins_of(frame, categories=2)
    assert bins["c"] == CategoryBins(("a", "b"), complete=False)
    sketch = sketch_frame(pl.DataFrame({"c": ["a", "c", "zzz"]}), bins)["c"]
    assert sketch.counts == (0, 1, 0, 2)
    # Beside an incomplete list nobody can say that a value is new.
    assert sketch.unseen == {}


def test_an_absent_or_unusable_column_is_missing_in_every_row() -> None:
    bins = bins_of(pl.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]}))
    sketches = sketch_frame(pl.DataFrame({"x": [[1], [2], [3]]}), bins)
    assert sketches["x"].counts == (3, 0, 0, 0, 0)
    assert sketches["y"].counts == (3, 0, 0, 0, 0)
    assert sketch_frame(pl.DataFrame({"x": ["1.5", "many"]}), bins)["x"].counts == (1, 0, 0, 1, 0)


def test_columns_may_be_called_anything() -> None:
    frame = pl.DataFrame({"0:missing": [1.0, 2.0], "^a.*$": [1.0, 3.0], "value": ["u", "v"]})
    sketches = sketch_frame(frame, bins_of(frame))
    assert all(sketch.rows == 2 and sketch.counts[0] == 0 for sketch in sketches.values())


def test_a_window_without_rows_is_an_error() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0]})
    with pytest.raises(EmptySampleError, match="without rows"):
        sketch_frame(frame.clear(), bins_of(frame))
    with pytest.raises(EmptySampleError, match="reference has none"):
        choose_bins(frame.clear(), ["x"])


def test_wrong_questions_are_refused() -> None:
    frame = pl.DataFrame({"x": [1.0, 2.0]})
    with pytest.raises(UsageError, match=r"no column 'z'.*Columns: x"):
        choose_bins(frame, ["z"])
    with pytest.raises(UsageError, match="at least 2 bins"):
        choose_bins(frame, ["x"], bins=1)
    with pytest.raises(UsageError, match="4 cells cannot have 2"):
        Sketch(NumericBins((0.0, 1.0)), (1, 2))
    with pytest.raises(UsageError, match="cannot be added"):
        Sketch(NumericBins((0.0,)), (1, 2, 0)) + Sketch(NumericBins((1.0,)), (1, 2, 0))


@settings(max_examples=40, deadline=None)
@given(numbers, numbers, numbers)
def test_the_sketch_of_all_rows_is_the_sum_of_the_parts(
    reference: list[float | None], first: list[float | None], second: list[float | None]
) -> None:
    frames = [pl.DataFrame({"x": values}, schema={"x": pl.Float64}) for values in (reference, first, second)]
    bins, skipped = choose_bins(frames[0], ["x"], bins=5)
    if skipped:
        return
    parts = [sketch_frame(frame, bins) for frame in frames[1:]]
    whole = sketch_frame(pl.concat(frames[1:]), bins)["x"]
    total = add_all(parts)["x"]
    assert total.counts == whole.counts
    assert total.rows == len(first) + len(second)
    if total.moments is None or whole.moments is None:
        assert total.moments == whole.moments
    else:
        assert total.moments.count == whole.moments.count
        assert (total.moments.low, total.moments.high) == (whole.moments.low, whole.moments.high)
        scale = max(abs(whole.moments.low), abs(whole.moments.high), 1e-30)
        assert total.moments.mean == pytest.approx(whole.moments.mean, abs=1e-6 * scale)
        assert total.moments.deviation == pytest.approx(whole.moments.deviation, abs=1e-5 * scale)
    assert parts[0]["x"] + parts[1]["x"] == total


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "new", None]), min_size=1), st.lists(st.sampled_from(["a", "z", None])))
def test_category_counts_add_up(first: list[str | None], second: list[str | None]) -> None:
    bins = {"c": CategoryBins(("a", "b", "c"))}
    frames = [pl.DataFrame({"c": values}, schema={"c": pl.String}) for values in (first, second) if values]
    whole = sketch_frame(pl.concat(frames), bins)["c"]
    total = add_all(sketch_frame(frame, bins) for frame in frames)["c"]
    assert total.counts == whole.counts
    assert total.unseen == whole.unseen


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_a_sketch_survives_json(values: list[float | None]) -> None:
    frame = pl.DataFrame({"x": values, "c": [str(value) for value in values]}, schema={"x": pl.Float64, "c": pl.String})
    bins, _ = choose_bins(frame, ["x", "c"], categories=3)
    for sketch in sketch_frame(frame, bins).values():
        again = Sketch.from_json(json.loads(json.dumps(sketch.to_json(), allow_nan=False)))
        assert again == sketch
        assert Sketch.from_json(json.loads(json.dumps(sketch.counted())), sketch.bins) == sketch
