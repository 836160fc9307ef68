"""Anyone can write a trigger. One that fails becomes an event and stops no other."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoint

import polars as pl
import pytest
from tests.monitoring.incidents.incident_records import put_incident

import everloop as el
from everloop import plugins
from everloop.data.sources.cursors import read_new
from everloop.errors import NotFoundError, UsageError
from everloop.loop import call_loop, find_due
from everloop.loop.triggers.trigger_calls import ReportedCommit
from everloop.loop.triggers.trigger_contexts import named_triggers
from everloop.records import Run, TriggerState
from everloop.stores import open_store
from everloop.testing.triggers import LOOP, TriggerSuite

NOON = datetime(2024, 1, 3, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Mondays:
    """A user's trigger: at most once a day, on Mondays."""

    def check(self, context: el.TriggerContext) -> el.Due | None:
        now = context.now()
        if now.weekday() != 0 or now.date() == context.last.started_at.date():
            return None
        return context.due("it is Monday", {"day": f"{now:%Y-%m-%d}"})


class Broken:
    def __init__(self, error="no connection"):
        self.error = error

    def check(self, context):
        raise OSError(self.error)


@el.step
def rows() -> list[int]:
    return []


def loop(*retrain, **parts):
    return el.Loop("sales", data=el.Dataset(rows, target="sold"), train=el.AutoTrain(), retrain=retrain, **parts)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        opened.simulate(NOON)
        opened.records.put(opened.new(Run, name="sales", loop="sales", state="finished", started_at=NOON))
        yield opened


class TestMondays(TriggerSuite):
    later = 7 * DAY

    @pytest.fixture
    def part(self):
        return Mondays()


class TestEvery(TriggerSuite):
    @pytest.fixture(params=[el.Every("2w"), el.Every("0 6 * * mon", zone="Asia/Tokyo")])
    def part(self, request):
        return request.param


class TestOnDrift(TriggerSuite):
    @pytest.fixture
    def part(self):
        return el.OnDrift()

    def cause(self, store):
        put_incident(store, "'price' has risen.", kind="drift", endpoint=LOOP, began_at=store.now() - DAY)


class TestOnCall(TriggerSuite):
    @pytest.fixture
    def part(self):
        return el.OnCall()

    def cause(self, store):
        call_loop(store, LOOP, "new prices")


class TestReportedCommit(TriggerSuite):
    @pytest.fixture
    def part(self, tmp_path):
        git(tmp_path, "init", "-q", "-b", "main")
        return el.OnCommit(repository=str(tmp_path))

    def cause(self, store):
        call_loop(store, LOOP, "push by ada", commit=ReportedCommit("a" * 40, "main"))


class TestCommit(TriggerSuite):
    @pytest.fixture
    def part(self, tmp_path):
        self.repository = tmp_path / "repository"
        self.repository.mkdir()
        git(self.repository, "init", "-q", "-b", "main")
        commit(self.repository, "loop.py", "1", at=NOON - 30 * DAY)
        return el.OnCommit(path="loop.py", repository=str(self.repository))

    def cause(self, store):
        commit(self.repository, "loop.py", "2", at=store.now())


class TestOnNewRows(TriggerSuite):
    @pytest.fixture
    def part(self, tmp_path):
        self.folder = tmp_path / "data"
        self.folder.mkdir()
        pl.DataFrame({"a": [1, 2, 3]}).write_csv(self.folder / "0.csv")
        return el.OnNewData(rows=5, folder=str(self.folder / "*.csv"))

    def cause(self, store):
        pl.DataFrame({"a": [1, 2, 3, 4, 5]}).write_csv(self.folder / "1.csv")


ORDERS: list[int] = []


def orders(since):
    yield from ({"id": number} for number in ORDERS if since is None or number >= since)


class TestOnNewRowsOfASource(TriggerSuite):
    @pytest.fixture
    def part(self):
        ORDERS[:] = []
        return el.OnNewData(rows=3, source=orders, cursor="id")

    def cause(self, store):
        ORDERS[:] = [1, 2, 3]

    def test_a_run_answers_it(self, part, triggered, monkeypatch):
        """A run reads the source, which moves its cursor."""
        assert self._fired(part, triggered).evidence == {"new_rows": 3}
        run = self._run(part, triggered)
        monkeypatch.setattr("everloop.data.sources.cursors._store", lambda stack: triggered)
        read_new(orders, "id")
        self._pass_time(triggered)
        assert part.check(self._context(part, triggered, run)) is None
        ORDERS.extend([4, 5, 6])
        assert part.check(self._context(part, triggered, run)).evidence == {"new_rows": 3}


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": 3},
        {"source": orders},
        {"cursor": "id"},
        {"source": orders, "cursor": "id", "folder": "x"},
        {"arrival": "a"},
    ],
)
def test_new_rows_must_be_countable(arguments):
    with pytest.raises(UsageError, match="OnNewData") as error:
        el.OnNewData(**arguments)
    assert error.value.help


