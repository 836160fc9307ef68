"""Measure how long a decision about a release takes with many logged predictions.

    python benchmarks/release_scale.py [--predictions 1000000] [--labelled 0.2]

A log of predictions of 20 days is written, of which a share has labels. Printed are the seconds of the first decision,
which reads the whole log, of a decision after nothing new, after 1 % more labelled rows, which are too few for a look
of the test, and after enough of them. Then another process decides: without anything new, after labels for predictions
that have been in the log for long, and after corrections. It has imported its modules and loaded the models, and knows
nothing else. The decisions are those of `live_evidence`, folding included. The seconds of a core do not depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from everloop.loop.comparison import scored_rows
from everloop.loop.releases import evidence_rows, live_evidence as live
from everloop.loop.releases.live_evidence import live_evidence
from everloop.loop.releases.release_declarations import Canary
from everloop.packages import build_package
from everloop.prediction_log.prediction_log import LABELS, PREDICTIONS, input_column, table_name
from everloop.records import Decision, EndpointRecord, Release
from everloop.registry import load_model, register
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

FEATURES = ("distance", "carrier", "wind", "weekend")
CHUNK = 500_000
DAYS = 20


def write_log(store, models, first, count, labelled, began):
    """Append predictions numbered from `first`, spread over 20 days, and the labels of a share of them."""
    rng = np.random.default_rng(first)
    table = sample_table(5_000, seed=first % 1000)
    scores = {version: pl.Series(model.predict(table)) for version, model in models.items()}
    for start in range(first, first + count, CHUNK):
        size = min(CHUNK, first + count - start)
        drawn = rng.integers(5_000, size=size)
        rows = table[drawn]
        canary = rng.uniform(size=size) < 0.1
        numbers = np.arange(start, start + size)
        at = pl.Series(numbers % (DAYS * 86_400) * 1_000_000).cast(pl.Duration("us"))
        champion, candidate = scores.values()
        texts = pl.Series(numbers).cast(pl.String)
        frame = rows.select(pl.col(name).alias(input_column(name)) for name in FEATURES).with_columns(
            id="r" + texts + "-0",
            request="r" + texts,
            event_at=pl.lit(began) + at,
            arrived_at=pl.lit(began) + at,
            version=pl.Series(np.where(canary, *reversed(list(models)))),
            role=pl.Series(np.where(canary, "canary", "champion")),
            entity="k" + texts,
            score=pl.Series(np.where(canary, candidate.to_numpy()[drawn], champion.to_numpy()[drawn])),
            label=pl.lit("true"),
            seconds=pl.lit(0.001),
            package=pl.lit("sha256:0"),
            instance=pl.lit("host.0"),
        )
        store.tables.append(table_name(store, PREDICTIONS, "e"), frame)
        known = pl.Series(rng.uniform(size=size) < labelled)
        labels = pl.DataFrame(
            {
                "entity": frame["entity"],
                "value": rows["late"].cast(pl.Float64),
                "text": rows["late"].cast(pl.String),
                "event_at": frame["event_at"] + timedelta(minutes=1),
                "arrived_at": frame["event_at"] + timedelta(hours=1),
            }
        ).filter(known)
        store.tables.append(table_name(store, LABELS, "e"), labels)


def write_late_labels(store, first, count, began, *, arrived):
    """Label predictions numbered from `first`."""
    numbers = pl.Series(np.arange(first, first + count))
    at = pl.lit(began) + (numbers % (DAYS * 86_400) * 1_000_000).cast(pl.Duration("us")) + pl.duration(minutes=2)
    late = pl.Series(np.random.default_rng(first).uniform(size=count) < 0.3)
    labels = pl.DataFrame({"entity": "k" + numbers.cast(pl.String), "value": late.cast(pl.Float64)})
    labels = labels.with_columns(text=late.cast(pl.String), event_at=at, arrived_at=at + timedelta(hours=arrived))
    store.tables.append(table_name(store, LABELS, "e"), labels)


def forget():
    """Remove what this process remembers."""
    live._remembered.clear()
    evidence_rows._known.clear()
    scored_rows._kept.clear()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--labelled", type=float, default=0.2)
    parser.add_argument("--metric", default="roc_auc")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EVERLOOP_KEYS"] = str(Path(folder, "keys"))
        with open_store(Path(folder, "store")) as store:
            versions = []
            for seed in (0, 5):
                built = build_package(train_sample(features=FEATURES, seed=seed), store=store, sample=sample_table(100))
                versions.append(register(store, "m", built).key)
            models = {version: load_model(store, version) for version in versions}
            began = store.now() - timedelta(days=DAYS + 1)
            store.records.put(store.new(EndpointRecord, name="e", model="m"))
            started = Decision(at=began, action="start", percent=10.0, reason="")
            release = replace(
                store.new(
                    Release, endpoint="e", candidate=versions[1], previous=versions[0], steps=(10.0, 50.0, 100.0)
                ),
                created_at=began,
                decisions=(started,),
            )
            write_log(store, models, 0, options.predictions, options.labelled, began)

            def decide(name):
                at, used = time.perf_counter(), time.process_time()
                found = live_evidence(store, release, versions[0], Canary(), options.metric)
                took = f"{time.perf_counter() - at:8.2f} s{time.process_time() - used:8.2f} s of a core"
                print(f"{name:28}{took}   {found.evidence['rows']:,} rows", flush=True)
                return found.evidence

            found = decide("first decision")
            decide("nothing new")
            for count in (found["rows"] // 100, options.predictions // 20):
                release = replace(release, looks=tuple(found["looks"]))
                write_log(store, models, options.predictions + count, count, 1.0, began)
                found = decide(f"{count:,} labelled rows more")
            release = replace(release, looks=())
            forget()
            decide("another process")
            late = options.predictions // 20
            write_late_labels(store, options.predictions // 3, late, began, arrived=2)
            forget()
            decide(f"another, {late:,} late labels")
            write_late_labels(store, options.predictions // 3, late // 10, began, arrived=3)
            decide(f"{late // 10:,} corrections")


if __name__ == "__main__":
    main()
