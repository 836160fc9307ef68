from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.errors import CorruptionError, EmptySampleError, NotFoundError, StoreVersionError, UsageError
from everloop.monitoring import Baseline, build_baseline, find_baseline, keep_baseline, load_baseline, watch_table
from everloop.monitoring.baseline import cut_by_time
from everloop.records import Artifact
from everloop.training.intervals import delong

if TYPE_CHECKING:
    from conftest import Airport
    from everloop.stores import Store

START = datetime(2024, 3, 4, tzinfo=UTC)
FEATURES = ("distance", "carrier", "wind")


def scored(airport: Airport, rows: int, seed: int, **shift: float) -> pl.DataFrame:
    return airport.flights(rows, seed, span=timedelta(days=30), **shift).with_columns(
        actual=pl.col("late").cast(pl.Int8)
    )


def test_a_baseline_sketches_features_and_score_and_measures(airport: Airport) -> None:
    frame, held_out = airport.flights(5000, 1, span=timedelta(days=90)), scored(airport, 2000, 2)
    baseline = build_baseline(frame, FEATURES, time="event_at", scored=held_out, metric="roc_auc")
    assert baseline.rows == 5000
    assert list(baseline.features.sketches) == list(FEATURES)
    assert baseline.features.sketches == sketch_of(frame, baseline)
    assert baseline.score is not None
    assert baseline.score.sketches["prediction"].rows == 2000
    assert baseline.metric is not None
    exact = delong(held_out["actual"].to_numpy(), held_out["score"].to_numpy())
    assert (baseline.metric.value, baseline.metric.low, baseline.metric.high) == (exact.value, exact.low, exact.high)
    assert baseline.metric.rows == 2000
    assert baseline.metric.between_block_std < 0.05


def sketch_of(frame: pl.DataFrame, baseline: Baseline) -> dict[str, object]:
    whole = sketch_frame(frame, baseline.bins)
    # Moments come from adding blocks, and floating-point sums know their order.
    for name, sketch in baseline.features.sketches.items():
        assert sketch.counts == whole[name].counts
        if sketch.moments is not None and whole[name].moments is not None:
            assert sketch.moments.mean == pytest.approx(whole[name].moments.mean)  # type: ignore[union-attr]
    return dict(baseline.features.sketches)


def test_a_baseline_survives_json(airport: Airport) -> None:
    frame = airport.flights(800, 1, span=timedelta(days=90)).with_columns(when=pl.col("event_at"))
    baseline = build_baseline(
        frame, [*FEATURES, "when"], time="event_at", scored=scored(airport, 500, 2), metric="log_loss"
    )
    assert "when" in baseline.skipped
    content = baseline.to_json()
    assert Baseline.from_json(content) == baseline
    assert Baseline.from_json(content).to_json() == content
    plain = build_baseline(frame, FEATURES)
    assert plain.features.blocks is None
    assert Baseline.from_json(plain.to_json()) == plain


def test_content_that_is_not_a_baseline_is_an_error(airport: Airport) -> None:
    with pytest.raises(CorruptionError, match="not a baseline"):
        Baseline.from_json(b"{}")
    with pytest.raises(CorruptionError, match="not a baseline"):
        Baseline.from_json(b"\xff")
    newer = json.loads(build_baseline(airport.flights(50, 1), FEATURES).to_json()) | {"format": 99}
    with pytest.raises(StoreVersionError, match="format 99"):
        Baseline.from_json(json.dumps(newer).encode())


def test_a_version_keeps_its_newest_baseline(store: Store, airport: Airport) -> None:
    assert find_baseline(store, "delays@1") is None
    with pytest.raises(NotFoundError, match="'delays@1' has no baseline"):
        load_baseline(store, "delays@1")
    first, second = (build_baseline(airport.flights(rows, 1), FEATURES) for rows in (100, 200))
    kept = keep_baseline(store, "delays@1", first)
    assert keep_baseline(store, "delays@1", first) == kept
    assert len(store.records.find(Artifact)) == 1
    assert load_baseline(store, "delays@1") == first
    keep_baseline(store, "delays@1", second)
    assert load_baseline(store, "delays@1") == second
    with pytest.raises(NotFoundError, match="Versions with one: delays@1"):
        load_baseline(store, "delays@2")


