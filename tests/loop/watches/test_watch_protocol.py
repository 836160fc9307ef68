"""Anyone can write a watch. One that fails becomes a finding about itself and stops nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint

import pytest

import everloop as el
from everloop import plugins
from everloop.errors import EmptySampleError, NotFoundError, StepError, StepOutputError, UsageError
from everloop.loop import promote, reconcile
from everloop.loop.watches.watch_protocol import watch_name
from everloop.loop.watches.window_checks import EMPTY, check_windows
from everloop.records import Finding, Incident, ModelVersion, Run
from everloop.stores import open_store
from everloop.testing.watches import WatchSuite

OPENS = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Spikes:
    """A user's watch: how many predictions have a high score."""

    window: str = "1d"

    def check(self, context: el.WatchContext, since: datetime, until: datetime) -> list[Finding]:
        share = (context.predictions(since, until)["score"] > 0.9).mean()
        return [context.finding(since, until, "spikes", f"{share:.0%} of the scores are high.", value=share)]


@dataclass
class Scripted:
    """A watch that does what `script` holds for each call: raise it, or return it."""

    script: list[object]
    window: str = "1d"
    name: str = "scripted"
    calls: list[tuple[datetime, datetime]] = field(default_factory=list)

    def check(self, context: el.WatchContext, since: datetime, until: datetime) -> list[Finding]:
        self.calls.append((since, until))
        act = self.script[min(len(self.calls), len(self.script)) - 1]
        if isinstance(act, BaseException):
            raise act
        return act(context, since, until) if callable(act) else act


class TestSpikes(WatchSuite):
    @pytest.fixture
    def part(self) -> Spikes:
        return Spikes()


class TestDrift(WatchSuite):
    @pytest.fixture
    def part(self) -> el.Drift:
        return el.Drift(window="1d")


class TestQuality(WatchSuite):
    @pytest.fixture
    def part(self) -> el.Quality:
        return el.Quality(latency_ms=50)


class TestPerformance(WatchSuite):
    @pytest.fixture
    def part(self) -> el.Performance:
        return el.Performance("roc_auc", labels_after="1d", window="6h")


@el.step
def rows() -> list[int]:
    return []


def loop(*watches, **parts):
    return el.Loop(
        "sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), serve=el.Endpoint("e"), watch=watches,
        model="m", **parts,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    """A store whose endpoint `e` serves the champion `m@1`, and has not answered yet."""
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(OPENS)
        opened.records.put(opened.new(ModelVersion, model="m", version=1, package="sha256:" + "0" * 64))
        promote(opened, "e", opened.records.get(ModelVersion, "m@1"), "first")
        opened.records.put(opened.new(Run, name="sales", loop="sales", state="finished", started_at=OPENS))
        yield opened


def check(part, store):
    return check_windows(part, "m", "e", store)


# --- a loop takes any watch --------------------------------------------------------------------------------


def test_a_loop_takes_a_watch_of_its_own():
    declared = loop(el.Drift(), Spikes())
    assert declared.watch == (el.Drift(), Spikes())
    assert loop(Spikes()).watch == (Spikes(),)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Spikes, "does not accept"),
        (object(), "does not accept"),
        (Spikes(window="soon"), r"Spikes\(window=\)"),
        (Spikes(window="0s"), r"Spikes\(window=\)"),
        (Spikes(window=3), r"Spikes\(window=\)"),
    ],
)
def test_something_that_cannot_be_called_for_windows_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        loop(wrong)


def test_two_watches_need_different_names():
    with pytest.raises(UsageError, match="two watches with the name 'Spikes'"):
        loop(Spikes(), Spikes(window="1w"))
    loop(Scripted([], name="a"), Scripted([], name="b"))


def test_two_watches_need_different_kinds():
    class Shift(Spikes):
        kind = "drift"

    with pytest.raises(UsageError, match="two watches with the kind 'drift'"):
        loop(el.Drift(), Shift())


def test_the_metric_of_another_watch_may_be_something_else():
    class Revenue(Spikes):
        metric = "revenue"

    declared = loop(Revenue())
    assert declared.training_metric is None
    assert declared.live_metric is None


# --- plugins -----------------------------------------------------------------------------------------------


def test_built_in_watches_have_a_name():
    assert plugins.names("watch")[:3] == ["drift", "performance", "quality"]
    assert el.load_watch("drift", window="2d") == el.Drift(window="2d")
    for name in ("drift", "performance", "quality"):
        assert watch_name(el.load_watch(name)) == name


def test_a_package_provides_a_watch_by_entry_point(monkeypatch):
    point = EntryPoint("watch.spikes", f"{__name__}:Spikes", "everloop.plugins")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [point])
    plugins._entry_points.cache_clear()
    try:
        assert "spikes" in plugins.names("watch")
        made = el.load_watch("spikes", window="6h")
        assert (type(made).__name__, made.window) == ("Spikes", "6h")
        with pytest.raises(UsageError, match="The watch 'spikes' cannot be created"):
            el.load_watch("spikes", every="6h")
    finally:
        plugins._entry_points.cache_clear()


