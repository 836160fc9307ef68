import json
import math
from pathlib import Path

import numpy as np
import pytest

from everloop.errors import CorruptionError, DataError, EmptySampleError, UsageError
from everloop.monitoring import ConfidenceEstimator, cost_metric, custom_metric
from everloop.training.metrics import score

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nannyml_estimates.json"


def stream(rows: int, seed: int, shift: float = 0.0, drift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too sure of themselves, and labels; `drift` changes the relation between them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, rows)
    return 1 / (1 + np.exp(-2 * x)), (rng.uniform(size=rows) < 1 / (1 + np.exp(-x - drift))).astype(float)


def three_classes(rows: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, (rows, 2))
    raw = np.stack([x[:, 0], x[:, 1], 0.3 - x[:, 0]], axis=1)
    truth = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    scores = np.exp(1.7 * raw) / np.exp(1.7 * raw).sum(axis=1, keepdims=True)
    labels = (rng.uniform(size=(rows, 1)) > truth.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    return scores, labels.astype(float)


@pytest.fixture(scope="module")
def fitted() -> ConfidenceEstimator:
    return ConfidenceEstimator.fit(*stream(4000, 0))


def test_estimates_are_those_of_nannyml() -> None:
    for case in json.loads(FIXTURE.read_text())["streams"]:
        estimator = ConfidenceEstimator.fit(case["reference"]["score"], case["reference"]["actual"])
        for window, peer in zip(case["windows"], case["peer"], strict=True):
            found = estimator.estimate(window["score"], case["metrics"])
            for metric in case["metrics"]:
                # The peer gives equal scores an order, where this is the mean over all orders.
                assert found[metric].value == pytest.approx(peer[metric], abs=2e-3), (case["name"], metric)


@pytest.mark.slow
def test_intervals_contain_the_realised_values_under_covariate_shift() -> None:
    inside = []
    for seed in range(8):
        estimator = ConfidenceEstimator.fit(*stream(1000, seed))
        scores, labels = stream(600, 100 + seed, shift=0.7)
        for name, found in estimator.estimate(scores, ["roc_auc", "log_loss", "f1", "brier", "precision"]).items():
            assert found.low <= found.value <= found.high
            inside.append(found.low <= score(name, labels, scores) <= found.high)
    assert 0.85 <= np.mean(inside) <= 1.0


def test_a_histogram_gives_the_estimate_of_its_rows(fitted: ConfidenceEstimator) -> None:
    scores = np.round(stream(3000, 5, shift=0.5)[0], 2)
    unique, counts = np.unique(scores, return_counts=True)
    of_rows, of_cells = fitted.estimate(scores), fitted.estimate(unique, counts=counts)
    for name, found in of_rows.items():
        assert of_cells[name].value == pytest.approx(found.value, abs=1e-9)
        assert of_cells[name].rows == found.rows == 3000
        assert of_cells[name].standard_error == pytest.approx(found.standard_error, rel=0.25)


def test_large_windows_have_small_window_errors_and_keep_the_error_of_the_reference(
    fitted: ConfidenceEstimator,
) -> None:
    small = fitted.estimate(stream(500, 1)[0], "roc_auc")["roc_auc"]
    large = fitted.estimate(stream(50_000, 1)[0], "roc_auc")["roc_auc"]
    assert large.window_error == pytest.approx(small.window_error / 10, rel=0.3)
    assert large.reference_error == pytest.approx(small.reference_error, rel=0.5)


def test_scores_that_are_probabilities_are_used_as_they_are() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=3000)
    estimator = ConfidenceEstimator.fit(scores, rng.uniform(size=3000) < scores)
    assert estimator.classes[0].mapping is None
    expected = np.mean(np.maximum(scores, 1 - scores))
    assert estimator.estimate(scores, "accuracy")["accuracy"].value == pytest.approx(expected)


