"""Model folders that MLflow wrote, answered by everloop, and everloop's, answered by MLflow: the same, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from everloop import plugins
from everloop.errors import (
    ConflictError,
    CorruptionError,
    DataError,
    EverloopError,
    NotFoundError,
    TrustError,
    UsageError,
)
from everloop.records import ModelVersion
from everloop.registry import get_version, load_model, save_model, set_alias
from everloop.stores import Store, open_store

pytestmark = pytest.mark.slow

pytest.importorskip("yaml")
mlflow: Any = plugins.load("model_folder", "mlflow")
SAFE = ["pipeline", "array", "regression", "bare", "lgbm", "booster", "xgb", "xgb_booster", "cat"]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with open_store(tmp_path / "home") as opened:
        yield opened


def answers(store: Store, key: str, rows: pl.DataFrame, *, scores: bool) -> list[Any]:
    predictor = load_model(store, key)
    table = rows.select(pl.nth(range(len(predictor.input_names)))).rename(
        dict(zip(rows.columns, predictor.input_names, strict=False))
    )
    told = predictor.predict(table)
    labels = predictor.labels(told)
    return told.tolist() if scores or labels is None else labels


@pytest.mark.parametrize("name", SAFE)
def test_what_mlflow_wrote_answers_alike(folders: Any, store: Store, name: str, request: pytest.FixtureRequest) -> None:
    # One model of each library is tried as in production.
    if name not in ("pipeline", "booster", "xgb", "cat"):
        request.getfixturevalue("forked_trials")
    version = mlflow.read(store, folders.place / name, name)
    assert version.key == f"{name}@1"
    assert version.tags["mlflow.proved_on"] == ("made-up rows" if name == "bare" else "the logged example")
    # MLflow asks a bare booster for numbers: its probabilities, say.
    got = answers(store, version.key, folders.rows, scores=name == "booster")
    if isinstance(got[0], float):
        assert got == pytest.approx(folders.answers[name], abs=1e-6)
    else:
        assert got == folders.answers[name]


@pytest.mark.parametrize("name", ["pickle", "python"])
def test_code_is_read_only_when_allowed(folders: Any, store: Store, name: str) -> None:
    with pytest.raises(TrustError, match="loading it runs its code"):
        mlflow.read(store, folders.place / name, name)
    assert store.records.find(ModelVersion) == []


def test_an_allowed_pickle_answers_alike(folders: Any, store: Store) -> None:
    version = mlflow.read(store, folders.place / "pickle", "allowed", allow_code=True, example=folders.rows[["a", "b"]])
    assert answers(store, version.key, folders.rows, scores=False) == folders.answers["pickle"]
    assert version.tags["mlflow.proved_on"] == "given rows"


_PYTHON_MODEL = """
import json, sys
from pathlib import Path
import polars as pl
from everloop import plugins
from everloop.registry import load_model
from everloop.stores import open_store
with open_store(sys.argv[2]) as store:
    version = plugins.load("model_folder", "mlflow").read(store, Path(sys.argv[1]), "python", allow_code=True)
    rows = pl.read_csv(sys.argv[3]).select("a", "b")
    print(json.dumps(load_model(store, version.key).predict(rows).tolist()))
"""


def test_a_python_model_answers_where_mlflow_is(folders: Any, tmp_path: Path, mlflow_python: str, run_by: Any) -> None:
    place = folders.place
    arguments = [str(place / "python"), str(tmp_path / "home"), str(place / "rows.csv")]
    said = run_by(mlflow_python, "-c", _PYTHON_MODEL, *arguments, everloop=True, EVERLOOP_KEYS=str(tmp_path / "keys"))
    assert json.loads(said.splitlines()[-1]) == folders.answers["python"]


_ASKS = """
import json, os, sys
import mlflow, numpy as np, pandas as pd
rows = pd.read_csv(sys.argv[2])
said = {}
for name in sorted(os.listdir(sys.argv[1])):
    folder = os.path.join(sys.argv[1], name)
    model = mlflow.pyfunc.load_model(folder)
    names = model.metadata.get_input_schema().input_names()
    table = rows.iloc[:, : len(names)].set_axis(names, axis=1)
    said[name] = {"pyfunc": np.asarray(model.predict(table)).tolist()}
    flavors = model.metadata.flavors
    if len(sys.argv) > 3:
        native = {"sklearn": mlflow.sklearn, "xgboost": mlflow.xgboost, "catboost": mlflow.catboost}
        for flavor in flavors.keys() & native.keys():
            loaded = native[flavor].load_model(folder)
            given = table.to_numpy() if name == "array" else table
            said[name][flavor] = np.asarray(loaded.predict(given)).reshape(-1).tolist()
