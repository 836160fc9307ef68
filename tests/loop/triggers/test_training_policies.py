"""Sliding windows, weights by age and warm starts in the runs of a loop, and what they change in the cache."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

import everloop as el
from everloop.loop import explain_run, promote, run_loop
from everloop.packages.package import read_package
from everloop.registry import get_version
from everloop.stores import open_store

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 600
received: dict[str, object] = {}


@el.step
def orders() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=ROWS)
    return pl.DataFrame(
        {"at": [START + timedelta(hours=6 * row) for row in range(ROWS)], "x": x, "y": (x + rng.normal(size=ROWS) > 0)}
    )


class Constant:
    """A model that has learned nothing."""

    classes_ = np.array([False, True])

    def fit(self, rows):
        self.n_features_in_ = 1
        return self

    def predict_proba(self, rows):
        return np.full((len(rows), 2), 0.5)


@el.step
def fit(train: pl.DataFrame, sample_weight: np.ndarray) -> Constant:
    received["train"], received["weights"] = train, sample_weight
    return Constant().fit(train)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


def loop(train=None, **dataset):
    data = el.Dataset(orders, target="y", time="at", **dataset)
    return el.Loop("sales", data=data, train=train or el.AutoTrain(candidates=("linear",), trials=1, threads=1))


def planned(declared, store):
    return {step.name: step.status for step in explain_run(declared, store)}


def test_a_window_trains_on_its_rows_and_a_changed_window_trains_again(store):
    whole = run_loop(loop(), store, target="train")
    assert "rows_in_window" not in whole.run.metrics
    first = run_loop(loop(window="30d"), store, target="train").run.metrics
    assert (first["rows_in_window"], first["rows_before_window"]) == (120, 240)
    assert first["train_rows"] == 120
    assert run_loop(loop(window="30d"), store, target="train").ran == 0
    changed = run_loop(loop(window="60d"), store, target="train")
    assert changed.run.metrics["train_rows"] == 240


def test_a_changed_half_life_trains_again_and_keeps_the_split(store):
    run_loop(loop(), store, target="train")
    steps = {step.name: step.status for step in run_loop(loop(half_life="30d"), store, target="train").steps}
    assert (steps["split"], steps["train"]) == ("cached", "ran")
    assert run_loop(loop(half_life="30d"), store, target="train").ran == 0


def test_a_step_of_the_user_gets_the_weights_of_its_rows(store):
    received.clear()
    run_loop(loop(fit, half_life="30d", window="60d"), store, target="fit")
    rows, weights = received["train"], received["weights"]
    assert len(weights) == len(rows) == 240
    age = (rows["at"].max() - rows["at"]).dt.total_seconds().to_numpy() / 86_400
    np.testing.assert_allclose(weights, 0.5 ** (age / 30))


@pytest.mark.slow
def test_a_warm_start_continues_the_champion_of_the_loop(store):
    boosted = el.AutoTrain(candidates=("lightgbm",), trials=1, threads=1)
    first = run_loop(loop(boosted), store)
    assert first.version is not None
    promote(store, "sales", get_version(store, first.version.key), "first")
    warm = el.AutoTrain(candidates=("lightgbm",), trials=1, threads=1, warm_start=True)
    second = run_loop(loop(warm, window="60d"), store)
    assert second.version is not None
    assert second.version.key != first.version.key
    texts = [read_package(store, run.version.package)[1]["model/model.txt"].decode() for run in (first, second)]
    trees = [text.partition("end of trees")[0].split("Tree=")[1:] for text in texts]
    assert len(trees[1]) >= len(trees[0])
    splits = [[tree.split("\n")[1:4] for tree in model[: len(trees[0])]] for model in trees]
    assert splits[0] == splits[1]
