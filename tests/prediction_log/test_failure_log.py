"""The log of failed requests: each is counted once, and an endpoint without errors has no such log."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.prediction_log.failure_log import FAILURES, FailureLog, client_failures, fold_failures, read_failures
from everloop.prediction_log.prediction_log import table_name
from everloop.records import EndpointRecord
from everloop.serving.observability.endpoint_metrics import Metrics
from everloop.stores import open_store

NOW = datetime(2024, 3, 4, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOW)
        opened.records.put(opened.new(EndpointRecord, name="e", model="m"))
        yield opened


def logged(store):
    fold_failures(store, "e")
    table = table_name(store, FAILURES, "e")
    return store.tables.scan(table).collect().sort("status").to_dicts() if store.tables.exists(table) else []


def test_only_what_is_new_is_written(store):
    failures = FailureLog(store, "e")
    failures.write({500: 2, 422: 1}, last=True)
    failures.write({500: 2, 422: 1}, last=True)
    failures.write({500: 5, 422: 1, 503: 4}, last=True)
    failures.close()
    rows = logged(store)
    assert [(row["status"], row["requests"]) for row in rows] == [(422, 1), (500, 2), (500, 3), (503, 4)]
    assert {row["event_at"] for row in rows} == {NOW}
    assert logged(store) == rows, "folding again adds nothing"


def test_frames_are_a_second_apart_and_none_is_lost(store):
    failures = FailureLog(store, "e")
    for count in range(1, 100):
        failures.write({500: count})
    failures.write({500: 100}, last=True)
    failures.close()
    rows = logged(store)
    assert sum(row["requests"] for row in rows) == 100
    assert len(rows) < 50


def test_an_endpoint_without_errors_has_no_log(store):
    failures = FailureLog(store, "e")
    failures.write({}, last=True)
    failures.close()
    assert list(store.journals.glob("failures*")) == []
    assert logged(store) == []


def test_failed_responses_are_counted_by_status():
    metrics = Metrics("e")
    for path, status in (("/predict", 200), ("/predict", 500), ("other", 500), ("/predict", 422), ("/health", 200)):
        metrics.count_response(path, status)
    assert metrics.failed_responses() == {500: 2, 422: 1}


def test_the_version_that_failed_is_logged(store):
    failures = FailureLog(store, "e")
    failures.write({500: 3, 422: 1}, {("m@2", "canary", 500): 2, ("m@2", "shadow", 500): 7}, last=True)
    failures.close()
    rows = [(row["status"], row["version"], row["role"], row["requests"]) for row in logged(store)]
    expected = [(500, "m@2", "canary", 2), (500, "m@2", "shadow", 7), (500, None, None, 1), (422, None, None, 1)]
    assert sorted(rows, key=str) == sorted(expected, key=str)
    assert client_failures(store, "e").collect()["requests"].sum() == 4, "no client got a shadow's failure"


def test_frames_without_versions_are_still_read(store):
    old = msgspec.msgpack.encode([1, 1_700_000_000_000_000, {500: 2}, "host.1"])
    entry = read_failures(old)
    assert (entry.counts, entry.versions) == ({500: 2}, [])


def test_a_table_without_versions_is_still_read(store):
    rows = pl.DataFrame({"event_at": [NOW], "arrived_at": [NOW], "status": [500], "requests": [2], "instance": ["h"]})
    store.tables.append(table_name(store, FAILURES, "e"), rows)
    assert client_failures(store, "e").collect()["requests"].sum() == 2
    failures = FailureLog(store, "e")
    failures.write({500: 1}, {("m@2", "canary", 500): 1}, last=True)
    failures.close()
    assert {row["version"] for row in logged(store)} == {None, "m@2"}
    assert client_failures(store, "e").collect()["requests"].sum() == 3


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.dictionaries(st.tuples(st.sampled_from(["m@1", "m@2"]), st.sampled_from([422, 500])), st.integers(0, 5)),
        max_size=5,
    )
)
def test_versions_never_change_the_sum_by_status(steps):
    """However totals grow, the rows of a status add up to the responses with that status."""
    totals, versions = {}, {}
    with tempfile.TemporaryDirectory() as folder, open_store(folder) as opened:
        failures = FailureLog(opened, "e")
        for step in steps:
            for (version, status), count in step.items():
                totals[status] = totals.get(status, 0) + count + 1
                key = (version, "canary", status)
                versions[key] = versions.get(key, 0) + count
            failures.write(dict(totals), dict(versions), last=True)
        failures.close()
        rows = logged(opened)
    for status, count in totals.items():
        assert sum(row["requests"] for row in rows if row["status"] == status) == count