print(json.dumps(said))
"""


@pytest.mark.usefixtures("forked_trials")
def test_what_everloop_writes_answers_alike_in_mlflow(
    folders: Any, store: Store, tmp_path: Path, mlflow_python: str, run_by: Any
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in SAFE:
        mlflow.write(store, mlflow.read(store, folders.place / name, name).key, out / name)
    said = run_by(mlflow_python, "-c", _ASKS, str(out), str(folders.place / "rows.csv"), "native", everloop=True)
    told = json.loads(said.splitlines()[-1])
    for name in SAFE:
        own = answers(store, f"{name}@1", folders.rows, scores=False)
        assert told[name]["pyfunc"] == (pytest.approx(own) if isinstance(own[0], float) else own)
    for name, flavor in (("pipeline", "sklearn"), ("array", "sklearn"), ("xgb", "xgboost"), ("cat", "catboost")):
        assert told[name][flavor] == folders.answers[name]
    # And back: the package in the folder is the one that was written.
    again = mlflow.read(store, out / "pipeline", "again")
    assert again.package == get_version(store, "pipeline@1").package


def test_models_trained_by_everloop_answer_in_mlflow(
    store: Store, tmp_path: Path, mlflow_python: str, run_by: Any
) -> None:
    from everloop.packages import build_package
    from everloop.registry import register
    from everloop.training import AutoTrain

    chance = np.random.default_rng(0)
    table = pl.DataFrame({"a": chance.random(300), "c": chance.choice(["x", "y", "z"], 300)})
    table = table.with_columns(late=(pl.col("a") + (pl.col("c") == "x")) > 0.8)
    trained = AutoTrain(metric="roc_auc", trials=1, candidates=("lightgbm",), threads=1).fit(table, target="late")
    version = register(store, "delays", build_package(trained, store=store, sample=table))
    out = tmp_path / "out"
    out.mkdir()
    mlflow.write(store, version.key, out / "delays")
    table.select("a", "c").write_csv(tmp_path / "rows.csv")
    said = run_by(mlflow_python, "-c", _ASKS, str(out), str(tmp_path / "rows.csv"), everloop=True)
    own = load_model(store, version.key)
    assert json.loads(said.splitlines()[-1])["delays"]["pyfunc"] == own.labels(own.predict(table))


def test_the_same_version_gives_the_same_folder(store: Store, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    table = pl.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
    version = save_model(LogisticRegression().fit(table.to_numpy(), [0, 0, 1, 1]), "m", example=table.to_numpy())
    with pytest.raises(EverloopError):
        mlflow.write(store, "m@9", tmp_path / "none")
    with open_store() as nearest:
        one, two = (mlflow.write(nearest, version.key, tmp_path / name) for name in ("one", "two"))
        with pytest.raises(UsageError, match="already exists"):
            mlflow.write(nearest, version.key, one)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in files)
    assert {"MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json"} <= {
        str(path) for path in files
    }


def folder_of(tmp_path: Path, text: str, **files: str) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text(text)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


@pytest.mark.usefixtures("forked_trials")
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("flavors: {sklearn: {pickled_model: ../../etc/passwd.skops}}", DataError, "leads out of"),
        ("flavors: {sklearn: {pickled_model: /etc/passwd.skops}}", DataError, "leads out of"),
        ("flavors: {sklearn: {pickled_model: 'a\\b.skops'}}", DataError, "leads out of"),
        (
            "flavors: {sklearn: {pickled_model: none.skops}}",
            NotFoundError,
            "has no 'none.skops', which its MLmodel names",
        ),
        ("flavors: {spacy: {data: x}}", DataError, "has no supported flavor; it has: spacy"),
        ("flavors: {xgboost: {data: m, model_class: os.system}}", DataError, "of the class 'system'"),
        ("flavors: {catboost: {data: m, model_type: Evil}}", DataError, "of the type 'Evil'"),
        ("flavors: []", DataError, "has no flavors"),
        ("{", DataError, "cannot be read"),
        ("!!python/object/apply:os.system [id]", DataError, "cannot be read"),
        ("flavors: {sklearn: {a: !!python/object/new:os.system [id]}}", DataError, "cannot be read"),
        ("flavors: {sklearn: {a: !!python/name:os.system ''}}", DataError, "cannot be read"),
        ("flavors: {sklearn: {a: !!python/module:os ''}}", DataError, "cannot be read"),
        ("!<tag:yaml.org,2002:python/object/apply:os.system> [id]", DataError, "cannot be read"),
        ("%TAG ! tag:yaml.org,2002:python/object/apply:\n---\n!os.system [id]", DataError, "cannot be read"),
        ("a" * 1_100_000, DataError, "at most 1,048,576"),
        ("[" * 5000, DataError, "cannot be read"),
        ("flavors: {sklearn: {pickled_model: m, serialization_format: cloudpickle}}", TrustError, "allow-code"),
        (
            "flavors: {sklearn: {pickled_model: m, serialization_format: skops}}",
            CorruptionError,
            "skops file cannot be read",
        ),
        (
            "flavors: {lightgbm: {data: m, serialization_format: cloudpickle}}",
            CorruptionError,
            "LightGBM model is damaged",
        ),
        ("flavors: {python_function: {loader_module: os, data: m}}", TrustError, "a Python model"),
        (
            "flavors: {python_function: {loader_module: mlflow.pyfunc.model, cloudpickle_version: '3'}}",
            TrustError,
            "a Python model",
        ),
        ("flavors: {onnx: {data: ../m}}", DataError, "leads out of"),
        ("flavors: {xgboost: {data: /m}}", DataError, "leads out of"),
        ("flavors: {catboost: {model_type: CatBoostClassifier, data: 'm/../../m'}}", DataError, "leads out of"),
        ("flavors: {lightgbm: {lgb_model: m, data: '..'}}", DataError, "leads out of"),
        ("flavors: {sklearn: {pickled_model: 'm\\0.skops'}}", DataError, "leads out of"),
    ],
)
def test_wicked_folders_are_refused(
    store: Store, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mlflow.read(store, folder_of(tmp_path, text, m="x"), "m")
    assert store.records.find(ModelVersion) == []


@pytest.mark.usefixtures("forked_trials")
def test_symbolic_links_are_refused(store: Store, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "flavors: {sklearn: {pickled_model: model.skops}}")
    (tmp_path / "secret.skops").write_text("x")
    (folder / "model.skops").symlink_to(tmp_path / "secret.skops")
    with pytest.raises(DataError, match="symbolic link"):
        mlflow.read(store, folder, "m")
    shutil.rmtree(folder)
    with pytest.raises(NotFoundError, match="is not an MLflow model"):
        mlflow.read(store, folder, "m")


@pytest.mark.usefixtures("forked_trials")
def test_a_version_without_a_package_is_adopted_once(folders: Any, store: Store) -> None:
    bare = store.new(ModelVersion, model="clf", version=3, package="", source="models:/m-1", tags={"team": "x"})
    store.records.put(bare)
    set_alias(store, "clf", "champion", "clf@3")
    with pytest.raises(NotFoundError, match="no package yet"):
        load_model(store, "clf@champion")
    made = mlflow.adopt(store, bare, folders.place / "lgbm")
    assert (made.version, made.tags["team"], made.source) == (3, "x", "models:/m-1")
    assert answers(store, "clf@champion", folders.rows, scores=False) == folders.answers["lgbm"]
    with pytest.raises(ConflictError, match="already has a package"):
        mlflow.adopt(store, made, folders.place / "lgbm")


@pytest.mark.usefixtures("forked_trials")
@pytest.mark.parametrize("form", ["skops", "cloudpickle", "pickle", None, "SKOPS", "skops "])
@pytest.mark.parametrize("name", ["model.skops", "model.pkl", "model.txt"])
def test_a_pickle_runs_under_no_name_and_no_claim(store: Store, tmp_path: Path, form: str | None, name: str) -> None:
    ran = tmp_path / "ran"
    claim = f", serialization_format: '{form}'" if form else ""
    flavor = f"{{pickled_model: {name}{claim}, skops_trusted_types: [builtins.eval, os.system, posix.system]}}"
    folder = folder_of(tmp_path, f"flavors: {{sklearn: {flavor}, python_function: {{loader_module: mlflow.sklearn}}}}")
    (folder / name).write_bytes(pickle.dumps(Runs(str(ran))))
    with pytest.raises(EverloopError):
        mlflow.read(store, folder, "m")
    assert not ran.exists()


def test_a_trust_list_in_the_folder_is_not_asked(store: Store, tmp_path: Path) -> None:
    from skops.io import dump

    folder = folder_of(tmp_path, "flavors: {sklearn: {pickled_model: model.skops, serialization_format: skops}}")
    dump(subprocess.Popen, folder / "model.skops")
    listed = "flavors: {sklearn: {pickled_model: model.skops, skops_trusted_types: ['subprocess.Popen'], x: 1}}"
    (folder / "MLmodel").write_text(listed)
    with pytest.raises(EverloopError):
        mlflow.read(store, folder, "m")
    assert store.records.find(ModelVersion) == []


class Runs:
    """Writes a file when somebody reads it as a pickle."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")
