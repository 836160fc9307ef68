"""Forking a store of 10 GB of objects, a million points and 100,000 records; reading over the fork; tables in memory.

Run: python benchmarks/forks.py
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from everloop.records import Run
from everloop.stores import MemoryTables, SimulatedClock, open_store, scratch_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.stores import Store

RECORDS = 100_000
POINTS = 1_000_000
OBJECTS = 100
OBJECT_BYTES = 100 << 20
START = datetime(2024, 1, 1, tzinfo=UTC)


def fill(store: Store) -> None:
    for start in range(0, RECORDS, 1000):
        runs = [
            store.new(Run, name=f"r{number}", started_at=START, metrics={"auc": number % 997 / 997})
            for number in range(start, start + 1000)
        ]
        store.records.put(*runs)
    for start in range(0, POINTS, 100_000):
        store.records.append_rows("series", [("loss", step, 0, 0.5) for step in range(start, start + 100_000)])
    for number in range(OBJECTS):
        # Sparse files: they are as long as real ones, but take no space.
        path = Path(store.urls.objects) / "sha256" / f"{number:02x}" / f"{number:062x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, OBJECT_BYTES)
    store.tables.append("predictions/delays", pl.DataFrame({"event_at": [START] * 1000, "x": range(1000)}))


def timed(action: Callable[[], object], repeats: int = 7) -> float:
    """The median time in ms, after one pass that is not counted."""
    action()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)


def report(name: str, ms: float, note: str = "") -> None:
    print(f"{name:<58}{ms:>10.2f} ms  {note}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "home") as store:
        fill(store)
        now = store.now()
        began = time.perf_counter()
        first = store.fork(now)
        report("first fork of this process", (time.perf_counter() - began) * 1e3, "aim 100")
        report("fork and close", timed(lambda: store.fork(now).close()), "aim 100")

        def fork_and_look() -> None:
            with store.fork(now) as fork:
                fork.records.find(Run, limit=1)
                fork.records.last_event()
                fork.tables.exists("predictions/delays")
                fork.objects.has(f"sha256:{1:064x}")

        report("fork, look at each part, close", timed(fork_and_look), "aim 100")
        past = store.as_of(now)
        for run in first.records.find(Run, limit=100):
            first.records.update(replace(run, state="finished"))
        reads: dict[str, Callable[[Store], object]] = {
            "find, first 50 by id": lambda one: one.records.find(Run, limit=50),
            "find, last 50 by time": lambda one: one.records.find(Run, order="-created_at", limit=50),
            "find, first 50 by a metric": lambda one: one.records.find(Run, order="metrics.auc", limit=50),
            "find, by a condition": lambda one: one.records.find(Run, ("metrics.auc", "=", 0)),
            "get by key": lambda one: one.records.get(Run, first_id),
        }
        first_id = store.records.find(Run, limit=1)[0].id
        for name, read in reads.items():
            base, view, fork = (timed(lambda one=one, read=read: read(one), 3) for one in (store, past, first))
            report(
                f"{name}: fork", fork, f"store {base:.2f}, its view as of now {view:.2f}; {fork / view:.2f} x the view"
            )
        first.close()
    clock = SimulatedClock(START)
    report("scratch store, open and close", timed(lambda: scratch_store("flights", clock).close()), "aim 20")
    tables()


def tables() -> None:
    clock = SimulatedClock(START)
    memory = MemoryTables(clock)
    generator = np.random.default_rng(7)
    columns = {f"c{number}": generator.normal(size=20_000) for number in range(20)}
    times = []
    for number in range(100):
        at = START + timedelta(days=number)
        frame = pl.DataFrame({"event_at": [at] * 20_000, **columns}).with_columns(
            pl.col("event_at").cast(pl.Datetime("us", "UTC"))
        )
        clock.set(at)
        began = time.perf_counter()
        memory.append("t", frame)
        times.append((time.perf_counter() - began) * 1e3)
    report("append 20,000 rows x 20 columns, median", median(times), "aim 3")
    report("append 20,000 rows x 20 columns, mean", sum(times) / len(times), f"slowest {max(times):.1f}")
    since, until = START + timedelta(days=40), START + timedelta(days=50)
    report(
        "scan 10 of 100 days of 2,000,000 rows",
        timed(lambda: memory.scan("t", since=since, until=until, as_of=clock.now()).collect()),
        "aim 30",
    )
    report(
        "scan the same, two columns",
        timed(lambda: memory.scan("t", since=since, until=until, columns=["event_at", "c0"]).collect()),
    )


if __name__ == "__main__":
    main()
