"""A metric's last value does not depend on how its points arrived, nor in which order."""

from __future__ import annotations

import math
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.integrations.mlflow.run_import import _MlflowRun, _run
from everloop.integrations.mlflow.tracking_api.metric_buffer import MetricBuffer
from everloop.records import Point, Run
from everloop.stores import FixedClock, Journal, Store, open_store
from everloop.stores.clock import micros
from everloop.tracking import fold, search_runs, series_of, start_run
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.ingest import ingest_frames
from everloop.tracking.journal.last_points import Latest, merge

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, math.nan, math.inf, -math.inf])
Row = tuple[str, int, int, float]


def expected(rows: list[Row]) -> dict[str, str]:
    """The last value of each metric as its text, by sorting: NaN counts as 0, and a number that equals it wins."""
    found: dict[str, str] = {}
    for key, _, _, value in sorted(
        rows,
        key=lambda row: (
            row[1],
            row[2],
            0.0 if math.isnan(row[3]) else row[3],
            not math.isnan(row[3]),
        ),
    ):
        found[key] = repr(value + 0.0)
    return found


def texts(metrics: dict[str, float]) -> dict[str, str]:
    return {key: repr(value) for key, value in metrics.items()}


def rows(tick_us: int) -> st.SearchStrategy[list[Row]]:
    row = st.tuples(
        st.sampled_from(["a", "b/c"]),
        st.integers(-2, 3),
        st.integers(0, 4).map(lambda count: micros(NOW) + count * tick_us),
        VALUES,
    )
    return st.lists(row, min_size=1, max_size=12)


@given(found=rows(1), order=st.randoms(use_true_random=False))
def test_merging_is_the_same_in_every_order_and_grouping(found: list[Row], order: object) -> None:
    mixed = list(found)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    one: Latest = {}
    merge(one, found)
    two: Latest = {}
    for row in mixed:
        merge(two, [row])
    for latest in (one, two):
        assert texts({key: held[2] + 0.0 for key, held in latest.items()}) == expected(found)


def journal(store: Store, run: Run, found: list[Row]) -> Path:
    with Journal.create(store.journals, f"run-{run.id}") as written:
        written.append(journal_frames.encode_start(run))
        for key, step, at, value in found:
            moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at)
            written.append(journal_frames.encode_metrics(moment, step, {key: value}))
    return written.path


@pytest.mark.slow
@pytest.mark.parametrize("tick_us", [1, 1000])
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_points_come_the_record_shows_the_same_last_value(
    tick_us: int, tmp_path: Path, data: st.DataObject
) -> None:
    """Two journals folded in either order, frames over HTTP, MLflow's protocol, and all of them mixed."""
    found = data.draw(rows(tick_us))
    ways = data.draw(st.lists(st.sampled_from("jrp"), min_size=len(found), max_size=len(found)))
    with ExitStack() as stack:
        store = stack.enter_context(open_store(tmp_path / "home"))
        run = store.new(Run, name="r", started_at=NOW)
        store.records.put(run, verb="started")
        pending = MetricBuffer()
        for way, row in zip(ways, found, strict=True):
            key, step, at, value = row
            if way == "j":
                journal(store, run, [row])
                if data.draw(st.booleans()):
                    fold(store)
            elif way == "r":
                path = journal(store.for_project("shipped"), run, [row])
                ingest_frames(store, path.stem, 0, path.read_bytes()[8:])
                path.unlink()
            else:
                moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=at)
                point = Point(key=key, value=value, step=step, at=moment)
                store.records.append_points(series_of(run.id), [point])
                pending.add(store, run, [point])
        fold(store)
        pending.fold_all()
        assert texts(store.records.get(Run, run.id).metrics) == expected(found)
        assert len(store.records.read_points(series_of(run.id))) == len(found)


@given(found=rows(1000))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_an_import_from_mlflow_follows_the_same_rule(found: list[Row], tmp_path: Path) -> None:
    there = _MlflowRun(
        id="x", name="x", status="FINISHED", start=0, end=1, user="", deleted=False, experiment="0", artifacts="",
        params={}, tags={}, points=[(key, value, step, at // 1000) for key, step, at, value in found],
    )  # fmt: skip
    with open_store(tmp_path / "home") as store:
        assert texts(_run(store, there, None, {}).metrics) == expected(found)


def test_a_script_sees_the_greatest_step_whatever_the_order(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log({"loss": 3.0, "acc": 0.3}, step=5)
        run.log(loss=1.0, step=9)
        run.log(loss=2.0, step=7)
        run.log(acc=0.1, step=2)
    assert run.record.metrics == {"loss": 1.0, "acc": 0.3}
    (seen,) = search_runs(store, "metrics.loss = 1.0 and metrics.acc = 0.3").rows
    assert isinstance(seen, Run)
    with start_run(store=store, resume=run.id) as again:
        again.log(loss=8.0, step=3)
    assert again.record.metrics == {"loss": 1.0, "acc": 0.3}


def test_of_one_step_the_later_value_counts(store: Store) -> None:
    with start_run("train", store=store) as run:
        for value in (3.0, 9.0, 1.0):
            run.log(loss=value, step=0)
    assert run.record.metrics == {"loss": 1.0}


def test_of_one_step_and_one_moment_the_greater_value_counts(tmp_path: Path) -> None:
    with open_store(tmp_path / "home", clock=FixedClock(NOW)) as store:
        with start_run("train", store=store) as run:
            for value in (3.0, 9.0, 1.0):
                run.log(loss=value, step=0)
        assert run.record.metrics == {"loss": 9.0}


def test_a_record_of_an_earlier_version_does_not_say_when_and_its_points_do(store: Store) -> None:
    run = store.new(Run, name="r", started_at=NOW, metrics={"loss": 5.0})
    store.records.put(run)
    store.records.append_points(series_of(run.id), [Point(key="loss", value=5.0, step=8, at=NOW)])
    journal(store, run, [("loss", 3, micros(NOW), 1.0)])
    fold(store)
    known = store.records.get(Run, run.id)
    assert (known.metrics, known.metric_at) == ({"loss": 5.0}, {"loss": (8, micros(NOW) // 1000)})
