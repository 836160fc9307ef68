"""Sample weights: the same as repeated rows, in the loss of every algorithm, and never in the evaluation."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import TrainingError
from everloop.training import AutoTrain, Recipe, fit_recipe
from everloop.training.algorithms.linear import _loss
from everloop.training.training_tables import weights_of

OUTPUTS = {"binary": 1, "regression": 1, "multiclass": 3}


@pytest.mark.parametrize("task", list(OUTPUTS))
@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=2, max_size=20), seed=st.integers(0, 1000))
def test_a_whole_weight_is_a_row_repeated(task, counts, seed):
    rng = np.random.default_rng(seed)
    sums = rng.normal(size=(len(counts), OUTPUTS[task]))
    labels = rng.normal(size=len(counts)) if task == "regression" else rng.integers(0, 2, len(counts)).astype(float)
    value, slope = _loss(sums, labels, np.array(counts, dtype=float), task)
    again = np.repeat(np.arange(len(counts)), counts)
    total, parts = _loss(sums[again], labels[again], np.ones(len(again)), task)
    assert value == pytest.approx(total, rel=1e-9)
    summed = np.zeros_like(slope)
    np.add.at(summed, again, parts)
    np.testing.assert_allclose(slope, summed, rtol=1e-9, atol=1e-12)


def regimes(rows=1200):
    """Rows whose relation to the target turns round: the first half of them is old."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    new = np.arange(rows) >= rows // 2
    y = np.where(new, x > 0, x < 0)
    return pl.DataFrame({"x": x, "y": y.astype(int), "weight": np.where(new, 1.0, 0.01)})


@pytest.mark.parametrize("algorithm", ["linear", "lightgbm"])
def test_every_algorithm_follows_the_rows_that_weigh_more(algorithm):
    params = {"linear": {"l2": 1.0}, "lightgbm": {"learning_rate": 0.1, "num_leaves": 4, "min_data_in_leaf": 5}}
    rounds = 20 if algorithm == "lightgbm" else None
    recipe = Recipe(algorithm=algorithm, task="binary", params=params[algorithm], rounds=rounds)
    frame = regimes()
    weighed = fit_recipe(recipe, frame, target="y", features=["x"], weight="weight", threads=1)
    plain = fit_recipe(recipe, frame, target="y", features=["x"], threads=1)
    question = pl.DataFrame({"x": [-2.0, 2.0]})
    low, high = weighed.predict_scores(question)
    assert low < 0.1 < 0.9 < high
    assert abs(np.subtract(*plain.predict_scores(question))) < 0.3
    scaled = fit_recipe(
        recipe, frame.with_columns(pl.col("weight") * 64), target="y", features=["x"], weight="weight", threads=1
    )
    np.testing.assert_allclose(scaled.predict_scores(question), [low, high], rtol=1e-6)


def test_a_search_uses_weights_to_fit_and_not_as_a_feature():
    frame = regimes()
    found = AutoTrain(candidates=("linear",), trials=1, budget_s=20).fit(
        frame.head(1000), frame.tail(200), target="y", weight="weight"
    )
    assert list(found.features) == ["x"]
    assert found.best["value"] > 0.95
    without = AutoTrain(candidates=("linear",), trials=1, budget_s=20).fit(
        frame.head(1000), frame.tail(200), target="y", features=["x"]
    )
    assert without.best["value"] < found.best["value"]


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([1.0, 0.0], "The weight in row 2 of 'w' is 0"),
        ([-1.0, 1.0], "row 1 of 'w' is -1"),
        ([1.0, float("nan")], "row 2 of 'w' is nan"),
        ([1.0, None], "has 1 nulls"),
        (["1", "2"], "is String"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(weights, says):
    with pytest.raises(TrainingError, match=says):
        weights_of(pl.DataFrame({"w": weights}), "w")


def test_a_missing_weight_column_is_named():
    with pytest.raises(TrainingError, match="no weight column 'v'"):
        weights_of(pl.DataFrame({"w": [1.0]}), "v")
