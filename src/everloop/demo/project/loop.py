"""Will this flight be late? The declaration of a model's whole life cycle.

Run it once with `everloop run`, and keep it running with `everloop up`.
"""

import polars as pl
from features import LATE_MINUTES, features, read_reports, reports

import everloop as el


@el.step
def flights() -> pl.LazyFrame:
    """All flights that have landed so far. A new file arrives each week."""
    return el.read("data/flights/*.parquet")


@el.step
def weather() -> pl.LazyFrame:
    return read_reports()


@el.step
def planes() -> pl.LazyFrame:
    return el.read("data/planes.parquet")


@el.step
def airports() -> pl.LazyFrame:
    return el.read("data/airports.parquet")


@el.step
def prepare(flights: pl.DataFrame, weather: pl.DataFrame, planes: pl.DataFrame, airports: pl.DataFrame) -> pl.DataFrame:
    """The table to learn from: the features of each landed flight, and whether it was late."""
    landed = flights.filter(pl.col("arr_delay").is_not_null())
    late = landed.select("flight_id", (pl.col("arr_delay") >= LATE_MINUTES).alias("late"))
    return features(landed, weather, planes, airports).join(late, on="flight_id", maintain_order="left")


# `everloop features` finds the feature views that this module imports.
views = [reports]

loop = el.Loop(
    "flight-delays",
    data=el.Dataset(prepare, target="late", time="departs_at", key="flight_id", holdout="14d"),
    # A fixed number of trials makes the search repeatable. The budget is only a limit for slow machines.
    train=el.AutoTrain(metric="roc_auc", trials=2, budget_s=600),
    gates=[
        el.AtLeast("roc_auc", 0.60),
        el.NotWorseThan("champion"),
        el.Slices("carrier", worst_gap=0.15),
        el.Latency(p99_ms=20),
    ],
    serve=el.Endpoint("delays", rollout=el.Canary(steps=[10, 50, 100])),
    watch=[el.Drift(alarms_per_month=1), el.Performance("roc_auc", labels_after="1d")],
    retrain=[el.OnDrift(cooldown="8w"), el.OnPerformance(cooldown="6w")],
)
