"""Every estimator of scikit-learn that learns from a small table serves what it predicts, or is refused by name."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from everloop.errors import UsageError
from everloop.registry import load_model, save_model

if TYPE_CHECKING:
    from everloop.stores import Store

pytestmark = pytest.mark.slow

ROWS = 40
DRAW = np.random.default_rng(0)
TABLE = np.round(np.abs(DRAW.normal(size=(ROWS, 3))), 1)
NAMES = np.where(TABLE[:, 0] + DRAW.normal(size=ROWS) * 0.3 > 0.7, "yes", "no")
NUMBERS = TABLE @ [1.0, 2.0, 3.0] + 0.1
TARGETS: tuple[Any, ...] = (NAMES, NUMBERS, np.c_[NAMES == "yes", NAMES == "no"].astype(int), np.c_[NUMBERS, NUMBERS])
HAND = np.round(np.abs(np.random.default_rng(1).normal(size=(30, 3))), 1)
SEVERAL = {"MultiOutputClassifier", "ClassifierChain", "MultiOutputRegressor", "RegressorChain"}


def made(kind: type[Any]) -> Any:
    """An instance with the parts that its constructor asks for, and small."""
    parameters = inspect.signature(kind.__init__).parameters
    name = kind.__name__
    regresses = "Regress" in name
    given: dict[str, Any] = {}
    for part in ("estimator", "base_estimator"):
        if part in parameters and parameters[part].default is inspect.Parameter.empty:
            given[part] = Ridge() if regresses else LogisticRegression()
    if "estimators" in parameters:
        given["estimators"] = [("a", Ridge() if regresses else LogisticRegression())]
        given["estimators"] += [("b", Ridge(2.0) if regresses else DecisionTreeClassifier(max_depth=2))]
    for part in ("param_grid", "param_distributions"):
        if part in parameters:
            given[part] = {"C": [1.0, 2.0]}
    if name == "Pipeline":
        given["steps"] = [("a", LogisticRegression())]
    for part, value in (("n_estimators", 6), ("max_iter", 30), ("random_state", 0), ("radius", 5.0)):
        if part in parameters:
            given[part] = value
    return kind(**given)


def fitted(kind: type[Any]) -> Any:
    """Fitted on the first target that it takes; None where it takes none, or cannot predict."""
    try:
        model = made(kind)
    except TypeError:
        return None
    regresses = getattr(kind, "_estimator_type", "") == "regressor" or "Regressor" in kind.__name__
    for target in (*TARGETS[1:2], *TARGETS) if regresses else TARGETS:
        if kind.__name__ in SEVERAL and target.ndim == 1:
            continue
        try:
            model.fit(TABLE, target)
        except (TypeError, ValueError, AttributeError):
            continue
        return model if hasattr(model, "predict") else None
    return None


ESTIMATORS = [pytest.param(kind, id=name) for name, kind in all_estimators() if hasattr(kind, "predict")]


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.filterwarnings("ignore")
def test_it_serves_what_it_predicts_or_is_refused(store: Store, kind: type[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fitted(kind)
        if model is None:
            pytest.skip("it does not learn from this table, or does not predict")
        wanted = np.asarray(model.predict(HAND))
        if wanted.ndim > 1 and wanted.shape[1] > 1:
            # The one reason for which one of them is refused.
            with pytest.raises(UsageError, match=f"The {kind.__name__} predicts"):
                save_model(model, "m", TABLE, store=store, proof_s=0.3)
            return
        save_model(model, "m", TABLE, store=store, proof_s=0.3)
        predictor = load_model(store, "m")
        rows = [dict(zip(predictor.input_names, map(float, row), strict=True)) for row in HAND]
        scores = predictor.predict(rows)
        if predictor.task == "regression":
            np.testing.assert_allclose(scores, wanted.reshape(-1), rtol=1e-5, atol=1e-5)
            return
        assert predictor.predict_labels(rows) == wanted.reshape(-1).tolist()
        assert predictor.row_function()(tuple(rows[0].values()))[0] == wanted[0]
        if hasattr(model, "predict_proba"):
            chances = model.predict_proba(HAND)
            np.testing.assert_allclose(scores, chances if scores.ndim == 2 else chances[:, 1], atol=1e-5)
