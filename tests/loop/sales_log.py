"""An endpoint `e` that predicts sales: a version with a baseline, logged predictions and labels."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from everloop.loop import promote
from everloop.monitoring import build_baseline, keep_baseline
from everloop.prediction_log import add_labels, fold_labels
from everloop.prediction_log.prediction_log import PREDICTIONS, table_name
from everloop.records import ModelVersion

OPENS = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SIGNATURE = {"task": "binary", "classes": [False, True], "inputs": [{"name": "price", "type": "float"}]}


def sales(count, seed, start=OPENS, *, moved=0.0):
    """Sales within a day, with a score that knows something about the outcome."""
    rng = np.random.default_rng(seed)
    price = rng.normal(10 + moved, 2, count)
    score = 1 / (1 + np.exp(-(price - 10) / 2))
    return pl.DataFrame(
        {
            "id": [f"{seed}-{number}" for number in range(count)],
            "event_at": [start + DAY * number / count for number in range(count)],
            "price": price,
            "score": score,
            "sold": rng.uniform(size=count) < score,
        }
    )


def log(store, frame, version="m@1"):
    """Put rows into the prediction log, as serving does."""
    store.tables.append(
        table_name(store, PREDICTIONS, "e"),
        frame.select(
            pl.col("id") + f"-{version}", "event_at", pl.col("event_at").alias("arrived_at"),
            pl.lit(version).alias("version"), pl.lit("champion").alias("role"), pl.col("id").alias("entity"), "score",
            pl.lit(0.002).alias("seconds"), pl.col("price").alias("input_price"),
        ),
    )  # fmt: skip


def label(store, frame):
    add_labels(store, "e", frame.select(pl.col("id").alias("entity"), pl.col("sold").alias("value"), "event_at"))
    fold_labels(store, "e")


def a_version(store, number):
    store.records.put(
        store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}", signature=SIGNATURE)
    )
    return store.records.get(ModelVersion, f"m@{number}")


def release(store):
    """Make `m@1` the champion, with a baseline."""
    promote(store, "e", a_version(store, 1), "first")
    before = sales(2000, 1, OPENS - DAY).with_columns(actual=pl.col("sold").cast(pl.Float64))
    baseline = build_baseline(
        before.select("price"), ("price",), scored=before.select("score", "actual"), metric="roc_auc"
    )
    keep_baseline(store, "m@1", baseline)