def test_blocks_have_equal_lengths_of_time() -> None:
    frame = pl.DataFrame({"t": [START + timedelta(hours=h) for h in (0, 30, 1, 2, 99, 100)] + [None], "x": range(7)})
    cut = cut_by_time(frame, "t", 4)
    assert cut is not None
    span, parts, undated = cut
    assert span == pytest.approx(timedelta(hours=25), abs=timedelta(seconds=1))
    assert [part["x"].to_list() for part in parts] == [[0, 2, 3], [1], [], [4, 5]]
    assert undated["x"].to_list() == [6]
    assert cut_by_time(frame.head(1), "t", 4) is None
    assert cut_by_time(frame.clear(), "t", 4) is None


def test_blocks_count_every_row_once(airport: Airport) -> None:
    frame = airport.flights(2000, 3, span=timedelta(days=64))
    blocks = build_baseline(frame, FEATURES, time="event_at").features.blocks
    assert blocks is not None
    assert (blocks.span, blocks.number) == (timedelta(days=1), 64)
    sketches = build_baseline(frame, FEATURES).features.sketches
    for name in FEATURES:
        assert tuple(blocks.counts_of(name).sum(axis=0)) == sketches[name].counts


@pytest.mark.slow
def test_the_variation_of_a_metric_between_blocks_is_measured(airport: Airport) -> None:
    steady = pl.concat([scored(airport, 400, seed) for seed in range(12)]).with_columns(
        event_at=pl.Series([START + timedelta(minutes=place) for place in range(4800)])
    )
    restless = pl.concat([scored(airport, 400, seed, fog=0.9 * (seed % 2)) for seed in range(12)]).with_columns(
        steady["event_at"]
    )
    values = []
    for held_out in (steady, restless):
        metric = build_baseline(
            airport.flights(100, 1), FEATURES, time="event_at", scored=held_out, metric="roc_auc"
        ).metric
        assert metric is not None
        values.append(metric.between_block_std)
    assert values[0] < 0.02
    assert values[1] > 0.05


def test_invalid_references_are_errors(airport: Airport) -> None:
    frame = airport.flights(50, 1)
    with pytest.raises(EmptySampleError, match="reference has none"):
        build_baseline(frame.clear(), FEATURES)
    with pytest.raises(UsageError, match="no column 'day'"):
        build_baseline(frame, FEATURES, time="day")
    with pytest.raises(UsageError, match="'wind' is Float64, not a date"):
        build_baseline(frame, ["distance"], time="wind")
    with pytest.raises(UsageError, match="need a column 'score'"):
        build_baseline(frame, FEATURES, scored=frame.drop("score"))
    with pytest.raises(UsageError, match="needs scored rows"):
        build_baseline(frame, FEATURES, metric="roc_auc")
    with pytest.raises(UsageError, match="needs labels"):
        build_baseline(frame, FEATURES, scored=frame, metric="roc_auc")
    with pytest.raises(UsageError, match="more than one class"):
        build_baseline(frame, FEATURES, scored=frame.with_columns(actual=pl.lit(1.0)), metric="roc_auc")
    with pytest.raises(EmptySampleError, match="none of the scored rows has a label"):
        build_baseline(frame, FEATURES, scored=frame.with_columns(actual=pl.lit(None, pl.Float64)), metric="roc_auc")


@pytest.mark.slow
def test_free_texts_and_vectors_are_monitored_by_numbers_derived_from_them() -> None:
    generator = np.random.default_rng(4)
    words = np.array(["late", "gate", "crew", "storm", "bag", "door", "seat", "fuel"])

    def table(rows: int, length: int, start: datetime) -> pl.DataFrame:
        texts = [" ".join(generator.choice(words, length + int(extra))) for extra in generator.integers(0, 6, rows)]
        return pl.DataFrame(
            {
                "note": texts,
                "embedding": generator.normal(size=(rows, 3)),
                "price": generator.normal(size=rows),
                "at": [start + timedelta(hours=place) for place in range(rows)],
            }
        )

    frame = table(1200, 8, START)
    scored = frame.select("at", score="price", actual=pl.col("price") * 2)
    built = build_baseline(frame, time="at", scored=scored, scored_inputs=frame.drop("at"), metric="rmse")
    assert Baseline.from_json(built.to_json()) == built
    assert built.columns == ["price", "note", "embedding"]
    assert {"price", "note.length", "note.unknown_words", "embedding.norm"} <= set(built.bins)
    assert not {"note", "embedding"} & set(built.bins)
    # Texts that became longer are drift of their length.
    report = watch_table(frame, table(240, 16, START + timedelta(hours=1200)), time="at")
    assert "note.length" in report.incidents[0].subjects
