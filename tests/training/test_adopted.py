"""Adopting fitted estimators of other libraries as models."""

import json
import pickle

import numpy as np
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from everloop.errors import CorruptionError, RequestError, TrainingError
from everloop.training import adopt, evaluate, model_from_files


def table(rows=300):
    rng = np.random.default_rng(0)
    x = rng.normal(size=rows)
    hour = rng.integers(0, 24, rows)
    return pl.DataFrame(
        {
            "x": x,
            "hour": hour,
            "kind": [("a", "b")[k] for k in rng.integers(0, 2, rows)],
            "late": x + hour / 10 + rng.normal(0, 0.3, rows) > 1,
            "grade": [("low", "mid", "top")[k] for k in np.digitize(x, [-0.5, 0.5])],
            "minutes": x * 10,
        }
    )


FRAME = table()
NUMBERS = ["x", "hour"]


class Home:
    """A model of the user's own, without any library."""

    def predict_proba(self, rows):
        chance = 1 / (1 + np.exp(-np.asarray(rows["x"], dtype=float)))
        return np.stack([1 - chance, chance], axis=1)


def test_a_pipeline_over_named_columns_gives_its_own_predictions():
    prepare = ColumnTransformer(
        [("kind", OneHotEncoder(handle_unknown="ignore"), ["kind"]), ("x", StandardScaler(), NUMBERS)]
    )
    fitted = make_pipeline(prepare, LogisticRegression()).fit(
        FRAME.select("x", "hour", "kind").to_pandas(), FRAME["late"]
    )
    trained = adopt(fitted, FRAME, "late")
    expected = fitted.predict_proba(FRAME.select("x", "hour", "kind").to_pandas())[:, 1]
    np.testing.assert_allclose(trained.predict_scores(FRAME), expected)
    assert trained.features == {"x": "double", "hour": "int64", "kind": "string"}
    assert trained.categories == {"kind": ["a", "b"]}
    assert trained.classes == [False, True]
    assert json.loads(json.dumps(trained.to_dict()))["best"] == {"candidate": "Pipeline"}
    assert evaluate(trained, FRAME, "late").value > 0.9


@pytest.mark.parametrize("estimator", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=10)])
def test_an_estimator_of_plain_arrays_works(estimator):
    fitted = estimator.fit(FRAME.select(NUMBERS).to_numpy(), FRAME["late"].to_numpy())
    trained = adopt(fitted, FRAME, "late", features=NUMBERS)
    expected = fitted.predict_proba(FRAME.select(NUMBERS).to_numpy())[:, 1]
    np.testing.assert_array_equal(trained.predict_scores(FRAME), expected)


@pytest.mark.parametrize("target", ["late", "grade", "minutes"])
def test_skops_files_are_read_without_running_code(target):
    estimator = LinearRegression() if target == "minutes" else LogisticRegression()
    model = adopt(estimator.fit(FRAME.select(NUMBERS).to_pandas(), FRAME[target].to_numpy()), FRAME, target).model
    assert model.format == "skops"
    files = model.to_files()
    again = model_from_files(model.format, files)
    expected = model.predict_scores(FRAME)
    assert expected.shape == ((300, 3) if target == "grade" else (300,))
    np.testing.assert_array_equal(again.predict_scores(FRAME), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_scores(FRAME), expected)  # noqa: S301
    assert again.to_files() == files
    np.testing.assert_allclose(again.predict_rows(FRAME.select(NUMBERS).to_dicts()), expected)


def test_an_estimator_that_needs_code_is_stored_as_a_pickle():
    trained = adopt(Home(), FRAME, "late", features=["x"])
    assert trained.model.format == "pickle"
    assert trained.notes == [f"adopted {__name__}.Home, stored as pickle"]
    again = model_from_files("pickle", trained.model.to_files())
    np.testing.assert_array_equal(again.predict_scores(FRAME), trained.predict_scores(FRAME))
    assert model_from_files("pickle", again.to_files()).format == "pickle"


def test_scores_are_in_the_order_of_the_sorted_classes():
    class Backwards(Home):
        classes_ = np.array([True, False])

        def predict_proba(self, rows):
            return super().predict_proba(rows)[:, ::-1]

    trained = adopt(Backwards(), FRAME, "late", features=["x"])
    assert trained.classes == [False, True]
    np.testing.assert_array_equal(
        trained.predict_scores(FRAME), adopt(Home(), FRAME, "late", features=["x"]).predict_scores(FRAME)
    )


def test_strings_are_classes():
    fitted = LogisticRegression().fit(FRAME.select(NUMBERS).to_pandas(), FRAME["grade"].to_numpy())
    trained = adopt(fitted, FRAME, "grade")
    assert (trained.task, trained.classes) == ("multiclass", ["low", "mid", "top"])
    assert evaluate(trained, FRAME, "grade").metrics["accuracy"].value > 0.9


def test_numbers():
    fitted = LinearRegression().fit(FRAME.select("x").to_pandas(), FRAME["minutes"].to_numpy())
    trained = adopt(fitted, FRAME, "minutes")
    assert (trained.task, trained.classes, trained.metric) == ("regression", [], "rmse")
    np.testing.assert_allclose(trained.predict_scores(FRAME), FRAME["minutes"])


def test_estimators_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(TrainingError, match=r"cannot predict the rows.*NotFittedError"):
        adopt(LogisticRegression(), FRAME, "late", features=NUMBERS)
    fitted = LogisticRegression().fit(FRAME.select(NUMBERS).to_numpy(), FRAME["late"].to_numpy())
    with pytest.raises(TrainingError, match="fitted on 2 columns, the rows have 5"):
        adopt(fitted, FRAME, "late")
    named = LogisticRegression().fit(FRAME.select(NUMBERS).to_pandas(), FRAME["late"].to_numpy())
    with pytest.raises(TrainingError, match="fitted on 'hour', which the rows do not have"):
        adopt(named, FRAME.drop("hour"), "late")
    with pytest.raises(TrainingError, match="no column 'lat'"):
        adopt(named, FRAME, "lat")


def test_requests_and_files_that_are_wrong():
    model = adopt(Home(), FRAME, "late", features=["x"]).model
    with pytest.raises(RequestError, match="'x' is missing"):
        model.predict_scores(FRAME.drop("x"))
    with pytest.raises(RequestError, match="'x' is missing"):
        model.predict_rows([{"hour": 1}])
    with pytest.raises(RequestError, match="types"):
        model.predict_rows([{"x": "high"}])
    with pytest.raises(CorruptionError):
        model_from_files("skops", {"adopted.json": b"{}"})
