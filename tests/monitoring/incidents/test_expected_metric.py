from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.data.sketches.column_sketches import sketch_frame
from everloop.monitoring import Baseline, build_baseline, watch_table
from everloop.monitoring.baseline import PREDICTION
from everloop.monitoring.incidents.expected_metric import expect_metric
from everloop.training.metrics import score as measure

START = datetime(2024, 1, 1, tzinfo=UTC)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def classes(rows: int, seed: int, shift: float = 0.0) -> pl.DataFrame:
    """Probabilities that are nearer to one half, and so worse, the larger the first input."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2)) + np.array([shift, 0])
    chance = sigmoid(2.5 * x[:, 1] * np.exp(-0.8 * x[:, 0]))
    return pl.DataFrame(
        {"x": x[:, 0], "z": x[:, 1], "score": chance, "actual": generator.uniform(size=rows) < chance}
    ).with_columns(pl.col("actual").cast(pl.Float64))


def numbers(rows: int, seed: int, shift: float = 0.0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2)) + np.array([shift, 0])
    score = 50 + 5 * x[:, 0]
    actual = score + 3 * np.exp(0.3 * x[:, 0]) * generator.normal(size=rows)
    return pl.DataFrame({"x": x[:, 0], "z": x[:, 1], "score": score, "actual": actual})


def baseline_of(rows: pl.DataFrame, metric: str) -> Baseline:
    inputs = rows.select("x", "z")
    return build_baseline(inputs, scored=rows.select("score", "actual"), scored_inputs=inputs, metric=metric)


def sketch_of(baseline: Baseline, rows: pl.DataFrame):
    assert baseline.score is not None
    return sketch_frame(
        rows.select(pl.col("score").alias(PREDICTION)), {k: v.bins for k, v in baseline.score.sketches.items()}
    )[PREDICTION]


def no_rows() -> pl.DataFrame:
    raise AssertionError("Rows must not be read.")


def test_two_classes_need_only_the_sketch_of_the_scores() -> None:
    baseline = Baseline.from_json(baseline_of(classes(6000, 1), "roc_auc").to_json())
    late = classes(4000, 2, shift=0.7)
    found = expect_metric(baseline, sketch_of(baseline, late), no_rows)
    assert found is not None
    assert baseline.metric is not None
    realised = baseline.metric.value - measure("roc_auc", late["actual"].to_numpy(), late["score"].to_numpy())
    assert found.before == pytest.approx(baseline.metric.value)
    assert found.loss == pytest.approx(realised, rel=0.3)
    assert found.fallen


def test_scores_outside_the_reference_are_read_from_rows() -> None:
    baseline = baseline_of(classes(3000, 1).filter(pl.col("score") < 0.7), "roc_auc")
    late = classes(2000, 2)
    read: list[int] = []

    def rows() -> pl.DataFrame:
        read.append(1)
        return late.select("score")

    assert expect_metric(baseline, sketch_of(baseline, late), rows) is not None
    assert read


@pytest.mark.slow
def test_a_regression_is_estimated_from_rows_with_their_inputs() -> None:
    baseline = Baseline.from_json(baseline_of(numbers(6000, 1), "rmse").to_json())
    late = numbers(4000, 2, shift=1.0)
    found = expect_metric(baseline, sketch_of(baseline, late), lambda: late.select("score", input_x="x", input_z="z"))
    assert found is not None
    assert baseline.metric is not None
    realised = measure("rmse", late["actual"].to_numpy(), late["score"].to_numpy()) - baseline.metric.value
    assert found.loss == pytest.approx(realised, rel=0.3)
    assert found.fallen


def test_without_labels_or_rows_nothing_is_expected() -> None:
    frame = numbers(500, 1)
    plain = build_baseline(frame.select("x", "z"), scored=frame.select("score"))
    assert expect_metric(plain, sketch_of(plain, frame), no_rows) is None
    learned = baseline_of(frame, "rmse")
    assert expect_metric(learned, sketch_of(learned, frame), lambda: None) is None
    # A metric that is no mean of losses is left out, not an error.
    median = baseline_of(frame, "median_ae")
    assert expect_metric(median, sketch_of(median, frame), no_rows) is None


@pytest.mark.slow
def test_a_baseline_of_twenty_features_stays_small() -> None:
    generator = np.random.default_rng(3)
    inputs = pl.DataFrame({f"x{index}": generator.normal(size=1500) for index in range(20)})
    scored = pl.DataFrame({"score": inputs["x0"], "actual": inputs["x0"] + generator.normal(size=1500)})
    built = build_baseline(inputs, scored=scored, scored_inputs=inputs, metric="rmse")
    assert len(built.to_json()) < 200_000


@pytest.mark.slow
def test_an_incident_of_a_table_says_what_is_expected() -> None:
    def dated(rows: pl.DataFrame, start: datetime) -> pl.DataFrame:
        days = [start + timedelta(days=place * 10 // rows.height) for place in range(rows.height)]
        return rows.with_columns(at=pl.Series(days))

    reference = dated(numbers(4000, 1), START).rename({"score": "p", "actual": "y"})
    current = dated(numbers(4000, 2, shift=1.0), START + timedelta(days=10)).rename({"score": "p"}).drop("actual")
    report = watch_table(reference, current, time="at", prediction="p", target="y")
    assert [one.severity for one in report.incidents] == ["alarm"]
    assert "rmse is expected to be" in report.incidents[0].message
    harm = report.incidents[0].evidence["harm"]
    assert harm["expected"]["loss"] > 0
