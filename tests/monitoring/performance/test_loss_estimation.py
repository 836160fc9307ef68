import json
import math

import numpy as np
import polars as pl
import pytest

from everloop.errors import CorruptionError, DataError, EmptySampleError, UsageError
from everloop.monitoring import LossEstimator
from everloop.monitoring.performance.boosted_trees import BoostedTrees, fit_trees
from everloop.monitoring.performance.loss_estimation import LossModel, _missed_by_cell
from everloop.training.metrics import score

Rows = tuple[pl.DataFrame, np.ndarray, np.ndarray]


def rents(rows: int, seed: int, shift: float = 0.0, drift: float = 0.0) -> Rows:
    """Inputs, predictions and labels; errors grow with the size and are larger in one of the cities."""
    rng = np.random.default_rng(seed)
    size, city = rng.normal(shift, 1, rows), rng.choice(["Bonn", "Graz", "Linz"], rows)
    spread = np.exp(0.5 * size) + 2 * (city == "Graz")
    predicted = 50 + 5 * size
    inputs = pl.DataFrame({"size": size, "city": city, "idle": rng.normal(size=rows)})
    return inputs, predicted, predicted + drift + rng.normal(size=rows) * spread


@pytest.fixture(scope="module")
def fitted() -> LossEstimator:
    return LossEstimator.fit(*rents(2000, 0), ["mae", "rmse", "mape", "r2"])


@pytest.mark.slow
def test_losses_are_estimated_under_covariate_shift(fitted: LossEstimator) -> None:
    for shift in (-0.7, 0.0, 0.7):
        inputs, predicted, actual = rents(3000, 5, shift)
        for name, found in fitted.estimate(inputs, predicted).items():
            realised = score(name, actual, predicted)
            assert found.value == pytest.approx(realised, rel=0.12 if name != "r2" else 0.05)
            assert found.low <= found.value <= found.high
            assert found.low <= realised <= found.high


def test_labels_with_another_error_contradict_the_estimate(fitted: LossEstimator) -> None:
    assert not any(check.contradicted for check in fitted.check(*rents(2000, 3, 0.5)))
    checks = {check.metric: check for check in fitted.check(*rents(2000, 3, drift=3.0))}
    assert checks["mae"].contradicted
    assert checks["mae"].p_value < 1e-6
    assert "show mae" in (checks["mae"].reason or "")


def test_an_estimator_survives_json() -> None:
    inputs, predicted, actual = rents(300, 0)
    fitted = LossEstimator.fit(inputs, predicted, actual, "mae", times=np.arange(300))
    again = LossEstimator.from_json(json.loads(json.dumps(fitted.to_json())))
    before, after = (one.estimate(inputs, predicted)["mae"] for one in (fitted, again))
    assert after.value == pytest.approx(before.value, rel=1e-5)
    assert after.standard_error == pytest.approx(before.standard_error, rel=1e-3)
    assert "mae" in again.between_blocks
    for broken in ({}, {"format": 99}, {**fitted.to_json(), "losses": 3}):
        with pytest.raises(CorruptionError, match="not a loss estimator"):
            LossEstimator.from_json(broken)


@pytest.mark.slow
def test_odd_inputs_count_as_missing(fitted: LossEstimator) -> None:
    inputs, predicted, _ = rents(200, 1)
    odd = [
        inputs.drop("city"),
        inputs.with_columns(city=pl.lit("Wien")),
        inputs.with_columns(size=pl.lit(None, dtype=pl.Float64)),
        inputs.with_columns(size=pl.lit(math.inf)),
        inputs.with_columns(size=pl.lit("large")),
        inputs.with_columns(city=pl.lit(3)),
        inputs.with_columns(size=pl.lit(None), city=pl.lit([1, 2])),
    ]
    for frame in odd:
        assert math.isfinite(fitted.estimate(frame, predicted)["mae"].value)
    assert fitted.estimate(inputs.head(1), predicted[:1])["mae"].rows == 1
    holes = predicted.copy()
    holes[:50] = math.nan
    assert fitted.estimate(inputs, holes)["mae"].rows == 150


