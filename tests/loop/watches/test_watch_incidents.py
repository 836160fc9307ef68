"""What watches find becomes incidents: with the findings or not at all, once, whoever looks first."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import timedelta

import polars as pl
import pytest
from tests.loop.sales_log import DAY, OPENS, a_version, label, log, release, sales

import everloop as el
from everloop.data.features import materialize
from everloop.errors import EmptySampleError
from everloop.loop import promote, reconcile
from everloop.loop.releases.rollout import start_release
from everloop.loop.watches.watch_runs import close_removed, reconcile_lease, watch
from everloop.loop.watches.window_checks import EMPTY
from everloop.monitoring import check_drift, keep_baseline, load_baseline
from everloop.monitoring.incidents import incident_engine
from everloop.monitoring.incidents.incident_actions import accept, mute
from everloop.monitoring.noise.incident_rate import CALM_WINDOWS
from everloop.records import Finding, Incident, Run
from everloop.stores import open_store
from everloop.stores.leases import Leases


@el.step
def rows() -> list[int]:
    return []


def loop(*watches, **parts):
    return el.Loop(
        "sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), serve=el.Endpoint("e"), watch=watches,
        model="m", **parts,
    )  # fmt: skip


@dataclass
class Returns:
    """A user's watch, with an alarm, a warning or nothing for each window, or something to raise."""

    script: list[object]
    window: str = "1d"
    name: str = "returns"
    calls: int = field(default=0)

    def check(self, context, since, until):
        act = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if isinstance(act, BaseException):
            raise act
        return [context.finding(since, until, "returns", "Twice as many are returned.", severity=act)] if act else []


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


def days(store, declared, first, last):
    """Tick once a day; return the incidents that each tick has changed."""
    changed = []
    for day in range(first, last + 1):
        store.clock.set(OPENS + day * DAY)
        changed.append(watch(declared, store)[1])
    return changed


# --- every kind of watch -------------------------------------------------------------------------------------


def test_an_alarm_of_a_users_watch_opens_an_incident_that_ends_by_itself(released):
    declared = loop(Returns(["alarm", "warning", None]))
    (opened,), *later = days(released, declared, 1, 2 + CALM_WINDOWS)
    assert (opened.kind, opened.severity, opened.endpoint) == ("quality", "alarm", "e")
    assert (opened.title, opened.subjects) == ("Twice as many are returned.", ("returns",))
    assert later[:-1] == [[]] * CALM_WINDOWS
    ((resolved,),) = later[-1:]
    assert (resolved.id, resolved.state) == (opened.id, "resolved")
    assert resolved.seen_at == OPENS + 2 * DAY, "the warning prolonged it"


def test_a_warning_of_a_users_watch_opens_nothing(released):
    assert days(released, loop(Returns(["warning"])), 1, 3) == [[], [], []]


def test_windows_without_predictions_are_no_reason_to_call_it_over(released):
    declared = loop(Returns(["alarm", *[EmptySampleError("No predictions.")] * 5, None]))
    assert [len(changed) for changed in days(released, declared, 1, 6 + CALM_WINDOWS)] == [1, *[0] * 7, 1]


def test_a_watch_that_raises_leaves_a_notice_until_it_works_again(released):
    declared = loop(Returns([ValueError("odd"), ValueError("odd"), None]))
    (opened,), again, *_ = days(released, declared, 1, 2 + CALM_WINDOWS)
    assert (opened.kind, opened.severity, opened.subjects) == ("quality", "notice", ("watch:returns",))
    assert "ValueError in check(): odd" in opened.title
    assert again == [], "the second failure is the same incident"
    (resolved,) = released.records.find(Incident)
    assert (resolved.state, len(resolved.findings)) == ("resolved", 2)


def test_a_watch_that_works_but_has_nothing_to_check_is_no_longer_a_failure(released):
    days(released, loop(Returns([ValueError("odd"), EmptySampleError("No predictions.")])), 1, 2 + CALM_WINDOWS)
    assert [one.state for one in released.records.find(Incident)] == ["resolved"]


def test_a_failure_and_what_another_watch_has_found_are_one_incident_of_their_kind(released):
    broken, returns = Returns([ValueError("odd"), None], name="broken"), Returns(["alarm"])
    declared = loop(broken, returns)
    days(released, declared, 1, 2 + CALM_WINDOWS)
    (incident,) = released.records.find(Incident)
    assert (incident.state, incident.severity) == ("open", "alarm")
    assert set(incident.subjects) == {"watch:broken", "returns"}
    assert [change.action for change in incident.history] == ["open", "escalate"]


