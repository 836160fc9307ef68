"""Replay the flights of 2013 by week from April: seconds for four policies, and the rows that `never` scores a second.

    python benchmarks/replay.py

The replay should take at most 180 s on two cores, and `never` should score at least 100,000 rows a second.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from everloop.demo.demo_project import make_project
from everloop.demo.flight_world import load_world
from everloop.replay import replay


def flights() -> pl.DataFrame:
    """The demo's features of every landed flight, and whether it was late."""
    world = load_world()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        make_project(project)
        sys.path.insert(0, str(project))
        from features import LATE_MINUTES, features

        landed = world.flights.filter(pl.col("arr_delay").is_not_null())
        late = landed.select("flight_id", (pl.col("arr_delay") >= LATE_MINUTES).alias("late"))
        table: pl.DataFrame = features(landed, world.weather, world.planes, world.airports)
        return table.join(late, on="flight_id", how="left", maintain_order="left")


def main() -> None:
    result = replay(
        flights(),
        target="late",
        time="departs_at",
        key="flight_id",
        labels_after="1d",
        start=datetime(2013, 4, 1, tzinfo=UTC),
        policies=["never", "weekly", "drift", "performance"],
        windows=False,
        title="flights of 2013",
    )
    print(f"{result.seconds:.0f} s for {result.rows:,} rows")
    for one in result.policies:
        scored = one.answered / max(1e-9, one.seconds - one.training_seconds)
        print(
            f"{one.policy.name:12} {result.metric} {one.mean} retrainings {one.retrainings} seconds {one.seconds:.1f}"
            f" rows/s without trainings {scored:,.0f}"
        )
    if result.recommendation is not None:
        print(result.recommendation.name, result.recommendation.why)


if __name__ == "__main__":
    main()
