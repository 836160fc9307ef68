"""The demo's project, its data, and its first weeks: interrupted in the middle and then resumed."""

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
from everloop.stores.home import configured_home
from everloop.stores.verify import verify

pytestmark = pytest.mark.slow

KEYS = {
    "snapshots", "runs", "versions", "incidents", "retrainings", "promotions", "rollbacks", "live_metric",
    "frozen_metric", "seconds",
}  # fmt: skip


class Counting(SimulationListener):
    """Counts the requests, and interrupts the simulation after `stop_after` of them."""

    def __init__(self, stop_after=None):
        self.requests = 0
        self.loop_runs = []
        self.stop_after = stop_after

    def answered(self, requests):
        self.requests += requests
        if self.stop_after is not None and self.requests >= self.stop_after:
            raise KeyboardInterrupt

    def loop_ran(self, now, loop_run):
        self.loop_runs.append(loop_run)


@pytest.fixture
def forget():
    before_path, before_modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before_path
    for name in ("loop", "features"):
        if name not in before_modules:
            sys.modules.pop(name, None)


def test_outcomes_of_flights_become_known_after_departure():
    world = load_world()
    flights = world.flights
    assert flights.height == 336_776
    assert flights["flight_id"].is_unique().all()
    assert (flights["landed_at"] > flights["departs_at"]).all()
    assert flights["departs_at"].min().isoformat() == "2013-01-01T10:15:00+00:00"
    assert len(world.weeks()) == 39


def test_interrupted_simulation_is_resumed(tmp_path, monkeypatch, forget):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.setattr("everloop.demo.simulation.SHARE", 0.1)
    folder = tmp_path / "flights"
    until = OPENS + 2 * WEEK
    with pytest.raises(KeyboardInterrupt):
        Simulation(folder, Counting(stop_after=400), until=until).run()
    simulation = Simulation(folder, second := Counting(), until=until)
    with simulation.run() as store:
        assert store.project == "flight-delays"  # as the commands in its folder, which the demo recommends
        assert second.loop_runs == []  # the first run was not repeated
        assert verify(store).problems == ()
        outcome = read_outcome(store, simulation.loop.name, simulation.endpoint)
        payload = json.loads(to_json(_as_json(outcome, 1.0)))
        assert payload.keys() >= KEYS
        assert payload["versions"][0]["key"] == "delays@1"
        assert 0.6 < payload["live_metric"]["2013-04"] < 0.8
        assert payload["live_metric"] == pytest.approx(payload["frozen_metric"])  # only the first version has answered
        # The store gives the same number again.
        again = performance_by(store, "delays", "roc_auc", "1mo", labels_after="1d")
        assert again["value"][0] == payload["live_metric"]["2013-04"]
        assert 1000 < again["predictions"][0] < 1400  # a tenth of two weeks, without repeated requests
        found = trace_lineage(store, outcome.sample)
        assert found.version.key == "delays@1"
        assert found.snapshot.digest.startswith("sha256:")
        assert {"flights", "weather", "prepare", "train"} <= found.steps.keys()
        assert any("flights" in str(source["spec"]) for source in found.sources)


def test_the_weather_is_a_view_with_real_arrival_times(tmp_path, forget):
    """A flight is joined with the newest weather report that was published an hour before departure."""
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
        requested_at = row["departs_at"] - timedelta(hours=1)
        observed = world.weather.filter(pl.col("origin") == row["origin"], pl.col("observed_at") <= requested_at)
        published = observed.filter(pl.col("published_at") <= requested_at).sort("observed_at")
        fresh = published.filter(pl.col("observed_at") >= requested_at - timedelta(hours=6))
        assert row["temp"] == (fresh["temp"][-1] if fresh.height else None)
        late += observed.height > published.height
    assert late > 100  # for most flights, a newer report had been observed but not yet published


def test_a_folder_that_the_demo_did_not_create_is_left_unchanged(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    with pytest.raises(UsageError, match="not empty"):
        make_project(tmp_path)
    assert not (tmp_path / MARK).exists()


def test_settings_that_are_there_before_the_project_stay(tmp_path):
    settings = 'executor = "pool"\n\n[project]\nname = "mine"\n\n[store]\nhome = "elsewhere"\nobjects = "things"\n'
    (tmp_path / "everloop.toml").write_text(settings)
    assert make_project(tmp_path)
    assert (tmp_path / "everloop.toml").read_text() == settings
    assert (tmp_path / "loop.py").exists()
    assert configured_home(tmp_path) == tmp_path / "elsewhere"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        make_project(tmp_path / "other")
