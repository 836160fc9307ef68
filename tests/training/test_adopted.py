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


@pytest.mark.slow
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


@pytest.mark.slow
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


class Threshold:
    """Only `fit` and `predict`: one label above the mean, another one below."""

    labels = (0, 1)

    def predict(self, rows):
        return np.where(np.asarray(rows["x"], dtype=float) > 0, self.labels[1], self.labels[0])


@pytest.mark.parametrize("labels", [(1, 2), (1.0, 2.0), (-1, 1), (False, True), ("no", "yes"), (0, 1, 2)])
def test_labels_without_any_other_sign_of_a_classifier(labels):
    model = Threshold()
    model.labels = labels
    values = [labels[index % len(labels)] for index in range(FRAME.height)]
    values = [int(value) if isinstance(value, float) else value for value in values]
    frame = FRAME.with_columns(y=pl.Series(values))
    trained = adopt(model, frame, "y", features=["x"])
    answer = trained.model.answer_frame(frame)
    assert [trained.classes[place] for place in answer.places] == model.predict(frame).tolist()
    assert trained.task == ("binary" if len(labels) == 2 else "multiclass")


@pytest.mark.slow
def test_numbers_beyond_the_classes_are_amounts_and_numbers_from_0_to_1_are_chances():
    class Line:
        slope = 1.0

        def predict(self, rows):
            return np.asarray(rows["x"], dtype=float) * self.slope

    frame = FRAME.with_columns(y=pl.col("late").cast(pl.Int64), few=pl.col("hour") % 4)
    for target in ("y", "few"):
        trained = adopt(Line(), frame, target, features=["x"])
        assert trained.task == "regression"
        np.testing.assert_array_equal(trained.predict_scores(frame), frame["x"].to_numpy())

    class Chance(Line):
        def predict(self, rows):
            return 1 / (1 + np.exp(-super().predict(rows)))

    assert adopt(Chance(), frame, "y", features=["x"]).task == "binary"


def test_a_target_that_was_encoded_before_fit_is_refused_with_the_way_out():
    codes = FRAME["grade"].replace_strict({"low": 0, "mid": 1, "top": 2}).to_numpy()
    fitted = LogisticRegression().fit(FRAME.select(NUMBERS).to_pandas(), codes)
    with pytest.raises(TrainingError, match=r"predicts 0, 1, 2, but the target 'grade' has the values 'low'") as caught:
        adopt(fitted, FRAME, "grade")
    assert "encode it in the data step" in caught.value.help
    answers = FRAME.with_columns(answer=pl.when("late").then(pl.lit("yes")).otherwise(pl.lit("no")))
    with pytest.raises(TrainingError, match="predicts 0, 1, but the target 'answer' has the values 'no', 'yes'"):
        adopt(Threshold(), answers, "answer", features=["x"])


@pytest.mark.slow
@pytest.mark.parametrize("array", [False, True])
def test_an_estimator_that_changes_its_input_gives_its_own_labels(array):
    class Centered:
        def fit(self, rows, y):
            self.model = LogisticRegression().fit(self.prepared(rows.copy()), y)
            self.classes_, self.n_features_in_ = self.model.classes_, 2
            return self

        def prepared(self, rows):
            if array:
                rows -= 5
            else:
                rows["hour"] = rows["hour"] - 5
            return rows

        def predict(self, rows):
            return self.model.predict(self.prepared(rows))

        def predict_proba(self, rows):
            return self.model.predict_proba(self.prepared(rows))

    def given():
        chosen = FRAME.select(NUMBERS)
        return chosen.to_numpy(writable=True) if array else chosen.to_pandas()

    fitted = Centered().fit(given(), FRAME["late"].to_numpy())
    trained = adopt(fitted, FRAME, "late", features=NUMBERS)
    answer = trained.model.answer_frame(FRAME)
    np.testing.assert_array_equal(answer.places == 1, fitted.predict(given()))
    np.testing.assert_allclose(answer.scores, fitted.predict_proba(given())[:, 1], rtol=1e-12)


