"""A metric that does not exist, or that no model of the loop can have, is refused where it is declared."""

from __future__ import annotations

import pytest

import everloop as el
from everloop.errors import UsageError


@el.step
def rows() -> list[int]:
    return []


def loop(**parts):
    return el.Loop("sales", data=el.Dataset(rows, target="sold"), serve=el.Endpoint("sales"), **parts)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: el.Performance("auc"),
        lambda: el.AtLeast("auc", 0.5),
        lambda: el.NotWorseThan(metric="auc"),
        lambda: el.Slices("city", 0.1, metric="auc"),
    ],
)
def test_metric_that_does_not_exist(declare):
    with pytest.raises(UsageError, match="No metric called 'auc'") as told:
        declare()
    assert "roc_auc" in told.value.help


@pytest.mark.parametrize(
    "parts",
    [
        {"train": el.AutoTrain(metric="rmse"), "watch": [el.Performance("roc_auc")]},
        {"train": el.AutoTrain(metric="roc_auc"), "gates": [el.AtLeast("rmse", 3.0)]},
        {"train": el.AutoTrain(task="regression"), "gates": [el.Slices("city", 0.1, metric="accuracy")]},
        {"train": el.AutoTrain(task="multiclass"), "gates": [el.NotWorseThan(metric="brier")]},
        {"train": el.AutoTrain(), "gates": [el.AtLeast("r2", 0.5)], "watch": [el.Performance("f1")]},
    ],
)
def test_metrics_that_no_model_can_have_together(parts):
    with pytest.raises(UsageError, match=r"is for .* targets, but .*") as told:
        loop(**parts)
    assert "there are:" in told.value.help


def test_metrics_that_fit_together_are_taken():
    loop(train=el.AutoTrain(metric="mae"), gates=[el.AtLeast("r2", 0.5)], watch=[el.Performance("rmse")])
    loop(train=el.AutoTrain(), gates=[el.AtLeast("brier", 0.2)], watch=[el.Performance("roc_auc")])


def test_gates_judge_the_labels_that_are_predicted() -> None:
    import numpy as np
    import polars as pl

    from everloop.loop.gates import Trial, judge
    from everloop.loop.parts import AtLeast

    truth = np.tile([0.0, 1.0], 200)
    # A threshold of 0.3 is right everywhere; one half would call every row negative.
    scores = np.where(truth == 1.0, 0.4, 0.2)
    trial = Trial(
        rows=pl.DataFrame({"a": truth}),
        truth=truth,
        scores=scores,
        champions={},
        metric="accuracy",
        task="binary",
        predict=None,
        features=("a",),
        places=truth.astype(int),
    )
    answer = judge(AtLeast("accuracy", 0.9), trial)
    assert (answer.outcome, answer.evidence["value"]) == ("pass", 1.0)
