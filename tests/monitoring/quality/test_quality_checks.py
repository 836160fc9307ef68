"""Quality of an endpoint's live data and service: what changes is found, what is usual is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.data.contracts.contract import describe_columns
from everloop.data.features import materialize
from everloop.errors import EmptySampleError, NotFoundError, UsageError
from everloop.monitoring import check_quality
from everloop.monitoring.quality.quality_checks import find_contract_of
from everloop.monitoring.quality.service_quality import comparable_windows
from everloop.prediction_log.failure_log import FailureLog
from everloop.records import Contract, EndpointRecord, Finding, ModelVersion, Snapshot

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)


def flights(rows, seed, start=START, span=DAY):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "id": [f"{seed}-{number}" for number in range(rows)],
            "event_at": [start + span * number / rows for number in range(rows)],
            "distance": rng.normal(1000, 300, rows).clip(200, 1800),
            "carrier": rng.choice(["AA", "DL", "UA"], rows),
            "wind": rng.gamma(2.0, 5.0, rows).clip(0, 40),
            "score": rng.uniform(size=rows),
            "seconds": rng.gamma(20, 0.0005, rows),
        }
    )


def log(store, frame, version="delays@1"):
    inputs = [name for name in ("distance", "carrier", "wind", "origin") if name in frame.columns]
    store.tables.append(
        "predictions/delays",
        frame.select(
            pl.col("id") + f"-{version}", pl.col("id").alias("request"), "event_at",
            pl.col("event_at").alias("arrived_at"), pl.lit(version).alias("version"),
            pl.lit("champion").alias("role"), pl.col("id").alias("entity"), "score", "seconds",
            *(pl.col(name).alias(f"input_{name}") for name in inputs),
        ),
    )  # fmt: skip


def check(store, day, **options):
    store.clock.set(START + (day + 1) * DAY)
    since = START + day * DAY
    return check_quality(store, "delays", "delays@1", since, since + DAY, **options)


def loud(findings):
    return {f"{item.subject}: {item.evidence['rule']}": item.severity for item in findings if item.severity != "info"}


@pytest.fixture
def contracted(store):
    """The version `delays@2` was trained on rows that kept a contract."""
    training = flights(5000, 999).select("distance", "carrier", "wind")
    contract = store.new(Contract, dataset="flights", version=1, columns=describe_columns(training))
    snapshot = store.new(
        Snapshot,
        dataset="flights",
        version=1,
        digest="sha256:0",
        rows=5000,
        size_bytes=1,
        columns={},
        contract="flights@1",
    )
    signature = store.records.get(ModelVersion, "delays@1").signature
    store.records.put(
        contract, snapshot,
        store.new(
            ModelVersion, model="delays", version=3, package="none-3", signature=signature, snapshot="flights@1"
        ),
    )  # fmt: skip
    return store


# --- usual days --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_usual_days_are_quiet_and_leave_one_summary_each(store):
    rng = np.random.default_rng(3)
    for day in range(12):
        log(store, flights(int(rng.normal(400, 40)), day, START + day * DAY))
    for day in range(12):
        findings = check(store, day, latency_ms=50)
        assert loud(findings) == {}
    (summary,) = findings
    assert (summary.kind, summary.severity, summary.subject) == ("quality", "info", "window")
    assert summary.message.startswith("Nothing unusual in ")
    assert {"predictions: volume", "wind: nulls", "latency: p99", "rows: repeated inputs"} <= set(
        summary.evidence["subjects"]
    )
    assert len(store.records.find(Finding)) == 12


def test_a_window_is_checked_once_until_more_rows_arrive(store):
    log(store, flights(300, 1))
    findings = check(store, 0, latency_ms=5)
    assert loud(findings) == {"latency: limit": "warning"}
    assert check(store, 0, latency_ms=5) == findings
    assert len(store.records.find(Finding)) == len(findings)
    log(store, flights(10, 2))
    assert check(store, 0, latency_ms=5) != findings


def test_nothing_is_an_alarm_without_history(store):
    odd = flights(300, 1).with_columns(wind=pl.lit(None, dtype=pl.Float64), carrier=pl.lit("ZZ"), seconds=pl.lit(9.0))
    log(store, odd)
    assert loud(check(store, 0)) == {}


# --- data --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_values_that_go_missing_are_a_warning_and_then_an_alarm(store):
    for day in range(8):
        frame = flights(400, day, START + day * DAY)
        if day >= 6:
            frame = frame.with_columns(wind=pl.when(pl.int_range(pl.len()) % 3 > 0).then("wind"))
        log(store, frame)
    assert [loud(check(store, day)).get("wind: nulls") for day in range(8)] == [None] * 6 + ["warning", "alarm"]
    alarm = next(item for item in store.records.find(Finding) if item.severity == "alarm")
    assert alarm.message == "33.5% of 'wind' is missing; usually 0%."
    assert (alarm.value, alarm.threshold) == (pytest.approx(0.335, abs=0.01), 0)


def test_a_column_that_stops_varying_is_found(store):
    for day in range(6):
        frame = flights(100, day, START + day * DAY)
        log(store, frame.with_columns(carrier=pl.lit("AA")) if day == 5 else frame)
    assert [loud(check(store, day)) for day in range(6)][-1] == {"carrier: constant": "warning"}


def test_rows_that_break_the_contract_are_counted(contracted):
    store = contracted
    odd = flights(300, 1).with_columns(
        carrier=pl.when(pl.int_range(pl.len()) < 60).then(pl.lit("ZZ")).otherwise("carrier"),
        distance=pl.when(pl.int_range(pl.len()) < 30).then(float("inf")).otherwise("distance"),
        wind=pl.when(pl.int_range(pl.len()) < 40).then(60.0).otherwise("wind"),
    )
    log(store, odd, version="delays@3")
    store.clock.set(START + DAY)
    findings = check_quality(store, "delays", "delays@3", START, START + DAY)
    assert loud(findings) == {
        "carrier: categories": "warning", "distance: infinite": "warning", "wind: max": "warning",
    }  # fmt: skip
    categories = next(item for item in findings if item.evidence.get("rule") == "categories")
    assert categories.evidence["samples"] == ["ZZ"]
    assert categories.value == 0.2
    assert findings[-1].evidence["contract"] == "flights@1"


def test_a_version_without_a_snapshot_has_no_contract(contracted):
    assert find_contract_of(contracted, "delays@1") == (None, 0)
    assert find_contract_of(contracted, "gone@1") == (None, 0)
    contract, rows = find_contract_of(contracted, "delays@3")
    assert (contract.key, rows) == ("flights@1", 5000)


def test_repeated_requests_are_found(store):
    for day in range(6):
        frame = flights(300, day, START + day * DAY)
        if day == 5:
            frame = pl.concat([frame, frame.head(150).with_columns(pl.col("id") + "b")])
        log(store, frame)
    assert "rows: repeated inputs" in [loud(check(store, day)) for day in range(6)][-1]


# --- service -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "words"), [(40, "40 predictions; usually about 400"), (4000, "4000 predictions")])
def test_far_fewer_or_more_predictions_than_usual_are_found(store, rows, words):
    for day in range(6):
        log(store, flights(400 if day < 5 else rows, day, START + day * DAY))
    findings = [check(store, day) for day in range(6)][-1]
    assert loud(findings)["predictions: volume"] == "warning"
    assert any(words in item.message for item in findings)


def test_silence_is_a_finding_where_predictions_are_usual(store):
    for day in range(5):
        log(store, flights(400, day, START + day * DAY))
    findings = [check(store, day) for day in range(7)]
    assert [loud(each) for each in findings[-2:]] == [
        {"predictions: volume": "warning"}, {"predictions: volume": "alarm"},
    ]  # fmt: skip
    assert findings[-1][0].message == "No predictions; usually about 400."


@pytest.mark.slow
def test_weekends_with_fewer_predictions_are_usual(store):
    for day in range(42):
        log(store, flights(40 if day % 7 > 4 else 400, day, START + day * DAY))
    assert [loud(check(store, day)) for day in range(35, 42)] == [{}] * 7
    # As many as on a weekend are unusual on a Monday.
    log(store, flights(40, 42, START + 42 * DAY))
    assert "predictions: volume" in loud(check(store, 42))


@pytest.mark.slow
def test_an_endpoint_that_stops_in_the_middle_of_a_window_is_found(store):
    for day in range(8):
        frame = flights(400, day, START + day * DAY)
        log(store, frame.filter(pl.col("event_at") < START + 7.6 * DAY))
    findings = [check(store, day) for day in range(8)][-1]
    found = next(item for item in findings if item.kind == "freshness")
    assert (found.subject, found.severity) == ("predictions", "warning")
    assert "9.7 hours old" in found.message


@pytest.mark.slow
def test_labels_that_stop_arriving_are_found(store):
    for day in range(8):
        frame = flights(100, day, START + day * DAY)
        log(store, frame)
        if day < 6:
            store.tables.append(
                "labels/delays",
                frame.select(
                    pl.col("id").alias("entity"), pl.lit(1.0).alias("value"), pl.lit("1").alias("text"), "event_at",
                    (pl.col("event_at") + timedelta(hours=1)).alias("arrived_at"),
                ),
            )  # fmt: skip
    found = [loud(check(store, day)) for day in range(8)]
    assert found[:6] == [{}] * 6
    assert (found[6]["labels: age"], found[7]["labels: age"]) == ("warning", "alarm")


@pytest.mark.slow
def test_slower_answers_are_found(store):
    for day in range(8):
        frame = flights(400, day, START + day * DAY)
        log(store, frame.with_columns(pl.col("seconds") * 3) if day == 7 else frame)
    findings = [check(store, day) for day in range(8)][-1]
    assert loud(findings) == {"latency: p50": "warning", "latency: p99": "warning"}
    assert {item.kind for item in findings if item.severity != "info"} == {"latency"}
    assert "took longer than" in findings[0].message


def test_the_latency_of_a_request_counts_once_whatever_its_rows(store):
    slow = flights(200, 1).with_columns(id=pl.lit("one"), seconds=pl.lit(9.0))
    log(store, pl.concat([slow, flights(200, 2)]))
    assert loud(check(store, 0, latency_ms=1000)) == {}
    state = check(store, 0, latency_ms=1000)[-1].evidence["subjects"]["latency: limit"]
    assert state["counts"] == [1, 201]


@pytest.mark.slow
def test_a_flagged_window_is_not_usual_until_most_are(store):
    for day in range(14):
        frame = flights(100, day, START + day * DAY)
        log(store, frame.with_columns(wind=pl.lit(None, dtype=pl.Float64)) if day >= 5 else frame)
    severities = [loud(check(store, day)).get("wind: nulls") for day in range(14)]
    assert severities[5:9] == ["warning", "alarm", "alarm", "alarm"]
    assert severities[-1] is None, "after as many days it is usual"


# --- features ----------------------------------------------------------------------------------------------


@pytest.fixture
def weather(store):
    """A feature view with a wind for each origin and day, and a version whose clients send it."""
    days = [START + day * DAY for day in range(3)]
    reports = pl.DataFrame(
        {"origin": ["JFK"] * 3 + ["LGA"] * 3, "at": days * 2, "wind": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    )
    view = el.FeatureView("weather", source=lambda: reports, entity="origin", time="at")
    materialize(store, view)
    signature = {
        "task": "binary", "classes": [False, True],
        "inputs": [{"name": "origin", "type": "string"}, {"name": "wind", "type": "float"}],
    }  # fmt: skip
    store.records.put(store.new(ModelVersion, model="delays", version=4, package="none-4", signature=signature))
    return store


def departures(wrong=0):
    rows = flights(200, 1, START + 2 * DAY)
    origin = pl.Series("origin", ["JFK", "LGA"] * 100)
    frame = rows.drop("distance", "carrier").with_columns(
        origin, wind=pl.when(origin == "JFK").then(3.0).otherwise(6.0)
    )
    return frame.with_columns(wind=pl.when(pl.int_range(pl.len()) < wrong).then(99.0).otherwise("wind"))


def check_weather(store, views=("weather",)):
    store.clock.set(START + 3 * DAY)
    return check_quality(store, "delays", "delays@4", START + 2 * DAY, START + 3 * DAY, views=views)


@pytest.mark.parametrize(("wrong", "expected"), [(0, {}), (1, {}), (50, {"wind: skew": "warning"})])
def test_features_that_differ_from_their_view_are_found(weather, wrong, expected):
    weather.clock.set(START + 2 * DAY)
    log(weather, departures(wrong), version="delays@4")
    findings = check_weather(weather)
    assert loud(findings) == expected
    if expected:
        assert findings[0].message == "50 of 200 values of 'wind' differ from 'weather@1'."
        assert findings[0].evidence["samples"][0]["online"] == "99.0"


def test_a_view_that_does_not_fit_the_inputs_is_refused(weather):
    store = weather
    log(store, departures(), version="delays@1")
    signature = {"task": "regression", "classes": [], "inputs": [{"name": "seats", "type": "int"}]}
    store.records.put(store.new(ModelVersion, model="delays", version=5, package="none-5", signature=signature))
    log(store, departures(), version="delays@5")
    store.clock.set(START + 3 * DAY)
    for view, version, error in (
        ("wether", "delays@1", NotFoundError),
        ("weather", "delays@5", UsageError),
    ):
        with pytest.raises(error, match=view):
            check_quality(store, "delays", version, START + 2 * DAY, START + 3 * DAY, views=[view])


# --- bad input ---------------------------------------------------------------------------------------------


def test_a_window_without_predictions_or_history_is_empty(store):
    with pytest.raises(EmptySampleError, match="has no predictions between"):
        check(store, 0)


def test_an_unknown_endpoint_is_not_found(store):
    with pytest.raises(NotFoundError, match="nowhere"):
        check_quality(store, "nowhere", "delays@1", START, START + DAY)


def test_a_window_needs_a_length_and_a_budget(store):
    for since, options in ((START + DAY, {}), (START, {"alarms_per_month": 0})):
        with pytest.raises(UsageError):
            check_quality(store, "delays", "delays@1", since, START + DAY, **options)


@pytest.mark.parametrize(
    "frame",
    [
        flights(1, 1),
        flights(50, 1).with_columns(
            pl.lit(None, dtype=pl.Float64).alias(name) for name in ("distance", "wind", "seconds")
        ),
        flights(50, 1).with_columns(
            distance=pl.lit(float("inf")), wind=pl.lit(float("nan")), seconds=pl.lit(float("inf"))
        ),
        flights(50, 1).drop("distance", "wind"),
        flights(50, 1).with_columns(distance=pl.lit(3)),
        flights(50, 1).with_columns(seconds=pl.lit(0.0)),
        flights(50, 1).with_columns(seconds=pl.lit(-1.0), event_at=pl.col("event_at").reverse()),
    ],
)
def test_any_window_can_be_checked(contracted, frame):
    store = contracted
    for day in range(4):
        log(store, flights(60, 10 + day, START + day * DAY), version="delays@3")
    log(store, frame.with_columns(pl.col("event_at") + 4 * DAY), version="delays@3")
    store.clock.set(START + 5 * DAY)
    for day in range(5):
        since = START + day * DAY
        assert check_quality(store, "delays", "delays@3", since, since + DAY, latency_ms=5)[-1].subject == "window"


def test_windows_can_be_checked_in_any_order(store):
    for day in range(3):
        log(store, flights(50, day, START + day * DAY))
    check(store, 2)
    for day in (1, 0):
        since = START + day * DAY
        assert check_quality(store, "delays", "delays@1", since, since + DAY)[-1].subject == "window"


def test_windows_are_compared_with_similar_ones():
    hour = timedelta(hours=1)
    weekly, daily = comparable_windows(START, START + hour)
    assert [START - since for since, _ in weekly[:2]] == [7 * DAY, 14 * DAY]
    assert [START - since for since, _ in daily[:2]] == [DAY, 2 * DAY]
    assert [START - since for since, _ in comparable_windows(START, START + DAY)[1][:2]] == [DAY, 2 * DAY]
    assert [len(sort) for sort in comparable_windows(START, START + 7 * DAY)] == [8]
    assert [START - since for since, _ in comparable_windows(START, START + 5 * hour)[0][:2]] == [5 * hour, 10 * hour]


def test_the_window_in_which_the_endpoint_was_created_is_not_usual(store):
    record = store.records.get(EndpointRecord, "delays")
    assert record.created_at == START
    for hour in range(10):
        log(store, flights(100, hour, START + hour * timedelta(hours=7), timedelta(hours=7)))
    store.clock.set(START + 4 * DAY)
    span = timedelta(hours=7)
    start = START - timedelta(hours=3)
    for number in range(5):
        since = start + number * span
        check_quality(store, "delays", "delays@1", since, since + span)


# --- errors ------------------------------------------------------------------------------------------------


def fail(store, at, counts):
    """Log failed requests, as an endpoint does."""
    failures = FailureLog(store, "delays")
    store.clock.set(at)
    failures.write(counts, last=True)
    failures.close()


@pytest.mark.slow
def test_requests_that_fail_more_often_than_usual_are_found(store):
    for day in range(6):
        log(store, flights(400, day, START + day * DAY))
        counts = {500: 2, 404: 900} if day < 5 else {500: 30, 503: 20, 404: 900, 422: 2}
        fail(store, START + day * DAY + timedelta(hours=3), counts)
        findings = check(store, day)
    assert loud(findings) == {"errors: server": "warning"}
    assert findings[0].message.startswith("50 of 452 requests failed with a server error; usually 0.50%")


def test_requests_with_unfit_content_are_found(store):
    for day in range(6):
        log(store, flights(400, day, START + day * DAY))
        if day == 5:
            fail(store, START + day * DAY + timedelta(hours=3), {422: 200})
        findings = check(store, day)
    assert loud(findings) == {"errors: refused": "warning"}
    assert "200 of 600 requests were refused" in findings[0].message


def test_an_endpoint_that_answers_with_errors_only_is_not_an_empty_window(store):
    fail(store, START + timedelta(hours=3), {500: 7})
    (summary,) = check(store, 0)
    assert summary.evidence["subjects"]["errors: server"]["counts"] == [7, 7]
