"""Trained models: equal scores for frames and rows, and files that restore them."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import CorruptionError, NotFoundError, RequestError
from everloop.training import AutoTrain, Model, model_from_files
from everloop.training.algorithms.booster import Booster
from everloop.training.algorithms.linear import link

TASKS = ("binary", "multiclass", "regression")
FORMATS = ("lightgbm", "linear")


def table(rows=600, seed=0):
    rng = np.random.default_rng(seed)
    x, kind = rng.normal(size=rows), rng.integers(0, 4, rows)
    signal = x + np.array([0.0, 1.0, -1.0, 2.0])[kind] + rng.normal(0, 0.5, rows)
    return pl.DataFrame(
        {
            "x": [None if gone else value for gone, value in zip(rng.random(rows) < 0.1, x, strict=True)],
            "kind": [("a", "b", "c", None)[k] for k in kind],
            "hour": rng.integers(0, 24, rows),
            "binary": signal > 0.5,
            "multiclass": np.digitize(signal, [-0.5, 1.0]),
            "regression": 100 + 10 * signal,
        }
    )


FEATURES = ["x", "kind", "hour"]
FRAME = table()


@pytest.fixture(scope="module")
def models():
    def train(format, task):
        auto = AutoTrain(candidates=(format,), trials=1, budget_s=30, task=task)
        return auto.fit(FRAME, target=task, features=FEATURES)

    return {(kind, task): train(kind, task) for kind in FORMATS for task in TASKS}


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "x": st.none() | st.floats(),
            "kind": st.sampled_from(["a", "b", "c", "zzz", "", None]),
            "hour": st.none() | st.integers(-(2**62), 2**62) | st.integers(0, 23),
        }
    ),
    min_size=1,
    max_size=30,
)
SCHEMA = {"x": pl.Float64, "kind": pl.String, "hour": pl.Int64}


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_one_row_and_many_answer_to_the_last_bit(models, format, task, rows):
    model = models[format, task].model
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    whole = model.predict_scores(frame)
    assert np.isfinite(whole).all()
    assert whole.shape == ((len(rows), 3) if task == "multiclass" else (len(rows),))
    single = np.concatenate([model.predict_rows([row]) for row in rows])
    assert single.tobytes() == whole.tobytes()
    assert model.predict_rows(rows).tobytes() == whole.tobytes()
    assert model.predict_scores(frame[:1]).tobytes() == whole[:1].tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_large_batches_answer_as_their_rows(models, format, task):
    model = models[format, task].model
    frame = table(3000, seed=9).select(FEATURES)
    whole = model.predict_scores(frame)
    few = np.concatenate([model.predict_scores(frame[k : k + 7]) for k in range(0, 3000, 7)])
    assert few.tobytes() == whole.tobytes()
    rows = frame.to_dicts()
    assert model.predict_rows(rows).tobytes() == whole.tobytes()
    assert np.concatenate([model.predict_rows([row]) for row in rows[:300]]).tobytes() == whole[:300].tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_files_bring_the_model_back(models, format, task):
    model = models[format, task].model
    assert isinstance(model, Model)
    files = model.to_files()
    again = model_from_files(format, files)
    assert again.to_files() == files
    assert (again.format, again.task, again.inputs) == (format, task, ("x", "kind", "hour"))
    expected = model.predict_scores(FRAME).tobytes()
    assert again.predict_scores(FRAME).tobytes() == expected
    assert pickle.loads(pickle.dumps(model)).predict_scores(FRAME).tobytes() == expected  # noqa: S301


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", TASKS)
def test_whole_numbers_may_come_as_floats(models, format, task):
    model = models[format, task].model
    late = FRAME.with_columns(pl.col("hour").cast(pl.Float64))
    assert model.predict_scores(late).tobytes() == model.predict_scores(FRAME).tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_no_rows_have_no_answers(models, format):
    empty = pl.DataFrame(schema=SCHEMA)
    assert models[format, "binary"].predict_scores(empty).shape == (0,)
    assert models[format, "binary"].predict_rows([]).shape == (0,)
    assert models[format, "multiclass"].predict_scores(empty).shape == (0, 3)
    assert models[format, "multiclass"].predict_rows([]).shape == (0, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_chances_are_chances(models, format):
    scores = models[format, "multiclass"].predict_scores(FRAME)
    np.testing.assert_allclose(scores.sum(axis=1), 1.0)
    assert (scores >= 0).all()


@pytest.mark.parametrize("format", FORMATS)
def test_threads_do_not_disturb_each_other(models, format):
    model = models[format, "binary"].model
    rows = FRAME.select(FEATURES).to_dicts()[:100]
    expected = model.predict_rows(rows).tobytes()

    def ask(_):
        return np.concatenate([model.predict_rows([row]) for row in rows]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(24))) == {expected}


@pytest.mark.parametrize("format", FORMATS)
def test_a_missing_column_is_a_request_error(models, format):
    with pytest.raises(RequestError, match="'kind' is missing"):
        models[format, "binary"].predict_rows([{"x": 1.0, "hour": 3}])
    with pytest.raises(RequestError, match="'kind' is missing"):
        models[format, "binary"].predict_scores(FRAME.drop("kind"))


def test_damaged_files_are_refused(models):
    files = models["lightgbm", "binary"].model.to_files()
    text = files["model.txt"]
    for damage in ({"model.txt": text[:-300]}, {"model.txt": text.replace(b"5", b"6", 1)}, {"encoder.json": b"{"}):
        with pytest.raises(CorruptionError):
            model_from_files("lightgbm", {**files, **damage})
    with pytest.raises(CorruptionError):
        model_from_files("lightgbm", {"model.txt": text})
    linear = models["linear", "binary"].model.to_files()
    for damage in (
        {"linear.json": b"{}"},
        {"linear.json": linear["linear.json"].replace(b'"bias": [', b'"bias": [1.0, ')},
    ):
        with pytest.raises(CorruptionError):
            model_from_files("linear", {**linear, **damage})
    with pytest.raises(NotFoundError, match="lightgbm, linear, skops, pickle"):
        model_from_files("tensorflow", {})


def test_a_cut_booster_is_refused_before_lightgbm_sees_it(models):
    text = models["lightgbm", "binary"].model.to_files()["model.txt"].decode()
    trees = text.index("Tree=1\n")
    for cut in (
        "",
        "tree\n",
        text[: len(text) // 2],
        text[:trees] + text[trees + 40 :],
        text.replace("tree_sizes", "x"),
    ):
        with pytest.raises(CorruptionError, match="complete LightGBM model"):
            Booster(cut)


def test_sigmoid_and_softmax_do_not_overflow():
    np.testing.assert_array_equal(link(np.array([[-1e6], [0.0], [1e6]]), "binary"), [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(link(np.array([[1e6, 0.0, -1e6]]), "multiclass"), [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("format", FORMATS)
def test_answering_needs_no_training_library(models, format, tmp_path):
    files = models[format, "binary"].model.to_files()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    code = f"""
import sys
from pathlib import Path
from everloop.training import model_from_files
files = {{path.name: path.read_bytes() for path in Path({str(tmp_path)!r}).iterdir()}}
model = model_from_files({format!r}, files)
print(repr(float(model.predict_rows([{{"x": 0.5, "kind": "b", "hour": 3}}])[0])))
heavy = {{"sklearn", "lightgbm", "pandas", "scipy", "polars", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = models[format, "binary"].predict_rows([{"x": 0.5, "kind": "b", "hour": 3}])[0]
    assert float(done.stdout) == expected