def test_data_that_break_the_contract_are_a_quality_incident(released):
    declared = loop(el.Quality(window="1d"))
    for day in range(8):
        frame = sales(300, 50 + day, OPENS + day * DAY)
        if day >= 5:
            frame = frame.with_columns(price=pl.when(pl.int_range(300) % 2 == 0).then(pl.col("price")))
        log(released, frame)
    changed = days(released, declared, 1, 8)
    assert changed[:6] == [[]] * 6, "an alarm needs two windows"
    (incident,) = changed[6]
    assert (incident.kind, incident.severity, incident.subjects) == (
        "quality", "alarm", ("price", "rows"),
    )  # fmt: skip
    assert "price" in incident.title
    assert changed[7] == []
    assert released.records.find(Incident)[0].seen_at == OPENS + 8 * DAY


def test_a_metric_that_has_fallen_is_a_performance_incident(released):
    declared = loop(el.Performance("roc_auc", window="1d"), retrain=[el.OnPerformance(cooldown="1d")])
    released.records.put(released.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))
    for day in range(3):
        frame = sales(400, 60 + day, OPENS + day * DAY)
        if day >= 1:
            frame = frame.with_columns(sold=~pl.col("sold"))
        log(released, frame)
        label(released, frame)
    released.clock.set(OPENS + 3 * DAY)
    tick = reconcile(declared, released)
    (incident,) = tick.incidents
    assert (incident.kind, incident.severity, incident.subjects) == ("performance", "alarm", ("roc_auc",))
    assert incident.title.startswith("roc_auc is 0.")
    assert incident.versions == ("m@1",)
    assert (tick.due.trigger, tick.due.evidence["incident"]) == ("OnPerformance", incident.id)


def test_a_stale_view_is_an_incident_until_newer_rows_arrive(released):
    def weather(hour):
        rows = pl.DataFrame({"origin": ["JFK"], "at": [OPENS + timedelta(hours=hour)], "wind": [10.0]})
        return el.FeatureView("weather", rows, entity="origin", time="at", ttl="6h")

    released.records.put(released.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))

    def tick(hour):
        released.clock.set(OPENS + timedelta(hours=hour))
        return reconcile(loop(Returns([None])), released).incidents

    released.clock.set(OPENS + timedelta(hours=1))
    materialize(released, weather(1))
    assert tick(7) == []
    (opened,) = tick(8)
    assert (opened.kind, opened.severity, opened.endpoint) == ("freshness", "alarm", "features:weather")
    assert opened.subjects == ("weather@1",)
    assert tick(9) == []
    materialize(released, weather(9))
    (resolved,) = tick(10)
    assert (resolved.id, resolved.state, resolved.history[-1].text) == (
        opened.id, "resolved", "Newer rows have arrived.",
    )  # fmt: skip
    assert len(tick(20)) == 1, "stale again"


# --- whole or not at all -------------------------------------------------------------------------------------


def drifted(store):
    for day in range(2):
        log(store, sales(400, 20 + day, OPENS + day * DAY, moved=5))
        label(store, sales(400, 20 + day, OPENS + day * DAY, moved=5).with_columns(sold=~pl.col("price").gt(15)))


@pytest.mark.parametrize("part", [el.Drift(window="1d"), el.Performance("roc_auc", window="1d"), Returns(["alarm"])])
def test_a_process_that_dies_before_the_incident_is_stored_leaves_no_findings(released, part, monkeypatch):
    """Otherwise the window would count as checked, and the incident would never come."""
    drifted(released)
    released.clock.set(OPENS + 2 * DAY)

    def dies(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(incident_engine, "_apply", dies)
        with pytest.raises(KeyboardInterrupt):
            watch(loop(part), released)
    assert released.records.find(Finding) == []
    found, (incident,), _ = watch(loop(part), released)
    assert {one.window_from for one in found} == {OPENS, OPENS + DAY}
    assert set(incident.findings) <= {one.id for one in found}


CHILD = """
import os, signal, sys, time
from pathlib import Path
import everloop as el
from everloop.loop.watches.watch_runs import watch
from everloop.monitoring.incidents import incident_engine
from everloop.stores import open_store
from tests.loop.watches.test_watch_incidents import Returns, loop

home, mode, number = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

class Slow(Returns):
    def check(self, context, since, until):
        (home.parent / f"ready-{number}").touch()
        while len(list(home.parent.glob("ready-*"))) < 2:
            time.sleep(0.01)
        return super().check(context, since, until)

if mode == "killed":
    incident_engine._apply = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with open_store(home, project="p") as store:
    part = Returns(["alarm"]) if mode == "killed" else Slow(["alarm"])
    found, incidents, errors = watch(loop(part), store)
    print(len(found), len(incidents), len(errors))
"""


def child(home, mode, number=0):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home), mode, str(number)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_killed_process_leaves_the_window_to_the_next_one(released, tmp_path):
    released.clock.set(OPENS + DAY)
    process = child(tmp_path / "home", "killed")
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert released.records.find(Finding) == []
    _, (incident,), _ = watch(loop(Returns(["alarm"])), released)
    assert incident.subjects == ("returns",)


