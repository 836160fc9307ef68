from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest
from tests.prediction_log.aggregates.traffic import HOUR, SIGNATURE, START, Traffic, agree

from everloop.errors import NotFoundError, UsageError
from everloop.prediction_log.aggregates import aggregate_folding, fold_aggregates, label_cells, read_aggregates
from everloop.prediction_log.aggregates.aggregate_rows import by_cell, choose_rows, from_frame
from everloop.prediction_log.aggregates.hour_matching import match_hours
from everloop.prediction_log.aggregates.version_bins import find_version_bins
from everloop.stores import open_store
from everloop.stores.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

MINUTE = timedelta(minutes=1)
WINDOW = (START, START + 5 * HOUR)
TABLE = "aggregates/delays"


def stored(store: Store) -> pl.DataFrame:
    return store.tables.scan(TABLE).collect()


@pytest.mark.slow
def test_windows_are_those_of_the_rows(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    for seed in range(4):
        traffic.predict(30, seed)
        traffic.predict(20, seed + 10, version="delays@2", role="canary")
        traffic.predict(10, seed + 20, version="delays@2", role="shadow")
        assert fold_aggregates(store, "delays") == 60
    assert fold_aggregates(store, "delays") == 0
    agree(store, *WINDOW)
    agree(store, *WINDOW, "delays@2")
    agree(store, START + 17 * MINUTE, START + 3 * HOUR + 5 * MINUTE)
    agree(store, START + 70 * MINUTE, START + 80 * MINUTE, "delays@1")
    agree(store, START + 2 * HOUR, START + 2 * HOUR)
    one, two = read_aggregates(store, "delays", *WINDOW)
    assert (one.version, one.rows, two.version, two.rows) == ("delays@1", 120, "delays@2", 80)
    assert sorted(one.inputs) == ["carrier", "wind"]
    # This version has no baseline.
    assert two.inputs == {}
    assert two.score is None


def test_whole_hours_are_not_read_from_rows(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    rows = traffic.predict(50)
    traffic.label(*((key, 1, START + 5 * HOUR) for key in rows["entity"].unique().to_list()))
    before = read_aggregates(store, "delays", *WINDOW)
    # The rows go, but their commits stay counted.
    store.tables.forget("predictions/delays", START + 6 * HOUR)
    assert read_aggregates(store, "delays", *WINDOW)[0].rows == before[0].rows == 50
    assert before[0].labels is not None
    assert before[0].labels.rows > 0


@pytest.mark.slow
def test_labels_come_late_twice_and_contradict_each_other(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 48 * HOUR)
    made = traffic.predict(60)
    keys = made["entity"].unique().sort().to_list()
    for hour, value in ((6, 1), (7, 0), (6, 1), (30, 1)):
        traffic.label(*((key, value, START + hour * HOUR) for key in keys[: 3 + hour % 5]))
        agree(store, *WINDOW)
    # The same label again, and one with the same time that arrived later and contradicts it.
    traffic.label((keys[0], 1, START + 6 * HOUR))
    traffic.label((keys[0], 0, START + 6 * HOUR), arrived=START + 40 * HOUR)
    agree(store, *WINDOW)
    # A class that the model does not have, and a key that nobody asked about.
    traffic.label((keys[1], "maybe", START + 8 * HOUR), ("nobody", 1, START + 8 * HOUR))
    agree(store, *WINDOW)


@pytest.mark.slow
def test_labels_before_their_predictions(traffic: Traffic, store: Store) -> None:
    traffic.now(START + 48 * HOUR)
    traffic.predict(5, keys=list("aabbc"))
    traffic.label(*((key, 1, START + 5 * HOUR) for key in "abcd"))
    agree(store, *WINDOW)
    first = read_aggregates(store, "delays", *WINDOW)[0].labels
    assert first is not None
    assert first.rows == 3
    # These are nearer to the labels than those before, and arrive later.
    traffic.predict(3, 1, keys=list("abd"), start=START + 3 * HOUR, span=HOUR, arrived=START + 20 * HOUR)
    agree(store, *WINDOW)
    agree(store, START, START + 3 * HOUR)


@pytest.mark.slow
def test_a_limit_for_labels_is_respected_also_if_it_changes(traffic: Traffic, store: Store) -> None:
    from everloop.serving.endpoint_state import set_options

    traffic.now(START + 99 * HOUR)
    made = traffic.predict(30)
    keys = made["entity"].unique().to_list()
    traffic.label(*((key, 1, START + 30 * HOUR) for key in keys))
    agree(store, *WINDOW)
    for days in (1, 2, 0):
        set_options(store, "delays", {"label_horizon_days": days})
        agree(store, *WINDOW)
        labels = read_aggregates(store, "delays", *WINDOW)[0].labels
        assert (labels is None) == (days == 1)


@pytest.mark.slow
def test_clocks_out_of_order_and_times_that_are_not_reached(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    made = traffic.predict(20, arrived=START + 2 * HOUR)
    traffic.predict(20, 1, arrived=START + HOUR)
    traffic.predict(20, 2, arrived=START + 50 * HOUR)
    traffic.label(*((key, 1, START + 6 * HOUR) for key in made["entity"].to_list()), arrived=START + 30 * HOUR)
    traffic.label(*((key, 0, START + 6 * HOUR) for key in made["entity"].to_list()), arrived=START + 40 * HOUR)
    rows = {}
    traffic.now(START + 60 * HOUR)
    fold_aggregates(store, "delays")
    for hour in (60, 1, 2, 30, 35, 40, 49, 50):
        view = store.as_of(START + hour * HOUR)
        agree(view, *WINDOW)
        found = read_aggregates(view, "delays", *WINDOW)
        rows[hour] = found[0].rows if found else 0
    assert rows == {60: 60, 1: 20, 2: 40, 30: 40, 35: 40, 40: 40, 49: 40, 50: 60}


def test_a_view_of_the_past_writes_nothing(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    made = traffic.predict(40)
    traffic.now(START + 3 * HOUR)
    fold_aggregates(store, "delays")
    traffic.predict(40, 1)
    traffic.label(*((key, 1, START + 2 * HOUR) for key in made["entity"].to_list()))
    view = store.as_of(START + 3 * HOUR)
    version = store.tables.find(TABLE).version()  # type: ignore[union-attr]
    agree(view, *WINDOW)
    assert store.tables.find(TABLE).version() == version  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_baseline_that_arrives_later_or_is_replaced(traffic: Traffic, store: Store) -> None:
    traffic.now(START + 6 * HOUR)
    for seed in range(3):
        traffic.predict(30, seed)
        fold_aggregates(store, "delays")
    assert read_aggregates(store, "delays", *WINDOW)[0].inputs == {}
    for seed in (1, 2):
        traffic.baseline(seed=seed)
        agree(store.as_of(store.now()), *WINDOW)
        traffic.predict(10, seed + 20)
        agree(store, *WINDOW)
        digest = find_version_bins(store, "delays", "delays@1").digest
        cells = by_cell(from_frame(stored(store).filter(kind="inputs")))
        assert not any(choose_rows(rows, digest).stale for rows in cells.values())


@pytest.mark.slow
def test_small_rows_are_added_up(traffic: Traffic, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate_folding, "MANY_FILES", 5)
    traffic.baseline()
    traffic.now(START + 9 * HOUR)
    for seed in range(12):
        made = traffic.predict(4, seed)
        traffic.label(*((key, seed % 2, START + 6 * HOUR) for key in made["entity"].to_list()))
        fold_aggregates(store, "delays")
    assert stored(store).filter(kind="inputs").height <= 5 * 6
    agree(store, *WINDOW)
    assert verify(store).problems == ()


@pytest.mark.slow
def test_two_processes_count_at_once(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    for seed in range(8):
        traffic.predict(40, seed)
    children = [fold_in_a_child(store, lock=False) for _ in range(2)]
    for seed in range(8, 16):
        traffic.predict(40, seed)
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    agree(store, *WINDOW)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_process_neither_loses_nor_doubles(traffic: Traffic, store: Store, kills: int) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    for kill in range(kills):
        made = traffic.predict(60, kill)
        traffic.label(*((key, kill % 2, START + 6 * HOUR) for key in made["entity"].to_list()))
        child = fold_in_a_child(store)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            # From before the first commit to after the last one.
            child.wait(0.02 + 0.25 * ((kill * 7) % kills) / kills)
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
        child.stdout.close()
        if kill % 4 == 3:
            agree(store, *WINDOW)
    agree(store, *WINDOW)


def fold_in_a_child(store: Store, *, lock: bool = True) -> subprocess.Popen[bytes]:
    """Count again and again in another process. Without the lock it is like one on another machine."""
    unlocked = "" if lock else "type(store).lock = lambda self, name: __import__('contextlib').nullcontext(True)\n"
    code = (
        "import sys\nfrom everloop.prediction_log.aggregates import fold_aggregates\n"
        "from everloop.stores import open_store\n"
        f"store = open_store(sys.argv[1])\n{unlocked}print('ready', flush=True)\n"
        "for _ in range(6):\n    fold_aggregates(store, 'delays')\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(store.home)], stdout=subprocess.PIPE)


def test_a_restored_table_is_counted_from_the_beginning(traffic: Traffic, store: Store) -> None:
    traffic.now(START + 6 * HOUR)
    for seed in range(3):
        traffic.predict(20, seed)
    fold_aggregates(store, "delays")
    store.tables.drop("predictions/delays")
    assert read_aggregates(store, "delays", *WINDOW) == []
    traffic.predict(10)
    agree(store, *WINDOW)


@pytest.mark.slow
def test_compacted_and_forgotten_rows_are_not_counted_again(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    traffic.predict(20)
    fold_aggregates(store, "delays")
    traffic.predict(20, 1)
    store.tables.compact("predictions/delays")
    traffic.predict(20, 2)
    store.tables.forget("predictions/delays", START - HOUR)
    assert fold_aggregates(store, "delays") == 40
    agree(store, *WINDOW)
    # Its files are gone before they were counted, so everything is counted again.
    traffic.predict(20, 3)
    store.tables.compact("predictions/delays")
    store.tables.vacuum("predictions/delays", keep_hours=0)
    fold_aggregates(store, "delays")
    agree(store, *WINDOW)
    assert read_aggregates(store, "delays", *WINDOW)[0].rows == 80


@pytest.mark.slow
def test_odd_columns(traffic: Traffic, store: Store) -> None:
    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    plain = traffic.predict(20)
    odd = {
        "infinite": pl.Series([float("inf"), float("-inf"), float("nan"), 1e150, -1e150] * 4),
        "null": pl.Series([None] * 20, dtype=pl.Float64),
        "constant": pl.Series([3.0] * 20),
    }
    for values in odd.values():
        store.tables.append("predictions/delays", plain.with_columns(input_wind=values))
    store.tables.append("predictions/delays", plain.drop("input_carrier"))
    store.tables.append(
        "predictions/delays", plain.drop("input_wind").with_columns(pl.lit("x").alias("input_wind@string"))
    )
    store.tables.append("predictions/delays", plain.with_columns(input_carrier=pl.lit("new")))
    agree(store, *WINDOW)
    found = read_aggregates(store, "delays", *WINDOW)[0]
    assert found.inputs["carrier"].unseen == {"new": 20}


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(traffic: Traffic, store: Store, task: str) -> None:
    classes = ["a", "b", "c"] if task == "multiclass" else []
    traffic.register(3, SIGNATURE | {"task": task, "classes": classes})
    traffic.now(START + 9 * HOUR)
    made = traffic.predict(30, version="delays@3")
    values = ["a", "b", "c", "d"] if classes else [0.0, 1.5, "2.5", "no"]
    keys = made["entity"].unique().sort().to_list()
    traffic.label(*((key, values[at % 4], START + 6 * HOUR) for at, key in enumerate(keys)))
    agree(store, *WINDOW)
    labels = read_aggregates(store, "delays", *WINDOW)[0].labels
    assert labels is not None
    assert labels.unknown > 0


def test_old_aggregates_are_forgotten_with_the_rows(traffic: Traffic, store: Store) -> None:
    from everloop.prediction_log import retention
    from everloop.serving.endpoint_state import set_options

    traffic.predict(20)
    traffic.now(START + 6 * HOUR)
    fold_aggregates(store, "delays")
    set_options(store, "delays", {"log_retention_days": 1})
    traffic.now(START + 72 * HOUR)
    retention._next_check_at.clear()
    fold_aggregates(store, "delays")
    assert stored(store).height == 0
    assert read_aggregates(store, "delays", *WINDOW) == []


def test_bad_windows(traffic: Traffic, store: Store) -> None:
    assert read_aggregates(store, "delays", *WINDOW) == []
    with pytest.raises(NotFoundError):
        read_aggregates(store, "nowhere", *WINDOW)
    with pytest.raises(UsageError, match="before it begins"):
        read_aggregates(store, "delays", WINDOW[1], WINDOW[0])
    with pytest.raises(UsageError, match="no time zone"):
        read_aggregates(store, "delays", START.replace(tzinfo=None), WINDOW[1])


def test_a_backup_keeps_the_aggregates(traffic: Traffic, store: Store, tmp_path: Path) -> None:
    from everloop.stores.backup import backup, restore

    traffic.baseline()
    traffic.now(START + 6 * HOUR)
    traffic.predict(30)
    fold_aggregates(store, "delays")
    backup(store, tmp_path / "copy.tar")
    with open_store(restore(tmp_path / "copy.tar", tmp_path / "again")) as again:
        assert again.tables.names() == ["aggregates/delays", "predictions/delays"]
        agree(again, *WINDOW)
        assert verify(again).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True])
def test_keys_of_one_prediction_are_matched_as_others_are(traffic: Traffic, store: Store, again: bool) -> None:
    traffic.baseline()
    rows = traffic.predict(60, 3, keys=[f"once{number}" for number in range(60)])
    moments = dict(zip(rows["entity"].to_list(), rows["event_at"].to_list(), strict=True))
    for arrived, value in ((7, 1), (6, 0), (8, 0)):
        some = list(moments)[value::2] + list(moments)[10:20]
        # Contradicting labels in another order than their times, and some from before their predictions.
        labels = [(key, value, moments[key] + (index % 5 - 1) * HOUR) for index, key in enumerate(some)]
        traffic.label(*labels, ("unknown", 1, START), arrived=START + arrived * HOUR)
    if again:
        # Later predictions with some of the keys take the labels after them.
        traffic.predict(10, 4, start=START + 5 * HOUR, keys=[f"once{number}" for number in range(10)])
    traffic.now(START + 20 * HOUR)
    fold_aggregates(store, "delays")
    agree(store, *WINDOW)
    agree(store, START + HOUR, START + 3 * HOUR)
    agree(store.as_of(START + 6.5 * HOUR), *WINDOW)


@pytest.mark.slow
@pytest.mark.parametrize(("between", "times"), [(0, 1), (30, 3)])
def test_hours_of_sparse_predictions_are_matched_together(
    traffic: Traffic, store: Store, monkeypatch: pytest.MonkeyPatch, between: int, times: int
) -> None:
    matched: list[list[datetime]] = []

    def spy(store: Store, endpoint: str, hours: list[datetime]) -> pl.LazyFrame | None:
        matched.append(hours)
        return match_hours(store, endpoint, hours)

    monkeypatch.setattr(label_cells, "match_hours", spy)
    monkeypatch.setattr(label_cells, "FEW_ROWS", 20)
    traffic.baseline()
    days = [START + day * 24 * HOUR for day in range(3)]
    for day in days:
        traffic.predict(1, start=day, span=HOUR, keys=["once"])
        # Rows between these hours, whose labels do not arrive.
        traffic.predict(between, start=day + 2 * HOUR, span=20 * HOUR, keys=[f"other{one}" for one in range(between)])
    traffic.label(*(("once", 1, day + HOUR) for day in days))
    traffic.now(START + 4 * 24 * HOUR)
    fold_aggregates(store, "delays")
    # Before any label has been counted, the hours of all new predictions are matched.
    matched.clear()
    traffic.label(*(("once", 0, day + HOUR) for day in days), arrived=START + 4 * 24 * HOUR)
    fold_aggregates(store, "delays")
    assert len(matched) == times
    assert sorted(hour for hours in matched for hour in hours) == days
    agree(store, START, START + 3 * 24 * HOUR)
