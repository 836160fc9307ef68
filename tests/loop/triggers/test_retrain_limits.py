"""Limits on retraining hold for every sequence of events, and explain themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

import everloop as el
from everloop.errors import UsageError
from everloop.loop.triggers.retrain_limits import RetrainLimits, parse_budget
from everloop.loop.triggers.trigger_checks import explain_due, find_due
from everloop.records import Run
from everloop.stores import open_store
from everloop.stores.durations import format_duration

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Always:
    """A policy that would retrain for ever."""

    def __init__(self, token="", limits=None, urgent=False):
        self.token, self.limits, self.urgent = token, limits, urgent

    def check(self, context):
        return context.due("always", token=self.token)


@el.step
def rows() -> list[int]:
    return []


def loop(*retrain, **parts):
    return el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), retrain=retrain, **parts)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOON)
        yield opened


def ran(store, due=None, state="finished", **fields):
    values = {"started_at": store.now(), "ended_at": store.now(), "trigger": str(due) if due else "manual", **fields}
    cause = due.to_dict() if due else {}
    run = store.new(Run, name="sales", loop="sales", state=state, cause=cause, **values)
    store.records.put(run)
    return run


def reported(store):
    return [
        event.data["reason"]
        for event in store.records.events_since(0, kinds=("trigger_state",))
        if event.verb == "explained"
    ]


@dataclass(frozen=True)
class FakeRun:
    started_at: datetime
    state: str = "finished"
    ended_at: datetime | None = None


@settings(max_examples=200, deadline=None)
@given(
    most=st.integers(1, 5),
    hours=st.integers(1, 48),
    waits=st.lists(st.integers(0, 12 * 3600), max_size=60),
)
def test_a_budget_is_never_exceeded_and_never_needlessly_unused(most, hours, waits):
    limits, span = RetrainLimits(budget=f"{most} / {hours}h"), hours * HOUR
    now, runs = NOON, []
    for wait in waits:
        now += timedelta(seconds=wait)
        free = limits.next_within_budget([FakeRun(at) for at in reversed(runs)], now)
        inside = sum(at > now - span for at in runs)
        assert (free is None) == (inside < most)
        if free is None:
            runs.append(now)
        else:
            assert now < free
            assert sum(at > free - span for at in runs) < most
            assert sum(at > free - timedelta(microseconds=1) - span for at in runs) >= most
    for at in runs:
        assert sum(at - span < other <= at for other in runs) <= most


@settings(max_examples=200, deadline=None)
@given(
    states=st.lists(st.sampled_from(["finished", "failed", "lost", "interrupted"]), max_size=60),
    backoff=st.integers(1, 7200),
    longest=st.integers(1, 86_400),
)
def test_back_off_doubles_with_each_failure_in_a_row_up_to_its_limit(states, backoff, longest):
    limits = RetrainLimits(
        backoff=format_duration(timedelta(seconds=backoff)), longest_backoff=format_duration(timedelta(seconds=longest))
    )
    runs = [FakeRun(NOON - number * DAY, state, NOON - number * DAY + HOUR) for number, state in enumerate(states)]
    counted = [run for run in runs if run.state not in ("interrupted", "lost")]
    until_success = next((n for n, run in enumerate(counted) if run.state == "finished"), len(counted))
    failures, at = limits.next_after_failures(runs)
    assert failures == until_success
    if failures:
        assert at == counted[0].ended_at + timedelta(seconds=min(backoff * 2 ** (failures - 1), longest))
    else:
        assert at is None


@pytest.mark.parametrize(
    ("text", "runs", "span"),
    [("3 / week", 3, 7 * DAY), ("1/day", 1, DAY), ("2 / 12h", 2, 12 * HOUR), ("10 / Month", 10, 30 * DAY)],
)
def test_a_budget_is_written_as_people_do(text, runs, span):
    assert parse_budget(text) == (runs, span)


@pytest.mark.parametrize(
    "text", ["3", "3 / ", "week / 3", "0 / week", "-1 / week", "3 / fortnight", "1 / 0s", 3, "9" * 99 + "/day"]
)
def test_another_budget_is_refused_with_the_value(text):
    with pytest.raises(UsageError, match=r"RetrainLimits\(budget=\)") as error:
        RetrainLimits(budget=text)
    assert error.value.help


@pytest.mark.parametrize("field", ["debounce", "cooldown", "backoff", "longest_backoff"])
def test_other_limits_are_durations(field):
    with pytest.raises(UsageError, match=rf"RetrainLimits\({field}=\)"):
        RetrainLimits(**{field: "soon"})


def test_a_budget_holds_back_and_is_reported_once(store):
    declared = loop(Always(), limits=RetrainLimits(budget="2 / week"))
    for day in range(21):
        store.clock.set(NOON + day * DAY)
        for _ in range(3):
            due = find_due(declared, store)
            if due is not None:
                ran(store, due)
    starts = [run.started_at for run in store.records.find(Run, order="started_at")]
    assert starts == [NOON, NOON, NOON + 7 * DAY, NOON + 7 * DAY, NOON + 14 * DAY, NOON + 14 * DAY]
    assert reported(store) == [
        f"the budget of 2 / week of the loop is used up until 2024-01-{day} 12:00 UTC" for day in (10, 17, 24)
    ]


def test_runs_by_hand_and_interrupted_runs_use_no_budget(store):
    declared = loop(Always(), limits=RetrainLimits(budget="1 / week"))
    ran(store)
    ran(store, el.Due("Always", "always"), state="interrupted")
    due = find_due(declared, store)
    assert due is not None
    ran(store, due)
    assert find_due(declared, store) is None


@pytest.mark.slow
def test_a_policy_without_any_limit_of_its_own_is_bounded(store):
    declared = loop(Always())
    runs = 0
    for minute in range(3000):
        store.clock.set(NOON + minute * timedelta(seconds=10))
        if (due := find_due(declared, store)) is None:
            break
        ran(store, due)
        runs += 1
        if runs == 30:
            # The rest of the budget, at once.
            store.records.put(
                *(
                    store.new(Run, name="sales", loop="sales", state="finished", trigger="x", started_at=store.now())
                    for _ in range(970)
                )
            )
    assert runs == 30
    assert reported(store)[-1].startswith("the budget of 1000 / week of the loop is used up until 2024-01-10")


def test_a_limit_of_one_trigger_leaves_the_others_alone(store):
    declared = loop(Always(limits=RetrainLimits(budget="1 / week")), el.Every("1d"))
    ran(store, find_due(declared, store))
    ran(store, find_due(declared, store))
    assert find_due(declared, store) is None
    store.clock.set(NOON + DAY)
    assert find_due(declared, store).trigger == "Every"
    assert [(report.trigger, report.state) for report in explain_due(declared, store)] == [
        ("Always", "held"),
        ("Every", "due"),
    ]


def test_failed_runs_are_repeated_ever_more_slowly_and_the_reason_is_told_once_each(store):
    declared = loop(Always(), limits=RetrainLimits(backoff="1h", longest_backoff="3h"))
    ran(store)
    starts = []
    for minute in range(0, 60 * 12, 10):
        store.clock.set(NOON + minute * MINUTE)
        if (due := find_due(declared, store)) is not None:
            starts.append(minute // 60)
            ran(store, due, state="failed")
    assert starts == [0, 1, 3, 6, 9]
    assert reported(store)[:2] == [
        "the last run failed, next attempt at 2024-01-03 13:00 UTC",
        "the last 2 runs failed, next attempt at 2024-01-03 15:00 UTC",
    ]


def test_a_decision_of_a_person_waits_for_the_budget_only(store):
    limits = RetrainLimits(cooldown="1w", backoff="1w", longest_backoff="1w", debounce="1w", budget="2 / week")
    declared = loop(Always(urgent=True), limits=limits)
    ran(store, el.Due("x", "x"), state="failed")
    assert find_due(declared, store) is not None
    ran(store, el.Due("x", "x"))
    assert find_due(declared, store) is None


def test_debounce_waits_until_nothing_new_has_happened(store):
    part = Always(token="one file")
    declared = loop(part, limits=RetrainLimits(debounce="30m"))
    ran(store)
    for minute, token, due in [
        (0, "one file", False),
        (20, "two files", False),
        (40, "three files", False),
        (69, "three files", False),
        (70, "three files", True),
    ]:
        store.clock.set(NOON + minute * MINUTE)
        part.token = token
        assert (find_due(declared, store) is not None) == due, minute
    assert find_due(loop(Always(token="three files")), store) is not None


def test_no_run_is_due_while_one_is_in_progress(store):
    declared = loop(Always())
    run = ran(store)
    with store.lock(f"run-{run.id}"):
        store.records.update(replace(run, state="running"))
        assert find_due(declared, store) is None
        assert explain_due(declared, store)[0].reason == f"the run {run.id} is in progress"


def test_every_trigger_is_explained_without_a_write(store):
    ran(store)
    declared = loop(
        el.Every("0 6 * * mon", zone="Europe/Berlin"), Always(limits=RetrainLimits(cooldown="2d")), el.OnCall()
    )
    before = store.records.last_event()
    schedule, held, call = explain_due(declared, store)
    assert (schedule.state, schedule.next_at) == ("waiting", datetime(2024, 1, 8, 5, tzinfo=UTC))
    assert (held.state, held.next_at) == ("held", NOON + 2 * DAY)
    assert held.reason == "cool-down of 2d of Always, until 2024-01-05 12:00 UTC"
    assert (call.state, call.next_at) == ("waiting", None)
    assert store.records.last_event() == before


def test_after_a_downtime_a_schedule_makes_up_with_one_run_or_none(store):
    ran(store)
    one, none = loop(el.Every("0 6 * * *")), loop(el.Every("0 6 * * *", catch_up="none", grace="30m"))
    store.clock.set(NOON + 5 * DAY)
    assert find_due(none, store) is None
    assert explain_due(none, store)[0].next_at == datetime(2024, 1, 9, 6, tzinfo=UTC)
    assert find_due(one, store) is not None
    store.clock.set(datetime(2024, 1, 9, 6, 10, tzinfo=UTC))
    due = find_due(none, store)
    assert due.evidence == {"scheduled_at": "2024-01-09T06:00:00+00:00"}
    ran(store, due)
    assert find_due(one, store) is None
    assert find_due(none, store) is None
