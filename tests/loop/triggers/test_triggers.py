"""Triggers: when a run is due, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import ClassVar

import pytest
from hypothesis import given, strategies as st
from tests.monitoring.incidents.incident_records import change, put_incident

import everloop as el
from everloop.errors import UsageError
from everloop.loop.releases.promotion import promote
from everloop.loop.releases.rollout import start_release
from everloop.loop.triggers.trigger_checks import MOST_LOST, find_due, last_run
from everloop.loop.triggers.trigger_contexts import make_context
from everloop.loop.triggers.trigger_protocol import check_trigger
from everloop.monitoring.incidents.incident_actions import acknowledge
from everloop.records import Finding, ModelVersion, Run
from everloop.stores import open_store
from everloop.stores.durations import format_duration

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)  # a Wednesday
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@el.step
def rows() -> list[int]:
    return []


def loop(*retrain, **parts):
    watch = [el.Drift(), el.Performance("roc_auc")]
    settings = {"serve": el.Endpoint("e"), "watch": watch, "model": "m", **parts}
    return el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), retrain=retrain, **settings)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOON)
        yield opened


def ran(store, at=NOON, state="finished", of="sales"):
    run = store.new(Run, name=of, loop=of, state=state, started_at=at)
    store.records.put(run)
    return run


def checked(trigger, store, last):
    return trigger.check(make_context(loop(), store, last, type(trigger).__name__, list))


def version(store, number):
    store.records.put(store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
    return store.records.get(ModelVersion, f"m@{number}")


def incident(store, kind="drift", **fields):
    """An ongoing incident whose last window ends now."""
    values = {"endpoint": "e", "versions": ("m@1",), "subjects": ("price",), "began_at": store.now() - DAY, **fields}
    return put_incident(store, "'price' has risen from 10 to 12.", kind=kind, **values)


# --- the last run ------------------------------------------------------------------------------------------


def test_the_first_run_is_due_without_any_trigger(store):
    assert find_due(loop(), store).trigger == "first"
    ran(store, of="another loop")
    assert find_due(loop(), store).trigger == "first"
    ran(store)
    assert find_due(loop(), store) is None


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_run_that_ended_by_itself_is_the_last_run(store, state):
    older, newer = ran(store, NOON - DAY), ran(store, NOON, state)
    assert last_run(loop(), store).id == newer.id
    ran(store, NOON + HOUR, "interrupted")
    assert last_run(loop(), store).id == newer.id != older.id


@given(st.lists(st.sampled_from(["finished", "failed", "lost", "interrupted"]), max_size=8))
def test_runs_that_died_count_only_when_they_die_again_and_again(states):
    """The rule in one line of Python, for every history."""

    class Records:
        def find(self, *_conditions, order, limit):
            assert order == "-started_at"
            newest_first = [number for number in reversed(range(len(states))) if states[number] != "interrupted"]
            return [StoredRun(number, states[number]) for number in newest_first][:limit]

    class StoredRun:
        def __init__(self, number, state):
            self.number, self.state = number, state

    class FakeStore:
        records = Records()

    found = last_run(loop(), FakeStore())
    newest = [(number, state) for number, state in enumerate(states) if state != "interrupted"][::-1][:MOST_LOST]
    ended = [number for number, state in newest if state != "lost"]
    expected = ended[0] if ended else newest[0][0] if len(newest) == MOST_LOST else None
    assert (found.number if found else None) == expected


def test_triggers_are_asked_in_the_order_of_their_declaration(store):
    ran(store, NOON - 30 * DAY)
    version(store, 1)
    promote(store, "e", version(store, 2), "first")
    incident(store, versions=("m@2",))
    assert find_due(loop(el.Every("1w"), el.OnDrift()), store).trigger == "Every"
    assert find_due(loop(el.OnDrift(), el.Every("1w")), store).trigger == "OnDrift"


def test_no_run_is_due_during_a_rollout(store):
    ran(store, NOON - 30 * DAY)
    start_release(store, "e", version(store, 1))
    assert find_due(loop(el.Every("1w")), store).trigger == "Every"
    start_release(store, "e", version(store, 2), steps=(10, 100))
    assert find_due(loop(el.Every("1w")), store) is None
    assert find_due(loop(el.Every("1w"), serve=None, watch=[]), store).trigger == "Every"


def test_something_else_is_not_a_trigger():
    with pytest.raises(UsageError, match="retrain= is not a trigger: '1w'"):
        check_trigger("1w", "retrain=")


# --- schedules ---------------------------------------------------------------------------------------------


def test_an_interval_ends_at_its_last_moment(store):
    ran(store, NOON)
    store.clock.set(NOON + 7 * DAY - timedelta(microseconds=1))
    assert find_due(loop(el.Every("1w")), store) is None
    store.clock.set(NOON + 7 * DAY)
    due = find_due(loop(el.Every("1w")), store)
    assert (due.trigger, due.reason) == ("Every", "1w: the last run began 2024-01-03 12:00")


@pytest.mark.parametrize(
    ("expression", "next_at"),
    [
        ("0 6 * * mon", datetime(2024, 1, 8, 6, tzinfo=UTC)),
        ("0 12 * * *", datetime(2024, 1, 4, 12, tzinfo=UTC)),  # the minute of the last run is over
        ("*/15 * * * *", datetime(2024, 1, 3, 12, 15, tzinfo=UTC)),
        ("30 2 29 2 *", datetime(2024, 2, 29, 2, 30, tzinfo=UTC)),
        ("0 0 1 jan *", datetime(2025, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_cron_schedule_fires_once_at_its_next_time(store, expression, next_at):
    ran(store, NOON)
    store.clock.set(next_at - timedelta(seconds=1))
    assert find_due(loop(el.Every(expression)), store) is None
    store.clock.set(next_at)
    assert find_due(loop(el.Every(expression)), store).reason.startswith(f"{expression}: ")
    ran(store, next_at)
    assert find_due(loop(el.Every(expression)), store) is None


@pytest.mark.parametrize("hours", [-11, -5, 0, 2, 14])
def test_a_cron_schedule_is_in_utc_in_whichever_zone_the_last_run_was_recorded(store, hours):
    here = NOON.astimezone(timezone(timedelta(hours=hours)))
    last = replace(ran(store), started_at=here)
    for moment, due in ((NOON + 17 * HOUR, False), (NOON + 18 * HOUR, True)):  # 5:00 and 6:00 on Thursday
        store.clock.set(moment)
        assert (checked(el.Every("0 6 * * *"), store, last) is not None) == due


def test_schedules_that_were_missed_give_one_run(store):
    ran(store, NOON)
    store.clock.set(NOON + 60 * DAY)
    assert find_due(loop(el.Every("1d")), store) is not None
    ran(store, store.now())
    assert find_due(loop(el.Every("1d")), store) is None


@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_an_interval_is_due_exactly_when_it_has_passed(interval_s, waited_s):
    class FakeStore:
        def now(self):
            return NOON + timedelta(seconds=waited_s)

    class LastRun:
        started_at = NOON
        cause: ClassVar[dict] = {}

    trigger = el.Every(format_duration(timedelta(seconds=interval_s)))
    due = checked(trigger, FakeStore(), LastRun())
    assert (due is not None) == (waited_s >= interval_s)


# --- incidents ---------------------------------------------------------------------------------------------


@pytest.fixture
def released(store):
    """A store with a champion, whose loop ran two weeks ago."""
    ran(store, NOON - 14 * DAY)
    promote(store, "e", version(store, 1), "first")
    return store


@pytest.mark.parametrize(
    ("trigger", "kind"), [(el.OnDrift(cooldown="1d"), "drift"), (el.OnPerformance(cooldown="1d"), "performance")]
)
def test_an_incident_of_the_kind_of_the_trigger_makes_a_run_due(released, trigger, kind):
    others = {"drift": "performance", "performance": "drift"}
    incident(released, others[kind])
    incident(released, "quality")
    assert find_due(loop(trigger), released) is None
    found = incident(released, kind)
    released.clock.set(NOON + 3 * HOUR)
    due = find_due(loop(trigger), released)
    assert due.trigger == type(trigger).__name__
    assert due.reason == "'price' has risen from 10 to 12"
    assert due.evidence == {"incident": found.id, "subjects": ["price"], "waited": "3h"}


@pytest.mark.parametrize("kind", ["drift", "performance"])
def test_a_notice_makes_a_run_due_only_if_the_trigger_says_so(released, kind):
    create = {"drift": el.OnDrift, "performance": el.OnPerformance}[kind]
    found = incident(released, kind, severity="notice")
    assert find_due(loop(create()), released) is None
    assert find_due(loop(create(at_least="notice")), released).evidence["incident"] == found.id
    change(released, found, severity="alarm")
    assert find_due(loop(create()), released).evidence["incident"] == found.id


def test_a_cooldown_counts_from_the_start_of_the_last_run(released):
    incident(released)
    released.clock.set(NOON + DAY - timedelta(microseconds=1))
    assert find_due(loop(el.OnDrift(cooldown="15d")), released) is None
    released.clock.set(NOON + DAY)
    assert find_due(loop(el.OnDrift(cooldown="15d")), released).trigger == "OnDrift"


@pytest.mark.parametrize(
    "fields",
    [
        {"severity": "notice"},
        {"endpoint": "another"},
        {"versions": ("m@2",)},
        {"state": "accepted"},
        {"state": "resolved"},
        {"state": "muted"},
        {"state": "muted", "muted_until": NOON + HOUR},
    ],
    ids=["a notice", "another endpoint", "another version", "accepted", "resolved", "muted", "muted for an hour"],
)
def test_other_incidents_make_no_run_due(released, fields):
    incident(released, **fields)
    assert find_due(loop(el.OnDrift()), released) is None


def test_an_incident_that_is_no_longer_muted_makes_a_run_due(released):
    incident(released, state="muted", muted_until=NOON + HOUR)
    released.clock.set(NOON + HOUR)
    assert find_due(loop(el.OnDrift()), released).trigger == "OnDrift"


def test_an_acknowledged_incident_makes_a_run_due(released):
    found = incident(released)
    acknowledge(released, found.id, "I look after it")
    assert find_due(loop(el.OnDrift()), released).evidence["incident"] == found.id


@pytest.mark.parametrize("versions", [(), ("m@1", "m@2"), ("m@2", "m@1")])
def test_an_incident_about_the_champion_or_no_particular_version_counts(released, versions):
    incident(released, versions=versions)
    assert find_due(loop(el.OnDrift()), released).trigger == "OnDrift"


def test_findings_alone_make_no_run_due(released):
    """Earlier versions of everloop stored alarms as findings."""
    window = {"window_from": NOON - DAY, "window_to": NOON}
    alarm = released.new(
        Finding,
        endpoint="e",
        version="m@1",
        kind="drift",
        severity="alarm",
        subject="price",
        message="moved.",
        **window,
    )
    released.records.put(alarm)
    assert find_due(loop(el.OnDrift(at_least="notice")), released) is None


def test_an_incident_starts_another_run_only_if_it_is_seen_again(released):
    found = incident(released)
    released.clock.set(NOON + HOUR)
    ran(released, released.now())
    released.clock.set(NOON + 60 * DAY)
    assert find_due(loop(el.OnDrift()), released) is None, "the run has answered it"
    change(released, found, seen_at=NOON + 59 * DAY)
    assert find_due(loop(el.OnDrift()), released).evidence["waited"] == "1d"


def test_an_incident_about_a_replaced_champion_starts_no_run(released):
    incident(released)
    promote(released, "e", version(released, 2), "better")
    assert find_due(loop(el.OnDrift()), released) is None


# --- new data ----------------------------------------------------------------------------------------------


def test_a_new_file_makes_a_run_due_after_the_cooldown(shop, load):
    shop.change("loop.py", 'el.Every("8w")', 'el.OnNewData(cooldown="1d")')
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        declared = load()
        el.loop.run_loop(declared, store, target="prepare")
        clock.set(shop.opens + 2 * DAY)
        assert find_due(declared, store) is None
        shop.land("1", shop.orders(1500, 10, shop.opens, seed=1))
        due = find_due(declared, store)
        assert due.trigger == "OnNewData"
        assert due.reason.startswith("source changed")
        assert due.evidence == {"steps": ["orders"]}
        el.loop.run_loop(declared, store, target="prepare")
        shop.land("2", shop.orders(1510, 10, shop.opens, seed=2))
        assert find_due(declared, store) is None, "the cooldown is not over"
        clock.set(shop.opens + 3 * DAY)
        assert find_due(declared, store).trigger == "OnNewData"


def test_a_change_of_the_code_is_not_new_data(shop, load):
    shop.change("loop.py", 'el.Every("8w")', 'el.OnNewData(cooldown="0s")')
    with shop.open() as store:
        el.loop.run_loop(load(), store, target="prepare")
        shop.change("limits.py", "1.0", "2.0")
        assert find_due(load(), store) is None
