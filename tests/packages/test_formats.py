"""Formats beyond estimators: networks, MOJOs, Python models, averages, functions before and after."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from everloop.errors import CorruptionError, EverloopError, NotFoundError, RequestError, TrustError, UsageError
from everloop.packages.formats.input_tables import read_example
from everloop.packages.formats.mojo import MojoModel, adopt_mojo, read_mojo
from everloop.packages.package import get_package
from everloop.records import Route
from everloop.registry import load_model, save_model, verify_package
from everloop.serving.route_scorer import RouteScorer

if TYPE_CHECKING:
    from everloop.stores import Store

RNG = np.random.default_rng(0)
NUMBERS = pd.DataFrame(RNG.normal(size=(200, 3)).astype(np.float32), columns=["a", "b", "c"])
TRUTH = (NUMBERS["a"] + NUMBERS["b"] > 0).to_numpy()
H2O = Path(__file__).parents[2] / ".bench" / "h2o" / "bin" / "python"


def check(store: Store, name: str, wanted: Any, *, format: str, rtol: float = 1e-6) -> Any:
    """The version answers as its model did, as a frame and as rows, and verifies."""
    predictor = load_model(store, name)
    assert predictor.manifest.format == format
    np.testing.assert_allclose(predictor.predict(pl.DataFrame(NUMBERS)), wanted, rtol=rtol, atol=1e-7)
    rows = pl.DataFrame(NUMBERS).head(3).to_dicts()
    np.testing.assert_allclose(predictor.predict(rows), wanted[:3], rtol=1e-5, atol=1e-6)
    answer = predictor.row_function()(tuple(rows[0].values()))
    assert answer[-1] == pytest.approx(np.asarray(wanted[0]).reshape(-1)[-1], rel=1e-5)
    # As an endpoint asks: one row, and several.
    scorer = RouteScorer(Route(version=str(predictor.version), percent=100.0), predictor)
    for few in (1, 3):
        scores, _, _ = scorer.score([tuple(row.values()) for row in rows[:few]])
        np.testing.assert_allclose(scores, wanted[:few], rtol=1e-5, atol=1e-6)
    predictor.warm()
    assert verify_package(store, name).ok
    return predictor


@pytest.mark.slow
def test_average_of_models(store: Store) -> None:
    members = [
        LogisticRegression().fit(NUMBERS, TRUTH),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(NUMBERS, TRUTH),
    ]
    save_model(members, "mean", NUMBERS, weights=[3, 1], store=store)
    wanted = 0.75 * members[0].predict_proba(NUMBERS)[:, 1] + 0.25 * members[1].predict_proba(NUMBERS)[:, 1]
    predictor = check(store, "mean", wanted, format="average")
    assert "scikit-learn" in predictor.manifest.environment.packages
    numbers = [Ridge().fit(NUMBERS, NUMBERS["a"]), lambda table: np.zeros(len(table))]
    save_model(numbers, "half", NUMBERS, store=store)
    check(store, "half", 0.5 * numbers[0].predict(NUMBERS), format="average_code")  # type: ignore[attr-defined]
    for weights, models, told in (([1.0], members, "do not fit"), (None, [], "no models"), ([1], numbers[0], "a list")):
        with pytest.raises(UsageError, match=told):
            save_model(models, "bad", NUMBERS, weights=weights, store=store)
    with pytest.raises(UsageError, match="different classes"):
        save_model([members[0], numbers[0]], "bad", NUMBERS, store=store)


@pytest.mark.slow
def test_an_average_that_calls_itself_safe_reads_no_code(store: Store) -> None:
    from everloop.training.trained_model import model_from_files

    save_model([lambda table: table["a"]], "code", NUMBERS, store=store)
    files = load_model(store, "code").model.to_files()
    assert model_from_files("average_code", files).format == "average_code"
    with pytest.raises(TrustError, match="'python'"):
        model_from_files("average", files)
    with pytest.raises(CorruptionError):
        model_from_files("average", {"average.json": b'{"weights": [1], "formats": []}'})


@pytest.mark.slow
def test_voting_and_stacking_are_kept_and_compiled_or_told_why(store: Store) -> None:
    members = [("one", LogisticRegression()), ("two", make_pipeline(StandardScaler(), LogisticRegression(C=0.1)))]
    model = VotingClassifier(members, voting="soft").fit(NUMBERS, TRUTH)
    version = save_model(model, "vote", NUMBERS, store=store)
    check(store, "vote", model.predict_proba(NUMBERS)[:, 1], format="sklearn")
    parity = get_package(store, version.package).parity
    assert parity["compiled"] or parity["reasons"]


@pytest.mark.slow
def test_functions_before_and_after(store: Store) -> None:
    def ratio(table: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"sum": table["a"] + table["b"], "c": table["c"]})

    def doubt(scores: Any) -> Any:
        return 0.5 + (scores - 0.5) / 2

    model = LogisticRegression().fit(ratio(NUMBERS), TRUTH)
    save_model(model, "prepared", NUMBERS, before=ratio, after=doubt, store=store)
    wanted = 0.5 + (model.predict_proba(ratio(NUMBERS))[:, 1] - 0.5) / 2
    predictor = check(store, "prepared", wanted, format="processed")
    assert predictor.input_names == ("a", "b", "c")
    # What need not be code is none: the estimator inside is in its own safe format.
    assert "model/inner/model.skops" in predictor.manifest.files
    with pytest.raises(UsageError, match="rows of 200"):
        save_model(model, "bad", NUMBERS, before=lambda table: ratio(table).head(3), store=store)
    with pytest.raises(UsageError, match="cannot prepare"):
        save_model(model, "bad", NUMBERS, before=lambda table: table["nothing"], store=store)


class Thresholds:
    """As MLflow's PythonModel: loads its files and predicts with a context."""

    def load_context(self, context: Any) -> None:
        self.known = json.loads(Path(context.artifacts["limits"]).read_text())
        self.folder = sorted(path.name for path in Path(context.artifacts["more"]).iterdir())

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        assert self.folder == ["one.txt", "two.txt"]
        return (model_input["a"] > self.known["a"]).astype(float)