def test_several_classes_are_estimated() -> None:
    estimator = ConfidenceEstimator.fit(*three_classes(4000, 0))
    scores, labels = three_classes(4000, 1, shift=0.5)
    assert estimator.probabilities(scores).sum(axis=0) == pytest.approx(np.ones(4000))
    for name, found in estimator.estimate(scores).items():
        realised = score(name, labels, scores)
        assert found.value == pytest.approx(realised, abs=0.03)
        assert found.low - 0.01 <= realised <= found.high + 0.01
    assert not any(check.contradicted for check in estimator.check(scores, labels))


def test_labels_that_follow_another_relation_contradict_the_estimate(fitted: ConfidenceEstimator) -> None:
    assert not any(check.contradicted for check in fitted.check(*stream(3000, 7, shift=1.0)))
    checks = {check.metric: check for check in fitted.check(*stream(3000, 7, drift=1.0), "roc_auc")}
    assert set(checks) == {"roc_auc", "share of positives"}
    contradicted = checks["share of positives"]
    assert contradicted.contradicted
    assert contradicted.p_value < 1e-6
    assert "not trusted" in (contradicted.reason or "")


@pytest.mark.slow
def test_the_check_rarely_contradicts_when_the_assumption_holds() -> None:
    wrong = 0
    for seed in range(10):
        estimator = ConfidenceEstimator.fit(*stream(800, seed))
        wrong += any(check.contradicted for check in estimator.check(*stream(500, 50 + seed, 0.5), ["roc_auc", "f1"]))
    assert wrong <= 1


def test_variation_between_blocks_of_time_counts_as_noise() -> None:
    parts = [stream(150, seed, drift=1.5 * math.sin(seed)) for seed in range(12)]
    scores, labels = (np.concatenate([part[index] for part in parts]) for index in (0, 1))
    calm = ConfidenceEstimator.fit(scores, labels)
    restless = ConfidenceEstimator.fit(scores, labels, times=np.arange(len(labels)))
    assert restless.between_blocks["share of positives"] > 0.05
    window = stream(400, 30)[0]
    assert (
        restless.estimate(window, "precision")["precision"].reference_error
        > calm.estimate(window, "precision")["precision"].reference_error
    )


def test_costs_and_functions_are_estimated_like_metrics(fitted: ConfidenceEstimator) -> None:
    cost = cost_metric(false_positive=1, false_negative=5)
    rate = custom_metric("positives", lambda actual, scores: float(actual.mean()))
    scores, labels = stream(5000, 3, shift=0.4)
    found = fitted.estimate(scores, [cost, rate])
    decided = scores >= 0.5
    assert found["cost"].value == pytest.approx(np.mean((decided > labels) + 5 * (decided < labels)), rel=0.06)
    assert found["positives"].value == pytest.approx(labels.mean(), abs=0.03)
    assert found["positives"].window_error == pytest.approx(math.sqrt(0.22 / 5000), rel=0.2)
    with pytest.raises(UsageError, match="built-in"):
        custom_metric("f1", lambda actual, scores: 0.0)
    with pytest.raises(UsageError, match="Two metrics have the name 'cost'"):
        fitted.estimate(scores, [cost, cost_metric(1, 1)])
    with pytest.raises(UsageError, match="finite"):
        cost_metric(math.nan, 1)
    with pytest.raises(UsageError, match="returned NoneType"):
        fitted.estimate(scores, custom_metric("broken", lambda actual, scores: None))  # type: ignore[arg-type, return-value]


def test_an_estimator_survives_json(fitted: ConfidenceEstimator) -> None:
    scores = stream(500, 2)[0]
    again = ConfidenceEstimator.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.estimate(scores) == fitted.estimate(scores)
    assert len(json.dumps(fitted.to_json())) < 40_000
    for broken in ({}, {"format": 99}, {**fitted.to_json(), "classes": 3}, {**fitted.to_json(), "measured": None}):
        with pytest.raises(CorruptionError, match="not a confidence estimator"):
            ConfidenceEstimator.from_json(broken)