@pytest.mark.slow
def test_two_processes_at_once_open_one_incident(released, tmp_path):
    """Both check the window before either has stored anything."""
    released.clock.set(OPENS + DAY)
    children = [child(tmp_path / "home", "slow", number) for number in range(2)]
    outcomes = sorted(process.communicate(timeout=60)[0].split() for process in children)
    assert outcomes == [["0", "0", "0"], ["2", "1", "0"]]
    (incident,) = released.records.find(Incident)
    assert [event.verb for event in released.records.events_since(0, kinds=["incident"])] == ["opened"]
    assert {one.id for one in released.records.find(Finding)} >= set(incident.findings)
    assert len(released.records.find(Finding)) == 2


# --- versions ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_versions_in_a_window_have_incidents_of_their_own(released):
    """Each has a reference of its own."""
    start_release(released, "e", a_version(released, 2), steps=(50, 100))
    keep_baseline(released, "m@2", load_baseline(released, "m@1"))
    log(released, sales(400, 70, moved=5))
    log(released, sales(300, 71, moved=5), version="m@2")
    released.clock.set(OPENS + DAY)
    found, incidents, _ = watch(loop(el.Drift(window="1d")), released)
    assert {one.version for one in found} == {"m@1", "m@2"}
    assert sorted(one.versions for one in incidents) == [("m@1",), ("m@2",)]
    assert [[change.action for change in one.history] for one in incidents] == [["open"], ["open"]]
    assert incidents[0].subjects == incidents[1].subjects


def test_an_incident_ends_with_the_version_that_it_is_about(released):
    declared = loop(el.Drift(window="1d"))
    log(released, sales(400, 72, moved=5))
    ((opened,),) = days(released, declared, 1, 1)
    promote(released, "e", a_version(released, 2), "better")
    _, (closed,), _ = watch(declared, released)
    assert (closed.id, closed.state) == (opened.id, "resolved")
    assert closed.history[-1].text == "m@1 no longer answers."


# --- what people decide --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_muted_incident_starts_no_run_and_is_still_updated(released):
    released.records.put(released.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))
    declared = loop(el.Drift(window="1d"), retrain=[el.OnDrift(cooldown="1d")])
    drifted(released)
    released.clock.set(OPENS + DAY)
    tick = reconcile(declared, released)
    assert tick.due.trigger == "OnDrift"
    mute(released, tick.incidents[0].id)
    released.clock.set(OPENS + 2 * DAY)
    assert reconcile(declared, released).due is None
    (muted,) = released.records.find(Incident)
    assert (muted.state, muted.seen_at) == ("muted", OPENS + 2 * DAY)
    accept(released, muted.id, "new prices")
    assert reconcile(declared, released).due is None


# --- stores of earlier versions ------------------------------------------------------------------------------


def test_a_store_with_findings_of_an_earlier_version_goes_on(released):
    """They had a limit and no counts; the windows after them are judged as usual."""
    window = {"endpoint": "e", "version": "m@1", "kind": "drift", "window_from": OPENS, "window_to": OPENS + DAY}
    states = {"price": {"psi": 0.4, "p_value": 0.0, "limit": 0.1, "verdict": "alarm"}}
    released.records.put(
        released.new(Finding, severity="alarm", subject="price", message="Moved.", value=0.4, threshold=0.1, **window),
        released.new(
            Finding, severity="info", subject=EMPTY, message="1 of 1.",
            evidence={"subjects": states, "limit": 0.1, "told": []}, **window,
        ),
    )  # fmt: skip
    log(released, sales(400, 80, OPENS, moved=5))
    log(released, sales(400, 81, OPENS + DAY, moved=5))
    released.clock.set(OPENS + 2 * DAY)
    found, (incident,), errors = watch(loop(el.Drift(window="1d")), released)
    assert errors == []
    assert {one.window_from for one in found} == {OPENS + DAY}
    assert incident.began_at == OPENS + DAY
    again = check_drift(released, "e", "m@1", OPENS, OPENS + DAY)
    assert "harm" in again[-1].evidence, "an old window may be checked again"


