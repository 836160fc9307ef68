"""The change of a pair's correlation in one window, in numbers and in words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.monitoring import Baseline, build_baseline
from everloop.monitoring.drift_judge import judge_for
from everloop.monitoring.pair_shift import PairShift, measure_pairs
from everloop.monitoring.stream_monitoring import judge_windows
from everloop.monitoring.window_counts import join_windows

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS = 400


def table(days: int, seed: int, correlation: float = 0.5) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    x, y = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], days * ROWS).T
    times = [START + DAY * number / ROWS for number in range(days * ROWS)]
    return pl.DataFrame({"at": times, "prediction": x, "y": y, "z": generator.normal(size=days * ROWS)})


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return build_baseline(table(60, 1), ["prediction", "y", "z"], time="at")


def shifts_of(baseline: Baseline, correlations: np.ndarray | None, rows: float = ROWS) -> list[PairShift]:
    """The shifts of a window whose columns are as in the reference."""
    counts = {
        name: np.round(sketch.array() * rows / sketch.rows) for name, sketch in baseline.features.sketches.items()
    }
    windows = join_windows([START + 60 * DAY], DAY, [counts], [correlations])
    judgement = judge_windows(baseline, windows, 1.0)[0]
    return measure_pairs(baseline, judgement, correlations)


def test_a_pair_that_is_as_before_is_quiet(baseline: Baseline) -> None:
    assert baseline.pairs is not None
    found = shifts_of(baseline, np.array(baseline.pairs.values))
    assert [one.pair for one in found] == [("prediction", "y"), ("prediction", "z"), ("y", "z")]
    assert {(one.verdict, one.calm, one.strong, one.psi) for one in found} == {("quiet", True, False, 0.0)}
    assert all(one.before == pytest.approx(one.now) for one in found)


def test_a_changed_pair_is_described_in_a_sentence(baseline: Baseline) -> None:
    assert baseline.pairs is not None
    found = shifts_of(baseline, np.array(baseline.pairs.values) + np.array([0.0, 0.9, 0.0]))
    assert [one.verdict for one in found] == ["quiet", "alarm", "quiet"]
    changed = found[1]
    assert changed.subject == "prediction × z"
    assert changed.strong
    assert not changed.calm
    assert changed.strength > 1
    assert changed.p_value < 1e-9
    assert changed.message() == (
        "'prediction' and 'z' are related differently than before: "
        f"their rank correlation is {changed.now:.2f}, before it was {changed.before:.2f}."
    )
    assert changed.evidence() == {
        "correlation": [changed.before, changed.now],
        "p_value": changed.p_value,
        "strength": changed.strength,
        "direction": "correlation",
    }
    assert changed.now == pytest.approx(np.tanh(0.9 + np.arctanh(changed.before)))


def test_a_certain_change_of_a_small_amount_is_quiet(baseline: Baseline) -> None:
    assert baseline.pairs is not None
    moved = np.array(baseline.pairs.values) + np.array([0.0, 0.09, 0.0])
    steady = replace(baseline, pairs=replace(baseline.pairs, rows=10**7))
    found = shifts_of(steady, moved, rows=4.0**10)
    assert found[1].strength > 1
    assert [(one.verdict, one.calm) for one in found] == [("quiet", True)] * 3
    moved = np.array(baseline.pairs.values) + np.array([0.0, 0.11, 0.0])
    assert [one.verdict for one in shifts_of(steady, moved, rows=4.0**10)] == ["quiet", "alarm", "quiet"]


def test_pairs_that_are_not_known_are_left_out(baseline: Baseline) -> None:
    assert baseline.pairs is not None
    assert shifts_of(baseline, None) == []
    values = np.array(baseline.pairs.values)
    values[0] = np.nan
    assert [one.pair for one in shifts_of(baseline, values)] == [("prediction", "z"), ("y", "z")]
    assert shifts_of(replace(baseline, pairs=None), np.array(baseline.pairs.values)) == []


def test_a_feature_that_is_called_like_the_score_has_the_name_of_its_subject() -> None:
    frame = table(60, 1)
    built = build_baseline(
        frame, ["prediction", "y", "z"], time="at", scored=frame.select("at", pl.col("z").alias("score"))
    )
    assert built.pairs is not None
    judge = judge_for(built, DAY, ROWS, 0.03)
    pairs = [subject for subject, direction in judge.model.names if direction == "correlation"]
    assert pairs == ["input_prediction × y", "input_prediction × z", "y × z"]


def test_pairs_are_kept_with_the_baseline(baseline: Baseline) -> None:
    again = Baseline.from_json(baseline.to_json())
    assert again.pairs == baseline.pairs
    assert again.pairs is not None
    rows = np.full(60, float(ROWS))
    moments = again.pairs.block_moments(rows)
    assert moments is not None
    assert moments.correlations().shape == (60, 3)
    assert np.tanh(moments.correlations()[:, 0].mean()) == pytest.approx(0.5, abs=0.05)
    # Integers in steps of 1/8000 lose little: all blocks together are the whole.
    assert moments.merged(60).correlations()[0] == pytest.approx(again.pairs.values, abs=0.002)


def test_one_column_has_no_pairs() -> None:
    assert build_baseline(table(60, 1), ["y"], time="at").pairs is None
    assert build_baseline(table(60, 1).with_columns(z=pl.lit(1.0)), ["y", "z"], time="at").pairs is None
