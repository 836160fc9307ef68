"""Features of a flight, as they are known an hour before its scheduled departure."""

import polars as pl

import everloop as el

# A flight that arrives this many minutes after its schedule counts as late.
LATE_MINUTES = 15

# Predictions are requested this long before departure. They use the newest weather report published by then.
REQUESTED_BEFORE = "1h"

WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]

CATEGORIES = ["carrier", "origin", "dest"]


def read_reports() -> pl.LazyFrame:
    """All published weather reports. A report is published about an hour after its observation."""
    return el.read("data/weather/*.parquet")


# The weather at an airport, and when it became known. Training joins it to each flight as of an hour before departure.
# `everloop features materialize` stores it, so that it can be looked up by airport.
reports = el.FeatureView(
    "weather",
    read_reports,
    entity="origin",
    time="observed_at",
    arrival="published_at",
    ttl="6h",
    features=WEATHER,
)


def features(
    flights: pl.DataFrame, weather: pl.DataFrame, planes: pl.DataFrame, airports: pl.DataFrame
) -> pl.DataFrame:
    """Join flights with the weather before departure, the plane and the destination.

    Training and requests use the same function, so their features cannot differ. It never uses columns that are
    measured at or after departure: `dep_delay`, `arr_delay`, `air_time`.
    """
    local = pl.col("departs_at").dt.convert_time_zone("America/New_York")
    schedule = flights.select(
        "flight_id",
        "departs_at",
        *CATEGORIES,
        "tailnum",
        pl.col("distance").cast(pl.Float64),
        (local.dt.hour() + local.dt.minute() / 60).alias("departs_hour"),
        local.dt.weekday().cast(pl.Float64).alias("weekday"),
    )
    plane = planes.select(
        "tailnum",
        pl.col("year").cast(pl.Float64).alias("plane_built"),
        pl.col("seats").cast(pl.Float64).alias("plane_seats"),
    )
    destination = airports.select(
        pl.col("faa").alias("dest"),
        pl.col("lat").alias("dest_lat"),
        pl.col("lon").alias("dest_lon"),
    )
    return (
        el.join_features(schedule, [reports], time="departs_at", delay=REQUESTED_BEFORE, sources={"weather": weather})
        .join(plane, on="tailnum", how="left")
        .join(destination, on="dest", how="left")
        .drop("tailnum")
        .sort("departs_at", "flight_id")
    )
