"""Metrics compared with scikit-learn, and row weights compared with repeated rows."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as reference

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.training.metrics import METRICS, get_metric, higher_is_better, metrics_of, score


def binary_sample(rows=400, seed=0, steps=None):
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(float)
    scores = np.clip(rng.normal(0.35 + 0.2 * y, 0.2), 0, 1)
    return y, np.round(scores * steps) / steps if steps else scores


def multiclass_sample(rows=400, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows).astype(float)
    raw = rng.random((rows, classes)) + np.eye(classes)[y.astype(int)]
    return y, raw / raw.sum(axis=1, keepdims=True)


def regression_sample(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.normal(5, 2, rows)
    return y, y + rng.normal(0, 1, rows)


BINARY = {
    "roc_auc": reference.roc_auc_score,
    "average_precision": reference.average_precision_score,
    "log_loss": reference.log_loss,
    "brier": reference.brier_score_loss,
    "accuracy": lambda y, s: reference.accuracy_score(y, s >= 0.5),
    "f1": lambda y, s: reference.f1_score(y, s >= 0.5),
    "precision": lambda y, s: reference.precision_score(y, s >= 0.5),
    "recall": lambda y, s: reference.recall_score(y, s >= 0.5),
}
MULTICLASS = {
    "roc_auc": lambda y, s: reference.roc_auc_score(y, s, multi_class="ovr"),
    "log_loss": reference.log_loss,
    "accuracy": lambda y, s: reference.accuracy_score(y, s.argmax(axis=1)),
    "f1": lambda y, s: reference.f1_score(y, s.argmax(axis=1), average="macro"),
    "precision": lambda y, s: reference.precision_score(y, s.argmax(axis=1), average="macro"),
    "recall": lambda y, s: reference.recall_score(y, s.argmax(axis=1), average="macro"),
}
REGRESSION = {
    "rmse": lambda y, s: reference.mean_squared_error(y, s) ** 0.5,
    "mae": reference.mean_absolute_error,
    "median_ae": reference.median_absolute_error,
    "mape": reference.mean_absolute_percentage_error,
    "r2": reference.r2_score,
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("steps", [None, 7])
def test_binary_metric_is_that_of_scikit_learn(name, steps):
    y, scores = binary_sample(steps=steps)
    assert score(name, y, scores) == pytest.approx(BINARY[name](y, scores), abs=1e-12)


@pytest.mark.parametrize("name", MULTICLASS)
def test_multiclass_metric_is_that_of_scikit_learn(name):
    y, scores = multiclass_sample()
    assert score(name, y, scores) == pytest.approx(MULTICLASS[name](y, scores), abs=1e-12)


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_metric_is_that_of_scikit_learn(name):
    y, scores = regression_sample()
    assert score(name, y, scores) == pytest.approx(REGRESSION[name](y, scores), rel=1e-12)


def test_every_metric_but_calibration_has_a_reference():
    assert set(METRICS) - {"ece"} == set(BINARY) | set(MULTICLASS) | set(REGRESSION)


def test_calibration_error_of_a_worked_example():
    # Two bins are filled: told 0.25 and came 1/2, told 0.85 and came 1; half of the rows in each.
    y, scores = [0, 1, 1, 1], [0.25, 0.25, 0.85, 0.85]
    assert score("ece", y, scores) == pytest.approx(0.5 * 0.25 + 0.5 * 0.15)


def test_calibration_error_of_perfect_classes_is_zero():
    assert score("ece", [0, 1, 2], np.eye(3)) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([n for n in METRICS if n != "median_ae"]),
    counts=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    seed=st.integers(0, 50),
)
def test_whole_weights_are_repeated_rows(name, counts, seed):
    if sum(counts) == 0:
        return
    if "regression" in METRICS[name].tasks:
        y, scores = regression_sample(12, seed)
    else:
        y, scores = binary_sample(12, seed, steps=5)
    repeated = np.repeat(np.arange(12), counts)
    weighted = METRICS[name].prepare(y, scores)(np.array(counts, dtype=float))
    plain = score(name, y[repeated], scores[repeated])
    assert weighted == pytest.approx(plain, rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(
    errors=st.lists(st.floats(0, 10), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 3), min_size=9, max_size=9),
)
def test_weighted_median_is_that_of_repeated_rows(errors, counts):
    counts = counts[: len(errors)]
    if sum(counts) == 0:
        return
    y = np.zeros(len(errors))
    weighted = METRICS["median_ae"].prepare(y, errors)(np.array(counts, dtype=float))
    assert weighted == pytest.approx(np.median(np.repeat(errors, counts)))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "r2"])
def test_undefined_is_not_a_number(name):
    y = np.zeros(5)
    assert np.isnan(score(name, y, np.linspace(0, 1, 5)))


def test_area_under_curve_does_not_change_with_monotone_scores():
    y, scores = binary_sample()
    assert score("roc_auc", y, scores**3) == score("roc_auc", y, scores)
    assert score("roc_auc", y, -scores) == pytest.approx(1 - score("roc_auc", y, scores))


def test_refusals():
    with pytest.raises(EmptySampleError):
        score("rmse", [], [])
    with pytest.raises(DataError, match=r"\(2,\) and \(3,\)"):
        score("rmse", [1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="1 of 2 scores are not numbers"):
        score("rmse", [1, 2], [1, float("nan")])
    with pytest.raises(UsageError, match="roc_auc"):
        score("auc", [0, 1], [0, 1])
    with pytest.raises(UsageError, match=r"roc_auc is not for regression targets\. Use one of: rmse"):
        get_metric("roc_auc", "regression")


def test_direction_and_first_choices():
    assert higher_is_better("roc_auc")
    assert not higher_is_better("rmse")
    assert [metrics_of(task)[0] for task in ("binary", "multiclass", "regression")] == ["roc_auc", "roc_auc", "rmse"]


CLASS_METRICS = [name for name, metric in METRICS.items() if "regression" not in metric.tasks]


@pytest.mark.parametrize("name", CLASS_METRICS)
@pytest.mark.parametrize("truth", [[0.0, 1.0, 2.5], [10, 20, 30], [-1, 1, 1]])
def test_metric_of_classes_is_refused_for_the_targets_of_a_regression(name, truth):
    with pytest.raises(UsageError, match=f"{name} is for classes") as told:
        score(name, truth, [0.1, 0.7, 0.9])
    assert "rmse" in told.value.help


@pytest.mark.parametrize("name", metrics_of("regression"))
def test_metric_of_a_regression_is_refused_for_classes(name):
    with pytest.raises(UsageError, match="is not for multiclass targets"):
        score(name, [0, 1, 2], np.full((3, 3), 1 / 3))
    with pytest.raises(DataError, match="labels as numbers"):
        score(name, ["yes", "no", "yes"], [0.1, 0.7, 0.9])
