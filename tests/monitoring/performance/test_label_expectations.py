import numpy as np
import polars as pl
import pytest

from everloop.errors import CorruptionError
from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator
from everloop.monitoring.performance.label_expectations import learn_expectations, unpack_expectations
from everloop.monitoring.performance.loss_estimation import LossEstimator


def probabilities(rows: int, seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    score = generator.uniform(size=rows)
    actual = (generator.uniform(size=rows) < score).astype(float)
    return pl.DataFrame({"score": score, "actual": actual, "at": np.arange(rows)})


def test_two_classes_are_estimated_and_tested_after_packing() -> None:
    rows = probabilities(2000)
    learned = learn_expectations(rows, "roc_auc", time="at")
    assert learned is not None
    restored = unpack_expectations(learned.pack())
    assert restored == learned
    assert isinstance(restored.estimator, ConfidenceEstimator)
    assert restored.estimator.between_blocks
    assert restored.concept is not None
    assert restored.concept.task == "binary"


def test_a_regression_needs_inputs_to_be_estimated() -> None:
    generator = np.random.default_rng(1)
    inputs = pl.DataFrame({"x": generator.normal(size=600), "c": generator.choice(["a", "b"], 600)})
    rows = pl.DataFrame({"score": inputs["x"], "actual": inputs["x"] + generator.normal(size=600)})
    learned = learn_expectations(rows, "rmse", inputs=inputs)
    assert learned is not None
    restored = unpack_expectations(learned.pack())
    assert isinstance(restored.estimator, LossEstimator)
    before, after = (
        one.estimator.estimate(inputs, rows["score"])["rmse"]
        for one in (learned, restored)
        if isinstance(one.estimator, LossEstimator)
    )
    assert before.value == pytest.approx(after.value, rel=1e-4)
    without = learn_expectations(rows, "rmse")
    assert without is not None
    assert without.estimator is None
    assert without.concept is not None


def test_what_cannot_be_learned_is_none() -> None:
    rows = probabilities(500)
    assert learn_expectations(rows.head(10).with_columns(actual=pl.lit(1.0)), "roc_auc") is None
    calibration = learn_expectations(rows, "ece")
    assert calibration is not None
    assert calibration.estimator is None
    ranks = learn_expectations(rows.with_columns(score=pl.col("score") * 7), "roc_auc")
    assert ranks is not None
    assert ranks.concept is None
    assert ranks.estimator is not None
    outside = learn_expectations(rows.with_columns(score=pl.col("score") * 7), "log_loss")
    assert outside is None


def test_several_classes_have_an_estimator_only() -> None:
    generator = np.random.default_rng(2)
    shares = generator.dirichlet([1, 1, 1], 600)
    actual = (generator.uniform(size=(600, 1)) > shares.cumsum(axis=1)).sum(axis=1).astype(float)
    rows = pl.DataFrame({"score": shares.max(axis=1), "scores": shares.tolist(), "actual": actual})
    learned = learn_expectations(rows, "accuracy")
    assert learned is not None
    assert learned.concept is None
    assert unpack_expectations(learned.pack()) == learned


def test_other_text_is_refused() -> None:
    with pytest.raises(CorruptionError, match="expectations"):
        unpack_expectations("no base64")
