"""Comparing candidate and champion if columns or classes were added, removed or changed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from everloop.errors import ConflictError, ContractError, UsageError
from everloop.loop import Canary, Loop, run_loop
from everloop.loop.comparison.champions import classes_of_both, same_classes, spread
from everloop.loop.contract_acceptance import accept_contract, propose_contract
from everloop.loop.gates.gate_checks import GateOutcome, judge_unpaired
from everloop.loop.releases.live_evidence import live_evidence
from everloop.prediction_log.prediction_log import input_column
from everloop.records import Decision, GateResult, ModelVersion
from everloop.training.class_decisions import ClassScores
from everloop.training.intervals import interval


def accept(store, loop):
    """Accept the current data, as `everloop data contract shop --accept` does."""
    proposal = propose_contract(store, "shop", loop)
    accept_contract(store, proposal)
    return {(change.kind, change.column) for change in proposal.changes}


def champion_gate(loop_run) -> GateResult:
    return next(gate for gate in loop_run.gates if gate.gate == "not worse than champion")


def change(shop, expression):
    shop.change("loop.py", "return keep(orders)", f"return keep(orders){expression}")


@pytest.fixture
def store(shop):
    with shop.open() as opened:
        yield opened


@pytest.fixture
def first(shop, load, store):
    loop_run = run_loop(load(), store)
    assert loop_run.release.state == "completed"
    return loop_run


@pytest.mark.slow
def test_with_an_added_column_both_are_compared_on_the_same_rows(shop, load, store, first):
    change(shop, ".with_columns(pl.col('price').log().alias('log price'))")
    loop_run = run_loop(load(), store)
    gate = champion_gate(loop_run)
    assert gate.champion == "returns@1"
    assert gate.evidence["rows"] == 300
    assert "paired" not in gate.evidence
    assert loop_run.release.state == "rolling_out"


@pytest.mark.slow
def test_an_excluded_column_stays_in_the_test_rows(shop, load, store, first):
    shop.change("loop.py", 'key="order"', 'key="order", exclude=["weight"]')
    loop_run = run_loop(load(), store)
    assert "weight" not in [item["name"] for item in loop_run.version.signature["inputs"]]
    gate = champion_gate(loop_run)
    assert gate.evidence["rows"] == 300
    assert "remark" not in gate.evidence


@pytest.mark.slow
def test_a_dropped_column_is_taken_from_the_held_out_rows_of_the_champion(shop, load, store, first):
    change(shop, ".drop('weight')")
    with pytest.raises(ContractError, match=r"'weight' is missing.*everloop data contract shop --accept"):
        run_loop(load(), store)
    loop = load()
    assert accept(store, loop) == {("dropped", "weight")}
    loop_run = run_loop(loop, store)
    gate = champion_gate(loop_run)
    assert gate.evidence["rows"] == 300
    assert "'weight' taken from the held-out rows of returns@1 with the same 'order'" in gate.message
    # The champion has the same metric as in its evaluation: the rows and columns are the same.
    assert gate.evidence["champion_value"] == pytest.approx(first.version.metrics["roc_auc"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "why"),
    [
        (".drop('weight')", "lack 'weight'"),
        (".rename({'weight': 'kilos'})", "lack 'weight'"),
        (".with_columns((pl.col('price') > 50).cast(pl.String).alias('price'))", "'price' has type String"),
    ],
)
def test_if_the_champion_cannot_score_the_rows_each_is_measured_on_its_own(shop, load, store, first, expression, why):
    change(shop, expression)
    shop.land("1", shop.orders(1500, 800, shop.opens, seed=1))
    loop = load()
    accept(store, loop)
    loop_run = run_loop(loop, store)
    gate = champion_gate(loop_run)
    assert gate.evidence["paired"] is False
    assert why in gate.message
    assert "not comparable on the same rows" in gate.message
    assert gate.evidence["champion_value"] == pytest.approx(first.version.metrics["roc_auc"])
    assert gate.evidence["high"] - gate.evidence["low"] > 0.05
    assert loop_run.release.state in ("rolling_out", "rejected")


@pytest.mark.slow
def test_numbers_stored_as_text_are_converted_for_the_champion(shop, load, store, first):
    change(shop, ".with_columns(pl.col('weight').cast(pl.String))")
    loop = load()
    assert accept(store, loop) == {("retyped", "weight")}
    gate = champion_gate(run_loop(loop, store))
    assert gate.evidence["champion_value"] == pytest.approx(first.version.metrics["roc_auc"])
    assert "paired" not in gate.evidence


@pytest.mark.slow
def test_another_task_is_an_error_before_training(shop, load, store, first):
    change(shop, ".with_columns(returned=pl.col('price') * 2)")
    shop.change("loop.py", 'el.AutoTrain(metric="roc_auc"', 'el.AutoTrain(metric="r2"')
    shop.change("loop.py", 'gates=[el.AtLeast("roc_auc", 0.60)', 'gates=[el.AtLeast("r2", 0.1)')
    shop.change("loop.py", 'el.Performance("roc_auc")', 'el.Performance("r2")')
    with pytest.raises(ConflictError, match=r"holds amounts, but returns@1 predicts one of False, True.*el\.Loop\("):
        run_loop(load(), store)
    # Under new names, the loop starts again.
    shop.change("loop.py", 'el.Loop(\n    "shop"', 'el.Loop(\n    "shop-2"')
    shop.change("loop.py", 'el.Endpoint("returns"', 'el.Endpoint("amounts"')
    assert run_loop(load(), store).version.key == "amounts@1"


@pytest.mark.slow
def test_labels_with_other_names_are_an_error_before_training(shop, load, store, first):
    change(shop, ".with_columns(returned=pl.when(pl.col('returned')).then(pl.lit('back')).otherwise(pl.lit('kept')))")
    with pytest.raises(ConflictError, match="one of 'back', 'kept', but returns@1 predicts one of False, True"):
        run_loop(load(), store)


def test_a_metric_that_does_not_fit_the_target_is_an_error_before_training(shop, load, store):
    shop.change("loop.py", '"roc_auc"', '"r2"')
    with pytest.raises(UsageError, match=r"'r2' is not for binary targets, and 'returned' has two classes.*roc_auc"):
        run_loop(load(), store)
    assert store.records.find(ModelVersion) == []


@pytest.mark.slow
def test_a_candidate_with_one_more_class_is_compared_with_the_champion(shop, load, store):
    text = "pl.when(pl.col('returned')).then(pl.lit('back'))"
    change(shop, f".with_columns(returned={text}.otherwise(pl.lit('kept')))")
    first = run_loop(load(), store)
    assert first.version.signature["classes"] == ["back", "kept"]
    new = f"{text}.when(pl.col('price') < 25).then(pl.lit('lost'))"
    shop.change("loop.py", f"{text}.", f"{new}.")
    loop = load()
    # The contract lists the classes of the target. Rows of a new class are quarantined until it is accepted.
    assert accept(store, loop) == {("widened", "returned")}
    loop_run = run_loop(loop, store)
    assert loop_run.version.signature["classes"] == ["back", "kept", "lost"]
    gate = champion_gate(loop_run)
    assert "returns@1 does not know 'lost'" in gate.message
    assert gate.evidence["gain"] > 0.05
    assert gate.outcome == "pass"


def test_classes_match_across_types():
    assert same_classes([False, True], ["0", "1"])
    assert not same_classes(["no", "yes"], ["yes", "no"])
    two, three = SimpleNamespace(classes=["b", "a"]), SimpleNamespace(classes=["a", "c", "b"])
    every = classes_of_both(two, three)
    assert every == ["b", "a", "c"]
    scores, places = spread(ClassScores(np.array([0.2, 0.9]), np.array([1, 0])), two.classes, every)
    assert np.allclose(scores, [[0.8, 0.2, 0], [0.1, 0.9, 0]])
    assert places.tolist() == [1, 0]
    scores, places = spread(ClassScores(np.array([[0.5, 0.3, 0.2]]), np.array([2])), three.classes, every)
    assert scores.tolist() == [[0.2, 0.5, 0.3]]
    assert places.tolist() == [0]


def test_two_classes_in_another_order_keep_one_score_column():
    scores, places = spread(ClassScores(np.array([0.2, 0.9]), np.array([1, 1])), ["no", "yes"], ["yes", "no"])
    assert scores == pytest.approx([0.8, 0.1])
    assert places.tolist() == [0, 0]


def test_values_of_different_rows_give_a_wider_interval_than_pairs():
    rng = np.random.default_rng(1)
    truth = (rng.uniform(size=400) < 0.5).astype(float)
    good, bad = truth + rng.normal(0, 0.7, 400), truth + rng.normal(0, 1.5, 400)
    own, other = interval(truth, good, "roc_auc"), interval(truth, bad, "roc_auc")
    better = judge_unpaired(own, other, "roc_auc", 0.01, "m@1", "no reason")
    assert better.outcome == "pass"
    assert better.evidence["low"] < better.evidence["gain"] < better.evidence["high"]
    # Combining the intervals by squares is exact if both values are the same.
    half = own.value - own.low
    assert judge_unpaired(own, own, "roc_auc", 0.01, "m@1", "").evidence["low"] == pytest.approx(
        -np.hypot(half, own.high - own.value)
    )
    assert judge_unpaired(other, own, "roc_auc", 0.01, "m@1", "").outcome == "fail"
    assert judge_unpaired(own, own, "roc_auc", 0.0, "m@1", "").outcome == "undecided"
    # If lower is better, the signs are reversed.
    small, large = interval(truth, truth + 0.1, "rmse"), interval(truth, truth + 2.0, "rmse")
    assert judge_unpaired(small, large, "rmse", 0.0, "m@1", "").outcome == "pass"


def served(model, version, orders, columns):
    """Return predictions of one version as in the prediction log, with their labels."""
    scores = model.predict_scores(orders)
    logged = orders.select(pl.col(name).alias(input_column(name)) for name in columns)
    return logged.with_columns(
        version=pl.lit(version), score=pl.Series(scores), actual=orders["returned"].cast(pl.Float64),
        actual_text=orders["returned"].cast(pl.String), event_at=orders["at"],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("everything", [True, False])
def test_live_evidence_for_versions_with_different_columns(shop, load, store, first, monkeypatch, everything):
    from everloop.registry import load_model

    change(shop, ".drop('weight').with_columns(pl.col('price').sqrt().alias('root'))")
    loop = load()
    assert isinstance(loop, Loop)
    accept(store, loop)
    second = run_loop(loop, store)
    assert second.release.state == "rolling_out"
    flow = shop.orders(5000, 600, shop.opens, seed=7).with_columns(pl.col("price").sqrt().alias("root"))
    names = {"returns@1": ["price", "weight", "shop"], "returns@2": ["price", "shop", "root"]}
    both = ["price", "weight", "shop", "root"]
    parts = [
        served(load_model(store, version).model, version, rows, both if everything else names[version])
        for version, rows in (("returns@1", flow.head(400)), ("returns@2", flow.tail(200)))
    ]
    log = pl.concat(parts, how="diagonal")
    monkeypatch.setattr("everloop.prediction_log.read_labelled", lambda *_, **__: log.lazy())
    started = Decision(at=shop.opens - timedelta(days=1), action="start", percent=20, reason="")
    release = SimpleNamespace(
        endpoint="returns", candidate="returns@2", created_at=started.at, decisions=(started,), looks=()
    )
    answer = live_evidence(store, release, "returns@1", Canary(least_labels=100), "roc_auc")
    assert isinstance(answer, GateOutcome)
    if everything:
        assert answer.evidence["rows"] == 600
        assert answer.evidence["answered_by_canary"] == 200
        assert "paired" not in answer.evidence
    else:
        assert answer.evidence["paired"] is False
        assert answer.evidence["answered_by"] == {"returns@2": 200, "returns@1": 400}
    assert live_evidence(store, release, "returns@1", Canary(least_labels=601), "roc_auc") is None