def test_predicted_classes_may_follow_another_threshold() -> None:
    scores, labels = stream(3000, 0)
    estimator = ConfidenceEstimator.fit(scores, labels, predicted=scores > 0.8)
    assert estimator.threshold == pytest.approx(0.8, abs=0.01)
    window, truth = stream(3000, 1)
    realised = score("precision", truth, (window > 0.8).astype(float))
    assert estimator.estimate(window, "precision")["precision"].value == pytest.approx(realised, abs=0.04)
    explicit = estimator.estimate(window, "precision", predicted=window > 0.2)["precision"]
    assert explicit.value == pytest.approx(score("precision", truth, (window > 0.2).astype(float)), abs=0.04)


def test_scores_need_not_be_probabilities() -> None:
    scores, labels = stream(2000, 0)
    margins = np.log(scores / (1 - scores)) * 3
    found = ConfidenceEstimator.fit(margins, labels).estimate(margins)
    assert "log_loss" not in found
    assert found["roc_auc"].value == pytest.approx(score("roc_auc", labels, margins), abs=0.01)
    with pytest.raises(DataError, match="log_loss needs probabilities"):
        ConfidenceEstimator.fit(margins, labels).estimate(margins, "log_loss")


def test_bad_references_are_explained() -> None:
    scores, labels = stream(100, 0)
    with pytest.raises(DataError, match="of the class 1"):
        ConfidenceEstimator.fit(scores, np.ones(100))
    with pytest.raises(EmptySampleError, match="both a score and a label"):
        ConfidenceEstimator.fit([math.nan, 0.5], [1, math.nan])
    with pytest.raises(EmptySampleError):
        ConfidenceEstimator.fit([], [])
    with pytest.raises(DataError, match="label 7 is not one of the classes 0 to 1"):
        ConfidenceEstimator.fit(scores, labels * 7)
    with pytest.raises(DataError, match="shape"):
        ConfidenceEstimator.fit(scores, labels[:50])
    with pytest.raises(DataError, match="must be numbers"):
        ConfidenceEstimator.fit(scores, ["yes"] * 100)


def test_bad_windows_are_explained(fitted: ConfidenceEstimator) -> None:
    with pytest.raises(EmptySampleError, match="no row with a score"):
        fitted.estimate([])
    with pytest.raises(EmptySampleError):
        fitted.estimate([math.nan, math.inf])
    with pytest.raises(EmptySampleError):
        fitted.estimate([0.5], counts=[0])
    with pytest.raises(DataError, match="scores of shape"):
        fitted.estimate(np.ones((5, 3)) / 3)
    with pytest.raises(DataError, match="2 counts for 1 scores"):
        fitted.estimate([0.5], counts=[1, 2])
    with pytest.raises(DataError, match="negative"):
        fitted.estimate([0.5], counts=[-1])
    with pytest.raises(UsageError, match="ece cannot be estimated"):
        fitted.estimate([0.5], "ece")
    with pytest.raises(UsageError, match="rmse is not for binary"):
        fitted.estimate([0.5], "rmse")


def test_odd_windows_give_results(fitted: ConfidenceEstimator) -> None:
    one = fitted.estimate([0.7])
    assert 0 <= one["accuracy"].value <= 1
    assert math.isnan(one["roc_auc"].value)
    constant = fitted.estimate(np.full(300, 0.6))
    assert constant["roc_auc"].value == pytest.approx(0.5)
    mixed = fitted.estimate([0.1, math.nan, 0.9, math.inf], "accuracy")["accuracy"]
    assert mixed.rows == 2
    same = ConfidenceEstimator.fit(np.full(100, 0.4), np.arange(100) % 2)
    assert same.estimate([0.4, 0.4], "brier")["brier"].value == pytest.approx(0.26)
    far = fitted.estimate([5.0, -3.0], "roc_auc")["roc_auc"]
    assert far.rows == 2
    unlabelled_class = fitted.check([0.2, 0.9, 0.4], [0, 0, 0], "roc_auc")
    assert not unlabelled_class[0].contradicted
