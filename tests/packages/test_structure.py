"""Trees out of a file whose numbers lead nowhere are refused before anybody asks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from everloop.errors import CorruptionError
from everloop.packages.formats.estimator import dump_estimator, load_estimator
from everloop.packages.formats.estimator_structure import check_structure

skops = pytest.importorskip("skops.io")
CHANCE = np.random.default_rng(0)
ROWS = CHANCE.random((200, 3))
TRUTH = (ROWS[:, 0] > 0.5).astype(int)


def sound() -> list[Any]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestRegressor,
        VotingClassifier,
    )
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures
    from sklearn.tree import DecisionTreeClassifier

    few = {"n_estimators": 3, "random_state": 0}
    return [
        DecisionTreeClassifier(max_depth=1).fit(ROWS, np.zeros(200)),
        RandomForestRegressor(**few).fit(ROWS, ROWS[:, 0]),
        GradientBoostingClassifier(**few).fit(ROWS, TRUTH),
        HistGradientBoostingClassifier(max_iter=3, categorical_features=[2]).fit(
            np.column_stack([ROWS[:, :2], (ROWS[:, 2] * 5).astype(int)]), TRUTH
        ),
        make_pipeline(PolynomialFeatures(2), ExtraTreesClassifier(**few)).fit(ROWS, TRUTH),
        CalibratedClassifierCV(DecisionTreeClassifier(max_depth=2), cv=2).fit(ROWS, TRUTH),
        VotingClassifier([("a", DecisionTreeClassifier()), ("b", ExtraTreesClassifier(**few))]).fit(ROWS, TRUTH),
        MultiOutputClassifier(DecisionTreeClassifier(max_depth=2)).fit(ROWS, np.column_stack([TRUTH, 1 - TRUTH])),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_was_fitted_holds_together(number: int) -> None:
    check_structure(sound()[number])


def spoilt(field: str, value: int) -> Any:
    """A forest of which one number is another."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(3, random_state=0, max_depth=3).fit(ROWS, TRUTH)
    tree = forest.estimators_[1].tree_
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    nodes[field][0] = value
    tree.__setstate__({**state, "nodes": nodes})
    return forest


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left_child", 10**6, "outside of its tree"),
        ("right_child", 10**6, "outside of its tree"),
        ("right_child", 0, "outside of its tree"),
        ("left_child", -5, "outside of its tree"),
        ("right_child", -1, "one child"),
        ("feature", 3, "a column that does not exist"),
        ("feature", -7, "a column that does not exist"),
    ],
)
def test_a_forest_that_leads_nowhere_is_refused(field: str, value: int, message: str) -> None:
    blob = skops.dumps(spoilt(field, value))
    with pytest.raises(CorruptionError, match=message):
        load_estimator(blob, "sklearn", "RandomForestClassifier")


def test_a_tree_of_more_columns_than_its_estimator_is_refused() -> None:
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(random_state=0).fit(ROWS, TRUTH)
    tree.n_features_in_ = 1
    with pytest.raises(CorruptionError, match="3 columns in an estimator of 1"):
        load_estimator(skops.dumps(tree), "sklearn", "DecisionTreeClassifier")


@pytest.mark.parametrize(("field", "value"), [("left", 10**6), ("feature_idx", 99)])
def test_a_boosting_that_leads_nowhere_is_refused(field: str, value: int) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=3).fit(ROWS, TRUTH)
    model._predictors[1][0].nodes[field][0] = value
    with pytest.raises(CorruptionError, match=r"outside of its tree|a column that does not exist"):
        load_estimator(skops.dumps(model), "sklearn", "HistGradientBoostingClassifier")


def test_what_does_not_hold_together_is_not_kept_as_safe() -> None:
    assert dump_estimator(spoilt("left_child", 10**6))[0] == "python"
