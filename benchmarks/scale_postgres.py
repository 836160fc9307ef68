"""Measure the records on PostgreSQL: latency of a run, points per second of many clients, and search over many runs.

    python benchmarks/scale_postgres.py URL [--clients 64] [--seconds 10] [--runs 1000000]

`URL` names an empty schema of a PostgreSQL server, such as `postgresql://me@/scale?host=/tmp`. The result is printed
as one JSON object. Every client is a process of its own with its own connection, as on several hosts.

- `run_ms`: create a run with 10 parameters, log 10 metrics, and end it, by one client (median of 200)
- `points_per_s`: each client appends batches of 1,000 points to its own run, for some seconds
- `runs_per_s`: each client creates and ends runs in one project, for some seconds
- `search_ms`: the first page of 50 runs, filtered by one metric and ordered by another (median of 20)
- `event_ms`: from the commit of an event until a client that waits for it returns (median of 50)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.records import Run
from everloop.stores import SystemClock, new_id
from everloop.stores.clock import micros
from everloop.stores.records.expressions import Compare
from everloop.stores.records.postgres import PostgresRecords
from everloop.stores.records.record_codec import encode
from everloop.stores.records.row_checksums import record_sum
from everloop.stores.records.searchable import entries, path_number

if TYPE_CHECKING:
    from collections.abc import Callable

CLOCK = SystemClock()
BATCH = 1000
PROJECT = "scale"


def open_records(url: str) -> PostgresRecords:
    return PostgresRecords(url, project=PROJECT, actor="user:bench@host", clock=CLOCK)


def make_run(**fields: Any) -> Run:
    now = CLOCK.now()
    return Run(id=new_id(now), project=PROJECT, created_at=now, started_at=now, name="r", **fields)


def write_run(records: PostgresRecords) -> None:
    run = make_run(params={f"p{k}": k for k in range(10)})
    records.put(run)
    values = {f"m{k}": random.random() for k in range(10)}
    at = micros(CLOCK.now())
    records.append_rows(run.id, [(key, 0, at, value) for key, value in values.items()])
    records.update(replace(run, metrics=values))


def median_ms(work: Callable[[], object], repeat: int) -> float:
    taken = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def write_points(url: str, seconds: float, started: Any, results: Any) -> None:
    records = open_records(url)
    run, count = new_id(CLOCK.now()), 0
    started.wait()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        records.append_rows(run, [("loss", count + step, 0, 0.5) for step in range(BATCH)])
        count += BATCH
    results.put(count)
    records.close()


def write_runs(url: str, seconds: float, started: Any, results: Any) -> None:
    records, count = open_records(url), 0
    started.wait()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        write_run(records)
        count += 1
    results.put(count)
    records.close()


def rate(work: Callable[..., None], url: str, clients: int, seconds: float) -> float:
    context = multiprocessing.get_context("fork")
    started, results = context.Barrier(clients + 1), context.Queue()
    processes = [context.Process(target=work, args=(url, seconds, started, results)) for _ in range(clients)]
    for process in processes:
        process.start()
    started.wait()
    began = time.perf_counter()
    total = sum(results.get() for _ in processes)
    took = time.perf_counter() - began
    for process in processes:
        process.join()
    return float(total / took)


def fill(url: str, runs: int) -> None:
    """Write many finished runs with COPY, in the same form as `put` writes them."""
    import psycopg

    at, source = micros(CLOCK.now()), random.Random(0)
    with psycopg.connect(url) as connection:
        for start in range(0, runs, 20_000):
            batch = [
                make_run(params={"lr": source.random()}, metrics={"loss": source.random(), "auc": source.random()})
                for _ in range(start, min(start + 20_000, runs))
            ]
            first = connection.execute("SELECT coalesce(max(rec), 0) + 1 FROM searched_records").fetchone()
            assert first is not None
            with connection.cursor().copy(
                "COPY records (id, project, kind, key, state, created_at, revision, written_at, body, crc) FROM STDIN"
            ) as copy:
                for run in batch:
                    row = (run.id, PROJECT, "run", run.key, run.state, micros(run.created_at), run.revision)
                    body = encode(run)
                    copy.write_row((*row, at, body, record_sum(*row, at, body)))
            with connection.cursor().copy("COPY searched_records (rec, id, project, kind) FROM STDIN") as copy:
                for rec, run in enumerate(batch, first[0]):
                    copy.write_row((rec, run.id, PROJECT, "run"))
            named = {}
            with connection.cursor().copy("COPY searched_values (rec, path, number, text, form) FROM STDIN") as copy:
                for rec, run in enumerate(batch, first[0]):
                    for path, value in entries(run).items():
                        number = path_number(PROJECT, "run", path)
                        named[number] = path
                        copy.write_row((rec, number, *value))
            connection.cursor().executemany(
                "INSERT INTO searched_paths VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [(number, PROJECT, "run", path[0], "".join(path[1:])) for number, path in sorted(named.items())],
            )
            connection.execute(
                "SELECT setval(pg_get_serial_sequence('searched_records', 'rec'), max(rec)) FROM searched_records"
            )
            connection.commit()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE records")
        connection.execute("VACUUM ANALYZE searched_records")
        connection.execute("VACUUM ANALYZE searched_values")


def event_ms(records: PostgresRecords) -> float:
    taken: list[float] = []
    for number in range(50):
        woken: list[float] = []

        def wait(since: int, woken: list[float]) -> None:
            records.wait_for_event(since, 10)
            woken.append(time.perf_counter())

        waiter = threading.Thread(target=wait, args=(records.last_event(), woken))
        waiter.start()
        time.sleep(0.02)
        records.append_event("ticked", "run", str(number))
        began = time.perf_counter()
        waiter.join()
        taken.append(max(0.0, woken[0] - began))
    return 1000 * statistics.median(taken[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=0, help="number of runs to search; 0 leaves the search out")
    given = parser.parse_args()
    records, found = open_records(given.url), {}
    for _ in range(20):
        write_run(records)
    found["run_ms"] = median_ms(lambda: write_run(records), 200)
    found["event_ms"] = event_ms(records)
    found["points_per_s"] = rate(write_points, given.url, given.clients, given.seconds)
    found["runs_per_s"] = rate(write_runs, given.url, given.clients, given.seconds)
    if given.runs:
        began = time.perf_counter()
        fill(given.url, given.runs)
        found["fill_s"] = time.perf_counter() - began
        where = Compare(("metrics", "auc"), ">", 0.9)
        order = [(("metrics", "loss"), False)]
        records.search(Run, where, order=order, limit=50)
        found["search_ms"] = median_ms(lambda: records.search(Run, where, order=order, limit=50), 20)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
