"""What is known about a flight an hour before its scheduled departure."""

import polars as pl

import everloop as el

# A flight that arrives this many minutes after its schedule counts as late.
LATE_MINUTES = 15

# A passenger asks this long before departure, and gets the newest weather report that was out by then.
ASKED_BEFORE = "1h"

WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]

CATEGORIES = ["carrier", "origin", "dest"]


def read_reports() -> pl.LazyFrame:
    """Every report that is out; an hour's report is published about an hour after it was observed."""
    return el.read("data/weather/*.parquet")


# What is known of an airport's weather, and since when. Training joins it to each flight as of an hour before
# departure; `everloop features materialize` keeps it for whoever asks about an airport now.
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
    """Join a schedule with the weather before departure, the plane and the destination.

    Used for training and, on flights that have not left yet, for every request: the two cannot differ.
    Nothing measured at or after departure (`dep_delay`, `arr_time`, `air_time`) is touched.
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
    place = airports.select(
        pl.col("faa").alias("dest"),
        pl.col("lat").alias("dest_lat"),
        pl.col("lon").alias("dest_lon"),
    )
    return (
        el.join_features(schedule, [reports], time="departs_at", delay=ASKED_BEFORE, sources={"weather": weather})
        .join(plane, on="tailnum", how="left")
        .join(place, on="dest", how="left")
        .drop("tailnum")
        .sort("departs_at", "flight_id")
    )
