"""Rollouts: how a candidate gets traffic step by step, and how it is rolled back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from everloop import Dataset
from everloop.errors import ConflictError, CorruptionError, NotFoundError
from everloop.loop import (
    Canary,
    Endpoint,
    Loop,
    abort_release,
    advance_release,
    move_alias,
    promote,
    roll_back,
)
from everloop.loop.comparison.schema_compatibility import schema_coverage
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.live_evidence import live_evidence
from everloop.loop.releases.rollout import (
    apply_evidence,
    champion_of,
    find_rolling,
    hold_release,
    start_release,
    step_started_at,
)
from everloop.loop.worker.reconciler import reconcile
from everloop.pipeline import step
from everloop.records import EndpointRecord, GateResult, ModelVersion, Release
from everloop.registry import alias_history, approve, list_requests, set_policy
from everloop.stores import open_store
from everloop.stores.clock import FixedClock
from everloop.training import AutoTrain


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


@step
def table():
    return None


def version(store, number):
    made = store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}")
    store.records.put(made)
    return made


def gate(store, candidate, outcome):
    made = store.new(GateResult, gate="g", outcome=outcome, candidate=candidate.key, message=f"says {outcome}")
    store.records.put(made)
    return made


def routes(store):
    return {route.version: (route.percent, route.role) for route in store.records.get(EndpointRecord, "e").routes}


def test_the_first_champion_takes_all_traffic_at_once(store):
    release = start_release(store, "e", version(store, 1), steps=(10, 50, 100))
    assert release.state == "completed"
    assert champion_of(store, "m") == "m@1"
    assert routes(store) == {"m@1": (100.0, "champion")}


def test_the_last_step_makes_the_candidate_champion(store):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(10, 50, 100))
    assert (release.state, release.percent) == ("rolling_out", 10)
    assert routes(store) == {"m@1": (90.0, "champion"), "m@2": (10.0, "canary")}
    release = advance_release(store, release, "good")
    assert routes(store) == {"m@1": (50.0, "champion"), "m@2": (50.0, "canary")}
    assert champion_of(store, "m") == "m@1"
    release = advance_release(store, release, "better")
    assert release.state == "completed"
    assert routes(store) == {"m@2": (100.0, "champion")}
    assert [tenure.version for tenure in alias_history(store, "m", "champion")] == ["m@1", "m@2"]
    assert [decision.action for decision in release.decisions] == ["start", "advance", "complete"]


def test_a_failed_gate_rejects_the_candidate(store):
    start_release(store, "e", version(store, 1))
    second = version(store, 2)
    release = start_release(store, "e", second, gates=[gate(store, second, "pass"), gate(store, second, "fail")])
    assert release.state == "rejected"
    assert "says fail" in release.decisions[0].reason
    assert routes(store) == {"m@1": (100.0, "champion")}
    assert store.records.get(ModelVersion, "m@2").state == "rejected"


def test_with_an_undecided_gate_a_candidate_may_enter_a_canary_but_not_take_all_traffic(store):
    start_release(store, "e", version(store, 1))
    second, third = version(store, 2), version(store, 3)
    held = start_release(store, "e", second, gates=[gate(store, second, "undecided")])
    assert (held.state, held.percent, held.decisions[-1].action) == ("rolling_out", 0.0, "hold")
    assert routes(store) == {"m@1": (100.0, "champion")}
    canary = start_release(store, "e", third, steps=(10, 100), gates=[gate(store, third, "undecided")])
    assert canary.percent == 10
    assert store.records.get(Release, held.id).state == "superseded"


def test_evidence_advances_holds_or_rolls_back(store):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(10, 50, 100))
    held = apply_evidence(store, release, GateOutcome("undecided", "too few", {"gain": -0.1}), impatient=False)
    assert (held.state, held.decisions[-1].action) == ("rolling_out", "hold")
    again = apply_evidence(store, held, GateOutcome("undecided", "still too few", {"gain": -0.1}), impatient=False)
    assert len(again.decisions) == len(held.decisions)  # at most one hold is recorded per day
    moved = apply_evidence(store, again, GateOutcome("pass", "good", {"gain": 0.1}), impatient=False)
    assert moved.percent == 50
    ended = apply_evidence(store, moved, GateOutcome("fail", "worse", {"gain": -0.2}), impatient=False)
    assert ended.state == "rolled_back"
    assert ended.decisions[-1].evidence == {"gain": -0.2}
    assert routes(store) == {"m@1": (100.0, "champion")}
    assert store.records.get(ModelVersion, "m@2").state == "rolled_back"


def test_a_rolling_release_without_a_decision_that_started_it_is_named(store):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(10, 100))
    decided = hold_release(store, release, "too few labels")
    assert step_started_at(decided) == release.decisions[0].at
    (damaged,) = store.records.update(replace(decided, decisions=decided.decisions[1:]), verb="edited")
    loop = Loop(
        "l",
        data=Dataset(table, target="y"),
        train=AutoTrain(metric="roc_auc"),
        serve=Endpoint("e", rollout=Canary(steps=[10, 100])),
    )
    for action in (
        lambda: reconcile(loop, store),
        lambda: live_evidence(store, damaged, "m@1", Canary(), "roc_auc"),
        lambda: schema_coverage(store, damaged, "m@1"),
    ):
        with pytest.raises(CorruptionError, match=r"release of m@2 to 'e' has 10 percent.*everloop release rollback e"):
            action()
    assert roll_back(store, "e", "damaged").state == "rolled_back"


@pytest.mark.parametrize(("gain", "state"), [(0.01, "rolling_out"), (-0.01, "rolled_back")])
def test_when_patience_has_run_out_the_estimate_wins_only_if_declared(store, gain, state):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(10, 50, 100))
    moved = apply_evidence(
        store, release, GateOutcome("undecided", "?", {"gain": gain}), impatient=True, if_undecided="advance"
    )
    assert moved.state == state
    assert moved.percent == (50 if gain > 0 else 0)


def test_only_one_of_two_concurrent_decisions_succeeds(store):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(10, 50, 100))
    advance_release(store, release, "first")
    with pytest.raises(ConflictError):
        abort_release(store, release, "second, based on the old record")
    assert find_rolling(store, "e").percent == 50


def test_a_failure_during_a_decision_changes_nothing(store, monkeypatch):
    start_release(store, "e", version(store, 1))
    release = start_release(store, "e", version(store, 2), steps=(50, 100))
    monkeypatch.setattr(
        "everloop.loop.releases.rollout.set_version_state", lambda *_: (_ for _ in ()).throw(OSError("gone"))
    )
    with pytest.raises(OSError, match="gone"):
        advance_release(store, release, "last step")
    assert champion_of(store, "m") == "m@1"
    assert find_rolling(store, "e") == release
    assert routes(store) == {"m@1": (50.0, "champion"), "m@2": (50.0, "canary")}


def test_a_rollback_after_completion_restores_the_previous_champion(store):
    start_release(store, "e", version(store, 1))
    promote(store, "e", version(store, 2), "I say so")
    assert champion_of(store, "m") == "m@2"
    ended = roll_back(store, "e", "customers complain")
    assert (ended.candidate, ended.state) == ("m@2", "rolled_back")
    assert champion_of(store, "m") == "m@1"
    assert routes(store) == {"m@1": (100.0, "champion")}
    with pytest.raises(NotFoundError, match="first champion"):
        roll_back(store, "e", "again")


def test_a_completed_release_cannot_be_advanced(store):
    done = start_release(store, "e", version(store, 1))
    with pytest.raises(ConflictError, match="completed"):
        advance_release(store, done, "more")


def test_the_champion_as_of_an_earlier_time(store):
    start_release(store, "e", version(store, 1))
    between = store.now()
    promote(store, "e", version(store, 2), "newer")
    assert champion_of(store.as_of(between), "m") == "m@1"
    assert champion_of(store.as_of(between - timedelta(days=1)), "m") is None
    assert isinstance(store.as_of(between).clock, FixedClock)


def test_with_a_policy_on_the_champion_a_release_waits_for_approval(store):
    start_release(store, "e", version(store, 1))
    set_policy(store, "m", "champion", 1)
    release = start_release(store, "e", version(store, 2), steps=(50, 100))
    waiting = advance_release(store, release, "better")
    assert (waiting.state, waiting.percent) == ("rolling_out", 50)
    assert "waiting for approval" in waiting.decisions[-1].reason
    assert routes(store) == {"m@1": (50.0, "champion"), "m@2": (50.0, "canary")}
    (request,) = list_requests(store, "m", "champion", state="open")
    advance_release(store, waiting, "better")
    assert len(list_requests(store, "m", "champion")) == 1, "there is one request, however often the loop ticks"
    approve(store.as_actor("user:bob"), request.id)
    done = advance_release(store, store.records.get(Release, release.id), "better")
    assert done.state == "completed"
    assert routes(store) == {"m@2": (100.0, "champion")}


def test_a_promotion_records_its_reason(store):
    promote(store, "e", version(store, 1), "the first one")
    again = promote(store, "e", store.records.get(ModelVersion, "m@1"), "and again")
    assert [release.id for release in store.records.find(Release)] == [again.id]
    promote(store, "e", version(store, 2), "better in winter")
    assert [tenure.reason for tenure in alias_history(store, "m", "champion")] == ["the first one", "better in winter"]


def test_traffic_moves_with_the_champion_alias_only(store):
    promote(store, "e", version(store, 1), "first")
    version(store, 2)
    move_alias(store, "m", "staging", "m@2", "to look at")
    assert routes(store) == {"m@1": (100.0, "champion")}
    with pytest.raises(ConflictError, match="held by m@1, not by m@2"):
        move_alias(store, "m", "champion", "m@2", "late", expect="m@2")
    assert routes(store) == {"m@1": (100.0, "champion")}
    move_alias(store, "m", "champion", "m@2", "good", expect="m@1")
    assert routes(store) == {"m@2": (100.0, "champion")}


def test_a_version_without_a_package_gets_no_traffic(store):
    promote(store, "e", version(store, 1), "first")
    store.records.put(store.new(ModelVersion, model="m", version=2, package="", source="models:/m-1"))
    for release in (
        lambda: promote(store, "e", store.records.get(ModelVersion, "m@2"), "x"),
        lambda: move_alias(store, "m", "champion", "m@2", "x"),
    ):
        with pytest.raises(ConflictError, match="no package yet") as refused:
            release()
        assert "everloop models adopt m@2" in refused.value.help
    assert champion_of(store, "m") == "m@1"