@pytest.mark.slow
def test_a_python_model_with_its_files(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limits.json").write_text('{"a": 0.25}')
    (tmp_path / "more").mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "more" / name).write_text(name)
    artifacts = {"limits": tmp_path / "limits.json", "more": tmp_path / "more"}
    save_model(Thresholds(), "limits", NUMBERS, artifacts=artifacts, store=store)
    (tmp_path / "limits.json").unlink()
    check(store, "limits", (NUMBERS["a"] > 0.25).to_numpy(dtype=float), format="pyfunc")
    with pytest.raises(NotFoundError, match="limits"):
        save_model(Thresholds(), "limits", NUMBERS, artifacts=artifacts, store=store)
    with pytest.raises(UsageError, match="cannot be loaded"):
        save_model(Thresholds(), "limits", NUMBERS, artifacts={"more": tmp_path / "more"}, store=store)
    with pytest.raises(UsageError, match="is not a valid name"):
        save_model(Thresholds(), "limits", NUMBERS, artifacts={"../x": tmp_path / "more"}, store=store)
    with pytest.raises(UsageError, match="`artifacts` needs an object"):
        save_model(Ridge().fit(NUMBERS, TRUTH), "limits", NUMBERS, artifacts=artifacts, store=store)
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    with pytest.raises(TrustError):
        load_model(store, "limits")


