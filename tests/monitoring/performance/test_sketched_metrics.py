import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn import metrics as peer

from everloop.data.sketches.score_sketches import BinaryLabelSketch, LabelSketch, sketch_labels
from everloop.errors import UsageError
from everloop.monitoring.performance.sketched_metrics import roc_auc_error, sketched_metric, sketched_metrics
from everloop.training.metrics import score as measured

RNG = np.random.default_rng(5)


def binary(rows: int = 3000, low: float = 0.0, high: float = 1.0) -> tuple[BinaryLabelSketch, np.ndarray, np.ndarray]:
    scores = RNG.uniform(low, high, rows)
    y = (RNG.uniform(size=rows) < scores).astype(np.float64)
    pieces = np.array_split(np.arange(rows), 7)
    first, *others = (sketch_labels("binary", y[piece], scores[piece]) for piece in pieces)
    total = first
    for other in others:
        total = total + other  # type: ignore[operator]
    assert isinstance(total, BinaryLabelSketch)
    return total, y, scores


def test_binary_metrics_are_those_of_the_rows() -> None:
    sketch, y, scores = binary()
    of = partial(sketched_metric, sketch)
    decided = scores >= 0.5
    assert of("log_loss") == pytest.approx(peer.log_loss(y, scores))
    assert of("brier") == pytest.approx(peer.brier_score_loss(y, scores))
    assert of("accuracy") == pytest.approx(peer.accuracy_score(y, decided))
    assert of("f1") == pytest.approx(peer.f1_score(y, decided))
    assert of("precision") == pytest.approx(peer.precision_score(y, decided))
    assert of("recall") == pytest.approx(peer.recall_score(y, decided))
    assert of("ece") == pytest.approx(measured("ece", y, scores))


@pytest.mark.parametrize(("low", "high", "most"), [(0.0, 1.0, 0.002), (0.1, 0.3, 0.01), (0.001, 0.01, 0.01)])
def test_the_area_is_within_its_error(low: float, high: float, most: float) -> None:
    sketch, y, scores = binary(20_000, low, high)
    error = roc_auc_error(sketch)
    assert 0 < error < most
    assert abs(sketched_metric(sketch, "roc_auc") - peer.roc_auc_score(y, scores)) <= error


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=2, max_size=40))
def test_the_error_of_the_area_holds_for_any_scores(rows: list[tuple[bool, float]]) -> None:
    y, scores = (np.asarray(column, dtype=np.float64) for column in zip(*rows, strict=True))
    sketch = sketch_labels("binary", y, scores)
    assert isinstance(sketch, BinaryLabelSketch)
    if len(set(y)) == 1:
        assert math.isnan(sketched_metric(sketch, "roc_auc"))
    else:
        difference = abs(sketched_metric(sketch, "roc_auc") - peer.roc_auc_score(y, scores))
        assert difference <= roc_auc_error(sketch) + 1e-12


def test_a_served_class_counts_instead_of_the_score() -> None:
    y, scores, served = (np.asarray(one) for one in ([1.0, 0.0, 1.0], [0.4, 0.4, 0.9], [1.0, 0.0, float("nan")]))
    assert sketched_metric(sketch_labels("binary", y, scores, served), "accuracy") == 1.0
    assert sketched_metric(sketch_labels("binary", y, scores), "accuracy") == pytest.approx(2 / 3)


def test_multiclass_metrics_are_those_of_the_rows() -> None:
    scores = RNG.dirichlet([1, 1, 1, 1], 2000)
    y = np.asarray([RNG.choice(4, p=row) for row in scores], dtype=np.float64)
    sketch = sketch_labels("multiclass", y, scores, classes=4)
    decided = scores.argmax(axis=1)
    of = partial(sketched_metric, sketch)
    assert of("accuracy") == pytest.approx(peer.accuracy_score(y, decided))
    assert of("f1") == pytest.approx(peer.f1_score(y, decided, average="macro"))
    assert of("precision") == pytest.approx(peer.precision_score(y, decided, average="macro"))
    assert of("recall") == pytest.approx(peer.recall_score(y, decided, average="macro"))
    assert of("log_loss") == pytest.approx(peer.log_loss(y, scores))
    assert of("ece") == pytest.approx(measured("ece", y, scores))


def test_regression_metrics_are_those_of_the_rows() -> None:
    y = RNG.normal(1e6, 3, 2000)
    predicted = y + RNG.normal(0.5, 1, 2000)
    first, second = (sketch_labels("regression", y[part], predicted[part]) for part in (slice(700), slice(700, None)))
    of = partial(sketched_metric, first + second)  # type: ignore[operator]
    assert of("rmse") == pytest.approx(peer.root_mean_squared_error(y, predicted))
    assert of("mae") == pytest.approx(peer.mean_absolute_error(y, predicted))
    assert of("mape") == pytest.approx(peer.mean_absolute_percentage_error(y, predicted))
    assert of("r2") == pytest.approx(peer.r2_score(y, predicted))


def test_what_a_sketch_does_not_have() -> None:
    nothing = np.zeros(0)
    sketch: LabelSketch = sketch_labels("regression", nothing, nothing)
    assert all(math.isnan(sketched_metric(sketch, name)) for name in sketched_metrics(sketch))
    with pytest.raises(UsageError, match="median_ae"):
        sketched_metric(sketch, "median_ae")