def test_an_unknown_watch_lists_the_known_ones():
    with pytest.raises(NotFoundError, match="no watch plugin called 'drfit'") as caught:
        el.load_watch("drfit")
    assert "drift, performance, quality" in str(caught.value)


# --- calls and notes ---------------------------------------------------------------------------------------


def test_findings_are_stored_with_a_note_that_the_window_was_checked(store):
    part = Scripted([lambda context, since, until: [context.finding(since, until, "x", "X is odd.")]])
    store.clock.set(OPENS + DAY)
    found, incidents, errors = check(part, store)
    assert (incidents, errors) == ([], [])
    assert [(item.subject, item.severity) for item in found] == [("x", "warning"), ("watch:scripted", "info")]
    assert store.records.find(Finding) == found
    assert (found[0].endpoint, found[0].version, found[0].window_to) == ("e", "m@1", OPENS + DAY)


def test_a_watch_without_findings_does_not_check_a_window_again(store):
    part = Scripted([[]])
    for day in (1, 2, 3, 3):
        store.clock.set(OPENS + day * DAY)
        assert check(part, store)[2] == []
    assert part.calls == [(OPENS + day * DAY, OPENS + (day + 1) * DAY) for day in range(3)]


def test_a_delayed_watch_waits_for_its_labels(store):
    part = Scripted([[]])
    part.labels_after = "2d"
    store.clock.set(OPENS + 2 * DAY)
    assert check(part, store) == ([], [], [])
    store.clock.set(OPENS + 3 * DAY)
    check(part, store)
    assert part.calls == [(OPENS, OPENS + DAY)]


def test_nothing_to_check_is_not_a_failure(store):
    part = Scripted([EmptySampleError("No predictions.")])
    store.clock.set(OPENS + DAY)
    (note,), _, errors = check(part, store)
    assert errors == []
    assert (note.subject, note.severity, note.message) == ("watch:scripted", "info", "No predictions.")
    part.kind = "latency"
    (note,), _, errors = check(part, store)
    assert (note.kind, note.subject) == ("latency", EMPTY)


# --- failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raised", "kind"), [(ZeroDivisionError("division by zero"), StepError), (SystemExit(3), StepError)]
)
def test_a_watch_that_raises_anything_becomes_one_finding_per_window(store, raised, kind):
    part = Scripted([raised])
    store.clock.set(OPENS + DAY)
    (failed,), (incident,), (error,) = check(part, store)
    assert isinstance(error, kind)
    assert (failed.kind, failed.severity, failed.subject) == ("quality", "warning", "watch:scripted")
    assert type(raised).__name__ in failed.message
    assert failed.evidence["error"] == type(raised).__name__
    assert (incident.kind, incident.severity, incident.state) == ("quality", "notice", "open")
    assert (incident.subjects, incident.findings) == (("watch:scripted",), (failed.id,))
    assert incident.title == failed.message
    store.clock.set(OPENS + DAY + timedelta(hours=1))
    assert check(part, store)[:2] == ([], [])
    assert store.records.find(Finding) == [failed]
    assert store.records.find(Incident) == [incident]


@pytest.mark.parametrize("returned", [None, "fine", {"a": 1}, [1], [[]]])
def test_something_else_than_findings_is_a_failure(store, returned):
    store.clock.set(OPENS + DAY)
    (failed,), _, (error,) = check(Scripted([returned]), store)
    assert isinstance(error, StepOutputError)
    assert "not a list of findings" in failed.message


def test_a_window_is_tried_again_and_then_skipped(store):
    part = Scripted([ValueError("odd"), ValueError("odd"), []])
    store.clock.set(OPENS + DAY)
    check(part, store)
    store.clock.set(OPENS + 2 * DAY - timedelta(seconds=1))
    check(part, store)
    assert part.calls == [(OPENS, OPENS + DAY)] * 2
    store.clock.set(OPENS + 2 * DAY)
    check(part, store)
    assert part.calls[2:] == [(OPENS + DAY, OPENS + 2 * DAY)], "the first window was given up"
    assert check(part, store) == ([], [], [])


def test_a_corrected_watch_checks_the_window_that_failed(store):
    part = Scripted([ValueError("odd"), []])
    store.clock.set(OPENS + DAY)
    check(part, store)
    found, _, errors = check(part, store)
    assert (part.calls, errors) == ([(OPENS, OPENS + DAY)] * 2, [])
    assert [item.severity for item in found] == ["info"]


def test_a_failing_watch_stops_no_other(store):
    broken, fine = Scripted([KeyError("price")], name="broken"), Scripted([[]], name="fine")
    store.clock.set(OPENS + DAY)
    tick = reconcile(loop(broken, fine, retrain=[el.Every("1h")]), store)
    assert [item.subject for item in tick.findings] == ["watch:broken", "watch:fine"]
    assert "KeyError" in str(tick.errors[0])
    assert tick.due.trigger == "Every"
