"""Decisions about a rollout: what each one changes, who may make it, and what holds after any sequence of them."""

from __future__ import annotations

import itertools
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import ConflictError, NotFoundError
from everloop.loop import abort_release, advance_release, promote, roll_back
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.rollout import apply_evidence, champion_of, find_rolling, hold_release, start_release
from everloop.records import EndpointRecord, GateResult, ModelVersion, Release, Route
from everloop.registry import ApprovalError, list_requests, set_policy
from everloop.stores import open_store

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with open_store(tmp_path_factory.mktemp("rollouts") / "home", project="p") as opened:
        yield opened


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOON)
        yield opened


def version(store, number, model="m"):
    digest = f"sha256:{abs(hash((model, number))):064x}"
    store.records.put(store.new(ModelVersion, model=model, version=number, package=digest))
    return store.records.get(ModelVersion, f"{model}@{number}")


def gate(store, candidate, outcome):
    made = store.new(GateResult, gate="g", outcome=outcome, candidate=candidate.key, message=f"says {outcome}")
    store.records.put(made)
    return made


def routes(store, endpoint="e"):
    return {route.version: route.percent for route in store.records.get(EndpointRecord, endpoint).routes}


def state(store, key):
    return store.records.get(ModelVersion, key).state


@pytest.fixture
def rolling(store):
    """The release of `m@2` in its first of three steps; the champion is `m@1`."""
    start_release(store, "e", version(store, 1))
    return start_release(store, "e", version(store, 2), steps=(10, 50, 100), trigger="OnDrift", run="r1")


# --- start -------------------------------------------------------------------------------------------------


def test_a_release_records_what_it_came_from(store, rolling):
    assert (rolling.previous, rolling.candidate, rolling.trigger, rolling.run) == ("m@1", "m@2", "OnDrift", "r1")
    assert [(one.action, one.percent, one.reason) for one in rolling.decisions] == [("start", 10, "all gates passed")]
    assert rolling.decisions[0].at == NOON


def test_an_undecided_gate_is_named_when_the_canary_starts(store):
    start_release(store, "e", version(store, 1))
    second = version(store, 2)
    gates = [gate(store, second, "undecided"), gate(store, second, "pass")]
    release = start_release(store, "e", second, steps=(10, 100), gates=gates)
    assert release.decisions[0].reason == "undecided: g"
    assert release.gates == tuple(one.id for one in gates)


def test_the_first_champion_needs_no_decided_gate(store):
    first = version(store, 1)
    release = start_release(store, "e", first, gates=[gate(store, first, "undecided")])
    assert (release.state, release.previous) == ("completed", None)
    assert [one.action for one in release.decisions] == ["start", "complete"]


def test_a_rejected_first_candidate_leaves_the_endpoint_without_a_champion(store):
    first = version(store, 1)
    release = start_release(store, "e", first, gates=[gate(store, first, "fail")])
    assert (release.state, release.percent) == ("rejected", 0.0)
    assert (champion_of(store, "m"), routes(store), state(store, "m@1")) == (None, {}, "rejected")


def test_a_rejected_candidate_does_not_end_the_rollout_of_another(store, rolling):
    third = version(store, 3)
    start_release(store, "e", third, gates=[gate(store, third, "fail")])
    assert find_rolling(store, "e").id == rolling.id
    assert routes(store) == {"m@1": 90.0, "m@2": 10.0}


def test_a_newer_candidate_takes_the_canary_of_an_older_one(store, rolling):
    third = start_release(store, "e", version(store, 3), steps=(20, 100))
    old = store.records.get(Release, rolling.id)
    assert (old.state, old.percent, old.decisions[-1].reason) == ("superseded", 0, "superseded by a newer candidate")
    assert state(store, "m@2") == "registered", "it was not found to be worse"
    assert find_rolling(store, "e").id == third.id
    assert routes(store) == {"m@1": 80.0, "m@3": 20.0}
    with pytest.raises(ConflictError, match="superseded"):
        advance_release(store, old, "too late")


def test_an_archived_version_is_not_released(store):
    first = version(store, 1)
    store.records.update(replace(first, state="archived"))
    with pytest.raises(ConflictError, match="archived"):
        start_release(store, "e", first)  # the caller has read the version before it was archived
    assert store.records.find(Release) == []
    assert store.records.find(EndpointRecord) == []


def test_an_endpoint_serves_one_model(store, rolling):
    before = store.records.last_event()
    other = version(store, 1, "n")
    for release in (lambda: start_release(store, "e", other), lambda: promote(store, "e", other, "now")):
        with pytest.raises(ConflictError, match="'e' serves the model 'm', so it cannot get 'n@1'") as raised:
            release()
        assert "model='m'" in raised.value.help
    assert store.records.last_event() == before + 1, "only the version was added"
    assert routes(store) == {"m@1": 90.0, "m@2": 10.0}


