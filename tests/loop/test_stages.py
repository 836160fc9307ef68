"""The stages of a loop: how they are connected, what each gets from the declaration, and what a resumed run finds."""

from __future__ import annotations

import polars as pl
import pytest

import everloop as el
from everloop.errors import GraphError, TrainingError, UsageError
from everloop.loop.stages import STAGES, graph_of, release, snapshot
from everloop.pipeline import run_graph
from everloop.records import ModelVersion
from everloop.stores import open_store

TWO = pl.DataFrame({"city": ["a", "b"] * 20, "sold": [True, False] * 20})


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


@el.step
def prepare() -> pl.DataFrame:
    return TWO


@el.step
def fit(train: pl.DataFrame, limits: dict[str, float]) -> object:
    return None


@el.step
def limits() -> dict[str, float]:
    return {}


@el.step(name="evaluate")
def also_evaluate() -> pl.DataFrame:
    return TWO


def loop(source=prepare, **parts):
    return el.Loop("sales", **{"data": el.Dataset(source, target="sold"), "train": el.AutoTrain(), **parts})


def test_the_stages_follow_each_other_in_the_order_of_the_page():
    graph = graph_of(loop(serve=el.Endpoint("e")))
    assert tuple(graph.nodes) == ("prepare", *STAGES)
    assert tuple(graph_of(loop()).nodes) == ("prepare", *STAGES[:-1]), "without an endpoint nothing is released"


def test_the_declaration_becomes_the_inputs_of_the_stages():
    declared = loop(
        data=el.Dataset(prepare, target="sold", time="at", key="id", holdout="14d", labels_after="1d", name="orders"),
        gates=[el.AtLeast("roc_auc", 0.5), el.Slices("city", 0.1), el.Slices("city", 0.2, metric="f1")],
        serve=el.Endpoint("e", rollout=el.Canary(steps=[5, 100])),
        watch=[el.Performance("f1")],
        model="m",
    )
    nodes = graph_of(declared).nodes
    assert nodes["snapshot"].inputs["dataset"] == "orders"
    assert nodes["snapshot"].inputs["purpose"] == {
        "model": "m", "aliases": ["champion"], "automatic": True, "task": None, "metrics": ["roc_auc", "f1"],
        "columns": ["city"],
    }  # fmt: skip
    assert (nodes["split"].inputs["holdout"], nodes["split"].inputs["gap"]) == ("14d", "1d")
    assert nodes["evaluate"].inputs["metric"] == nodes["judge"].inputs["metric"] == "roc_auc"
    assert nodes["evaluate"].inputs["slices"] == ("city",)
    assert nodes["register"].inputs["metric"] == "f1", "what is monitored"
    assert (nodes["release"].inputs["endpoint"], nodes["release"].inputs["percents"]) == ("e", (5.0, 100.0))


def test_without_a_rollout_a_release_takes_all_the_traffic():
    assert graph_of(loop(serve=el.Endpoint("e"))).nodes["release"].inputs["percents"] == (100.0,)


def test_the_aliases_of_gates_are_checked_once_and_without_an_endpoint_no_champion_is():
    gates = [el.NotWorseThan("staging"), el.NotWorseThan("champion"), el.NotWorseThan("staging", metric="f1")]
    nodes = graph_of(loop(gates=gates, serve=el.Endpoint("e"))).nodes
    assert nodes["snapshot"].inputs["purpose"]["aliases"] == ["champion", "staging"]
    nodes = graph_of(loop(gates=gates[:1])).nodes
    assert nodes["snapshot"].inputs["purpose"]["aliases"] == ["staging"]


def test_a_training_step_gets_its_parts_of_the_split_and_brings_its_own_steps():
    nodes = graph_of(loop(train=fit)).nodes
    assert list(nodes) == ["prepare", "snapshot", "split", "limits", "fit", *STAGES[2:-1]]
    assert set(nodes["fit"].inputs) == {"train", "limits"}
    assert nodes["snapshot"].inputs["purpose"]["automatic"] is False


def test_a_step_with_the_name_of_a_stage_is_an_error():
    with pytest.raises(GraphError, match="evaluate"):
        graph_of(loop(also_evaluate))


def test_data_that_is_not_a_step_is_an_error():
    with pytest.raises(UsageError, match="which is not a step") as raised:
        graph_of(loop("orders.csv"))
    assert "@el.step" in raised.value.help


def test_a_stage_works_only_in_a_run():
    with pytest.raises(UsageError, match="only in a run") as raised:
        snapshot.function(TWO, "d", "sold", None, None, None, (), None)
    assert "everloop run" in raised.value.help


def released(store, candidate):
    given = {"version": candidate, "judged": [], "endpoint": "e", "percents": (10.0, 100.0)}
    graph = el.Graph.wire([release], given=given)
    return run_graph(graph, store, force=True).value("release")


def test_a_release_that_is_under_way_or_complete_is_not_started_again(store):
    """A run that was killed between the release and the end of its step finds the release."""
    for number in (1, 2):
        store.records.put(store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
    first = released(store, "m@1")
    assert first["state"] == "completed"
    assert released(store, "m@1") == first
    second = released(store, "m@2")
    assert second["state"] == "rolling_out"
    assert released(store, "m@2") == second
    el.loop.roll_back(store, "e", "customers complain")
    third = released(store, "m@2")
    assert (third["state"], third["release"] != second["release"]) == ("rolling_out", True), "a new attempt"


def test_a_training_step_may_return_a_function() -> None:
    from everloop.loop.stages import adopt

    rows = pl.DataFrame({"x": [float(value) for value in range(60)]}).with_columns(y=pl.col("x") * 2 + 0.5)
    fitted = adopt.function(lambda table: table["x"] * 2, rows, "y", None, None, None, ())
    assert fitted.task == "regression"
    assert fitted.predict_scores(rows).tolist() == [value * 2 for value in range(60)]


def test_the_positive_class_of_the_dataset_reaches_both_kinds_of_training() -> None:
    data = el.Dataset(prepare, target="sold", positive=False)
    assert graph_of(loop(data=data)).nodes["train"].inputs["positive"] is False
    assert graph_of(loop(data=data, train=fit)).nodes["train"].inputs["positive"] is False
    assert graph_of(loop(train=fit)).nodes["train"].inputs["positive"] is None
    assert graph_of(loop(train=el.AutoTrain(positive=False))).nodes["train"].inputs["positive"] is False


def test_two_positive_classes_are_an_error() -> None:
    with pytest.raises(UsageError, match="names two positive classes: False in data= and True in train="):
        loop(data=el.Dataset(prepare, target="sold", positive=False), train=el.AutoTrain(positive=True))
    with pytest.raises(UsageError, match=r"positive=\['a'\] is not a class"):
        el.Dataset(prepare, target="sold", positive=["a"])


def test_a_model_of_auto_train_about_the_other_class_is_an_error() -> None:
    from everloop.loop.stages import adopt

    trained = el.AutoTrain(trials=1, candidates=("linear",)).fit(TWO, TWO, target="sold")
    assert adopt.function(trained, TWO, "sold", None, None, None, (), positive=True) is trained
    with pytest.raises(TrainingError, match=r"positive=False.*whose scores are about True"):
        adopt.function(trained, TWO, "sold", None, None, None, (), positive=False)
