from __future__ import annotations

import subprocess
import sys
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

import everloop as el
from everloop.errors import EverloopError, NotFoundError, RequestError, TrainingError, UsageError
from everloop.packages.package import get_package
from everloop.registry import load_model, save_model, verify_package

if TYPE_CHECKING:
    from everloop.stores import Store

ROWS = 400


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "age": rng.normal(40, 12, ROWS),
            "visits": rng.integers(0, 30, ROWS),
            "city": rng.choice(["Oslo", "Rome", "Kyiv"], ROWS),
            "plan": rng.choice(["free", "paid"], ROWS),
        }
    )
    table.loc[rng.random(ROWS) < 0.1, "age"] = np.nan
    return table


@pytest.fixture(scope="module")
def churned(people: pd.DataFrame) -> pd.Series:
    rng = np.random.default_rng(4)
    chance = people["age"].fillna(40) / 10 + (people["city"] == "Rome") * 3 + rng.normal(size=ROWS)
    return (chance > 5).map({True: "yes", False: "no"})


def pipeline(last: Any, encoder: Any = None) -> Any:
    encoder = encoder or OneHotEncoder(handle_unknown="ignore")
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    prepare = ColumnTransformer([("texts", encoder, ["city", "plan"]), ("numbers", numbers, ["age", "visits"])])
    return make_pipeline(prepare, last)


