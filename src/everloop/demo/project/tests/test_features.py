"""Checks that the features use nothing that is only known at or after departure."""

import sys
from pathlib import Path

import polars as pl

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from features import features


def test_features_do_not_change_with_the_outcome() -> None:
    data = PROJECT / "data"
    flights = pl.read_parquet(sorted((data / "flights").glob("*.parquet"))[0])
    tables = [
        pl.read_parquet(data / "weather" / "*.parquet"),
        *(pl.read_parquet(data / f"{n}.parquet") for n in ("planes", "airports")),
    ]
    outcome = ["dep_delay", "arr_delay", "air_time"]
    unknown = flights.with_columns(pl.lit(None, pl.Int32).alias(name) for name in outcome)
    assert features(flights, *tables).equals(features(unknown, *tables))
