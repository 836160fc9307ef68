"""The log of failed requests: each is counted once, and an endpoint without errors has no such log."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from everloop.prediction_log.failure_log import FAILURES, FailureLog, fold_failures
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
