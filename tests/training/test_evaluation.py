"""Evaluation: metrics with intervals, slices, calibration, confusion."""

import json
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.training import evaluate, evaluate_scores
from everloop.training.evaluation import calibration_table, slice_labels
from everloop.training.metrics import METRICS, score


class Told:
    """Answers with a column of the frame."""

    task, metric, classes = "binary", "roc_auc", (False, True)

    def predict_scores(self, frame):
        return frame["told"].to_numpy()


def rows(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    told = rng.random(n)
    # For carrier C the scores say nothing.
    carrier = rng.choice(["A", "B", "C"], n, p=[0.6, 0.3, 0.1])
    truth = rng.random(n) < np.where(carrier == "C", 0.5, told)
    return pl.DataFrame({"told": told, "carrier": carrier, "late": truth, "distance": rng.integers(100, 3000, n)})


ROWS = rows()


@pytest.fixture(scope="module")
def found():
    return evaluate(Told(), ROWS, "late", slices=["carrier", "distance"])


def test_all_metrics_of_the_task_with_intervals(found):
    assert set(found.metrics) == {name for name, metric in METRICS.items() if "binary" in metric.tasks}
    for name, interval in found.metrics.items():
        assert interval.value == pytest.approx(score(name, ROWS["late"], ROWS["told"]))
        # The calibration error of a sample is biased upwards, that of its resamples further still.
        assert interval.low <= interval.high
        assert name == "ece" or interval.low <= interval.value <= interval.high
    assert found.value == found.metrics["roc_auc"].value
    assert found.metrics["roc_auc"].method == "delong"


def test_slices_find_where_the_model_fails(found):
    carriers = [one for one in found.slices if one.column == "carrier"]
    assert [one.value for one in carriers] == ["A", "B", "C"]
    assert sum(one.rows for one in carriers) == found.rows == 2000
    assert sum(one.share for one in carriers) == pytest.approx(1.0)
    worst = found.worst_slice("carrier")
    assert worst.value == "C"
    assert worst.metric.low < 0.5 < worst.metric.high
    inside = ROWS.filter(pl.col("carrier") == "C")
    assert worst.metric.value == pytest.approx(score("roc_auc", inside["late"], inside["told"]))
    assert worst.mean_truth == pytest.approx(inside["late"].mean())
    assert len([one for one in found.slices if one.column == "distance"]) == 4


def test_slices_of_few_rows_or_one_class_are_counted_only():
    frame = pl.DataFrame(
        {"told": [0.1, 0.9] * 20 + [0.5] * 3 + [0.5] * 12, "late": [False, True] * 20 + [True] * 15}
    ).with_columns(kind=pl.Series(["fine"] * 40 + ["few"] * 3 + ["one class"] * 12))
    found = {one.value: one for one in evaluate(Told(), frame, "late", slices=["kind"]).slices}
    assert found["fine"].metric.value == 1.0
    assert (found["few"].rows, found["few"].metric) == (3, None)
    assert (found["one class"].rows, found["one class"].metric) == (12, None)


def test_worst_of_an_error_is_the_largest():
    frame = pl.DataFrame({"told": [1.0] * 40, "y": [1.1] * 20 + [3.0] * 20, "kind": ["near"] * 20 + ["far"] * 20})
    found = evaluate(Told(), frame, "y", task="regression", metric="mae", classes=[], slices=["kind"])
    assert found.worst_slice("kind").value == "far"
    assert found.worst_slice("other") is None
    assert found.confusion == []


def test_confusion_is_scikit_learns(found):
    expected = confusion_matrix(ROWS["late"], ROWS["told"] >= 0.5)
    assert found.confusion == expected.tolist()


def test_calibration_is_scikit_learns(found):
    came, told = calibration_curve(ROWS["late"], ROWS["told"], n_bins=10, strategy="quantile")
    np.testing.assert_allclose([one.told for one in found.calibration], told)
    np.testing.assert_allclose([one.came for one in found.calibration], came)
    assert sum(one.rows for one in found.calibration) == 2000
    assert all(one.came_low < one.came < one.came_high for one in found.calibration)


def test_calibration_of_few_distinct_scores():
    table = calibration_table([0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], "binary")
    assert [(one.rows, one.told, one.came) for one in table] == [(4, 0.5, 0.75)]


def test_it_is_json(found):
    told = json.loads(json.dumps(found.to_dict()))
    assert told["metrics"]["roc_auc"]["low"] < told["metrics"]["roc_auc"]["value"]
    assert told["classes"] == [False, True]
    assert evaluate(Told(), ROWS, "late", slices=["carrier", "distance"]).to_dict() == found.to_dict()


def test_several_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    scores = np.eye(3)[y] * 0.5 + rng.dirichlet([1, 1, 1], 300) * 0.5
    found = evaluate_scores(y, scores, task="multiclass", slices={"y": pl.Series("y", y)})
    assert found.metric == "roc_auc"
    assert found.confusion == confusion_matrix(y, scores.argmax(axis=1)).tolist()
    assert found.metrics["log_loss"].value == pytest.approx(score("log_loss", y, scores))


def test_rows_without_a_label_are_left_out_and_counted(found):
    holes = pl.concat([ROWS, ROWS.head(50).with_columns(late=pl.lit(None, dtype=pl.Boolean))])
    again = evaluate(Told(), holes, "late", slices=["carrier", "distance"])
    assert again.unlabelled == 50
    assert again.metrics == found.metrics


def test_refusals():
    with pytest.raises(DataError, match="no column 'lat'"):
        evaluate(Told(), ROWS, "lat")
    with pytest.raises(DataError, match="no column 'color'"):
        evaluate(Told(), ROWS, "late", slices=["color"])
    with pytest.raises(EmptySampleError):
        evaluate(Told(), ROWS.with_columns(late=pl.lit(None, dtype=pl.Boolean)), "late")
    with pytest.raises(UsageError, match="not those of a multiclass model"):
        evaluate_scores([0, 1], [0.2, 0.3], task="multiclass")


def test_slice_names():
    assert slice_labels(pl.Series("x", ["a", None, "b"])).to_list() == ["a", "null", "b"]
    assert slice_labels(pl.Series("x", [True, False])).to_list() == ["true", "false"]
    many = slice_labels(pl.Series("x", [f"v{k}" for k in range(30)] + ["often"] * 5 + [None]))
    assert "often" in many.to_list()
    assert many.to_list()[-1] == "null"
    assert many.n_unique() == 22  # twenty values, the others, null


@pytest.mark.parametrize(
    "values",
    [list(range(100)), [k / 7 for k in range(100)], [date(2024, 1, 1) + timedelta(days=k) for k in range(100)]],
)
def test_many_numbers_or_days_fall_into_quarters(values):
    labels = slice_labels(pl.Series("x", [*values, None]))
    counts = dict(labels.value_counts().iter_rows())
    assert counts.pop("null") == 1
    assert len(counts) == 4
    assert all(20 <= count <= 30 for count in counts.values())
