"""A call leads to at most one run, whoever starts it and whatever happens in between."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

import everloop as el
from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.loop import call_loop, find_due, run_loop
from everloop.records import Run, TriggerCall
from everloop.stores import open_store

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)


@el.step
def rows() -> list[int]:
    return [1]


def loop(*retrain, **parts):
    return el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), retrain=retrain, **parts)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p", actor="user:ada") as opened:
        opened.simulate(NOON)
        opened.records.put(opened.new(Run, name="sales", loop="sales", state="finished", started_at=NOON))
        yield opened


def ran(store, due, state="finished"):
    run = store.new(Run, name="sales", loop="sales", state=state, started_at=store.now(), cause=due.to_dict())
    store.records.put(run)


def test_a_call_makes_a_run_due_with_its_reason_and_caller(store):
    call = call_loop(store, "sales", "prices were wrong")
    due = find_due(loop(el.OnCall()), store)
    assert (due.trigger, due.reason) == ("OnCall", "prices were wrong (user:ada)")
    assert due.evidence == {"calls": [call.id], "asked_by": "user:ada"}
    event = store.records.events_since(0, kinds=("trigger_call",))[-1]
    assert (event.verb, event.actor, event.data["reason"]) == ("called", "user:ada", "prices were wrong")


def test_the_same_call_twice_is_one_call(store):
    first = call_loop(store, "sales", "ci", idempotency="build-7")
    assert call_loop(store, "sales", "ci", idempotency="build-7") == first
    ran(store, find_due(loop(el.OnCall()), store))
    assert call_loop(store, "sales", "ci", idempotency="build-7") == first
    assert find_due(loop(el.OnCall()), store) is None
    with pytest.raises(ConflictError, match=r"'build-7'.*exists with the reason 'ci'"):
        call_loop(store, "sales", "another", idempotency="build-7")
    assert len(store.records.find(TriggerCall)) == 1


def test_equal_calls_at_once_are_one_call(store):
    with ThreadPoolExecutor(4) as pool:
        calls = list(pool.map(lambda _: call_loop(store, "sales", "ci", idempotency="one"), range(8)))
    assert len({call.id for call in calls}) == 1


@pytest.mark.parametrize(
    ("name", "reason", "error"),
    [
        ("sale", "", NotFoundError),
        ("../sales", "", UsageError),
        ("", "", UsageError),
        ("sales", "x" * 2001, UsageError),
    ],
)
def test_a_wrong_call_is_refused(store, name, reason, error):
    with pytest.raises(error) as found:
        call_loop(store, name, reason)
    assert found.value.help


def test_a_call_to_a_loop_without_the_trigger_is_reported_once(store):
    call_loop(store, "sales", "please")
    for _ in range(3):
        assert find_due(loop(el.Every("1w")), store) is None
    events = [event for event in store.records.events_since(0) if event.verb == "explained"]
    assert [event.data["reason"] for event in events] == [
        "a call waits, but loop 'sales' has no el.OnCall() in retrain="
    ]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["call", "tick", "wait", "finished", "failed", "interrupted"]), max_size=25))
def test_each_call_leads_to_at_most_one_run_that_ends_by_itself(tmp_path_factory, actions):
    """For any sequence of calls, ticks and outcomes: every run answers new calls only, and no call is lost."""
    with open_store(tmp_path_factory.mktemp("calls"), project="p") as store:
        store.simulate(NOON)
        store.records.put(store.new(Run, name="sales", loop="sales", state="finished", started_at=NOON))
        declared, calls, answered, outcome = loop(el.OnCall()), [], [], "finished"
        for action in actions:
            if action == "call":
                calls.append(call_loop(store, "sales", "again").id)
            elif action == "wait":
                store.clock.set(store.now() + timedelta(seconds=1))
            elif action == "tick":
                due = find_due(declared, store)
                assert (due is not None) == (set(calls) > set(answered))
                if due is not None:
                    ran(store, due, outcome)
                    if outcome != "interrupted":
                        answered += due.evidence["calls"]
            else:
                outcome = action
        assert len(answered) == len(set(answered))


def test_two_processes_start_one_run(store):
    call_loop(store, "sales", "again")
    declared = loop(el.OnCall())
    first, second = find_due(declared, store), find_due(declared, store)
    assert first == second
    done = run_loop(declared, store, trigger=first, target="rows")
    with pytest.raises(ConflictError, match="Another process has started a run of 'sales'"):
        run_loop(declared, store, trigger=second, target="rows")
    assert done.run.trigger == "OnCall: again (user:ada)"
    assert done.run.cause == {"trigger": "OnCall", "reason": "again (user:ada)", "evidence": first.evidence}
    assert find_due(declared, store) is None
    assert len(store.records.find(Run)) == 2


def test_a_run_by_hand_answers_the_calls_before_it(store):
    call_loop(store, "sales", "again")
    declared = loop(el.OnCall())
    run_loop(declared, store, target="rows")
    assert find_due(declared, store) is None
    newest = store.records.find(Run, order="-id", limit=1)[0]
    assert newest.cause["trigger"] == "manual"


def test_a_call_from_a_machine_whose_clock_is_ahead_leads_to_one_run(store):
    call = call_loop(store, "sales", "again")
    store.records.update(replace(call, created_at=NOON + timedelta(seconds=30)))
    declared = loop(el.OnCall())
    assert find_due(declared, store) is None
    store.clock.set(NOON + timedelta(seconds=30))
    ran(store, find_due(declared, store))
    assert find_due(declared, store) is None