@pytest.mark.slow
def test_constant_inputs_and_perfect_predictions_have_results() -> None:
    frame = pl.DataFrame({"one": [1.0] * 100, "none": [None] * 100, "day": [[1]] * 100})
    values = np.arange(100.0)
    perfect = LossEstimator.fit(frame, values, values, ["mae", "r2"]).estimate(frame, values)
    assert perfect["mae"].value == pytest.approx(0.0, abs=1e-6)
    assert perfect["r2"].value == pytest.approx(1.0, abs=1e-6)
    constant = LossEstimator.fit(frame, np.ones(100), np.ones(100), "r2").estimate(frame, np.ones(100))["r2"]
    assert math.isnan(constant.value)


def test_bad_arguments_are_explained(fitted: LossEstimator) -> None:
    inputs, predicted, actual = rents(100, 0)
    with pytest.raises(EmptySampleError, match="Only 20 rows"):
        LossEstimator.fit(inputs.head(20), predicted[:20], actual[:20])
    with pytest.raises(DataError, match="100 rows of inputs"):
        LossEstimator.fit(inputs, predicted[:50], actual)
    with pytest.raises(UsageError, match="median_ae cannot be estimated"):
        LossEstimator.fit(inputs, predicted, actual, "median_ae")
    with pytest.raises(UsageError, match="roc_auc is not for regression"):
        fitted.estimate(inputs, predicted, "roc_auc")
    with pytest.raises(UsageError, match="Fit the estimator with"):
        LossEstimator.fit(inputs, predicted, actual, "mae").estimate(inputs, predicted, "rmse")
    with pytest.raises(EmptySampleError, match="no row with a prediction"):
        fitted.estimate(inputs, np.full(100, math.nan))
    with pytest.raises(EmptySampleError, match="both a prediction and a label"):
        fitted.check(inputs, predicted, np.full(100, math.nan))
    with pytest.raises(DataError, match="must be numbers"):
        fitted.estimate(inputs, ["a"] * 100)


def test_trees_find_an_interaction_and_survive_json() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (3000, 3)).astype(np.int32)
    target = np.where((codes[:, 0] > 7) & (codes[:, 1] > 7), 5.0, 1.0)
    trees = fit_trees(codes, 16, target + rng.normal(size=3000) * 0.1, trees=60)
    assert np.abs(trees.predict(codes) - target).mean() < 0.1
    again = BoostedTrees.from_json(json.loads(json.dumps(trees.to_json())))
    assert again.predict(codes) == pytest.approx(trees.predict(codes), abs=1e-4)


def test_what_the_models_miss_is_counted_by_cell() -> None:
    codes = np.array([[1], [1], [1], [1], [3], [3], [3], [3]], dtype=np.int32)
    missed = np.array([1.0, -1.0, 1.0, -1.0, 8.0, 0.0, 8.0, 0.0])
    rows, means, variances = _missed_by_cell(codes, 5, missed)[0]
    assert rows.tolist() == [4] * 5, "cells without rows are described by the nearest one with rows"
    assert means.tolist() == [0, 0, 0, 4, 4]
    pooled = 10 * missed.var()
    assert variances[[1, 3]] == pytest.approx([(4 + pooled) / 13, (64 + pooled) / 13])
    model = LossModel((), 1.0, (), _missed_by_cell(codes, 5, missed))
    error, single = model.missed(np.full((6, 1), 3, dtype=np.int32))
    chance = math.sqrt(variances[3] / 4)
    assert error == pytest.approx(math.hypot(chance, max(0, 4 - chance)))
    assert single == pytest.approx(variances[3])


@pytest.mark.slow
def test_intervals_contain_the_realised_value_where_the_reference_has_few_rows() -> None:
    def counts(rng: np.random.Generator, rows: int, shift: float) -> Rows:
        x = rng.normal(0, 1, (rows, 3))
        x[:, 0] += shift
        actual = rng.poisson(np.exp(1.5 + 0.6 * x[:, 0] + 0.3 * x[:, 1] * x[:, 2])).astype(float)
        return pl.DataFrame(x, ["a", "b", "c"]), np.exp(1.5 + 0.6 * x[:, 0]), actual

    gaps = []
    for seed in range(3):
        rng = np.random.default_rng([seed, 6, 77])
        fitted = LossEstimator.fit(*counts(rng, 5000, 0.0), "rmse")
        inputs, predicted, actual = counts(rng, 2000, -1.5)
        found = fitted.estimate(inputs, predicted)["rmse"]
        gaps.append((score("rmse", actual, predicted) - found.value) / found.standard_error)
    assert max(map(abs, gaps)) < 1.96
