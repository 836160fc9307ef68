"""Replay the flights of 2013 by week from April: seconds for four policies, and the rows that `never` scores a second.

    python benchmarks/replay.py
    python benchmarks/replay.py bikes electricity    # whole replays of these streams, or of all with `streams`

The replay should take at most 180 s on two cores, and `never` should score at least 100,000 rows a second.
A stream's policy is chosen on its first 60 %, and is then compared with weekly retraining on the rest.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from replay_streams import START, STREAMS, WEEKS, Stream

from everloop.demo.demo_project import make_project
from everloop.demo.flight_world import load_world
from everloop.replay import replay
from everloop.replay.recommendation import kept_share


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


def judge_stream(stream: Stream, seed: int = 0) -> None:
    """Print what the policy that is recommended on the first part of a stream is worth on the rest."""
    table = stream.make(seed)
    begin = START + timedelta(weeks=WEEKS // 4)
    cut = begin + timedelta(weeks=round(0.6 * (WEEKS - WEEKS // 4)))
    about = {"target": "y", "time": "at", "labels_after": "1d", "start": begin}
    first = replay(table.filter(pl.col("at") < cut), **about)  # type: ignore[arg-type]
    chosen = first.recommended
    if chosen is None:
        print(f"{stream.name:12} no recommendation")
        return
    policies = ["weekly", *([] if chosen.policy.name == "weekly" else [chosen.policy])]
    whole = replay(table, policies=policies, windows=False, **about)  # type: ignore[arg-type]
    rest = {
        one.policy.name: [period.value for period in one.periods if period.begin >= cut and period.value is not None]
        for one in whole.policies
    }
    trainings = {one.policy.name: sum(training.at >= cut for training in one.trainings) for one in whole.policies}
    mean = {name: sum(values) / len(values) for name, values in rest.items()}
    name = chosen.policy.name
    kept = kept_share(mean[name], mean["weekly"], whole.metric, greater_is_better=whole.greater_is_better)
    print(
        f"{stream.name:12} {name:20} kept {kept:.3f} of weekly's {whole.metric} with {trainings[name]} of"
        f" {trainings['weekly']} trainings; {first.seconds + whole.seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    wanted = sys.argv[1:]
    if wanted:
        for stream in STREAMS:
            if stream.name in wanted or wanted == ["streams"]:
                judge_stream(stream)
        return
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
        progress=lambda name, done, periods: print(f"  {name}: {done} of {periods}", file=sys.stderr),
    )
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    print(f"{result.seconds:.0f} s and {cpu:.0f} s of CPU for {result.rows:,} rows")
    never = result.outcome("never").months
    for one in result.policies:
        gains = {month: value - never[month] for month, value in one.months.items() if month in never}
        shown = " ".join(f"{month[5:]}:{gain:+.4f}" for month, gain in gains.items())
        print(f"{one.policy.name:12} gain by month {shown} mean {sum(gains.values()) / len(gains):+.4f}")
    for one in result.policies:
        trained = sum(training.seconds - training.spared for training in one.trainings)
        scored = one.answered / max(1e-9, one.seconds - trained)
        print(
            f"{one.policy.name:12} {result.metric} {one.mean} retrainings {one.retrainings} seconds {one.seconds:.1f}"
            f" rows/s without trainings {scored:,.0f}"
        )
    if result.recommendation is not None:
        print(result.recommendation.name, result.recommendation.why)


if __name__ == "__main__":
    main()
