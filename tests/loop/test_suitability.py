"""Before training, a table is checked against what the gates, the metrics and the current champion need."""

from __future__ import annotations

import polars as pl
import pytest

from everloop.errors import ConflictError, UsageError
from everloop.loop.releases.promotion import promote
from everloop.loop.suitability import check_purpose
from everloop.records import ModelVersion
from everloop.stores import open_store

TWO = pl.DataFrame({"city": ["a", "b"] * 20, "sold": [True, False] * 20})
AMOUNTS = pl.DataFrame({"city": ["a", "b"] * 20, "sold": [number * 1.5 for number in range(40)]})
SEVERAL = pl.DataFrame({"city": ["a", "b"] * 30, "sold": ["none", "one", "many"] * 20})


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


def champion(store, **signature):
    signature = {"inputs": [{"name": "city", "type": "string"}], **signature}
    store.records.put(store.new(ModelVersion, model="m", version=1, package=f"sha256:{1:064d}", signature=signature))
    promote(store, "e", store.records.get(ModelVersion, "m@1"), "first")


def purpose(**parts):
    return {"automatic": True, "model": "m", "aliases": ["champion"], **parts}


def test_without_requirements_every_table_will_do(store):
    check_purpose(store, TWO, "sold", {})
    check_purpose(store, TWO, "sold", purpose())


def test_a_gate_can_only_slice_by_a_column_of_the_table(store):
    check_purpose(store, TWO, "sold", {"columns": ["city"]})
    with pytest.raises(UsageError, match=r"Slices\('country'\): the dataset has no such column") as raised:
        check_purpose(store, TWO, "sold", {"columns": ["city", "country"]})
    assert "city, sold" in raised.value.help


@pytest.mark.parametrize(
    ("table", "metric", "says"),
    [
        (TWO, "rmse", "'rmse' is not for binary targets, and 'sold' has two classes"),
        (SEVERAL, "brier", "'brier' is not for multiclass targets, and 'sold' has several classes"),
        (AMOUNTS, "roc_auc", "'roc_auc' is not for regression targets, and 'sold' has amounts"),
    ],
)
def test_a_metric_must_fit_the_target(store, table, metric, says):
    with pytest.raises(UsageError, match=says) as raised:
        check_purpose(store, table, "sold", purpose(metrics=[metric]))
    assert "use one of" in raised.value.help


def test_a_declared_task_decides_instead_of_the_values(store):
    numbers = pl.DataFrame({"sold": [0, 1] * 20})
    check_purpose(store, numbers, "sold", purpose(metrics=["roc_auc"]))
    check_purpose(store, numbers, "sold", purpose(task="regression", metrics=["rmse"]))


@pytest.mark.parametrize(
    ("table", "signature", "says"),
    [
        (AMOUNTS, {"task": "binary", "classes": [False, True]}, "'sold' holds amounts, but m@1 predicts one of"),
        (TWO, {"task": "regression", "classes": []}, "m@1 predicts amounts"),
        (SEVERAL, {"task": "binary", "classes": ["yes", "no"]}, "m@1 predicts one of 'yes', 'no'"),
    ],
)
def test_the_champion_must_predict_the_same_kind_of_target(store, table, signature, says):
    champion(store, **signature)
    with pytest.raises(ConflictError, match=says) as raised:
        check_purpose(store, table, "sold", purpose())
    assert "m-2" in raised.value.help
    check_purpose(store, table, "sold", purpose(aliases=[]))  # no version is replaced


@pytest.mark.parametrize(
    ("table", "signature"),
    [
        (TWO, {"task": "binary", "classes": [False, True]}),
        (AMOUNTS, {"task": "regression", "classes": []}),
        (SEVERAL, {"task": "binary", "classes": ["none", "one"]}),
        (AMOUNTS, {"inputs": []}),
    ],
    ids=["same classes", "amounts", "one more class", "without a signature"],
)
def test_a_champion_of_the_same_kind_can_be_replaced(store, table, signature):
    champion(store, **signature)
    check_purpose(store, table, "sold", purpose())


def test_a_training_step_of_the_user_decides_itself_how_to_use_the_target(store):
    champion(store, task="binary", classes=[False, True])
    check_purpose(store, AMOUNTS, "sold", purpose(automatic=False, metrics=["roc_auc"]))


def test_a_target_that_cannot_be_learned_is_left_to_training_to_explain(store):
    check_purpose(store, pl.DataFrame({"sold": [True] * 5}), "sold", purpose(metrics=["rmse"]))
