from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.inspection import permutation_importance as peer_importance
from sklearn.linear_model import LinearRegression

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.monitoring import permutation_importance
from everloop.training.class_decisions import ClassScores


class Linear:
    """Scores 3 a + b, and ignores c."""

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores:
        return ClassScores((3 * frame["a"] + frame["b"]).to_numpy(), None)


def inputs(rows: int = 1500) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame({name: rng.normal(size=rows) for name in "abc"})


def test_the_change_of_scores_is_that_of_two_random_rows() -> None:
    found = permutation_importance(Linear(), inputs())
    # For normal inputs, the mean absolute difference of two rows is 2 / sqrt(pi) standard deviations.
    assert found["importance"].to_list() == pytest.approx([3 * 1.1284, 1.1284, 0.0], abs=0.12)
    assert found["share"].to_list() == pytest.approx([0.75, 0.25, 0.0], abs=0.02)
    assert (found["low"] <= found["importance"]).all()
    assert found["rows"].to_list() == [1500] * 3


def test_the_loss_of_a_metric_is_that_of_scikit_learn() -> None:
    frame = inputs()
    actual = Linear().answer_frame(frame).scores
    found = permutation_importance(Linear(), frame, actual, "rmse")
    model = LinearRegression().fit(frame.to_numpy(), actual)
    peer = peer_importance(
        model, frame.to_numpy(), actual, scoring="neg_root_mean_squared_error", n_repeats=5, random_state=0
    )
    assert found["importance"].to_list() == pytest.approx(peer.importances_mean.tolist(), rel=0.05, abs=1e-9)


def test_constant_inputs_and_single_rows_have_results() -> None:
    constant = permutation_importance(Linear(), inputs(50).with_columns(pl.lit(1.0).alias(name) for name in "abc"))
    assert constant["importance"].to_list() == [0.0, 0.0, 0.0]
    assert constant["share"].null_count() == 3
    assert permutation_importance(Linear(), inputs(1))["importance"].null_count() == 3
    assert permutation_importance(Linear(), inputs(9), features=["b"])["feature"].to_list() == ["b"]


def test_bad_arguments_are_explained() -> None:
    with pytest.raises(EmptySampleError):
        permutation_importance(Linear(), inputs(0))
    with pytest.raises(UsageError, match="no input 'd'"):
        permutation_importance(Linear(), inputs(9), features=["d"])
    with pytest.raises(DataError, match="needs labels"):
        permutation_importance(Linear(), inputs(9), metric="rmse")