class Reads:
    """Predicts what a function reads from pandas."""

    def __init__(self, read):
        self.read = read

    def predict(self, rows):
        return np.asarray(self.read(rows.loc[:]), dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 3])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("at", lambda rows: rows["at"].dt.hour.fillna(-1)),
        ("naive", lambda rows: (rows["naive"] - np.datetime64("2024-01-01")).dt.days.fillna(-1)),
        ("day", lambda rows: rows["day"].astype("int64")),
        ("zip", lambda rows: [len(str(value)) for value in rows["zip"]]),
        ("small", lambda rows: rows["small"] * rows["small"]),
        ("text", lambda rows: rows["text"].str.len().fillna(-1)),
        ("flag", lambda rows: rows["flag"].map({True: 1, False: 0}).fillna(-1)),
    ],
)
def test_a_row_has_the_types_of_the_training_table_alone_and_among_others(name, read, share):
    from datetime import datetime, timedelta

    moments = pl.Series([datetime(2024, 3, 1) + timedelta(hours=5 * index) for index in range(60)])
    frame = pl.DataFrame(
        {
            "at": moments.dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York"),
            "naive": moments,
            "day": moments.cast(pl.Date),
            "zip": [10_000 + index for index in range(60)],
            "small": pl.Series([index - 30 for index in range(60)], dtype=pl.Int8),
            "text": ["a" * (1 + index % 5) for index in range(60)],
            "flag": [index % 2 == 0 for index in range(60)],
        }
    ).select(name)
    if share:
        empty = pl.int_range(pl.len()) % share == 0
        frame = frame.with_columns(pl.when(~empty).then(name)) if name not in ("day", "small") else frame
    expected = Reads(read).predict(frame.to_pandas())
    trained = adopt(Reads(read), frame.with_columns(y=pl.int_range(pl.len()) + 0.5), "y", features=[name])
    model = model_from_files("pickle", trained.model.to_files())
    np.testing.assert_array_equal(model.predict_scores(frame), expected)
    decoded = frame
    if name in ("at", "naive"):
        moment = pl.col(name)
        decoded = frame.with_columns(
            moment.dt.convert_time_zone("UTC") if name == "at" else moment.dt.replace_time_zone("UTC")
        )
    rows = decoded.to_dicts()
    np.testing.assert_array_equal(model.predict_rows(rows), expected)
    np.testing.assert_array_equal(np.concatenate([model.predict_rows([row]) for row in rows]), expected)
    np.testing.assert_array_equal(model.predict_scores(decoded), expected)


def test_an_estimator_that_predicts_otherwise_for_pandas_than_for_polars_is_refused():
    class Above:
        def predict(self, rows):
            return np.asarray(~(rows["x"] > 0), dtype=object).astype(bool).astype(float)

    frame = FRAME.with_columns(x=pl.when(pl.int_range(pl.len()) % 40 != 30).then("x"))
    with pytest.raises(TrainingError, match=r"predicts 0.0 if it gets a Polars frame, but 1.0 if it gets a pandas"):
        adopt(Above(), frame, "minutes", features=["x"])
    assert adopt(Above(), frame, "minutes", features=["x"], container="pandas").model.container == "pandas"


def test_columns_without_names_are_named_in_the_notes():
    fitted = LinearRegression().fit(FRAME.select(NUMBERS).to_numpy(), FRAME["minutes"].to_numpy())
    trained = adopt(fitted, FRAME.select(*NUMBERS, "minutes"), "minutes")
    assert "it was fitted without column names, so it gets the table's columns in order: x, hour" in trained.notes


