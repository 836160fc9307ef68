"""A bad candidate is rolled back within 500 requests or 60 s, at an endpoint that runs as a process."""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from time import monotonic, sleep
from types import SimpleNamespace

import pandas as pd
import pytest

import everloop as el
from everloop.loop import Canary, Endpoint, check_guards
from everloop.loop.releases import guards
from everloop.loop.releases.promotion import promote
from everloop.loop.releases.rollout import find_rolling, start_release
from everloop.records import EndpointRecord, ModelVersion
from everloop.serving import EndpointProcess
from everloop.stores import open_store

pytestmark = pytest.mark.slow

LOOP = SimpleNamespace(serve=Endpoint("e", rollout=Canary(steps=[20, 100], p99_ms=400)))


def good(rows):
    return [float(value) * 2 for value in rows["price"]]


def failing(rows):
    if float(rows["price"].iloc[0]) >= 1:
        raise ZeroDivisionError("a bug of the candidate")
    return [0.0] * len(rows)


def not_finite(rows):
    return [float("nan") if float(value) >= 1 else 0.0 for value in rows["price"]]


def slow(rows):
    import time

    time.sleep(0.5 if float(rows["price"].iloc[0]) >= 1 else 0.0)
    return [float(value) * 2 for value in rows["price"]]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    guards._watched.clear()
    with open_store(tmp_path / "home") as opened:
        yield opened


def save(store, function):
    # Rows below 1 are the ones that a package is checked with.
    example = pd.DataFrame({"price": [0.5, 0.25]})
    key = el.save_model(function, "m", example=example, task="regression", store=store).key
    return store.records.get(ModelVersion, key)


@contextmanager
def served(store):
    process = EndpointProcess(store, "e")
    process.start(timeout_s=150)
    try:
        yield process
    finally:
        process.stop()


def send(store, process, requests, seconds=60.0):
    """Send requests while the guards look about every second. Returns the ended release and the requests until then."""
    began = looked = monotonic()
    connection = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=30)
    statuses = []
    try:
        for number in range(requests):
            body = json.dumps({"rows": [{"price": 1.0 + number}], "keys": [str(number)]})
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            # Up to 100 requests a second, so that a log that is written every second is part of the test.
            sleep(0.01)
            if monotonic() - looked > 1.0:
                looked = monotonic()
                ended = check_guards(LOOP, store)
                if ended is not None:
                    return ended, number + 1, statuses
            assert monotonic() - began < seconds, "this machine is too slow to send the requests in time"
    finally:
        connection.close()
    # The last second's failures are logged.
    sleep(2.5)
    return check_guards(LOOP, store), requests, statuses


@pytest.mark.parametrize(
    ("candidate", "steps", "guard"),
    [
        (failing, (20, 100), "errors"),
        (failing, (0, 20, 100), "errors"),
        (not_finite, (20, 100), "errors"),
        (slow, (20, 100), "answers over the limit"),
    ],
)
def test_a_bad_candidate_is_rolled_back_within_500_requests(store, candidate, steps, guard):
    promote(store, "e", save(store, good), "first")
    with served(store) as process:
        send(store, process, 120)
        start_release(store, "e", save(store, candidate), steps=steps)
        process.wait_for(store.records.get(EndpointRecord, "e").revision, 60)
        ended, requests, statuses = send(store, process, 500)
        assert ended is not None, statuses
        assert requests <= 500
        assert ended.state == "rolled_back"
        assert ended.decisions[-1].evidence["guard"] in (guard, "slow answers")
        assert "m@2" in ended.decisions[-1].reason
        record = store.records.get(EndpointRecord, "e")
        assert [(route.version, route.percent) for route in record.routes] == [("m@1", 100.0)]
        process.wait_for(record.revision, 60)
        assert set(send(store, process, 30)[2]) == {200}, "the champion answers again"


def test_an_outage_of_both_versions_ends_no_release(store):
    promote(store, "e", save(store, failing), "first")
    with served(store) as process:
        start_release(store, "e", save(store, failing), steps=(20, 100))
        process.wait_for(store.records.get(EndpointRecord, "e").revision, 60)
        ended, _, statuses = send(store, process, 300)
        assert ended is None
        assert set(statuses) == {422}, "what a model raises is answered like rows that it cannot score"
    assert find_rolling(store, "e").percent == 20