def test_an_endpoint_at_which_nothing_answers_may_get_another_model(store):
    first = version(store, 1)
    start_release(store, "e", first, gates=[gate(store, first, "fail")])
    start_release(store, "e", version(store, 1, "n"))
    assert store.records.get(EndpointRecord, "e").model == "n"
    assert routes(store) == {"n@1": 100.0}


def test_two_endpoints_roll_out_independently(store, rolling):
    other = start_release(store, "other", version(store, 1, "n"))
    assert other.state == "completed"
    assert (champion_of(store, "m"), champion_of(store, "n")) == ("m@1", "n@1")
    second = start_release(store, "other", version(store, 2, "n"), steps=(30, 100))
    abort_release(store, second, "worse")
    assert find_rolling(store, "e").id == rolling.id
    assert (routes(store), routes(store, "other")) == ({"m@1": 90.0, "m@2": 10.0}, {"n@1": 100.0})


# --- hold, advance, complete, abort ------------------------------------------------------------------------


def test_a_hold_is_recorded_once_a_day(store, rolling):
    held = hold_release(store, rolling, "too few labels", {"labels": 3})
    assert (held.percent, held.decisions[-1].action, held.decisions[-1].evidence) == (10, "hold", {"labels": 3})
    store.clock.set(NOON + timedelta(hours=23))
    assert hold_release(store, held, "still too few") == held
    store.clock.set(NOON + timedelta(days=1))
    later = hold_release(store, held, "still too few")
    assert [one.reason for one in later.decisions] == ["all gates passed", "too few labels", "still too few"]
    assert routes(store) == {"m@1": 90.0, "m@2": 10.0}


def test_a_release_without_a_canary_waits_until_a_person_advances_it(store):
    start_release(store, "e", version(store, 1))
    second = version(store, 2)
    held = start_release(store, "e", second, gates=[gate(store, second, "undecided")])
    assert "there is no canary to decide it: g: says undecided" in held.decisions[-1].reason
    done = advance_release(store, held, "I looked at it")
    assert (done.state, done.percent, champion_of(store, "m")) == ("completed", 100.0, "m@2")


def test_advancing_keeps_the_evidence_of_each_step(store, rolling):
    second = advance_release(store, rolling, "good", {"gain": 0.1})
    done = advance_release(store, second, "better", {"gain": 0.2})
    assert [one.evidence for one in done.decisions] == [{}, {"gain": 0.1}, {"gain": 0.2}]
    assert [one.percent for one in done.decisions] == [10, 50, 100]
    assert (state(store, "m@2"), state(store, "m@1")) == ("released", "released")


def test_aborting_gives_all_traffic_back(store, rolling):
    ended = abort_release(store, advance_release(store, rolling, "good"), "worse", {"gain": -0.1})
    assert (ended.state, ended.percent) == ("rolled_back", 0.0)
    assert (ended.decisions[-1].action, ended.decisions[-1].evidence) == ("roll_back", {"gain": -0.1})
    assert (routes(store), state(store, "m@2")) == ({"m@1": 100.0}, "rolled_back")


@pytest.mark.parametrize("decide", [advance_release, abort_release, hold_release])
def test_an_ended_release_cannot_be_decided_again(store, rolling, decide):
    ended = abort_release(store, rolling, "worse")
    with pytest.raises(ConflictError, match="has ended: rolled_back") as raised:
        decide(store, ended, "again")
    assert "everloop release ls" in raised.value.help


def test_a_shadow_keeps_its_route_during_every_decision(store, rolling):
    endpoint = store.records.get(EndpointRecord, "e")
    shadow = Route(version="m@9", percent=0.0, role="shadow")
    store.records.update(replace(endpoint, routes=(*endpoint.routes, shadow)))
    for decide in (advance_release, abort_release):
        decide(store, find_rolling(store, "e"), "decided")
        assert store.records.get(EndpointRecord, "e").routes[-1] == shadow


@pytest.mark.parametrize(
    ("outcome", "gain", "impatient", "action"),
    [
        ("pass", -0.1, False, "advance"),
        ("fail", 0.1, True, "roll_back"),
        ("undecided", 0.1, False, "hold"),
        ("undecided", 0.5, True, "roll_back"),
        ("undecided", -1e-9, True, "roll_back"),
        ("undecided", None, True, "roll_back"),
    ],
)
def test_evidence_decides_and_after_the_patience_the_champion_stays(store, rolling, outcome, gain, impatient, action):
    evidence = {} if gain is None else {"gain": gain}
    moved = apply_evidence(store, rolling, GateOutcome(outcome, "measured", evidence), impatient=impatient)
    assert (moved.decisions[-1].action, moved.decisions[-1].evidence) == (action, evidence)
    assert "measured" in moved.decisions[-1].reason
    assert ("patience has run out" in moved.decisions[-1].reason) == (impatient and outcome == "undecided")


