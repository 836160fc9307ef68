"""Metrics of a loop: unknown or incompatible ones are errors when the loop is declared, and defaults fit the task."""

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
def test_an_unknown_metric_is_an_error(declare):
    with pytest.raises(UsageError, match="There is no metric 'auc'") as raised:
        declare()
    assert "roc_auc" in raised.value.help


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
def test_metrics_of_different_tasks_are_an_error(parts):
    with pytest.raises(UsageError, match=r"is for .* targets, but .*") as raised:
        loop(**parts)
    assert "Metrics for" in raised.value.help


def test_metrics_of_one_task_are_accepted():
    loop(train=el.AutoTrain(metric="mae"), gates=[el.AtLeast("r2", 0.5)], watch=[el.Performance("rmse")])
    loop(train=el.AutoTrain(), gates=[el.AtLeast("brier", 0.2)], watch=[el.Performance("roc_auc")])


def test_gates_judge_the_labels_that_are_predicted() -> None:
    import numpy as np
    import polars as pl

    from everloop.loop.gates.gate_checks import judge
    from everloop.loop.gates.gate_declarations import AtLeast
    from everloop.loop.gates.gate_protocol import GateContext

    labels = np.tile([0.0, 1.0], 200)
    # A threshold of 0.3 predicts every row correctly. With one half, every row would be negative.
    scores = np.where(labels == 1.0, 0.4, 0.2)
    candidate = GateContext(
        rows=pl.DataFrame({"a": labels}),
        labels=labels,
        scores=scores,
        champions={},
        metric="accuracy",
        task="binary",
        predict=None,
        features=("a",),
        places=labels.astype(int),
    )
    outcome = judge(AtLeast("accuracy", 0.9), candidate)
    assert (outcome.outcome, outcome.evidence["value"]) == ("pass", 1.0)


def without_metrics(shop, expression: str) -> None:
    """Give the project another target, and remove all names of metrics."""
    shop.change("loop.py", "return keep(orders)", f"return keep(orders).with_columns(returned={expression})")
    shop.change("loop.py", 'metric="roc_auc", ', "")
    shop.change("loop.py", 'el.AtLeast("roc_auc", 0.60), ', "")
    shop.change("loop.py", 'el.Performance("roc_auc")', "el.Performance()")


CUT = "pl.when(pl.col('price') < 30).then(1).when(pl.col('price') < 60).then(2).otherwise(3)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expression", "metric", "task"),
    [
        ("pl.col('price') * 2 + pl.col('weight')", "rmse", "regression"),
        (f"{CUT}.replace_strict({{1: 'low', 2: 'mid', 3: 'high'}})", "roc_auc", "multiclass"),
        ("pl.col('returned')", "roc_auc", "binary"),
    ],
)
def test_without_a_name_the_default_metric_of_the_task_decides(shop, load, expression, metric, task):
    from everloop.loop import run_loop
    from everloop.monitoring import find_baseline

    without_metrics(shop, expression)
    with shop.open() as store:
        declared = load()
        assert declared.training_metric is None
        assert declared.live_metric is None
        loop_run = run_loop(declared, store)
        assert loop_run.version.signature["task"] == task
        assert loop_run.metric == metric
        assert [gate.outcome for gate in loop_run.gates] == ["pass", "pass"]
        assert find_baseline(store, loop_run.version.key).metric.name == metric
        shop.land("1", shop.orders(1500, 300, shop.opens, seed=1))
        again = run_loop(declared, store)
        compared = next(gate for gate in again.gates if gate.gate == "not worse than champion")
        assert compared.evidence["metric"] == metric
        assert again.metric == metric


@pytest.mark.slow
def test_the_run_says_which_metric_was_chosen(shop, monkeypatch, capsys):
    from everloop.cli import output
    from everloop.cli.app import run

    without_metrics(shop, "pl.col('price') * 2 + pl.col('weight')")
    monkeypatch.chdir(shop.folder)
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
    output.console.cache_clear()
    output.messages.cache_clear()
    assert run(["run"]) == 0
    assert "metric rmse, the default for regression targets; the loop does not set one" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_metric_that_does_not_fit_the_target_is_an_error(shop, load):
    from everloop.loop import run_loop

    without_metrics(shop, "pl.col('price') * 2 + pl.col('weight')")
    shop.change("loop.py", "el.Performance()", 'el.Performance("roc_auc")')
    with shop.open() as store, pytest.raises(UsageError, match="'roc_auc' is not for regression targets"):
        run_loop(load(), store)


def test_the_baseline_has_the_metric_of_the_performance_watch(shop, load):
    from everloop.loop import run_loop
    from everloop.monitoring import find_baseline

    shop.change("loop.py", 'el.Performance("roc_auc")', 'el.Performance("f1")')
    with shop.open() as store:
        loop_run = run_loop(load(), store)
        assert loop_run.metric == "roc_auc"
        assert find_baseline(store, loop_run.version.key).metric.name == "f1"
