"""A model sees the rows of a request as its user gave them when it was fitted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from everloop.errors import ParityError, UsageError
from everloop.registry import load_model, save_model

if TYPE_CHECKING:
    from everloop.stores import Store

RNG = np.random.default_rng(0)
ROWS = 200
NUMBERS = RNG.normal(size=ROWS)


class Ticks(RegressorMixin, BaseEstimator):
    """Counts the ticks of a time, in whatever unit it comes."""

    def fit(self, rows: Any, target: Any) -> Ticks:
        self.fitted_ = True
        return self

    def predict(self, rows: Any) -> Any:
        return np.asarray(rows["t"]).astype("int64") / 1e6


class Wrapping(RegressorMixin, BaseEstimator):
    """Adds in the width of its numbers, which wraps around."""

    def fit(self, rows: Any, target: Any) -> Wrapping:
        self.fitted_ = True
        return self

    def predict(self, rows: Any) -> Any:
        values = np.asarray(rows["n"] if hasattr(rows, "columns") else rows[:, 0])
        return (values + values).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_keep_their_unit(store: Store, unit: str) -> None:
    start = np.datetime64("2024-01-01T00:00:00")
    times = (start + np.arange(ROWS).astype("timedelta64[h]")).astype(f"datetime64[{unit}]")
    table = pd.DataFrame({"t": times})
    model = Ticks().fit(table, NUMBERS)
    save_model(model, "m", table, store=store)
    hand = pd.DataFrame({"t": np.array(["2024-03-01T12:30:00"], dtype=f"datetime64[{unit}]")})
    found = load_model(store, "m").predict([{"t": datetime(2024, 3, 1, 12, 30)}])
    np.testing.assert_array_equal(found, model.predict(hand))


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_keep_their_unit(store: Store, unit: str) -> None:
    table = pd.DataFrame({"t": np.arange(ROWS).astype("timedelta64[m]").astype(f"timedelta64[{unit}]")})
    model = Ticks().fit(table, NUMBERS)
    save_model(model, "m", table, store=store)
    hand = pd.DataFrame({"t": np.array([90], dtype="timedelta64[m]").astype(f"timedelta64[{unit}]")})
    found = load_model(store, "m").predict([{"t": timedelta(minutes=90)}])
    np.testing.assert_array_equal(found, model.predict(hand))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32", "int64", "float32"])
def test_numbers_keep_their_width(store: Store, kind: str) -> None:
    values = RNG.integers(0, 120, ROWS).astype(kind)
    for table in (pd.DataFrame({"n": values}), values[:, None]):
        model = Wrapping().fit(table, NUMBERS)
        save_model(model, "m", table, store=store)
        predictor = load_model(store, "m")
        hand = pd.DataFrame({"n": np.array([100, 3], dtype=kind)})
        wanted = model.predict(hand if isinstance(table, pd.DataFrame) else hand.to_numpy())
        (name,) = predictor.input_names
        np.testing.assert_array_equal(predictor.predict([{name: 100}, {name: 3}]), wanted)


@pytest.mark.slow
def test_what_counts_as_missing_travels(store: Store) -> None:
    import xgboost

    table = pd.DataFrame({"a": np.where(RNG.random(ROWS) < 0.3, -999.0, NUMBERS), "b": RNG.normal(size=ROWS)})
    target = (table["a"].replace(-999.0, 2.0) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=10, missing=-999.0).fit(table, target)
    save_model(model, "m", table, store=store)
    hand = pd.DataFrame({"a": [-999.0, 0.5, -0.5], "b": [0.0, 0.0, 0.0]})
    predictor = load_model(store, "m")
    np.testing.assert_allclose(predictor.predict(hand.to_dict("records")), model.predict_proba(hand)[:, 1], atol=1e-6)
    assert predictor.predict_labels(hand.to_dict("records")) == model.predict(hand).tolist()


def test_columns_that_lightgbm_renames(store: Store) -> None:
    import lightgbm

    table = pd.DataFrame({"first one": NUMBERS, "second one": RNG.normal(size=ROWS)})
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(table, NUMBERS > 0)
    save_model(model, "m", table, store=store)
    hand = pd.DataFrame({"first one": [0.4, -0.4], "second one": [0.0, 1.0]})
    found = load_model(store, "m").predict(hand.to_dict("records"))
    np.testing.assert_allclose(found, model.predict_proba(hand)[:, 1], atol=1e-12)


@pytest.mark.slow
def test_columns_without_names(store: Store) -> None:
    table = pd.DataFrame(RNG.normal(size=(ROWS, 3)))
    model = LogisticRegression().fit(table, NUMBERS > 0)
    save_model(model, "m", table, store=store)
    predictor = load_model(store, "m")
    assert predictor.input_names == ("0", "1", "2")
    found = predictor.predict([{"0": 0.1, "1": 0.2, "2": 0.3}])
    np.testing.assert_allclose(found, model.predict_proba(pd.DataFrame([[0.1, 0.2, 0.3]]))[:, 1], atol=1e-12)


TEXTS = [("good day", "bad night")[k] + f" number {k}" for k in RNG.integers(0, 2, ROWS)]


@pytest.mark.parametrize("make", [list, np.array, lambda texts: pd.Series(texts, name="said"), pd.Series])
def test_texts_alone(store: Store, make: Any) -> None:
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(make(TEXTS), ["good" in text for text in TEXTS])
    save_model(model, "m", make(TEXTS), store=store)
    predictor = load_model(store, "m")
    (name,) = predictor.input_names
    assert name == ("said" if getattr(make(TEXTS), "name", None) else "value")
    hand = ["good night", "bad"]
    found = predictor.predict([{name: text} for text in hand])
    np.testing.assert_allclose(found, model.predict_proba(hand)[:, 1], atol=1e-9)


def test_numbers_alone(store: Store) -> None:
    values = np.sort(RNG.normal(size=ROWS))
    model = IsotonicRegression(out_of_bounds="clip").fit(values, values**3)
    save_model(model, "m", values, store=store)
    np.testing.assert_allclose(load_model(store, "m").predict([{"value": 0.3}]), model.predict([0.3]))


def test_lists_of_lists(store: Store) -> None:
    rows = RNG.normal(size=(ROWS, 2)).tolist()
    model = LogisticRegression().fit(rows, NUMBERS > 0)
    save_model(model, "m", rows, store=store)
    found = load_model(store, "m").predict([{"x0": 0.5, "x1": -0.5}])
    np.testing.assert_allclose(found, model.predict_proba([[0.5, -0.5]])[:, 1], atol=1e-12)


def test_sparse_examples_are_refused_with_a_way_out(store: Store) -> None:
    matrix = TfidfVectorizer().fit_transform(TEXTS)
    model = LogisticRegression().fit(matrix, ["good" in text for text in TEXTS])
    with pytest.raises(UsageError, match="sparse matrix") as caught:
        save_model(model, "m", matrix, store=store)
    assert "make_pipeline(vectorizer, model)" in str(caught.value.help)


@pytest.mark.slow
def test_polars_types_are_kept(store: Store) -> None:
    table = pl.DataFrame({"n": RNG.integers(0, 120, ROWS)}, schema={"n": pl.Int8})
    model = Wrapping().fit(table, NUMBERS)
    save_model(model, "m", table, store=store)
    np.testing.assert_array_equal(load_model(store, "m").predict([{"n": 100}]), [-56.0])


class Reader(ClassifierMixin, BaseEstimator):
    """Looks at something that no request can carry."""

    def fit(self, rows: Any, target: Any) -> Reader:
        self.classes_ = np.unique(target)
        return self

    def predict(self, rows: Any) -> Any:
        return self.classes_[(rows.index.to_numpy() % 2 == 0).astype(int)]


@pytest.mark.slow
def test_what_the_rows_lose_on_their_way_is_refused(store: Store) -> None:
    table = pd.DataFrame({"a": NUMBERS}, index=np.arange(ROWS) * 2)
    with pytest.raises(ParityError, match="than for the example itself"):
        save_model(Reader().fit(table, NUMBERS > 0), "m", table, store=store)


def test_a_column_named_twice_is_refused(store: Store) -> None:
    table = pd.DataFrame(np.c_[NUMBERS, NUMBERS], columns=["a", "a"])
    model = make_pipeline(FunctionTransformer(), RandomForestClassifier(2)).fit(table.to_numpy(), NUMBERS > 0)
    with pytest.raises(UsageError, match="'a'"):
        save_model(model, "m", table, store=store)