# --- people ------------------------------------------------------------------------------------------------


def test_promoting_during_a_rollout_ends_it(store, rolling):
    done = promote(store, "e", store.records.get(ModelVersion, "m@2"), "now")
    assert (done.state, done.trigger, done.decisions[-1].reason) == ("completed", "promote", "now")
    assert store.records.get(Release, rolling.id).state == "superseded"
    assert routes(store) == {"m@2": 100.0}


def test_promoting_the_champion_during_a_rollout_keeps_it_and_ends_the_canary(store, rolling):
    promote(store, "e", store.records.get(ModelVersion, "m@1"), "no experiments")
    assert (routes(store), find_rolling(store, "e"), champion_of(store, "m")) == ({"m@1": 100.0}, None, "m@1")


def test_rolling_back_during_a_rollout_ends_the_canary(store, rolling):
    ended = roll_back(store, "e", "customers complain")
    assert (ended.id, ended.state, ended.decisions[-1].reason) == (rolling.id, "rolled_back", "customers complain")
    assert champion_of(store, "m") == "m@1"


def test_without_a_release_there_is_nothing_to_roll_back(store):
    with pytest.raises(NotFoundError):
        roll_back(store, "e", "no endpoint")
    store.records.put(store.new(EndpointRecord, name="e", model="m"))
    with pytest.raises(NotFoundError, match="Nothing has been released to endpoint 'e'"):
        roll_back(store, "e", "no release")


def test_two_rollbacks_go_back_two_champions(store):
    for number in (1, 2, 3):
        promote(store, "e", version(store, number), f"number {number}")
    assert [roll_back(store, "e", "back").candidate for _ in range(2)] == ["m@3", "m@2"]
    assert (champion_of(store, "m"), routes(store)) == ("m@1", {"m@1": 100.0})


def test_a_person_who_promotes_without_approval_changes_nothing(store, rolling):
    set_policy(store, "m", "champion", 1)
    before = store.records.last_event()
    with pytest.raises(ApprovalError):
        promote(store, "e", store.records.get(ModelVersion, "m@2"), "now")
    assert store.records.last_event() == before
    assert find_rolling(store, "e") == rolling
    assert list_requests(store, "m", "champion") == []


def test_with_a_policy_the_first_champion_waits_for_approval_as_well(store):
    set_policy(store, "m", "champion", 1)
    waiting = start_release(store, "e", version(store, 1))
    assert (waiting.state, champion_of(store, "m"), routes(store)) == ("rolling_out", None, {})
    assert len(list_requests(store, "m", "champion", state="open")) == 1


# --- any sequence ------------------------------------------------------------------------------------------


NUMBERS = itertools.count()
DECISIONS = st.sampled_from(
    ["start", "start at once", "reject", "undecided", "advance", "hold", "abort", "promote", "back"]
)


def decide(store, name, decision, number):
    if decision in ("advance", "hold", "abort"):
        release = find_rolling(store, name)
        act = {"advance": advance_release, "hold": hold_release, "abort": abort_release}[decision]
        if release is not None:
            act(store, release, decision)
    elif decision == "back":
        roll_back(store, name, "back")
    elif decision == "promote":
        promote(store, name, version(store, number, name), "promote")
    else:
        candidate = version(store, number, name)
        outcome = {"reject": "fail", "undecided": "undecided"}.get(decision, "pass")
        steps = (25, 50, 100) if decision == "start" else (100,)
        start_release(store, name, candidate, steps=steps, gates=[gate(store, candidate, outcome)])


@settings(max_examples=30, deadline=None)
@given(st.lists(DECISIONS, max_size=8))
def test_after_any_decisions_the_champion_answers_and_one_rollout_is_under_way(shared, decisions):
    name = f"model-{next(NUMBERS)}"
    for number, decision in enumerate(decisions, start=1):
        # Only a rollback can find nothing to do; any other error fails the test.
        with suppress(NotFoundError) if decision == "back" else nullcontext():
            decide(shared, name, decision, number)
        champion = champion_of(shared, name)
        releases = shared.records.find(Release, ("endpoint", "=", name))
        under_way = [release for release in releases if release.state == "rolling_out"]
        assert len(under_way) <= 1
        if champion is None:
            assert all(release.state == "rejected" for release in releases)
            continue
        answering = shared.records.get(EndpointRecord, name).routes
        assert sum(route.percent for route in answering) == 100
        assert answering[0].version == champion
        assert answering[0].role == "champion"
        canaries = {route.version: route.percent for route in answering[1:]}
        assert canaries == {one.candidate: one.percent for one in under_way if one.percent > 0}
        assert state(shared, champion) == "released"
