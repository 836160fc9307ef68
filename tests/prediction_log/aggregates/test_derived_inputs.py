from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from everloop.monitoring import build_baseline, keep_baseline
from everloop.monitoring.logged_windows import read_inputs_and_score, read_sketches, sketch_window
from everloop.prediction_log.aggregates import read_aggregates
from everloop.records import EndpointRecord, ModelVersion
from everloop.stores import open_store

START = datetime(2024, 3, 4, tzinfo=UTC)
WORDS = np.array(["late", "gate", "crew", "storm", "bag", "door", "seat", "fuel"])


def comments(rows: int, seed: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, 8 + int(more))) for more in generator.integers(0, 6, rows)]
    return pl.DataFrame({"note": texts, "price": generator.normal(size=rows), "score": generator.uniform(size=rows)})


def test_free_texts_are_counted_by_numbers_derived_from_them(tmp_path: Path) -> None:
    with open_store(tmp_path / "home", project="default", actor="user:test") as store:
        store.simulate(START)
        signature = {
            "task": "binary",
            "classes": [False, True],
            "inputs": [{"name": "note", "type": "string"}, {"name": "price", "type": "float"}],
        }
        store.records.put(
            store.new(EndpointRecord, name="m", model="m"),
            store.new(ModelVersion, model="m", version=1, package="none", signature=signature),
        )
        frame = comments(500, 1)
        baseline = build_baseline(frame.select("note", "price"), scored=frame.select("score"))
        keep_baseline(store, "m@1", baseline)
        moments = pl.Series([START + timedelta(minutes=30 * place) for place in range(200)])
        logged = comments(200, 2).select(
            pl.int_range(200).cast(pl.String).alias("id"),
            pl.lit(moments).alias("event_at"),
            pl.lit(moments).alias("arrived_at"),
            pl.lit("m@1").alias("version"),
            pl.lit("champion").alias("role"),
            pl.lit(None, pl.String).alias("entity"),
            "score",
            pl.lit(0.01).alias("seconds"),
            input_note="note",
            input_price="price",
        )
        store.tables.append("predictions/m", logged)
        until = START + timedelta(hours=100)
        store.simulate(until)
        (window,) = read_aggregates(store, "m", START, until, "m@1")
        assert set(window.inputs) == set(baseline.bins)
        assert "note.length" in window.inputs
        rows = read_inputs_and_score(store, "m", "m@1", START, until, baseline.columns)
        features, score = sketch_window(baseline, rows)
        assert {name: sketch.counts for name, sketch in window.inputs.items()} == {
            name: sketch.counts for name, sketch in features.items()
        }
        known = read_sketches(store, "m", "m@1", START, until, baseline)
        assert known is not None
        assert known.features == window.inputs
        assert known.score is not None
        assert score is not None
        assert known.score.counts == score.counts
        assert sum(window.inputs["note.length"].counts[1:]) == 200
