"""What a tick does about a release: shadows, freeze windows, pauses, approvals, limits of time, and conflicts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from everloop.errors import ConflictError
from everloop.loop import (
    Canary,
    Endpoint,
    advance_release,
    approve_release,
    pause_release,
    reject_release,
    resume_release,
)  # fmt: skip
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases import release_steps
from everloop.loop.releases.promotion import promote
from everloop.loop.releases.release_steps import move_rollout, needs
from everloop.loop.releases.rollout import champion_of, find_rolling, start_release
from everloop.records import EndpointRecord, ModelVersion, Release
from everloop.stores import open_store

START = datetime(2026, 6, 1, 12, tzinfo=UTC)  # a Monday


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        opened.clock = opened.simulate(START)
        for number in (1, 2):
            opened.records.put(opened.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
        promote(opened, "e", opened.records.get(ModelVersion, "m@1"), "first")
        yield opened


@pytest.fixture
def tick(store, monkeypatch):
    """A function that starts a release if there is none, and does a tick with some evidence at a time."""
    found = {}
    monkeypatch.setattr(release_steps, "live_evidence", lambda *_: found["outcome"])
    monkeypatch.setattr(release_steps, "unlabelled_problem", lambda *_: found.get("unlabelled"))

    def act(canary, outcome, after, **evidence):
        if find_rolling(store, "e") is None:
            start_release(store, "e", store.records.get(ModelVersion, "m@2"), steps=canary.percents)
        store.clock.set(START + after)
        found["outcome"] = outcome and GateOutcome(outcome, "measured", dict(evidence))
        move_rollout(SimpleNamespace(live_metric="roc_auc"), Endpoint("e", rollout=canary), store)
        return store.records.find(Release, ("candidate", "=", "m@2"), order="-created_at", limit=1)[0]

    return act


def routes(store):
    return {route.version: (route.role, route.percent) for route in store.records.get(EndpointRecord, "e").routes}


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
READY = {"ready": True, "since_step": 500, "gain": 0.0, "margin": 0.01, "looks": [500]}


def test_earlier_steps_need_no_sign_of_harm_and_the_last_one_needs_the_proof(store, tick):
    canary = Canary(steps=[10, 50, 100])
    assert tick(canary, None, HOUR).percent == 10
    assert tick(canary, "undecided", 2 * HOUR, **{**READY, "ready": False}).percent == 10
    moved = tick(canary, "undecided", 3 * HOUR, **READY)
    assert (moved.percent, moved.looks) == (50, (500,))
    stays = tick(canary, "undecided", 4 * HOUR, **{**READY, "looks": [500, 600]})
    assert (stays.percent, stays.looks, stays.state) == (50, (500, 600), "rolling_out")
    assert tick(canary, "pass", 5 * HOUR, **READY).state == "completed"
    assert champion_of(store, "m") == "m@2"


def test_every_look_is_stored_even_if_no_decision_is(store, tick):
    canary = Canary(steps=[10, 100])
    for number in range(1, 4):
        looks = list(range(100, 100 * number + 1, 100))
        assert tick(canary, "undecided", number * HOUR, **{**READY, "looks": looks}).looks == tuple(looks)


def test_a_shadow_gets_no_traffic_until_its_time_has_passed(store, tick):
    canary = Canary(steps=[20, 100], shadow="3d")
    assert canary.percents == (0, 20, 100)
    assert tick(canary, None, DAY).percent == 0
    assert routes(store) == {"m@1": ("champion", 100), "m@2": ("shadow", 100)}
    assert tick(canary, None, 3 * DAY).percent == 20
    assert routes(store) == {"m@1": ("champion", 80), "m@2": ("canary", 20)}
    assert tick(canary, "fail", 4 * DAY, **READY).state == "rolled_back"
    assert routes(store) == {"m@1": ("champion", 100)}


def test_a_shadow_that_does_harm_is_ended(store, tick):
    canary = Canary(steps=[0, 20, 100])
    assert tick(canary, "fail", DAY, **READY).state == "rolled_back"
    assert routes(store) == {"m@1": ("champion", 100)}


def test_no_step_forward_in_a_freeze_window_but_a_rollback(store, tick):
    canary = Canary(steps=[10, 100], freeze=["tue 00:00 - thu 00:00 UTC"])
    held = tick(canary, "pass", DAY, **READY)
    assert (held.percent, held.awaits) == (10, "window")
    assert "freeze window" in held.decisions[-1].reason
    # The proof counts when the window has ended, although no later look has repeated it.
    assert tick(canary, "undecided", 3 * DAY, **READY).state == "completed"


def test_a_rollback_does_not_wait_for_a_window(store, tick):
    canary = Canary(steps=[10, 100], freeze=["tue 00:00 - thu 00:00 UTC"])
    assert tick(canary, "fail", DAY, **READY).state == "rolled_back"


def test_a_paused_release_takes_no_step_until_it_is_resumed(store, tick):
    canary = Canary(steps=[10, 50, 100], patience="1d")
    paused = pause_release(store, tick(canary, None, HOUR), "a holiday")
    assert needs(paused).endswith("everloop release resume e")
    with pytest.raises(ConflictError, match="paused"):
        advance_release(store, paused, "now")
    with pytest.raises(ConflictError, match="paused already"):
        pause_release(store, paused, "again")
    assert tick(canary, "undecided", 9 * DAY, **READY).percent == 10, "neither forward nor out of patience"
    resume_release(store, find_rolling(store, "e"), "back")
    with pytest.raises(ConflictError, match="not paused"):
        resume_release(store, find_rolling(store, "e"), "again")
    assert tick(canary, None, 9 * DAY + HOUR).state == "rolling_out", "patience begins again"
    assert tick(canary, "fail", 9 * DAY + 2 * HOUR, **READY).state == "rolled_back"


def test_with_approval_a_person_completes_the_release(store, tick):
    canary = Canary(steps=[10, 100], approval=True)
    waiting = tick(canary, "pass", HOUR, **READY)
    assert (waiting.state, waiting.awaits) == ("rolling_out", "approval")
    assert "everloop release approve e" in needs(waiting)
    approved = approve_release(store.as_actor("user:ada"), waiting, "looks good")
    assert (approved.approved_by, approved.decisions[-1].actor) == ("user:ada", "user:ada")
    with pytest.raises(ConflictError, match="already"):
        approve_release(store.as_actor("user:ada"), approved, "again")
    assert tick(canary, "undecided", 2 * HOUR, **READY).state == "completed"


def test_harm_ends_a_release_that_waits_for_approval_and_a_person_may_reject_it(store, tick):
    canary = Canary(steps=[10, 100], approval=True)
    tick(canary, "pass", HOUR, **READY)
    assert tick(canary, "fail", 2 * HOUR, **READY).state == "rolled_back"
    waiting = tick(canary, "pass", 3 * HOUR, **READY)
    assert waiting.awaits == "approval"
    ended = reject_release(store, waiting, "not now")
    assert (ended.state, ended.decisions[-1].reason) == ("rolled_back", "rejected: not now")


@pytest.mark.parametrize(
    ("if_undecided", "gain", "state", "percent"),
    [("back", 0.2, "rolled_back", 0), ("hold", 0.2, "rolling_out", 10), ("advance", 0.2, "completed", 100),
     ("advance", -0.2, "rolling_out", 10)],
)  # fmt: skip
def test_when_patience_runs_out(store, tick, if_undecided, gain, state, percent):
    canary = Canary(steps=[10, 100], patience="2d", if_undecided=if_undecided)
    assert tick(canary, "undecided", DAY, **{**READY, "gain": gain}).state == "rolling_out"
    ended = tick(canary, "undecided", 2 * DAY, **{**READY, "gain": gain})
    assert (ended.state, ended.percent) == (state, percent)


def test_a_step_that_is_ready_is_taken_although_patience_has_run_out_meanwhile(store, tick):
    canary = Canary(steps=[10, 50, 100], patience="1d")
    assert tick(canary, None, HOUR).percent == 10
    assert tick(canary, "undecided", 9 * DAY, **READY).percent == 50, "the worker was not running for a week"


def test_a_clock_that_jumps_forward_moves_no_release_forward(store, tick):
    """Patience runs out at once, and the champion keeps the traffic."""
    canary = Canary(steps=[10, 50, 100], patience="2d", shadow="1d")
    assert tick(canary, None, HOUR).percent == 0
    assert tick(canary, "undecided", DAY + HOUR, **READY).percent == 10
    ended = tick(canary, "undecided", 400 * DAY, since_step=0, ready=False)
    assert ended.state == "rolled_back"
    assert routes(store) == {"m@1": ("champion", 100)}


def test_labels_that_never_come_and_the_longest_time_end_a_release(store, tick):
    assert tick(Canary(steps=[10, 100], patience="1d"), None, DAY).state == "rolled_back"
    canary = Canary(steps=[10, 50, 100], longest="3d")
    assert tick(canary, "undecided", 2 * DAY, **READY).percent == 50
    ended = tick(canary, "undecided", 4 * DAY, **READY)
    assert (ended.state, "longest time" in ended.decisions[-1].reason) == ("rolled_back", True)


def test_of_two_operators_the_second_gets_a_conflict(store, tick):
    release = tick(Canary(steps=[10, 100]), None, HOUR)
    pause_release(store, release, "one")
    with pytest.raises(ConflictError):
        reject_release(store, release, "two")
    with pytest.raises(ConflictError):
        approve_release(store, replace(release), "three")
    assert routes(store) == {"m@1": ("champion", 90), "m@2": ("canary", 10)}


def test_a_proof_that_lacks_days_says_so(tick):
    canary = Canary(steps=[50, 100])
    tick(canary, "undecided", DAY, **READY)
    proven = {**READY, "deviations": 3.1, "needed": 2.4, "rows": 900, "planned_rows": 5000, "least_days": 7}
    assert "are of 3 of at least 7 days" in needs(tick(canary, "undecided", 3 * DAY, **proven, days=3))
    assert "are of 7 of at least 7 days" not in needs(tick(canary, "undecided", 7 * DAY, **proven, days=7))
