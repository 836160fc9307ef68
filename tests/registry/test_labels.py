"""Served labels are what the model's own `predict` gives, on rows built by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from everloop.errors import UsageError
from everloop.packages.package import get_package
from everloop.registry import load_model, save_model, verify_package, version_card
from everloop.training import adopt, evaluate

if TYPE_CHECKING:
    from everloop.packages import Predictor
    from everloop.stores import Store

RNG = np.random.default_rng(0)
X = pd.DataFrame(np.round(RNG.normal(size=(400, 3)), 1), columns=["a", "b", "c"])
HAND = pd.DataFrame(np.round(np.random.default_rng(1).normal(size=(300, 3)), 1), columns=["a", "b", "c"])
NOISY = X["a"].to_numpy() + RNG.normal(size=400)


class Stubborn(ClassifierMixin, BaseEstimator):
    """Predicts by another rule than its probabilities suggest."""

    def fit(self, rows: Any, target: Any) -> Stubborn:
        self.classes_ = np.unique(target)
        return self

    def predict_proba(self, rows: Any) -> Any:
        return np.tile([0.9, 0.1], (len(rows), 1))

    def predict(self, rows: Any) -> Any:
        return self.classes_[(np.asarray(rows["a"]) > 0).astype(int)]


def served(store: Store, model: Any, rows: pd.DataFrame = HAND, **options: Any) -> Predictor:
    """Save, load, and hold the labels of hand-made rows against `predict`, by every way in."""
    save_model(model, "m", X, store=store, **options)
    predictor = load_model(store, "m")
    wanted = np.asarray(model.predict(rows)).reshape(-1).tolist()
    plain = rows.to_dict("records")
    assert predictor.predict_labels(plain) == wanted
    assert predictor.predict_labels(pl.DataFrame(rows)) == wanted
    one = predictor.row_function()
    assert [one(tuple(row.values()))[0] for row in plain[:20]] == wanted[:20]
    assert [type(label) for label in predictor.predict_labels(plain[:1]) or ()] == [type(wanted[0])]
    return predictor


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(10, random_state=0),
        RandomForestClassifier(10, max_depth=3, random_state=0),
        RandomForestClassifier(14, random_state=1),
        ExtraTreesClassifier(6, random_state=0),
        DecisionTreeClassifier(max_depth=4, min_samples_leaf=10),
        HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=250),
        GradientBoostingClassifier(n_estimators=3),
        make_pipeline(StandardScaler(), LogisticRegression()),
        KNeighborsClassifier(4),
        FixedThresholdClassifier(LogisticRegression(), threshold=0.3),
        FixedThresholdClassifier(LogisticRegression(), threshold=0.7, pos_label="no"),
        FixedThresholdClassifier(LogisticRegression(), threshold=0.4, response_method="decision_function"),
        TunedThresholdClassifierCV(LogisticRegression(), scoring="balanced_accuracy"),
        GridSearchCV(RandomForestClassifier(8, random_state=0), {"max_depth": [2, 4]}),
        OneVsRestClassifier(LogisticRegression()),
        NearestCentroid(),
        RidgeClassifier(),
        make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
        DummyClassifier(strategy="prior"),
        Stubborn(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_labels_are_what_predict_gives(store: Store, model: Any) -> None:
    target = np.where(NOISY > 0, "yes", "no")
    served(store, model.fit(X, target))


@pytest.mark.slow
def test_ties_of_a_forest_are_kept_by_the_compiled_form(store: Store) -> None:
    forest = RandomForestClassifier(10, random_state=0).fit(X, NOISY > 0)
    ties = HAND[forest.predict_proba(HAND)[:, 1] == 0.5]
    assert len(ties) > 5
    predictor = served(store, forest, ties)
    assert predictor.form == "compiled trees"
    assert set(predictor.predict_labels(ties.to_dict("records")) or ()) == {False}


def test_a_threshold_is_compiled_with_its_rule(store: Store) -> None:
    model = FixedThresholdClassifier(LogisticRegression(), threshold=0.3).fit(X, NOISY > 0)
    assert served(store, model).form == "compiled linear"


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes",
    [("b", "a", "c"), (False, True), (3, -7), (1, 2), (10, 20, 30), (np.int8(-1), np.int8(1)), ("1", "0")],
    ids=str,
)
@pytest.mark.parametrize("model", [RandomForestClassifier(6, random_state=0), RidgeClassifier()])
def test_labels_keep_the_type_of_the_classes(store: Store, model: Any, classes: tuple[Any, ...]) -> None:
    target = np.array(classes)[np.digitize(NOISY, [0.0, 1.0][: len(classes) - 1])]
    predictor = served(store, model.fit(X, target))
    assert list(predictor.classes) == sorted(set(target.tolist()))


@pytest.mark.parametrize("kind", ["yes", "no"])
@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_a_threshold_of_catboost(store: Store, kind: str, threshold: float) -> None:
    import catboost

    target = NOISY > 0 if kind == "yes" else np.where(NOISY > 0, "x", "y")
    model = catboost.CatBoostClassifier(iterations=5, verbose=False, allow_writing_files=False).fit(X, target)
    model.set_probability_threshold(threshold)
    save_model(model, "m", X, store=store)
    predictor = load_model(store, "m")
    wanted = model.predict(HAND).tolist()
    assert predictor.predict_labels(HAND.to_dict("records")) == wanted
    assert predictor.form == "compiled trees"


@pytest.mark.slow
def test_boosters_without_a_split_predict_the_first_class(store: Store) -> None:
    target = np.arange(400) % 2
    served(store, HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=300).fit(X, target))
    import lightgbm

    served(store, lightgbm.LGBMClassifier(n_estimators=2, min_child_samples=300, verbose=-1).fit(X, target))


def test_votes_are_said_to_be_votes(store: Store) -> None:
    predictor = served(store, RidgeClassifier().fit(X, np.where(NOISY > 0, "yes", "no")))
    scores = predictor.predict(HAND.to_dict("records"))
    assert set(scores.tolist()) == {0.0, 1.0}
    with pytest.raises(UsageError, match="do not follow from its scores"):
        predictor.labels(scores)
    assert "the model gives no probabilities" in version_card(store, "m@1")
    assert verify_package(store, "m@1").ok


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_clusters_and_outliers_are_labels(store: Store, count: int) -> None:
    assert served(store, KMeans(count, n_init=1, random_state=0).fit(X)).classes == tuple(range(count))
    assert served(store, GaussianMixture(count, random_state=0).fit(X)).classes == tuple(range(count))


@pytest.mark.slow
def test_outliers_are_named(store: Store) -> None:
    assert served(store, IsolationForest(n_estimators=10, random_state=0).fit(X)).classes == (-1, 1)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (RandomForestClassifier(3), np.c_[NOISY > 0, NOISY > 1].astype(int)),
        (KNeighborsClassifier(), np.c_[NOISY > 0, NOISY > 1].astype(int)),
        (RandomForestRegressor(3), np.c_[NOISY, NOISY]),
        (make_pipeline(StandardScaler(), RandomForestRegressor(3)), np.c_[NOISY, NOISY, NOISY]),
        (OneVsRestClassifier(LogisticRegression()), np.c_[NOISY > 0, NOISY > 1].astype(int)),
    ],
)
def test_several_outputs_are_refused_by_name(store: Store, model: Any, target: Any) -> None:
    with pytest.raises(UsageError, match=r"predicts [23] values for each row") as caught:
        save_model(model.fit(X, target), "m", X, store=store)
    assert "one model for each target" in str(caught.value.help)


def test_classes_that_no_answer_can_hold_are_refused(store: Store) -> None:
    model = RandomForestClassifier(2).fit(X, np.where(NOISY > 0, b"x", b"y"))
    with pytest.raises(UsageError, match="of type bytes"):
        save_model(model, "m", X, store=store)


def test_what_is_judged_is_what_is_predicted(store: Store) -> None:
    model = FixedThresholdClassifier(LogisticRegression(), threshold=0.8).fit(X, NOISY > 0)
    rows = pl.DataFrame(X).with_columns(y=pl.Series(NOISY > 0))
    found = evaluate(adopt(model, rows, "y"), rows, "y")
    right = float((model.predict(X) == (NOISY > 0)).mean())
    assert found.metrics["accuracy"].value == pytest.approx(right)
    assert (
        found.metrics["accuracy"].value
        < evaluate(adopt(model.estimator_, rows, "y"), rows, "y").metrics["accuracy"].value
    )
    assert found.confusion[0][1] == int((model.predict(X) & (NOISY <= 0)).sum())


@pytest.mark.slow
def test_a_compiled_form_with_other_labels_is_refused(store: Store) -> None:
    save_model(Stubborn().fit(X, np.where(NOISY > 0, "yes", "no")), "m", X, store=store)
    assert not get_package(store, load_model(store, "m").digest or "").compiled