@pytest.mark.slow
def test_pipeline_becomes_a_version(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    model = pipeline(LogisticRegression()).fit(people, churned)
    version = el.save_model(model, "churn", people, tags={"team": "growth"}, description="the first", store=store)
    assert version.key == "churn@1"
    assert version.tags == {"team": "growth"}
    assert version.description == "the first"
    package = get_package(store, version.package)
    assert package.format == "sklearn"
    assert package.compiled
    assert package.parity["form"] == "compiled linear"
    predictor = el.load_model(store, "churn@1")
    assert predictor.classes == ("no", "yes")
    np.testing.assert_allclose(predictor.predict(pl.DataFrame(people)), model.predict_proba(people)[:, 1], atol=1e-12)
    inputs = predictor.signature.fields
    assert [item.type for item in predictor.signature.inputs] == ["float", "int", "string", "string"]
    assert inputs["city"].categories == ("Kyiv", "Oslo", "Rome")
    assert inputs["age"].low == pytest.approx(people["age"].min())
    assert inputs["visits"].high == people["visits"].max()
    assert verify_package(store, "churn@1").ok
    assert el.save_model(model, "churn", people, store=store).key == "churn@1"
    other = pipeline(LogisticRegression(C=0.01)).fit(people, churned)
    assert el.save_model(other, "churn", people, store=store).key == "churn@2"


@pytest.mark.slow
def test_rows_by_the_quick_way(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    model = pipeline(HistGradientBoostingClassifier(max_iter=10), encoder).fit(people, churned)
    save_model(model, "churn", people, store=store)
    predictor = load_model(store, "churn")
    assert predictor.compiled
    assert predictor.cheap
    assert predictor.form == "compiled trees"
    row = predictor.row_function()
    expected = model.predict_proba(people)[:, 1]
    for place in range(50):
        values = [None if value != value else value for value in people.iloc[place].tolist()]
        label, chance = row(tuple(values))
        assert chance == pytest.approx(expected[place], abs=1e-12)
        assert label == ("yes" if expected[place] >= 0.5 else "no")
    unseen = pd.DataFrame({"age": [np.nan], "visits": [3], "city": ["Lima"], "plan": ["free"]})
    assert row((None, 3, "Lima", "free"))[1] == pytest.approx(model.predict_proba(unseen)[0, 1], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["polars", "arrow", "numpy", "numpy32"])
def test_examples_of_every_kind(store: Store, people: pd.DataFrame, churned: pd.Series, kind: str) -> None:
    numbers = people[["age", "visits"]]
    given: Any = {
        "polars": lambda: pl.DataFrame(numbers),
        "arrow": lambda: pl.DataFrame(numbers).to_arrow(),
        "numpy": lambda: numbers.to_numpy(),
        "numpy32": lambda: numbers.to_numpy(dtype=np.float32),
    }[kind]()
    fitted_on = pl.DataFrame(numbers) if kind == "arrow" else given
    model = make_pipeline(SimpleImputer(), RandomForestClassifier(5, max_depth=4, random_state=0))
    model.fit(fitted_on, churned)
    save_model(model, "forest", given, store=store)
    predictor = load_model(store, "forest")
    assert predictor.compiled
    names = ("x0", "x1") if kind.startswith("numpy") else ("age", "visits")
    assert predictor.input_names == names
    frame = pl.DataFrame(given, schema=list(names)) if kind.startswith("numpy") else pl.DataFrame(numbers)
    np.testing.assert_allclose(predictor.predict(frame), model.predict_proba(fitted_on)[:, 1], atol=1e-12)


@pytest.mark.slow
def test_pandas_categories_keep_their_codes(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    import lightgbm

    table = people.assign(city=people["city"].astype("category"), plan=people["plan"].astype("category"))
    for name, model in {
        "hist": HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=10),
        "light": lightgbm.LGBMClassifier(n_estimators=10, verbose=-1),
    }.items():
        model.fit(table, churned)
        save_model(model, name, table, store=store)
        predictor = load_model(store, name)
        assert predictor.compiled, get_package(store, str(predictor.digest)).parity
        plain = pl.DataFrame(people)
        np.testing.assert_allclose(predictor.predict(plain), model.predict_proba(table)[:, 1], atol=1e-12)


@pytest.mark.slow
def test_function_is_kept_as_signed_code(store: Store, people: pd.DataFrame) -> None:
    version = save_model(lambda table: table["age"].fillna(0.0) * 2 + table["visits"], "double", people, store=store)
    assert get_package(store, version.package).format == "python"
    predictor = load_model(store, "double")
    assert predictor.task == "regression"
    assert not predictor.cheap
    row = {"age": 2.5, "visits": 4, "city": "Oslo", "plan": "free"}
    assert predictor.predict([row]).tolist() == [9.0]
    assert predictor.row_function()((2.5, 4, "Oslo", "free")) == (9.0,)


@pytest.mark.slow
def test_function_that_gives_probabilities(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    def thirds(table: Any) -> Any:
        return np.tile([0.25, 0.75], (len(table), 1))

    save_model(thirds, "fixed", people, y=churned, store=store)
    predictor = load_model(store, "fixed")
    assert predictor.classes == ("no", "yes")
    assert predictor.row_function()((None, 1, "Oslo", "free")) == ("yes", 0.75)


@pytest.mark.slow
def test_boosters_in_their_own_formats(store: Store, people: pd.DataFrame) -> None:
    xgboost, catboost = pytest.importorskip("xgboost"), pytest.importorskip("catboost")
    numbers, truth = people[["age", "visits"]], (people["visits"] > 12).astype(int)
    save_model(xgboost.XGBClassifier(n_estimators=5).fit(numbers, truth), "x", numbers, store=store)
    assert get_package(store, str(load_model(store, "x").digest)).format == "xgboost"
    assert load_model(store, "x").compiled
    model = catboost.CatBoostClassifier(iterations=5, verbose=0, cat_features=["city"], allow_writing_files=False)
    table = people[["visits", "city"]]
    save_model(model.fit(table, truth), "c", table, store=store)
    predictor = load_model(store, "c")
    assert predictor.manifest.format == "catboost"
    np.testing.assert_allclose(predictor.predict(pl.DataFrame(table)), model.predict_proba(table)[:, 1])


def test_onnx_model_as_it_is(store: Store, people: pd.DataFrame) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from skl2onnx.common.data_types import DoubleTensorType

    numbers = people[["age", "visits"]].fillna(0.0).to_numpy()
    model = Ridge().fit(numbers, numbers[:, 0] * 3)
    graph = skl2onnx.convert_sklearn(
        model, initial_types=[("X", DoubleTensorType([None, 2]))], target_opset={"": 18, "ai.onnx.ml": 3}
    ).SerializeToString()
    save_model(graph, "graph", numbers, store=store)
    predictor = load_model(store, "graph")
    assert predictor.form == "onnx"
    frame = pl.DataFrame(numbers, schema=["x0", "x1"])
    np.testing.assert_allclose(predictor.predict(frame), model.predict(numbers), rtol=1e-5)


def test_several_classes_out_of_order(store: Store, people: pd.DataFrame) -> None:
    numbers = people[["visits"]]
    truth = np.array(["c", "a", "b"])[np.digitize(numbers["visits"], [10, 20])]
    model = LogisticRegression().fit(numbers, truth)
    save_model(model, "three", numbers, store=store)
    predictor = load_model(store, "three")
    assert predictor.classes == ("a", "b", "c")
    label, *chances = predictor.row_function()((15,))
    assert chances == pytest.approx(model.predict_proba(pd.DataFrame({"visits": [15]}))[0].tolist())
    assert label == model.predict(pd.DataFrame({"visits": [15]}))[0]


@pytest.mark.slow
def test_compiled_package_answers_without_scikit_learn(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    version = save_model(pipeline(RandomForestClassifier(5)).fit(people, churned), "churn", people, store=store)
    code = """
import sys
from everloop.registry import load_model
from everloop.stores import open_store
with open_store(sys.argv[1]) as store:
    load_model(store, sys.argv[2]).row_function()((30.0, 2, "Oslo", "free"))
heavy = [name for name in ("sklearn", "pandas", "polars", "pyarrow", "scipy", "lightgbm.basic") if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(store.home), version.key], check=True, timeout=60)


class Broken:
    """Answers fewer rows than it is asked."""

    def predict(self, table: Any) -> Any:
        return np.zeros(max(0, len(table) - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, x: (LogisticRegression(), x), "is not fitted"),
        (lambda m, x: (pipeline(LogisticRegression()), x), "is not fitted"),
        (lambda m, x: (m, x.drop(columns="city")), "lacks the columns 'city'"),
        (lambda m, x: (m, x.head(0)), "0 rows"),
        (lambda m, x: (m, x.to_dict("records")), "The example is a list"),
        (lambda m, x: (m, x.assign(age="old")), "cannot predict the example"),
        (lambda m, x: (Broken(), x), "cannot predict the example"),
        (lambda m, x: (LogisticRegression, x), "is a class"),
        (lambda m, x: (42, x), "is not a model"),
        (lambda m, x: (b"no graph", x), "not an ONNX model"),
    ],
)
def test_what_cannot_be_saved_says_why(
    store: Store, people: pd.DataFrame, churned: pd.Series, change: Any, message: str
) -> None:
    fitted = pipeline(LogisticRegression()).fit(people, churned)
    model, example = change(fitted, people)
    with pytest.raises(EverloopError, match=message) as caught:
        save_model(model, "churn", example, store=store)
    assert isinstance(caught.value, UsageError | TrainingError) or message == "not an ONNX model"
    assert caught.value.help or message == "not an ONNX model"
    with pytest.raises(NotFoundError):
        load_model(store, "churn")


@pytest.mark.slow
def test_refused_values_are_the_clients_fault(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    model = pipeline(LogisticRegression(), OneHotEncoder(handle_unknown="error")).fit(people, churned)
    save_model(model, "churn", people, store=store)
    predictor = load_model(store, "churn")
    assert predictor.compiled
    with pytest.raises(RequestError, match="'Lima'"):
        predictor.row_function()((30.0, 2, "Lima", "free"))
    with pytest.raises(RequestError, match="city"):
        predictor.predict([{"age": 30.0, "visits": 2, "city": "Lima", "plan": "free"}])


@pytest.mark.slow
def test_what_a_training_step_returns_is_compiled_too(store: Store, people: pd.DataFrame, churned: pd.Series) -> None:
    from everloop.packages import build_package
    from everloop.training import adopt

    model = pipeline(RandomForestClassifier(5, max_depth=5)).fit(people, churned)
    rows = pl.DataFrame(people.assign(churned=churned))
    package = build_package(adopt(model, rows, "churned"), store=store, sample=rows)
    assert package.compiled, package.parity
    predictor = load_model(store, package.digest)
    np.testing.assert_allclose(predictor.predict(rows), model.predict_proba(people)[:, 1], atol=1e-12)


@pytest.mark.slow
def test_a_slow_function_is_called_a_few_times(store: Store) -> None:
    calls: list[int] = []

    def slow(table: pd.DataFrame) -> np.ndarray:
        calls.append(len(table))
        # More than measuring may take: one answer is enough to know that.
        sleep(0.06)
        return 1 / (1 + np.exp(-np.nan_to_num(table["a"].to_numpy(dtype=float)).clip(-5, 5)))

    frame = pd.DataFrame({"a": np.linspace(-1, 1, 250), "b": ["x", "y"] * 125})
    version = el.save_model(slow, "slow", example=frame, y=[0, 1] * 125, store=store)
    assert len(calls) <= 12
    package = get_package(store, version.package)
    assert package.parity["sample_rows"] == 250
    assert package.parity["edge_rows"] > 10
    assert not package.parity["not_tried"]


@pytest.mark.slow
def test_a_slow_estimator_that_refuses_rows_is_not_asked_the_same_twice(store: Store) -> None:
    asked: list[bytes] = []

    class Watched(LogisticRegression):
        def predict_proba(self, table: pd.DataFrame) -> np.ndarray:
            asked.append(table.to_numpy().tobytes())
            sleep(0.06)
            return super().predict_proba(table)

    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(400, 3)), columns=["a", "b", "c"])
    model = Watched().fit(frame, frame["a"] > 0)
    version = el.save_model(model, "watched", example=frame, store=store, proof_s=60)
    package = get_package(store, version.package)
    assert package.parity["sample_rows"] == 400
    # Nulls are refused, and each refused row has been asked alone.
    assert not any(item["nullable"] for item in version.signature["inputs"])
    # At most: as it was given, the trained and the packaged model as a frame and as dicts, once measured.
    assert max(asked.count(one) for one in asked) <= 5


class Plain:
    """A model of one's own that says nothing about what it predicts."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def fit(self, rows: pd.DataFrame, target: Any) -> Plain:
        return self

    def predict(self, rows: pd.DataFrame) -> Any:
        return self.answer(rows["visits"].to_numpy())


@pytest.mark.parametrize(
    ("answer", "target", "classes"),
    [
        (lambda visits: (visits > 10).astype(int), lambda visits: (visits > 12).astype(int), (0, 1)),
        (lambda visits: visits // 10 + 1, lambda visits: (visits + 1) // 10 + 1, (1, 2, 3, 4)),
        (lambda visits: visits > 10, lambda visits: visits > 12, (False, True)),
        (lambda visits: np.where(visits > 10, "many", "few"), lambda visits: np.where(visits > 9, "many", "few"),
         ("few", "many")),
        (lambda visits: visits / 30, lambda visits: (visits > 12).astype(int), (0, 1)),
        (lambda visits: visits / 30, lambda visits: np.where(visits > 12, "many", "few"), ("few", "many")),
        (lambda visits: visits * 1.5, lambda visits: visits, ()),
        (lambda visits: visits + 0.5, lambda visits: (visits > 12).astype(int), ()),
    ],
    ids=["0 and 1", "1 to 4", "booleans", "texts", "chances", "chances of texts", "amounts", "amounts for 0 and 1"],
)  # fmt: skip
def test_a_model_that_says_nothing_is_understood_by_its_target(people, answer, target, classes) -> None:
    from everloop.registry.saving import describe

    y, visits = target(people["visits"].to_numpy()), people["visits"].to_numpy()
    trained, frame = describe(Plain(answer), people[["visits"]], y=y)
    assert tuple(trained.classes) == classes
    assert trained.task == {0: "regression", 2: "binary", 4: "multiclass"}[len(classes)]
    found = trained.model.answer_frame(frame)
    expected = answer(visits)
    if classes and expected.dtype.kind != "f":
        assert [classes[place] for place in found.places] == expected.tolist()
    else:
        np.testing.assert_array_equal(found.scores, expected)


def test_a_model_of_one_kind_of_answer_is_a_regression_if_the_caller_says_so(people) -> None:
    from everloop.registry.saving import describe

    model = Plain(lambda visits: visits // 10)
    trained, _ = describe(model, people[["visits"]], y=people["visits"] // 10, task="regression")
    assert (trained.task, trained.classes) == ("regression", [])


def test_a_version_without_its_store_is_an_error_that_shows_how_to_name_both() -> None:
    with pytest.raises(NotFoundError, match="'churn@1' is neither a file nor a folder") as caught:
        load_model("churn@1")
    assert "load_model(everloop.open_store(), 'churn@1')" in caught.value.help
