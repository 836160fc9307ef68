"""Guards without labels: bad releases end within 500 requests, healthy ones do not end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from everloop.loop import Canary, Endpoint, check_guards
from everloop.loop.releases import guards
from everloop.loop.releases.guards import FALSE_ALARM, BlameGuard, RateGuard
from everloop.loop.releases.promotion import promote
from everloop.loop.releases.rollout import find_rolling, start_release
from everloop.prediction_log.failure_log import FailureLog
from everloop.prediction_log.prediction_log import Group, PredictionLog, fold_predictions
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
                    inputs=inputs, positions=None, entities=None, events=None, scores=[score],
                    labels=None if label is None else [label],
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


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_bad_candidate_is_rolled_back_although_the_clock_jumps(store, answer, hours):
    store.clock = store.simulate(store.now() + timedelta(hours=hours))
    assert check_guards(LOOP, store) is None
    assert run(store, answer, BAD["not a number"]) is not None


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
    log.write({422: 50, 500: 20}, {("m@2", "canary", 500): 20})
    ended = check_guards(LOOP, store)
    assert ended.decisions[-1].evidence["guard"] == "errors"
    log.close()


REGRESSION = {"task": "regression", "inputs": [{"name": "price", "type": "float"}]}


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        (lambda value: value * 1000, True),
        (lambda value: value - 5000, True),
        (lambda value: 1.3 * value + 5, False),
    ],
)
def test_answers_in_another_unit_end_a_release_and_other_estimates_do_not(store, answer, kind, ends):
    for version in store.records.find(ModelVersion):
        store.records.update(replace(version, signature=REGRESSION))
    rng = np.random.default_rng(8)
    for _ in range(100):
        answer(False, float(rng.lognormal(3, 1)), label=None)
    for _ in range(150):
        answer(False, float(rng.lognormal(3, 1)), label=None)
        answer(True, kind(float(rng.lognormal(3, 1))), label=None)
    found = check_guards(LOOP, store)
    assert (found is not None) == ends
    if ends:
        assert found.decisions[-1].evidence["guard"] == "far answers"


def test_an_outage_of_the_whole_endpoint_ends_no_release(store, answer):
    log = FailureLog(store, "e")
    for _ in range(100):
        answer(False, 0.3)
    for seconds in range(1, 30):
        log._next_at = 0.0
        # Some failures are of no version, because the endpoint refuses requests while it is busy.
        versions = {("m@1", "champion", 500): 9 * seconds, ("m@2", "canary", 500): seconds}
        log.write({500: 10 * seconds, 503: 40 * seconds}, versions)
        assert check_guards(LOOP, store) is None
    log.close()
    assert find_rolling(store, "e").percent == 10


def test_failures_of_a_shadow_end_its_release(store, answer):
    promote(store, "e", store.records.get(ModelVersion, "m@1"), "again")
    start_release(store, "e", store.records.get(ModelVersion, "m@2"), steps=(0, 100))
    for _ in range(30):
        answer(False, 0.3)
    log = FailureLog(store, "e")
    log.write({}, {("m@2", "shadow", 500): 30})
    ended = check_guards(LOOP, store)
    assert ended.state == "rolled_back"
    assert "30 of 30 requests to m@2 fail" in ended.decisions[-1].reason
    log.close()


def test_restarted_processes_share_the_error_of_one_release(store):
    """A healthy candidate, watched by 30 processes one after the other: their permitted errors add up to one."""
    release = find_rolling(store, "e")
    permitted = []
    for _ in range(30):
        guards._watched.clear()
        assert check_guards(LOOP, store) is None
        [traffic] = guards._watched.values()
        permitted.append(traffic.false_alarm)
    assert sum(permitted) < FALSE_ALARM
    assert permitted[0] == FALSE_ALARM / 2
    events = store.records.events_since(0, kinds=["release"], subject=release.id)
    assert [event.data["watch"] for event in events if event.verb == "guarded"] == list(range(1, 31))


def test_a_restarted_process_does_not_count_failures_whose_answers_have_been_folded(store, answer):
    """The candidate fails in 1 of 100 requests, which is tolerated. Its answers are folded, its failures are not."""
    log = FailureLog(store, "e")
    store.simulate(store.now())
    for number in range(1000):
        answer(True, number / 1000)
    log.write({500: 10}, {("m@2", "canary", 500): 10})
    fold_predictions(store, "e")
    store.simulate(store.now() + timedelta(minutes=1))
    guards._watched.clear()
    answer(True, 0.5)
    assert check_guards(LOOP, store) is None
    [traffic] = guards._watched.values()
    assert (traffic.errors.events, traffic.errors.trials) == (0, 1)
    log.close()


@pytest.mark.slow
def test_blame_holds_its_error_at_any_rate_of_failures_and_finds_a_failing_candidate():
    rng = np.random.default_rng(3)
    false_alarms = 0
    for _ in range(300):
        guard, most = BlameGuard(0.1), 0.0
        for second in range(200):
            rate = 0.9 if second % 50 < 10 else 0.02
            requests = rng.binomial(30, 0.1)
            guard.add(rng.binomial(requests, rate), requests, rng.binomial(30 - requests, rate), 30 - requests)
            most = max(most, guard.evidence)
        false_alarms += most > 20
    assert false_alarms / 300 <= 0.05, "Ville's inequality at 1 in 20"
    failing = BlameGuard(0.1)
    for _ in range(8):
        failing.add(1, 1, 0, 9)
    assert failing.evidence > 1000


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
    assert guard.tripped()
