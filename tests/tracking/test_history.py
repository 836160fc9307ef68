from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import UsageError
from everloop.records import Point, Run, Source
from everloop.tracking import metric_history, start_run
from everloop.tracking.metric_history import read_history, thin
from everloop.tracking.search.run_comparison import compare_runs, read_curves

if TYPE_CHECKING:
    from everloop.stores import Store


@pytest.mark.slow
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=300), st.integers(6, 60))
@settings(max_examples=200, deadline=None)
def test_thinning_keeps_the_extremes_the_ends_and_the_order(numbers: list[float], most: int) -> None:
    values = np.array(numbers)
    kept = thin(values, most)
    assert len(kept) <= max(most, 1)
    assert list(kept) == sorted(set(kept))
    assert kept[-1] == len(values) - 1
    assert kept[0] == 0
    finite = values[~np.isnan(values)]
    shown = values[kept]
    if len(finite):
        assert np.nanmin(shown) == finite.min()
        assert np.nanmax(shown) == finite.max()


def test_every_bucket_keeps_its_peak() -> None:
    values = np.zeros(10_000)
    values[1234], values[7000], values[7001] = 5.0, -5.0, math.nan
    kept = set(thin(values, 100).tolist())
    assert {0, 1234, 7000, 9999} <= kept
    assert len(kept) <= 100


@pytest.mark.parametrize("kept_from", [10, 10**9])
def test_history_is_what_was_logged_with_and_without_the_cache(
    store: Store, monkeypatch: pytest.MonkeyPatch, kept_from: int
) -> None:
    monkeypatch.setattr(metric_history, "CACHED_FROM", kept_from)
    run = store.new(Run, name="r", started_at=store.now())
    store.records.put(run)
    expected: list[tuple[int, float]] = []
    for start in (0, 100, 50):  # the last overlaps, and arrives later
        points = [
            Point(key="loss", value=math.nan if step == 60 else float(step), step=step, at=store.now())
            for step in range(start, start + 60)
        ]
        store.records.append_points(f"run:{run.id}", points)
        store.records.append_points(f"run:{run.id}", [Point(key="other", value=0.0, at=store.now())])
        expected = sorted([*expected, *((point.step, point.value) for point in points)], key=lambda point: point[0])
        for _ in range(2):
            found = read_history(store, run, "loss")
            assert found.total == len(found) == len(expected)
            assert found.steps.tolist() == [step for step, _ in expected]
            np.testing.assert_array_equal(found.values, [value for _, value in expected])
    thinned = read_history(store, run.id, "loss", 20)
    assert len(thinned) <= 20 < thinned.total
    assert set(thinned.values[~np.isnan(thinned.values)]) <= {value for _, value in expected}
    assert found.frame().columns == ["step", "at", "value"]
    assert found.times() == [point.at for point in store.records.read_points(f"run:{run.id}", "loss")]
    assert len(read_history(store, run, "none")) == 0
    with pytest.raises(UsageError):
        read_history(store, run, "loss", 2)


def test_a_torn_cache_is_mended(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_history, "CACHED_FROM", 10)
    run = store.new(Run, name="r", started_at=store.now())
    store.records.put(run)
    store.records.append_points(
        f"run:{run.id}", [Point(key="loss", value=float(step), step=step, at=store.now()) for step in range(50)]
    )
    assert len(read_history(store, run, "loss")) == 50
    (path,) = (store.home / "cache" / "points").iterdir()
    path.write_bytes(path.read_bytes()[: 32 * 20 + 5])
    for _ in range(2):
        assert read_history(store, run, "loss").values.tolist() == [float(step) for step in range(50)]
    assert path.stat().st_size == 32 * 50


def test_history_of_a_run_that_goes_on_and_of_the_past(store: Store) -> None:
    with start_run("r", store=store) as run:
        run.log(loss=1.0)
        assert read_history(store, run.id, "loss").values.tolist() == [1.0]
        moment = store.now()
        run.log(loss=2.0)
        assert read_history(store, run.id, "loss").values.tolist() == [1.0, 2.0]
    assert read_history(store.as_of(moment), run.id, "loss").values.tolist() == [1.0]


def test_comparing_runs_shows_what_differs(store: Store) -> None:
    common = {"name": "r", "started_at": store.now(), "state": "finished"}
    first = store.new(
        Run,
        **common,
        params={"lr": 0.1, "model": {"depth": 3}, "same": 1, "flag": True},
        tags={"team": "a"},
        metrics={"auc": 0.5, "odd": math.nan},
        source=Source(launch=("a.py",), git_commit="c1", packages={"polars": "1", "numpy": "2"}),
    )
    second = store.new(
        Run,
        **common,
        params={"lr": 0.1, "model": {"depth": 4}, "same": 1, "flag": 1},
        metrics={"auc": 0.5, "odd": math.nan},
        source=Source(launch=("a.py",), git_commit="c2", packages={"polars": "1", "numpy": "3"}),
    )
    store.records.put(first, second)
    found = compare_runs(store, [first, second.id])
    assert found.params == {"model.depth": (3, 4), "flag": (True, 1)}
    assert found.tags == {"team": ("a", None)}
    assert found.metrics == {}
    assert found.source == {"git_commit": ("c1", "c2"), "packages.numpy": ("2", "3")}
    assert found.same["params"] == 2
    assert found.differs
    assert not compare_runs(store, [first, first]).differs
    with pytest.raises(UsageError):
        compare_runs(store, [first])


def test_curves_of_several_runs_are_one_frame(store: Store) -> None:
    ids = []
    for size in (3, 2, 0):
        with start_run("r", store=store) as run:
            for step in range(size):
                run.log(loss=float(step))
        ids.append(run.id)
    frame = read_curves(store, ids, "loss")
    assert frame["run"].to_list() == [ids[0]] * 3 + [ids[1]] * 2
    assert frame["value"].to_list() == [0.0, 1.0, 2.0, 0.0, 1.0]
    assert read_curves(store, ids[2:], "loss").columns == ["run", "step", "at", "value"]


def test_a_damaged_cache_is_never_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_history, "CACHED_FROM", 10)
    run = store.new(Run, name="r", started_at=store.now())
    store.records.put(run)
    points = [Point(key="loss", value=step / 7, step=step, at=store.now()) for step in range(50)]
    store.records.append_points(f"run:{run.id}", points)
    for at in [*range(0, 64 * 4, 5), 32 * 8 * 50 - 1]:
        assert len(read_history(store, run, "loss")) == 50
        (path,) = (store.home / "cache" / "points").iterdir()
        data = bytearray(path.read_bytes())
        data[at >> 3] ^= 1 << (at & 7)
        path.write_bytes(data)
        found = read_history(store, run, "loss")
        assert found.values.tolist() == [point.value for point in points]
        assert found.steps.tolist() == list(range(50))
