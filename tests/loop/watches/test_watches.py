"""Watches check every closed window of an endpoint once, and a watch that fails does not stop the others."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st
from tests.loop.sales_log import DAY, OPENS, a_version, label, log, release, sales

import everloop as el
from everloop.errors import DataError, UsageError
from everloop.loop import promote, reconcile
from everloop.loop.releases.rollout import start_release
from everloop.loop.watches.watch_runs import watch
from everloop.loop.watches.window_checks import EMPTY, MOST_WINDOWS, check_windows, due_windows, window_start
from everloop.records import EndpointRecord, Finding, Incident, Run
from everloop.stores import open_store


@el.step
def rows() -> list[int]:
    return []


def loop(*watches, retrain=(), rollout=None):
    return el.Loop(
        "sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), serve=el.Endpoint("e", rollout=rollout),
        watch=watches, retrain=retrain, model="m",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(OPENS)
        yield opened


@pytest.fixture
def released(store):
    """A store whose champion `m@1` has a baseline."""
    release(store)
    return store


def spans(findings):
    return sorted({(finding.window_from, finding.window_to) for finding in findings})


# --- windows -----------------------------------------------------------------------------------------------


class FakeStore:
    """An endpoint that was created at `OPENS`, and the end of the last window that was checked."""

    def __init__(self, now, checked=None):
        self._now, self._checked = now, checked
        self.records = self

    def now(self):
        return self._now

    def find(self, *_conditions, **_options):
        window = {"window_from": OPENS, "window_to": self._checked}
        return [] if self._checked is None else [type("Checked", (), window)]

    def get(self, *_key):
        return type("Opened", (), {"created_at": OPENS})


SECONDS = st.integers(0, 10**8).map(lambda seconds: timedelta(seconds=seconds))
SPANS = st.integers(1, 10**6).map(lambda seconds: timedelta(seconds=seconds))


@given(since=SECONDS, span=SPANS, delay=SECONDS)
def test_due_windows_are_closed_adjacent_and_of_one_length(since, span, delay):
    now = OPENS + since
    windows = due_windows(FakeStore(now), "e", el.Drift(), span, delay)
    assert all(until - start == span for start, until in windows)
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(windows))
    first = window_start(OPENS, span)
    assert first <= OPENS < first + span
    assert all((start - first) % span == timedelta(0) for start, _ in windows), "the first contains the creation"
    assert len(windows) <= MOST_WINDOWS
    if windows:
        assert windows[-1][1] + delay <= now < windows[-1][1] + delay + span
    else:
        assert now < first + span + delay


@given(first=SECONDS, later=SECONDS, span=SPANS)
def test_two_checks_see_the_windows_that_one_check_would_see(first, later, span):
    before = due_windows(FakeStore(OPENS + first), "e", el.Drift(), span, timedelta(0))
    checked = before[-1][1] if before else None
    after = due_windows(FakeStore(OPENS + first + later, checked), "e", el.Drift(), span, timedelta(0))
    at_once = due_windows(FakeStore(OPENS + first + later), "e", el.Drift(), span, timedelta(0))
    assert not set(before) & set(after)
    assert [*before, *after][-MOST_WINDOWS:] == at_once[-len([*before, *after]) :][-MOST_WINDOWS:]


def test_after_a_long_absence_the_oldest_windows_are_skipped():
    windows = due_windows(FakeStore(OPENS + 100 * DAY), "e", el.Drift(), DAY, timedelta(0))
    assert (len(windows), windows[0][0], windows[-1][1]) == (MOST_WINDOWS, OPENS + 40 * DAY, OPENS + 100 * DAY)


@pytest.mark.parametrize(
    ("span", "starts"),
    [
        (timedelta(minutes=15), "2024-05-15T13:30"),
        (timedelta(hours=1), "2024-05-15T13:00"),
        (timedelta(hours=6), "2024-05-15T12:00"),
        (DAY, "2024-05-15T00:00"),
        (7 * DAY, "2024-05-13T00:00"),
    ],
)
def test_windows_start_at_midnight_on_monday_or_at_multiples_of_their_length(span, starts):
    moment = datetime(2024, 5, 15, 13, 37, 42, tzinfo=UTC)
    assert window_start(moment, span) == datetime.fromisoformat(starts).replace(tzinfo=UTC)


def test_the_windows_of_an_older_store_are_aligned_from_now_on():
    checked = OPENS + timedelta(days=3, hours=10, minutes=37)
    windows = due_windows(FakeStore(OPENS + 5 * DAY, checked), "e", el.Drift(), DAY, timedelta(0))
    assert windows == [(OPENS + 3 * DAY, OPENS + 4 * DAY), (OPENS + 4 * DAY, OPENS + 5 * DAY)]


def test_a_window_without_end_is_not_due_at_a_clock_that_runs_backwards():
    assert due_windows(FakeStore(OPENS - DAY), "e", el.Drift(), DAY, timedelta(0)) == []


# --- checks ------------------------------------------------------------------------------------------------


def test_each_closed_window_is_checked_once(released):
    # Incidents by chance are not what is tested here.
    declared = loop(el.Drift(window="1d", alarms_per_month=0.001))
    for number in range(3):
        log(released, sales(300, 10 + number, OPENS + number * DAY))
    released.clock.set(OPENS + 2 * DAY + timedelta(hours=1))
    found, incidents, errors = watch(declared, released)
    assert (incidents, errors) == ([], [])
    assert spans(found) == [(OPENS, OPENS + DAY), (OPENS + DAY, OPENS + 2 * DAY)]
    assert watch(declared, released) == ([], [], [])
    released.clock.set(OPENS + 3 * DAY)
    assert spans(watch(declared, released)[0]) == [(OPENS + 2 * DAY, OPENS + 3 * DAY)]
    assert len(spans(released.records.find(Finding))) == 3


def test_a_window_without_predictions_leaves_a_finding_and_is_not_checked_again(released):
    log(released, sales(300, 10, OPENS + DAY))
    released.clock.set(OPENS + 2 * DAY)
    empty, *full = watch(loop(el.Drift(window="1d")), released)[0]
    assert (empty.subject, empty.severity, empty.window_to) == (EMPTY, "info", OPENS + DAY)
    assert empty.version == "m@1"
    assert "predictions" in empty.message
    assert spans(full) == [(OPENS + DAY, OPENS + 2 * DAY)]
    log(released, sales(300, 11, OPENS))  # too late for the window that is closed
    assert watch(loop(el.Drift(window="1d")), released) == ([], [], [])


def test_drift_is_one_incident_about_the_champion(released):
    for number in range(2):
        log(released, sales(400, 20 + number, OPENS + number * DAY, moved=5))
    released.clock.set(OPENS + 2 * DAY)
    found, (incident,), _ = watch(loop(el.Drift(window="1d")), released)
    told = [finding for finding in found if finding.subject == "price"]
    assert {(one.version, one.endpoint, one.severity) for one in told} == {("m@1", "e", "alarm")}
    assert (incident.kind, incident.endpoint, incident.versions) == ("drift", "e", ("m@1",))
    assert (incident.severity, incident.state, incident.began_at) == ("alarm", "open", OPENS)
    assert set(incident.subjects) == {"price", "prediction"}
    assert set(incident.findings) == {one.id for one in found if one.severity != "info"}
    assert "mean prediction has risen" in incident.message
    assert released.records.find(Incident) == [incident]


def test_performance_waits_until_labels_are_expected(released):
    declared = loop(el.Performance("roc_auc", labels_after="2d", window="1d"))
    flow = sales(400, 30)
    log(released, flow)
    label(released, flow)
    released.clock.set(OPENS + 2 * DAY)
    assert watch(declared, released) == ([], [], []), "labels may still arrive"
    released.clock.set(OPENS + 3 * DAY)
    (summary,), *_ = watch(declared, released)
    assert (summary.kind, summary.window_from, summary.window_to) == ("performance", OPENS, OPENS + DAY)
    assert summary.evidence["rows"] == 400


def test_labels_that_arrive_after_the_check_do_not_open_the_window_again(released):
    declared = loop(el.Performance("roc_auc", window="1d"))
    flow = sales(400, 31)
    log(released, flow)
    released.clock.set(OPENS + DAY)
    (empty,), *_ = watch(declared, released)
    assert "None of the 400 predictions of 'e' in the window has a label yet" in empty.message
    label(released, flow)
    assert watch(declared, released) == ([], [], [])


@pytest.mark.slow
def test_watches_keep_their_own_windows(released):
    declared = loop(el.Drift(window="1d"), el.Performance("roc_auc", window="2d", labels_after="1d"))
    flow = sales(400, 32)
    log(released, flow)
    label(released, flow)
    released.clock.set(OPENS + 3 * DAY)
    by_kind = {}
    for finding in watch(declared, released)[0]:
        by_kind.setdefault(finding.kind, []).append(finding)
    assert len(spans(by_kind["drift"])) == 3
    assert spans(by_kind["performance"]) == [(OPENS - DAY, OPENS + DAY)]


@pytest.mark.parametrize("part", [el.Drift(window="1d"), el.Performance("roc_auc", window="1d")])
def test_without_a_champion_nothing_is_checked(store, part):
    store.records.put(store.new(EndpointRecord, name="e", model="m"))
    store.clock.set(OPENS + 9 * DAY)
    assert check_windows(part, "m", "e", store) == ([], [], [])
    assert store.records.find(Finding) == []


def test_something_else_is_not_a_watch(store):
    with pytest.raises(UsageError, match="not a watch: '1w'"):
        check_windows("1w", "m", "e", store)


def test_a_loop_without_an_endpoint_watches_nothing(store):
    declared = el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain())
    assert watch(declared, store) == ([], [], [])


# --- one tick ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_watch_that_fails_does_not_stop_the_others(released, monkeypatch):
    def broken(*_args, **_kwargs):
        raise DataError("the log is damaged")

    flow = sales(400, 40)
    log(released, flow)
    label(released, flow)
    released.clock.set(OPENS + DAY)
    declared = loop(el.Drift(window="1d"), el.Performance("roc_auc", window="1d"), retrain=[el.Every("1h")])
    released.records.put(released.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))
    with monkeypatch.context() as patch:
        patch.setattr("everloop.monitoring.check_drift", broken)
        tick = reconcile(declared, released)
    assert [error.message for error in tick.errors] == ["the log is damaged"]
    assert {finding.kind for finding in tick.findings} == {"performance", "quality"}
    assert tick.due.trigger == "Every", "retraining does not depend on the watch"
    failed = next(finding for finding in tick.findings if finding.kind == "quality")
    assert (failed.subject, failed.severity) == ("watch:drift", "warning")
    again = reconcile(declared, released)
    assert again.errors == []
    assert {finding.kind for finding in again.findings} == {"drift"}, "the failed watch tries again, the other is done"


def test_a_watch_without_a_reference_fails_with_a_way_out(store):
    promote(store, "e", a_version(store, 1), "first")
    flow = sales(100, 41)
    log(store, flow)
    label(store, flow)
    store.clock.set(OPENS + DAY)
    _, _, (drift, performance) = watch(loop(el.Drift(window="1d"), el.Performance("roc_auc", window="1d")), store)
    assert "m@1" in str(drift)
    assert "baseline" in performance.help


def test_a_tick_without_anything_to_do_changes_nothing(released):
    released.records.put(released.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))
    before = released.records.last_event()
    tick = reconcile(loop(el.Drift(window="1d")), released)
    assert (tick.folded, tick.findings, tick.release, tick.due, tick.errors) == (0, [], None, None, [])
    assert released.records.last_event() == before


def test_a_tick_of_a_loop_without_an_endpoint_only_asks_its_triggers(store):
    declared = el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain())
    tick = reconcile(declared, store)
    assert (tick.folded, tick.findings, tick.release, tick.due.trigger) == (0, [], None, "first")


@pytest.mark.parametrize("rollout", [None, el.Canary(steps=[10, 100])])
def test_a_release_that_has_no_traffic_is_not_moved(released, rollout):
    undecided = start_release(released, "e", a_version(released, 2), steps=(10, 100))
    released.clock.set(OPENS + timedelta(hours=1))
    if rollout is None:
        # The loop declares no canary any more, so there is nothing to compare the evidence with.
        assert reconcile(loop(), released).release is None
    else:
        el.loop.roll_back(released, "e", "a person decided")
        assert reconcile(loop(rollout=rollout), released).release is None
    assert undecided.percent == 10
