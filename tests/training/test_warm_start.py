"""A warm start keeps the champion's trees and adds to them; where it cannot, it says why."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from everloop.training import AutoTrain, Recipe, fit_recipe
from everloop.training.warm_start import WarmStart

RECIPE = Recipe(
    algorithm="lightgbm", task="binary", rounds=20,
    params={"learning_rate": 0.1, "num_leaves": 7, "min_data_in_leaf": 20},
)  # fmt: skip
WARM = AutoTrain(warm_start=True, candidates=("linear",), trials=1, budget_s=20, threads=1)


def table(rows=1500, turned=False, seed=0):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=rows), rng.choice(["a", "b"], rows)
    y = (x + 0.3 * rng.normal(size=rows) > 0) ^ (turned & (z == "b"))
    return pl.DataFrame({"x": x, "z": z, "y": y.astype(int)})


@pytest.fixture(scope="module")
def champion():
    fitted = fit_recipe(RECIPE, table(), target="y", threads=1)
    return WarmStart(model=fitted.model, classes=fitted.classes, name="m@1")


def test_it_keeps_the_champions_trees_and_follows_the_new_rows(champion):
    found = WARM.fit(table(turned=True, seed=1), table(500, turned=True, seed=2), target="y", start=champion)
    assert found.model.rounds > champion.model.rounds
    assert found.notes[-1].startswith(f"continued m@1 with {found.model.rounds - 20} more rounds: roc_auc")
    assert found.best["continued"] == "m@1"
    text = [model.to_files()["model.txt"].decode() for model in (champion.model, found.model)]
    first, continued = (part.partition("\n\n")[2].split("Tree=")[1:21] for part in text)
    # The first tree may differ by the constant that LightGBM adds to it.
    assert [tree.split("\n")[1:4] for tree in continued] == [tree.split("\n")[1:4] for tree in first]
    judged = table(2000, turned=True, seed=3)
    right = [
        ((model.predict_scores(judged) > 0.5) == judged["y"].to_numpy()).mean() for model in (champion.model, found)
    ]
    assert right[1] > right[0] + 0.2


def test_without_news_it_adds_little_and_never_makes_the_validation_worse(champion):
    found = WARM.fit(table(seed=0), table(500, seed=2), target="y", start=champion)
    before = champion.model.predict_scores(table(500, seed=2))
    assert found.best["value"] >= roc_auc(table(500, seed=2)["y"].to_numpy(), before) - 1e-9


def roc_auc(labels, scores):
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(labels, scores)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows.rename({"x": "distance"}), "the columns of m@1 differ from those of the rows: distance, x"),
        (lambda rows: rows.with_columns(y=pl.col("y").replace_strict({0: "no", 1: "yes"})), "the classes of m@1"),
        (
            lambda rows: rows.with_columns(y=pl.col("x") * 3.0),
            "m@1 is for binary targets, but the target is regression",
        ),
    ],
)
def test_what_cannot_be_continued_is_trained_in_full_and_says_why(champion, change, says):
    found = WARM.fit(change(table(400)), change(table(200, seed=1)), target="y", start=champion)
    assert found.model.format == "linear"
    assert any(note.startswith("trained in full") and says in note for note in found.notes), found.notes


def test_without_a_champion_or_with_another_format_it_trains_in_full(champion):
    linear = WARM.fit(table(400), table(200, seed=1), target="y")
    assert linear.notes == ["trained in full instead of continuing the champion: there is no champion"]
    start = WarmStart(model=linear.model, classes=linear.classes, name="m@2")
    again = WARM.fit(table(400), table(200, seed=1), target="y", start=start)
    assert again.notes == [
        "trained in full instead of continuing the champion: m@2 is a linear model, and only lightgbm models can be"
        " continued"
    ]