@pytest.mark.slow
def test_pytorch_module_as_weights_and_code(store: Store, need: Any) -> None:
    torch = _torch(need)

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
            self.head = torch.nn.Linear(8, 1)
            self.register_buffer("shift", torch.tensor([0.25]), persistent=False)

        def forward(self, rows: Any) -> Any:
            return torch.sigmoid(self.head(self.body(rows)) + self.shift)

    torch.manual_seed(0)
    net = Net()
    net(torch.from_numpy(NUMBERS.to_numpy().copy()))
    save_model(net, "net", NUMBERS, y=TRUTH, store=store)
    with torch.no_grad():
        wanted = net.eval()(torch.from_numpy(NUMBERS.to_numpy().copy())).numpy()[:, 0]
    predictor = check(store, "net", wanted, format="torch", rtol=1e-5)
    assert {"model/weights.safetensors", "model/module.pkl"} <= set(predictor.manifest.files)
    assert predictor.classes == (False, True)
    assert {"torch", "safetensors"} <= set(predictor.manifest.environment.packages)
    for bare, told in ((torch.nn.Linear(3, 1), "not probabilities"), (torch.nn.Linear(4, 1), "cannot predict")):
        with pytest.raises(EverloopError, match=told):
            save_model(bare, "bad", NUMBERS, y=TRUTH, store=store)
    with pytest.raises(UsageError, match="is not numeric"):
        save_model(net, "bad", NUMBERS.assign(a="x"), y=TRUTH, store=store)


