"""The demo's first weeks, told twice: stopped in the middle, then gone on with."""

from __future__ import annotations

import json
import sys
from datetime import timedelta

import polars as pl
import pytest

from everloop.cli.demo import _as_json
from everloop.cli.output import to_json
from everloop.demo import Simulation, SimulationListener, load_world, read_outcome
from everloop.demo.demo_project import MARK, make_project
from everloop.demo.flight_world import OPENS, WEEK
from everloop.errors import UsageError
from everloop.loop import load_project
from everloop.loop.lineage import trace_lineage
from everloop.monitoring import performance_by
from everloop.stores.verify import verify

KEYS = {
    "snapshots", "runs", "versions", "alarms", "retrainings", "promotions", "rollbacks", "live_metric",
    "frozen_metric", "seconds",
}  # fmt: skip


class Counting(SimulationListener):
    """Counts the questions; stops the story in the middle of a week if asked to."""

    def __init__(self, stop_after=None):
        self.questions = 0
        self.turns = []
        self.stop_after = stop_after

    def answered(self, questions):
        self.questions += questions
        if self.stop_after is not None and self.questions >= self.stop_after:
            raise KeyboardInterrupt

    def turned(self, now, turn):
        self.turns.append(turn)


@pytest.fixture
def forget():
    before_path, before_modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before_path
    for name in ("loop", "features"):
        if name not in before_modules:
            sys.modules.pop(name, None)


def test_world_says_nothing_too_early():
    world = load_world()
    flights = world.flights
    assert flights.height == 336_776
    assert flights["flight_id"].is_unique().all()
    assert (flights["landed_at"] > flights["departs_at"]).all()
    assert flights["departs_at"].min().isoformat() == "2013-01-01T10:15:00+00:00"
    assert len(world.weeks()) == 39


def test_story_is_told_stopped_and_gone_on_with(tmp_path, monkeypatch, forget):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.setattr("everloop.demo.simulation.SHARE", 0.1)
    folder = tmp_path / "flights"
    until = OPENS + 2 * WEEK
    with pytest.raises(KeyboardInterrupt):
        Simulation(folder, Counting(stop_after=400), until=until).tell()
    story = Simulation(folder, second := Counting(), until=until)
    with story.tell() as store:
        assert second.turns == []  # the first turn was not taken again
        assert verify(store).problems == ()
        outcome = read_outcome(store, story.loop.name, story.endpoint)
        said = json.loads(to_json(_as_json(outcome, 1.0)))
        assert said.keys() >= KEYS
        assert said["versions"][0]["key"] == "delays@1"
        assert 0.6 < said["live_metric"]["2013-04"] < 0.8
        assert said["live_metric"] == pytest.approx(said["frozen_metric"])  # nothing else has answered yet
        # The number can be had again from the store, by what the table names.
        again = performance_by(store, "delays", "roc_auc", "1mo", labels_after="1d")
        assert again["value"][0] == said["live_metric"]["2013-04"]
        assert 1000 < again["predictions"][0] < 1400  # a tenth of two weeks; nobody was asked twice
        found = trace_lineage(store, outcome.sample)
        assert found.version.key == "delays@1"
        assert found.snapshot.digest.startswith("sha256:")
        assert {"flights", "weather", "prepare", "train"} <= found.steps.keys()
        assert any("flights" in str(source["spec"]) for source in found.sources)


def test_the_weather_is_a_view_with_real_arrival_times(tmp_path, forget):
    """What a flight learns of the weather is the newest report that was out an hour before, and no later one."""
    folder = tmp_path / "flights"
    make_project(folder)
    project = load_project(folder)
    assert list(project.views) == ["weather"]
    view = project.views["weather"]
    assert (view.time, view.arrival, view.ttl) == ("observed_at", "published_at", "6h")
    world = load_world()
    flights = world.flights.sample(150, seed=7)
    features = sys.modules["features"].features(flights, world.weather, world.planes, world.airports)
    late = 0
    for row in features.iter_rows(named=True):
        asked = row["departs_at"] - timedelta(hours=1)
        here = world.weather.filter(pl.col("origin") == row["origin"], pl.col("observed_at") <= asked)
        out = here.filter(pl.col("published_at") <= asked).sort("observed_at")
        fresh = out.filter(pl.col("observed_at") >= asked - timedelta(hours=6))
        assert row["temp"] == (fresh["temp"][-1] if fresh.height else None)
        late += here.height > out.height
    assert late > 100  # most of the time a newer report had been taken and was not out yet


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(UsageError, match="not empty"):
        make_project(tmp_path)
    assert not (tmp_path / MARK).exists()
