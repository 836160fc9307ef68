"""The demo's year: the clock moves, passengers ask, flights land, and the loop keeps its model alive.

Nothing here decides anything: questions go through the endpoint's HTTP, labels into its log, and `reconcile` and
`run_loop` do what they would do in `everloop up`. The story can be stopped at any moment; told again, it goes on
from where the clock stands.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.demo.demo_project import land_history, land_week, make_project
from everloop.demo.flight_world import CLOSES, OPENS, WEEK, FlightWorld, load_world
from everloop.errors import UnavailableError, UsageError
from everloop.loop import Loop, load_project, reconcile, run_loop
from everloop.loop.rollout import champion_of
from everloop.prediction_log import add_labels
from everloop.records import EndpointRecord, Run
from everloop.serving import EndpointProcess
from everloop.stores import SharedClock, Store, open_store

if TYPE_CHECKING:
    from types import ModuleType

    import httpx
    import polars as pl

    from everloop.loop import LoopRun, Reconciliation
    from everloop.pipeline import Listener

SHARE = 0.3
"""Part of the flights whose passengers ask: about 75,000 questions from April to December."""
BATCH = 200
DAY = timedelta(days=1)


class SimulationListener:
    """Told how the story goes; override what you want to show."""

    def chapter(self, title: str) -> None:
        """A new part begins."""

    def listener(self) -> Listener | None:
        """Who shall hear of the steps of a turn."""
        return None

    def week(self, number: int, weeks: int, monday: datetime) -> None:
        """A week begins; `number` counts from 1."""

    def answered(self, questions: int) -> None:
        """So many more questions were answered."""

    def ticked(self, now: datetime, seen: Reconciliation) -> None:
        """The loop has looked at what happened."""

    def turned(self, now: datetime, turn: LoopRun) -> None:
        """The loop has taken a turn."""


class Simulation:
    """One demo project and its year.

    Args:
        folder: made if it is not there; gone on with if the demo made it.
        telling: who is told.
        until: the Monday on which the story ends.
    """

    def __init__(self, folder: Path, telling: SimulationListener, *, until: datetime = CLOSES) -> None:
        self.folder = folder.absolute()
        self.telling = telling
        self.until = until
        self.store: Store
        self.loop: Loop
        self.endpoint = ""

    def tell(self) -> Store:
        """From the empty folder to the end of the year; returns the open store."""
        self.telling.chapter("Reading 2013")
        world = load_world()
        fresh = make_project(self.folder)
        if fresh or not (self.folder / "data" / "airports.parquet").exists():
            land_history(world, self.folder)
        self.store = open_store(self.folder / ".everloop", project="flight-delays", actor="everloop:demo")
        clock = self.store.clock
        if not isinstance(clock, SharedClock):
            clock = self.store.simulate(OPENS)
        self.loop = load_project(self.folder).loop()
        if self.loop.serve is None:
            raise UsageError(f"The loop in '{self.folder}' serves nothing.", help="Add serve=el.Endpoint('delays').")
        self.endpoint = self.loop.serve.name
        if not self.store.records.find(Run, ("loop", "=", self.loop.name), ("state", "=", "finished"), limit=1):
            self.telling.chapter("The first turn: January to March")
            self._turn("first: the loop has not turned yet")
        if champion_of(self.store, self.loop.model) is None:
            raise UnavailableError(
                f"No version of '{self.loop.model}' has passed its gates, so there is nothing to serve.",
                help=f"See why with: everloop release ls --home {self.store.home}",
            )
        if self.store.now() < self.until:
            with EndpointProcess(self.store, self.endpoint) as endpoint:
                self.telling.chapter("The year goes on")
                self._live(world, clock, endpoint)
        return self.store

    def _live(self, world: FlightWorld, clock: SharedClock, endpoint: EndpointProcess) -> None:
        import httpx

        passengers = _Passengers(world, self.folder)
        weeks = world.weeks(self.until)
        clock.stop()
        with httpx.Client(base_url=str(endpoint.url), timeout=30) as client:
            for number, monday in enumerate(weeks, start=1):
                if monday + WEEK <= self.store.now():
                    continue
                self.telling.week(number, len(weeks), monday)
                land_week(world, self.folder, monday)
                for day in range(7):
                    morning = monday + day * DAY
                    if morning + DAY <= self.store.now():
                        continue
                    if day == 1 and number > 1:
                        # Windows close on Monday; a day later the labels of their last flights are there.
                        self._look(world, clock, morning, endpoint)
                    self._ask(passengers, clock, morning, client)
            land_week(world, self.folder, self.until)
            # A turn that falls due now is left to `everloop up`.
            self._look(world, clock, self.until + DAY, endpoint, last=True)

    def _look(
        self, world: FlightWorld, clock: SharedClock, moment: datetime, endpoint: EndpointProcess, *, last: bool = False
    ) -> None:
        """Deliver the labels that have come by `moment`, and let the loop do its part."""
        if self.store.now() > moment:
            return
        clock.set(moment)
        labels = _labels(asking(world.flights), moment - WEEK, moment)
        if labels.height:
            add_labels(self.store, self.endpoint, labels)
        seen = reconcile(self.loop, self.store)
        self.telling.ticked(moment, seen)
        if seen.due is not None and not last:
            self._turn(f"{seen.due.trigger}: {seen.due.reason}")
        # A real client would not wait; here a day passes in a blink, and the endpoint must see the new routes.
        endpoint.wait_for(self.store.records.get(EndpointRecord, self.endpoint).revision)

    def _turn(self, trigger: str) -> None:
        turn = run_loop(self.loop, self.store, trigger=trigger, listener=self.telling.listener())
        self.telling.turned(self.store.now(), turn)

    def _ask(self, passengers: _Passengers, clock: SharedClock, morning: datetime, client: httpx.Client) -> None:
        for batch in passengers.questions(max(morning, self.store.now()), morning + DAY):
            clock.set(max(batch.latest, self.store.now()))
            answer = client.post("/predict", content=batch.body, headers={"content-type": "application/json"})
            if answer.status_code != 200:
                raise UnavailableError(f"The endpoint answered {answer.status_code}: {answer.text[:300]}")
            self.telling.answered(batch.size)


class _Batch:
    """Questions that are asked together."""

    __slots__ = ("body", "latest", "size")

    def __init__(self, body: bytes, latest: datetime, size: int) -> None:
        self.body = body
        self.latest = latest
        self.size = size


class _Passengers:
    """Who ask an hour before departure, with what is known then: the project's own features."""

    def __init__(self, world: FlightWorld, folder: Path) -> None:
        import polars as pl

        project = _features_of(folder)
        asked = asking(world.flights.filter(pl.col("departs_at") >= OPENS))
        table: pl.DataFrame = project.features(asked, world.weather, world.planes, world.airports)
        self.table = table.with_columns((pl.col("departs_at") - pl.duration(hours=1)).alias("asked_at")).sort(
            "asked_at", "flight_id"
        )

    def questions(self, since: datetime, until: datetime) -> list[_Batch]:
        """The day's questions in batches, in the order in which they are asked."""
        import msgspec
        import polars as pl

        day = self.table.filter(pl.col("asked_at") >= since, pl.col("asked_at") < until)
        batches = []
        for part in day.iter_slices(BATCH):
            rows = part.drop("flight_id", "departs_at", "asked_at").to_dicts()
            body = {"rows": rows, "keys": part["flight_id"].to_list(), "event_at": part["asked_at"].to_list()}
            latest = part["asked_at"][-1]
            batches.append(_Batch(msgspec.json.encode(body), latest, part.height))
        return batches


def asking(flights: pl.DataFrame) -> pl.DataFrame:
    """The flights whose passengers ask: always the same, by the hash of the flight."""
    import polars as pl

    return flights.filter(pl.col("flight_id").hash(seed=2013) % 1000 < int(SHARE * 1000))


def _labels(flights: pl.DataFrame, since: datetime, until: datetime) -> pl.DataFrame:
    """What became of the flights that landed in (since, until]; of cancelled ones nothing is ever known."""
    import polars as pl

    return flights.filter(
        pl.col("arr_delay").is_not_null(), pl.col("landed_at") > since, pl.col("landed_at") <= until
    ).select(
        pl.col("flight_id").alias("entity"),
        (pl.col("arr_delay") >= 15).alias("value"),
        pl.col("landed_at").alias("event_at"),
        pl.col("landed_at").alias("arrived_at"),
    )


def _features_of(folder: Path) -> Any:
    """The project's `features` module, which `loop.py` has imported already."""
    import sys

    module: ModuleType | None = sys.modules.get("features")
    if module is None or not Path(str(module.__file__)).is_relative_to(folder):
        raise UnavailableError(f"The project in '{folder}' has no module 'features' that its loop.py imports.")
    return module