@pytest.mark.slow
def test_pytorch_program_needs_no_class_of_ours(store: Store, need: Any) -> None:
    torch = _torch(need)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3), torch.nn.Softmax(1)).eval()
    given = torch.from_numpy(NUMBERS.to_numpy().copy())
    program = torch.export.export(net, (given,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    classes = np.array(["high", "low", "mid"])[np.arange(len(NUMBERS)) % 3]
    save_model(program, "program", NUMBERS, y=classes, store=store)
    with torch.no_grad():
        wanted = net(given).numpy()
    predictor = check(store, "program", wanted, format="torch", rtol=1e-5)
    assert predictor.classes == ("high", "low", "mid")
    assert "model/program.pt2" in predictor.manifest.files


def _torch(need: Any) -> Any:
    try:
        import safetensors.torch  # noqa: F401
        import torch
    except ImportError:
        need("torch", "PyTorch with safetensors", "pip install torch safetensors")
    return torch


@pytest.mark.slow
def test_keras_in_safe_mode(store: Store, need: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = _keras(need, monkeypatch)
    layers = keras.layers
    net = keras.Sequential(
        [layers.Input((3,)), layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(1, "sigmoid")]
    )
    net.compile(optimizer="adam", loss="binary_crossentropy")
    version = save_model(net, "keras", NUMBERS, y=TRUTH, store=store)
    assert save_model(net, "keras", NUMBERS, y=TRUTH, store=store).key == version.key
    wanted = np.asarray(net(NUMBERS.to_numpy(), training=False).detach())[:, 0]
    check(store, "keras", wanted, format="keras", rtol=1e-5)
    named = {name: layers.Input((1,), name=name) for name in ("a", "b", "c")}
    sum_ = layers.Dense(1)(layers.Concatenate()(list(named.values())))
    several = keras.Model(list(named.values()), sum_)
    save_model(several, "named", NUMBERS, store=store)
    given = {name: NUMBERS[[name]].to_numpy() for name in named}
    check(store, "named", np.asarray(several(given, training=False).detach())[:, 0], format="keras", rtol=1e-5)


def test_keras_with_something_unknown_in_it_is_refused(
    store: Store, need: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.packages.formats.keras import load_keras

    keras = _keras(need, monkeypatch)
    net = keras.Sequential([keras.layers.Input((3,)), keras.layers.Lambda(lambda rows: rows * 2)])
    with pytest.raises(UsageError, match="Lambda"):
        save_model(net, "bad", NUMBERS, store=store)
    good = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    save_model(good, "good", NUMBERS, store=store)
    blob = load_model(store, "good").model.to_files()["model.keras"]
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for module, name in (("os", "system"), ("keras.config", "function"), ("keras.layers", "TFSMLayer")):
        config = json.loads(files["config.json"])
        config["config"]["layers"][-1] |= {"module": module, "class_name": name}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for member, data in {**files, "config.json": json.dumps(config).encode()}.items():
                archive.writestr(member, data)
        with pytest.raises(TrustError, match=name):
            load_keras(out.getvalue())
    with pytest.raises(CorruptionError):
        load_keras(b"PK nothing")


def _keras(need: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    try:
        import keras
        import torch  # noqa: F401
    except ImportError:
        need("keras", "Keras with PyTorch behind it", "pip install keras torch")
    return keras


@pytest.fixture(scope="module")
def mojos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MOJOs that H2O has just trained, and what H2O answers."""
    if not H2O.exists():
        if "h2o" in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail("H2O in .bench/h2o is required and not installed")
        pytest.skip("H2O is not installed; see .ci/run")
    folder = tmp_path_factory.mktemp("mojos")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = Path(__file__).with_name("h2o_mojos.py")
    done = subprocess.run([H2O, script, folder, str(port)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("algorithm", ["gbm", "drf", "glm"])
def test_a_mojo_answers_as_h2o_does(store: Store, mojos: Path, algorithm: str, task: str) -> None:
    told = json.loads((mojos / "answers.json").read_text())
    frame = pl.DataFrame({name: told["rows"][name] for name in ("a", "n", "c")})
    version = save_model(mojos / f"{algorithm}-{task}.zip", "mojo", frame, store=store)
    assert get_package(store, version.package).format == "mojo"
    predictor = load_model(store, "mojo")
    answers = told["answers"][f"{algorithm}-{task}"]
    wanted = np.array([[float(value) for value in row[(task != "regression") :]] for row in answers["rows"]])
    wanted = wanted if task == "multiclass" else wanted[:, -1]
    assert list(predictor.classes) == (answers["columns"][1:] if task != "regression" else [])
    np.testing.assert_allclose(predictor.predict(frame), wanted, rtol=1e-9, atol=1e-12)
    if task != "regression":
        assert predictor.predict_labels(frame) == [row[0] for row in answers["rows"]]
    row = predictor.row_function()
    one_by_one = np.array([row(values) for values in frame.select(predictor.input_names).rows()[:50]], dtype=object)
    if task == "multiclass":
        np.testing.assert_allclose(one_by_one[:, 1:].astype(float), wanted[:50], rtol=1e-9, atol=1e-12)
    else:
        np.testing.assert_allclose(one_by_one[:, -1].astype(float), wanted[:50], rtol=1e-9, atol=1e-12)
    # What was never seen is what is missing, to H2O.
    strange, missing = ({"a": 1.0, "n": 2, "c": value} for value in ("never", None))
    assert predictor.predict([strange]).tolist() == predictor.predict([missing]).tolist()


@pytest.mark.slow
def test_a_mojo_that_is_none_or_not_read_here(mojos: Path, store: Store) -> None:
    blob = (mojos / "gbm-binary.zip").read_bytes()
    frame = pl.DataFrame({"a": [1.0], "n": [1], "c": ["red"]})
    _, table = read_example(frame)
    assert isinstance(adopt_mojo(blob, table)[0], MojoModel)

    def changed(**files: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, files.get(name.replace("/", "_").replace(".", "_"), old.read(name)))
        return out.getvalue()

    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        text, tree = archive.read("model.ini"), archive.read("trees/t00_000.bin")
    with pytest.raises(UsageError, match="'deeplearning'"):
        read_mojo(changed(model_ini=text.replace(b"algo = gbm", b"algo = deeplearning")))
    with pytest.raises(CorruptionError):
        read_mojo(changed(model_ini=b"nonsense"))
    with pytest.raises(UsageError, match="lacks the columns 'c'"):
        save_model(blob, "mojo", frame.drop("c"), store=store)
    with pytest.raises(UsageError, match="holds categories"):
        save_model(blob, "mojo", frame.with_columns(c=pl.lit(3)), store=store)
    with pytest.raises(EverloopError):
        adopt_mojo(changed(trees_t00_000_bin=tree[:5]), table)
    # A column that is not there would be read out of somebody else's memory.
    with pytest.raises(CorruptionError, match="split on column"):
        adopt_mojo(changed(trees_t00_000_bin=tree[:1] + b"\x99\x00" + tree[3:]), table)
    for at in range(0, len(tree), 3):
        broken = tree[:at] + bytes([tree[at] ^ 0x55]) + tree[at + 1 :]
        try:
            scores = adopt_mojo(changed(trees_t00_000_bin=broken), table)[0].predict_scores(frame)
        except EverloopError:
            continue
        assert scores.shape == (1,)


@pytest.mark.slow
def test_a_mojo_refuses_what_is_no_number(mojos: Path, store: Store) -> None:
    frame = pl.DataFrame({"a": [1.0, 2.0], "n": [1, 2], "c": ["red", "blue"]})
    save_model(mojos / "gbm-binary.zip", "mojo", frame, store=store)
    with pytest.raises(RequestError, match=r"rows\[0\]\.a"):
        load_model(store, "mojo").predict([{"a": "far", "n": 1, "c": "red"}])


def _shifted(threshold: float, names: list[str] | None) -> tuple[bytes, pl.DataFrame, LogisticRegression]:
    """A classifier as ONNX whose label is the second class from `threshold` on; as texts where `names` are given."""
    import skl2onnx
    from onnx import TensorProto, helper, numpy_helper
    from skl2onnx.common.data_types import FloatTensorType

    draw = np.random.default_rng(5)
    table = draw.normal(size=(200, 2)).astype(np.float32)
    model = LogisticRegression().fit(table, table[:, 0] + draw.normal(size=200) > 0)
    options = {"zipmap": False}
    kind = [("X", FloatTensorType([None, 2]))]
    made = skl2onnx.convert_sklearn(model, initial_types=kind, options={id(model): options}, target_opset=18)
    graph = made.graph
    values = np.array(names, dtype=object) if names else np.array([0, 1], dtype=np.int64)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1, dtype=np.int64), "second"),
            numpy_helper.from_array(np.array(threshold, dtype=np.float32), "border"),
            numpy_helper.from_array(values, "values"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Gather", ["probabilities", "second"], ["chance"], axis=1),
            helper.make_node("GreaterOrEqual", ["chance", "border"], ["above"]),
            helper.make_node("Cast", ["above"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["values", "place"], ["shifted_label"]),
        ]
    )
    kept = next(item for item in graph.output if item.name == "probabilities")
    label = TensorProto.STRING if names else TensorProto.INT64
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info("shifted_label", label, [None]), kept])
    return made.SerializeToString(), pl.DataFrame(table, schema=["a", "b"]), model


@pytest.mark.parametrize("names", [None, ["no", "yes"]])
def test_an_onnx_models_own_label_is_served(store: Store, names: list[str] | None) -> None:
    graph, frame, model = _shifted(0.2, names)
    version = save_model(graph, "shifted", frame, store=store)
    classes = names or [0, 1]
    assert list(version.signature["classes"]) == classes
    predictor = load_model(store, "shifted")
    chances = model.predict_proba(frame.to_numpy())[:, 1]
    wanted = [classes[int(chance >= 0.2)] for chance in chances]
    assert wanted != [classes[int(chance >= 0.5)] for chance in chances]
    assert predictor.predict_labels(frame) == wanted
    assert predictor.predict_labels(frame.to_dicts()[:20]) == wanted[:20]


def test_an_onnx_model_whose_labels_are_not_the_classes_is_refused(store: Store) -> None:
    graph, frame, _ = _shifted(0.5, ["no", "yes"])
    with pytest.raises(UsageError, match="predicts 'no', 'yes'"):
        save_model(graph, "shifted", frame, y=["bad", "good"] * 100, store=store)