@pytest.mark.slow
def test_a_class_of_the_users_own_module_loads_where_the_module_is_missing(tmp_path, monkeypatch):
    import subprocess
    import sys

    lines = ["import numpy as np", "class Rule:", "    def predict(self, X):", "        return np.asarray(X['x']) * 2"]
    (tmp_path / "own_loop.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    import own_loop

    model = adopt(own_loop.Rule(), FRAME, "minutes", features=["x"]).model
    (tmp_path / "model.pickle").write_bytes(model.to_files()["model.pickle"])
    code = "import sys, pickle; print(pickle.load(open(sys.argv[1], 'rb')).predict({'x': [1.5]})[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.pickle"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.stdout == "3.0\n", done.stderr


class Chance:
    """Returns one probability for each row from `predict`, and names no classes."""

    def predict(self, rows):
        return 1 / (1 + np.exp(-np.asarray(rows["x"], dtype=float)))


class Chances(Chance):
    def predict(self, rows):
        chance = super().predict(rows)
        return np.stack([1 - chance, chance], axis=1)


class Decision:
    """Returns a class for each row, and no probabilities."""

    def predict(self, rows):
        return np.where(np.asarray(rows["x"]) > 0, self.classes[1], self.classes[0])

    def __init__(self, classes):
        self.classes = classes


WORDS = FRAME.with_columns(verdict=pl.when("late").then(pl.lit("no")).otherwise(pl.lit("fine")))
SIGMOID = 1 / (1 + np.exp(-FRAME["x"].to_numpy()))


@pytest.mark.parametrize(
    ("estimator", "target", "positive", "expected"),
    [
        (Chance(), "late", True, SIGMOID),
        (Chance(), "late", False, 1 - SIGMOID),
        (Chance(), "verdict", "no", SIGMOID),
        (Chance(), "verdict", "fine", SIGMOID),  # nothing else says which of two texts the probability is of
        (Chances(), "verdict", "fine", 1 - SIGMOID),
        (Home(), "verdict", "no", SIGMOID),
        (Home(), "verdict", "fine", 1 - SIGMOID),
        (Decision(["fine", "no"]), "verdict", "fine", (FRAME["x"] <= 0).to_numpy().astype(float)),
        (Decision(["fine", "no"]), "verdict", "no", (FRAME["x"] > 0).to_numpy().astype(float)),
    ],
)
def test_scores_are_about_the_class_that_is_named(estimator, target, positive, expected):
    trained = adopt(estimator, WORDS, target, features=NUMBERS, positive=positive)
    assert trained.classes[1] == positive
    np.testing.assert_allclose(trained.predict_scores(WORDS), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("positive", ["fine", "no"])
@pytest.mark.parametrize("classifier", [LogisticRegression(), HistGradientBoostingClassifier(max_iter=10)])
def test_the_named_class_survives_files_and_leaves_the_predicted_classes_as_they_are(classifier, positive):
    fitted = classifier.fit(WORDS.select(NUMBERS).to_pandas(), WORDS["verdict"].to_list())
    trained = adopt(fitted, WORDS, "verdict", features=NUMBERS, positive=positive)
    again = model_from_files(trained.model.format, trained.model.to_files())
    own = fitted.predict_proba(WORDS.select(NUMBERS).to_pandas())[:, list(fitted.classes_).index(positive)]
    for model in (trained.model, again):
        answers = model.answer_frame(WORDS.select(NUMBERS))
        np.testing.assert_array_equal(answers.scores, own)
        predicted = [trained.classes[place] for place in answers.places]
        assert predicted == list(fitted.predict(WORDS.select(NUMBERS).to_pandas()))
    assert evaluate(trained, WORDS, "verdict").metrics["roc_auc"].value > 0.9


@pytest.mark.parametrize(("target", "reason"), [("grade", "more than two classes"), ("minutes", "amounts")])
def test_a_positive_class_needs_a_target_with_two_classes(target, reason):
    estimator = LinearRegression() if target == "minutes" else LogisticRegression()
    fitted = estimator.fit(FRAME.select(NUMBERS).to_pandas(), FRAME[target].to_numpy())
    with pytest.raises(TrainingError, match=f"positive= is 'top', but the target '{target}' has {reason}"):
        adopt(fitted, FRAME, target, features=NUMBERS, positive="top")


def test_a_positive_class_that_the_target_does_not_have_is_an_error():
    with pytest.raises(TrainingError, match="positive= is 'late', which is not a value of the target 'verdict'"):
        adopt(Home(), WORDS, "verdict", features=NUMBERS, positive="late")
