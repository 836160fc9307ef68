"""From a table to answers by name, with the rooms before this one as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from everloop.packages import build_package
from everloop.registry import load_model, register, set_alias
from everloop.training import evaluate

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store
    from everloop.training.trained_model import Trained


def test_evaluation_goes_into_package_and_version(store: Store, lightgbm: Trained, table: pl.DataFrame) -> None:
    found = evaluate(lightgbm, table, "late", task="binary", metric="roc_auc", slices=("carrier",))
    package = build_package(lightgbm, store=store, sample=table, evaluation=found)
    version = register(store, "delays", package, evaluation=found)
    assert version.metrics["roc_auc"] == found.metrics["roc_auc"].value
    assert version.evaluation["metric"] == "roc_auc"
    set_alias(store, "delays", "champion", version.key, reason="the first")
    predictor = load_model(store, "delays@champion")
    np.testing.assert_array_equal(predictor.predict(table), lightgbm.predict_scores(table))
