from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.errors import CorruptionError, EmptySampleError, NotFoundError, StoreVersionError, UsageError
from everloop.monitoring import Baseline, build_baseline, find_baseline, keep_baseline, load_baseline
from everloop.monitoring.baseline import cut_by_time, spread_beyond_chance
from everloop.monitoring.drift_judge import judge_for
from everloop.records import Artifact
from everloop.training.intervals import delong

if TYPE_CHECKING:
    from conftest import Airport
    from everloop.stores import Store

START = datetime(2024, 3, 4, tzinfo=UTC)
HOUR = timedelta(hours=1)
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


@pytest.mark.parametrize(
    ("rows", "days", "span", "number"),
    [(1000, 64, None, 24), (3000, 64, 24 * HOUR, 64), (40_000, 64, HOUR, 1536)],
)
def test_blocks_count_every_row_once(
    airport: Airport, rows: int, days: int, span: timedelta | None, number: int
) -> None:
    frame = airport.flights(rows, 3, span=timedelta(days=days))
    baseline = build_baseline(frame, FEATURES, time="event_at", scored=frame)
    blocks = baseline.features.blocks
    assert blocks is not None
    assert blocks.number == number
    assert span is None or blocks.span == span
    assert blocks.start == START
    for name in FEATURES:
        counts = blocks.counts_of(name)
        assert counts.shape == (number, baseline.bins[name].cells)
        assert tuple(counts.sum(axis=0)) == baseline.features.sketches[name].counts
        # Each block counts the rows of its own time.
        second = frame.filter(pl.col("event_at").is_between(START + blocks.span, START + 2 * blocks.span, "left"))
        assert tuple(counts[1]) == sketch_frame(second, baseline.bins)[name].counts
    assert baseline.score is not None
    assert baseline.score.blocks is not None
    assert baseline.score.blocks.counts_of("prediction").sum() == rows


def test_scores_are_divided_into_the_blocks_of_the_features(airport: Airport) -> None:
    frame = airport.flights(3000, 3, span=timedelta(days=60))
    # Held-out rows of the last days, some of them later than the reference.
    held_out = airport.flights(500, 4, start=START + timedelta(days=50), span=timedelta(days=20))
    score = build_baseline(frame, FEATURES, time="event_at", scored=held_out).score
    assert score is not None
    assert score.blocks is not None
    rows = score.blocks.counts_of("prediction").sum(axis=1)
    assert len(rows) == 60
    assert (rows[:50] == 0).all()
    assert rows.sum() == 250
    untimed = build_baseline(frame, FEATURES, time="event_at", scored=held_out.drop("event_at")).score
    assert untimed is not None
    assert untimed.blocks is None
    assert untimed.sketches["prediction"].rows == 500


def test_a_baseline_of_format_1_is_read_without_its_blocks() -> None:
    old = {
        "format": 1,
        "rows": 10,
        "features": {
            "sketches": {
                "x": {"bins": {"edges": [0.0, 1.0, 2.0]}, "counts": [0, 0, 4, 6, 0], "moments": [10, 1.1, 2.0, 0.1, 2]},
                "c": {"bins": {"categories": ["a"], "complete": True}, "counts": [1, 9, 0]},
            },
            "blocks": {"span_s": 86400.0, "counts": {"x": [[0, 0, 4, 6, 0]], "c": [[1, 9, 0]]}},
        },
        "score": None,
        "metric": {
            "name": "roc_auc",
            "value": 0.7,
            "low": 0.6,
            "high": 0.8,
            "standard_error": 0.05,
            "rows": 10,
            "restlessness": 0.02,
        },
        "skipped": {},
    }
    baseline = Baseline.from_json(json.dumps(old).encode())
    assert baseline.features.blocks is None
    assert baseline.features.sketches["x"].counts == (0, 0, 4, 6, 0)
    assert baseline.metric is not None
    assert baseline.metric.between_block_std == 0.02
    assert baseline.score_effects is None
    assert baseline.pairs is None
    assert json.loads(baseline.to_json())["format"] == 2
    assert Baseline.from_json(baseline.to_json()) == baseline
    # It can judge a window.
    judge = judge_for(baseline, timedelta(days=1), 10, 1 / 30)
    assert judge.limit > 1


def test_the_digest_follows_the_content(airport: Airport) -> None:
    frame = airport.flights(3000, 3, span=timedelta(days=60))
    plain, again = (build_baseline(frame, FEATURES, time="event_at", scored=frame) for _ in range(2))
    assert plain.digest() == again.digest()
    assert Baseline.from_json(plain.to_json()).digest() == plain.digest()
    later = frame.with_columns(pl.col("event_at") + timedelta(days=1))
    shuffled = frame.with_columns(pl.col("event_at").shuffle(seed=1))
    others = [
        build_baseline(frame, FEATURES, time="event_at"),
        build_baseline(frame, FEATURES, scored=frame),
        build_baseline(later, FEATURES, time="event_at", scored=frame),
        build_baseline(shuffled, FEATURES, time="event_at", scored=frame),
        build_baseline(frame, FEATURES[:2], time="event_at", scored=frame),
    ]
    assert len({plain.digest(), *(other.digest() for other in others)}) == 6


def test_damaged_blocks_are_an_error(airport: Airport) -> None:
    content = json.loads(build_baseline(airport.flights(3000, 3), FEATURES, time="event_at").to_json())
    for damaged in ("AAAA", "?", None):
        content["features"]["blocks"]["counts"]["wind"] = damaged
        with pytest.raises(CorruptionError, match="not a baseline"):
            Baseline.from_json(json.dumps(content).encode())
    content["features"]["sketches"] = []
    with pytest.raises(CorruptionError, match="not a baseline"):
        Baseline.from_json(json.dumps(content).encode())


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


def test_spread_beyond_chance_recovers_a_known_spread() -> None:
    generator = np.random.default_rng(0)
    truths = generator.normal(0.7, 0.05, 400)
    pieces = [(float(value), 0.03) for value in truths + generator.normal(0, 0.03, 400)]
    assert spread_beyond_chance(pieces) == pytest.approx(0.05, rel=0.15)
    assert spread_beyond_chance([(0.7, 0.03)] * 20) == 0
    assert spread_beyond_chance(pieces[:5]) == 0


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