@pytest.mark.parametrize("script", [["alarm"], [ValueError("odd")]])
def test_an_incident_of_a_removed_watch_is_closed_with_the_reason(released, script):
    declared = loop(Returns(script))
    (opened,), again = days(released, declared, 1, 2)
    assert again == []
    ((resolved,),) = days(released, loop(), 3, 3)
    assert (resolved.id, resolved.state) == (opened.id, "resolved")
    assert "The loop no longer has the watch" in resolved.history[-1].text
    assert "returns'" in resolved.history[-1].text


def test_what_a_removed_watch_has_reported_leaves_an_incident_of_several(released):
    broken, returns = Returns([ValueError("odd")], name="broken"), Returns(["alarm", None])
    (opened,), *_ = days(released, loop(broken, returns), 1, 2)
    assert set(opened.subjects) == {"watch:broken", "returns"}
    changed = days(released, loop(returns), 3, 2 + CALM_WINDOWS)
    assert [(one.id, one.state) for one in changed[-2] + changed[-1]] == [(opened.id, "resolved")]


# --- several loops watch one endpoint ------------------------------------------------------------------------


def another(*watches):
    return el.Loop(
        "stock", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), serve=el.Endpoint("e"), watch=watches,
        model="m",
    )  # fmt: skip


def test_each_loop_has_its_own_incidents_and_ends_only_these(released):
    mine, other = loop(Returns(["alarm", None])), another(Returns([None, None, None, "alarm"]))
    for day in range(1, 5):
        released.clock.set(OPENS + day * DAY)
        watch(mine, released)
        watch(other, released)
    first, second = released.records.find(Incident, order="id")
    # Three windows of the first loop were calm. The alarms of the other one about the same subject did not matter.
    assert (first.evidence["loop"], first.state) == ("sales", "resolved")
    assert (second.evidence["loop"], second.state) == ("stock", "open")
    # The first loop loses its watch, which says nothing about the other's.
    watch(loop(), released)
    assert released.records.get(Incident, second.id).state == "open"
    watch(another(), released)
    assert released.records.get(Incident, second.id).state == "resolved"


def test_two_loops_with_the_same_watch_open_one_incident_for_one_thing(released):
    mine, other = loop(Returns(["alarm"])), another(Returns(["alarm"]))
    for day in range(1, 4):
        released.clock.set(OPENS + day * DAY)
        watch(mine, released)
        watch(other, released)
    (only,) = released.records.find(Incident)
    assert (only.evidence["loop"], only.state) == ("sales", "open")
    # When the loop that reports it is gone, the other one does.
    watch(loop(), released)
    released.clock.set(OPENS + 4 * DAY)
    watch(other, released)
    (opened,) = released.records.find(Incident, ("state", "=", "open"))
    assert opened.evidence["loop"] == "stock"


@pytest.mark.parametrize("rest", [[], ["elsewhere"], ["without endpoint"]])
def test_incidents_of_a_removed_loop_are_closed_with_the_reason(released, rest):
    other = another(Returns(["alarm"]))
    (opened,) = days(released, other, 1, 1)[0]
    assert close_removed([loop(), other], released) == []
    endpoint = el.Endpoint("f") if rest == ["elsewhere"] else None
    remaining = [replace(other, serve=endpoint, watch=())] if rest else []
    (resolved,) = close_removed([loop(), *remaining], released)
    assert (resolved.id, resolved.state) == (opened.id, "resolved")
    moved, gone = "The loop 'stock' no longer watches the endpoint 'e'.", "The project no longer has the loop 'stock'."
    assert resolved.history[-1].text == (moved if rest else gone)


def test_incidents_of_a_loop_that_another_process_reconciles_stay_open(released):
    days(released, another(Returns(["alarm"])), 1, 1)
    held = Leases(released).acquire(reconcile_lease("stock"))
    assert held is not None
    assert close_removed([loop()], released) == []
    held.release()
    assert len(close_removed([loop()], released)) == 1


def test_loops_check_windows_of_different_lengths_of_one_endpoint(released):
    daily, weekly = loop(Returns([None])), another(Returns([None], window="1w"))
    for day in range(1, 22):
        released.clock.set(OPENS + day * DAY)
        watch(daily, released)
        watch(weekly, released)
    assert daily.watch[0].calls == 21
    assert 2 <= weekly.watch[0].calls <= 3


def test_two_loops_with_the_same_drift_watch_check_each_window_once(released):
    log(released, sales(300, 1))
    mine, other = loop(el.Drift(window="1d")), another(el.Drift(window="1d"))
    released.clock.set(OPENS + DAY)
    for declared in (mine, other):
        assert watch(declared, released)[2] == []
    stored = len(released.records.find(Finding))
    for declared in (mine, other, mine):
        assert watch(declared, released) == ([], [], [])
    assert len(released.records.find(Finding)) == stored