def git(folder, *arguments, **environment):
    subprocess.run(
        ["git", "-c", "user.name=ada", "-c", "user.email=ada@example.com", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
    )


def commit(folder, name, text, at=NOON):
    (folder / name).write_text(text)
    git(folder, "add", name)
    when = f"{int(at.timestamp())} +0000"
    git(folder, "commit", "-q", "-m", text, GIT_COMMITTER_DATE=when, GIT_AUTHOR_DATE=when)


def test_a_commit_counts_only_if_it_changes_a_file_of_the_path_and_is_known_by_then(store, tmp_path):
    part = el.OnCommit(path="loop.py", repository=str(tmp_path))
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path, "loop.py", "1", at=NOON - DAY)
    declared = loop(part)
    store.clock.set(NOON + DAY)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    cause = {"marks": {"OnCommit": head.strip()}}
    store.records.put(store.new(Run, name="sales", loop="sales", state="finished", started_at=store.now(), cause=cause))
    assert find_due(declared, store) is None
    commit(tmp_path, "README", "1", at=NOON + 2 * DAY)
    store.clock.set(NOON + 3 * DAY)
    assert find_due(declared, store) is None, "the loop does not depend on this file"
    commit(tmp_path, "loop.py", "2", at=NOON + 4 * DAY)
    assert find_due(declared, store) is None, "on the simulated clock, the commit is in the future"
    store.clock.set(NOON + 4 * DAY)
    due = find_due(declared, store)
    assert due.evidence["files"] == ["loop.py"]
    assert "on main changes loop.py" in due.reason
    git(tmp_path, "pack-refs", "--all")
    assert find_due(declared, store) == due


@pytest.mark.parametrize(
    ("branch", "files", "due"),
    [
        ("main", ("loop.py", "README"), True),
        ("main", ("features/carrier.py",), True),
        ("main", ("features.py", "docs/loop.py"), False),
        ("other", ("loop.py",), False),
        ("main", (), True),
    ],
)
def test_a_reported_commit_counts_on_its_branch_and_paths(store, tmp_path, branch, files, due):
    git(tmp_path, "init", "-q", "-b", "main")
    call_loop(store, "sales", "push", commit=ReportedCommit("a" * 40, branch, files))
    part = el.OnCommit(path=["./loop.py", "features/"], repository=str(tmp_path))
    found = find_due(loop(part, el.OnCall()), store)
    assert (found is not None) == due
    assert found is None or (found.trigger, found.evidence["commit"]) == ("OnCommit", "a" * 40)


def test_a_folder_without_a_repository_is_reported(store, tmp_path):
    assert find_due(loop(el.OnCommit(repository=str(tmp_path)), Mondays()), store) is None
    [state] = store.records.find(TriggerState)
    assert "is not in a git repository" in state.note


def test_a_trigger_that_raises_is_an_event_once_and_stops_no_other(store):
    declared = loop(Broken(), el.Every("1d"))
    store.clock.set(NOON + DAY)
    for _ in range(3):
        assert find_due(declared, store).trigger == "Every"
    reported = [event for event in store.records.events_since(0) if event.verb == "explained"]
    assert [event.data["reason"] for event in reported] == ["OSError: no connection"]
    assert find_due(loop(Broken("refused"), el.Every("1d")), store).trigger == "Every"
    reported = [event for event in store.records.events_since(0) if event.verb == "explained"]
    assert [event.data["reason"] for event in reported] == ["OSError: no connection", "OSError: refused"]


def test_an_answer_of_another_type_is_a_failure_of_the_trigger(store):
    class Sloppy:
        def check(self, context):
            return "now"

    assert find_due(loop(Sloppy()), store) is None
    assert store.records.find(TriggerState)[0].note == "TypeError: check returned 'now' instead of el.Due or None"


def test_triggers_of_one_name_get_numbers():
    named = named_triggers(loop(el.Every("1w"), el.Every("0 6 * * *"), Mondays(), el.Every("2w")))
    assert list(named) == ["Every", "Every 2", "Mondays", "Every 3"]


@pytest.mark.parametrize("part", [Mondays, "1w", None, el.Drift(), object()])
def test_what_is_not_a_trigger_is_refused(part):
    with pytest.raises(UsageError, match=r"retrain= does not accept"):
        loop(part, serve=el.Endpoint("e"))


def test_limits_of_a_trigger_must_be_limits():
    with pytest.raises(UsageError, match=r"Every\(limits=\) is '3 / week'"):
        loop(el.Every("1w", limits="3 / week"))
    with pytest.raises(UsageError, match="limits= does not accept 3"):
        loop(limits=3)


def test_triggers_are_plugins(monkeypatch):
    assert el.load_trigger("schedule", interval="1w") == el.Every("1w")
    with pytest.raises(NotFoundError, match="no trigger plugin called 'moon'"):
        el.load_trigger("moon")
    with pytest.raises(UsageError, match="'schedule' cannot be created"):
        el.load_trigger("schedule", moon=1)
    entry = EntryPoint("trigger.mondays", f"{__name__}:Mondays", "everloop.plugins")
    monkeypatch.setattr(plugins, "_entry_points", lambda kind: {"mondays": entry} if kind == "trigger" else {})
    assert el.load_trigger("mondays") == Mondays()
    for name in plugins.names("trigger"):
        assert callable(plugins.load("trigger", name).check)
