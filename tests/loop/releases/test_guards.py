"""Guards without labels: bad releases end within 500 requests, healthy ones do not end."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from everloop.loop import Canary, Endpoint, check_guards
from everloop.loop.releases.guards import FALSE_ALARM, RateGuard
from everloop.loop.releases.rollout import find_rolling, promote, start_release
from everloop.prediction_log.failure_log import FailureLog
from everloop.prediction_log.prediction_log import Group, PredictionLog
from everloop.records import EndpointRecord, ModelVersion, Release
from everloop.stores import open_store
from everloop.stores.clock import micros, new_id

SIGNATURE = {"task": "binary", "classes": [False, True], "inputs": [{"name": "price", "type": "float"}]}
LOOP = SimpleNamespace(serve=Endpoint("e", rollout=Canary(steps=[10, 50, 100], p99_ms=400)))


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        for number in (1, 2):
            opened.records.put(
                opened.new(
                    ModelVersion, model="m", version=number, package=f"sha256:{number:064d}", signature=SIGNATURE
                )
            )
        promote(opened, "e", opened.records.get(ModelVersion, "m@1"), "first")
        start_release(opened, "e", opened.records.get(ModelVersion, "m@2"), steps=(10, 50, 100))
        yield opened


@pytest.fixture
def answer(store):
    """A function that logs an answer of the champion or the canary."""
    log = PredictionLog(store, "e")
    inputs = msgspec.Raw(msgspec.msgpack.encode({"price": "float"}))

    def append(canary, score, seconds=0.002, label="true"):
        now = store.now()
        version, role = ("m@2", "canary") if canary else ("m@1", "champion")
        log.append(
            [
                Group(
                    request=new_id(now), arrived=micros(now), seconds=seconds, version=version, role=role,
                    inputs=inputs, positions=None, entities=None, events=None, scores=[score], labels=[label],
                    rows=[[1.0]],
                )
            ]
        )  # fmt: skip

    yield append
    log.close()


def run(store, answer, canary_answer, requests=500, share=0.1, seed=0):
    """Send requests and check after each ten; returns the number of requests at the rollback, or None."""
    rng = np.random.default_rng(seed)
    for number in range(requests):
        canary = rng.uniform() < share
        if canary:
            answer(True, *canary_answer(rng))
        else:
            answer(False, float(rng.uniform()), float(rng.lognormal(-6, 0.5)))
        if number % 10 == 9:
            ended = check_guards(LOOP, store)
            if ended is not None:
                assert ended.state == "rolled_back"
                return number + 1
    return None


BAD = {
    "not a number": lambda rng: (float("nan"), 0.002),
    "no probability": lambda rng: (float(rng.uniform(1.5, 3)), 0.002),
    "an unknown class": lambda rng: (float(rng.uniform()), 0.002, "maybe"),
    "half of the answers": lambda rng: (float("inf") if rng.uniform() < 0.5 else 0.3, 0.002),
    "slow": lambda rng: (float(rng.uniform()), float(rng.lognormal(-4, 0.5))),
    "over the limit": lambda rng: (float(rng.uniform()), 0.5),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_candidate_is_rolled_back_within_500_requests(store, answer, kind):
    assert run(store, answer, BAD[kind]) is not None
    assert [route.version for route in store.records.get(EndpointRecord, "e").routes] == ["m@1"]
    ended = store.records.find(Release, ("candidate", "=", "m@2"))[0]
    assert ended.decisions[-1].evidence["guard"]
    assert "m@2" in ended.decisions[-1].reason


def test_a_healthy_candidate_stays(store, answer):
    assert run(store, answer, lambda rng: (float(rng.uniform()), float(rng.lognormal(-6, 0.5))), 1500, 0.5) is None
    assert find_rolling(store, "e") is not None


def test_equal_answers_end_a_release(store, answer):
    assert run(store, answer, lambda rng: (0.4, 0.002), 700, 0.5) is not None


def test_failed_requests_end_a_release_and_client_errors_do_not(store, answer):
    log = FailureLog(store, "e")
    for _ in range(200):
        answer(False, 0.3)
    log.write({422: 50})
    assert check_guards(LOOP, store) is None
    log._next_at = 0.0
    log.write({422: 50, 500: 20})
    ended = check_guards(LOOP, store)
    assert ended.decisions[-1].evidence["guard"] == "errors"
    log.close()


def test_without_a_release_nothing_is_read(store):
    assert check_guards(SimpleNamespace(serve=None), store) is None
    release = find_rolling(store, "e")
    store.records.update(replace(release, state="superseded"))
    assert check_guards(LOOP, store) is None


def test_a_rate_that_is_tolerated_rarely_trips_a_guard_however_often_it_is_looked_at():
    """Ville's inequality, by simulation: 40 streams of 1,000 trials at the tolerated rate, looked at every time."""
    events = np.random.default_rng(1).uniform(size=(40, 1000)) < 0.01
    most = 0.0
    for stream in events:
        guard = RateGuard("x")
        for event in stream:
            guard.add(int(event), 1, 0.01)
            most = max(most, guard.evidence)
    assert most < 1 / FALSE_ALARM
    guard.add(30, 100, 0.01)
    assert guard.tripped
