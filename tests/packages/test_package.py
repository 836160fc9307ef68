from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from everloop import plugins
from everloop.errors import (
    CorruptionError,
    NotFoundError,
    ParityError,
    RequestError,
    StoreVersionError,
    TrustError,
    UsageError,
)
from everloop.packages import build_package, read_package
from everloop.packages.package_manifest import Manifest
from everloop.records import Package
from everloop.registry import load_model, register, version_card
from everloop.registry.model_card import left_out
from everloop.stores import Store, open_store
from everloop.testing.models import FEATURES, sample_rows, train_sample
from everloop.training.algorithms.linear import LinearModel
from everloop.training.trained_model import LeftOut

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from everloop.training.trained_model import Trained


@pytest.mark.parametrize("algorithm", ["linear", "lightgbm"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_package_answers_as_its_model(store: Store, table: pl.DataFrame, algorithm: Any, task: Any) -> None:
    trained = train_sample(algorithm, task)
    package = build_package(trained, store=store, sample=table)
    predictor = load_model(store, package.digest)
    expected = trained.predict_scores(table)
    np.testing.assert_array_equal(predictor.predict(table), expected)
    np.testing.assert_array_equal(predictor.predict(sample_rows(5)), expected[:5])
    assert package.parity["largest_difference"] == 0.0
    assert package.parity["edge_rows"] > 20
    assert package.parity["sample_rows"] == table.height
    assert predictor.task == task
    labels = predictor.labels(expected)
    if task == "regression":
        assert labels is None
    else:
        assert labels is not None
        assert set(labels) <= set(trained.classes)
        assert labels == [trained.classes[place] for place in _argmax(expected)]


def _argmax(scores: np.ndarray[Any, Any]) -> list[int]:
    return (scores >= 0.5).astype(int).tolist() if scores.ndim == 1 else scores.argmax(axis=1).tolist()


def test_card_lists_the_columns_left_out(store: Store, linear: Trained, table: pl.DataFrame) -> None:
    trained = replace(linear, dropped={"site": "every row has the same value: 7"})
    package = build_package(trained, store=store, sample=table)
    version = register(store, "delays", package)
    assert left_out(store, version) == (LeftOut(column="site", reason="every row has the same value: 7"),)
    assert "| `site` | every row has the same value: 7 |" in version_card(store, version.key)
    whole = replace(linear, dropped={})
    plain = register(store, "delays", build_package(whole, store=store, sample=table))
    assert "Columns not used" not in version_card(store, plain.key)


def test_same_training_gives_the_same_package(tmp_path: Path, linear: Trained, table: pl.DataFrame) -> None:
    digests = set()
    for name in ("a", "b"):
        with open_store(tmp_path / name) as store:
            for _ in range(2):
                digests.add(build_package(linear, store=store, sample=table, evaluation={"metrics": {"auc": 1}}).digest)
            assert len(store.records.find(Package)) == 1
    assert len(digests) == 1


@pytest.mark.slow
def test_files_of_a_package(tmp_path: Path, store: Store, linear: Trained, table: pl.DataFrame) -> None:
    package = build_package(
        linear,
        store=store,
        sample=table,
        snapshot="flights@3",
        evaluation={"metrics": {"roc_auc": 0.7}},
        contract="[columns]\n",
        code="code:abc",
        run="run-1",
    )
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    assert {path.name for path in folder.iterdir()} == {
        "everloop.json",
        "model",
        "example.json",
        "answers.json",
        "requirements.txt",
        "evaluation.json",
        "contract.toml",
    }
    manifest = Manifest.from_bytes((folder / "everloop.json").read_bytes())
    assert manifest.lineage.snapshot == "flights@3"
    assert manifest.lineage.run == "run-1"
    assert manifest.signature == package.signature
    assert manifest.signature["ignored"] == ["currency"]
    assert "numpy==" in (folder / "requirements.txt").read_text()
    predictor = load_model(folder)
    assert predictor.predict(json.loads((folder / "example.json").read_bytes())["rows"]).shape == (1,)
    assert package.trust is not None


def test_folder_that_was_changed(tmp_path: Path, store: Store, linear: Trained, table: pl.DataFrame) -> None:
    package = build_package(linear, store=store, sample=table)
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    example = folder / "example.json"
    example.chmod(0o644)
    example.write_bytes(example.read_bytes() + b" ")
    with pytest.raises(CorruptionError, match=r"example\.json"):
        load_model(folder)
    example.unlink()
    with pytest.raises(NotFoundError, match=r"example\.json"):
        load_model(folder)
    with pytest.raises(NotFoundError, match="is not a package"):
        load_model(tmp_path)


def test_manifest_that_leads_out_of_its_folder(
    tmp_path: Path, store: Store, linear: Trained, table: pl.DataFrame
) -> None:
    package = build_package(linear, store=store, sample=table)
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    (tmp_path / "secret").write_text("secret")
    path = folder / "everloop.json"
    path.chmod(0o644)
    manifest = json.loads(path.read_bytes())
    manifest["files"]["../secret"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptionError, match="outside"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{", CorruptionError),
        (b"[]", CorruptionError),
        (b'{"format": 3}', CorruptionError),
        (b'{"format_version": 99}', StoreVersionError),
    ],
)
def test_manifest_that_cannot_be_read(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Manifest.from_bytes(content)


def test_a_flipped_bit_anywhere_is_refused(store: Store, lightgbm: Trained, table: pl.DataFrame) -> None:
    package = build_package(lightgbm, store=store, sample=table)
    objects = [path for path in (store.home / "objects").rglob("*") if path.is_file()]
    assert objects
    for path in objects:
        whole = path.read_bytes()
        path.chmod(0o644)
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with open_store(store.home) as fresh, pytest.raises((CorruptionError, UsageError)):
                load_model(fresh, package.digest)
        path.write_bytes(whole)
    with open_store(store.home) as fresh:
        assert load_model(fresh, package.digest).predict(table.head(1)).shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "absent"), [("linear", "lightgbm"), ("lightgbm", "lightgbm.basic")])
def test_answering_needs_no_training_library(store: Store, table: pl.DataFrame, algorithm: Any, absent: str) -> None:
    package = build_package(train_sample(algorithm), store=store, sample=table)
    code = f"""
import json, sys
from everloop.registry import load_model
from everloop.stores import open_store
with open_store(sys.argv[1]) as store:
    load_model(store, sys.argv[2]).predict(json.loads(sys.argv[3]))
heavy = [name for name in ("sklearn", "pandas", "polars", "pyarrow", "scipy", {absent!r}) if name in sys.modules]
assert not heavy, heavy
"""
    arguments = [str(store.home), package.digest, msgspec.json.encode(sample_rows()).decode()]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_importing_the_room_loads_the_standard_library_only() -> None:
    code = """
import sys, everloop.packages, everloop.serving
assert not {"numpy", "polars", "msgspec", "uvicorn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Drifting(LinearModel):
    """Comes back from its files a little changed."""

    @classmethod
    def from_files(cls, files: Any) -> Any:
        model = LinearModel.from_files(files)
        model.bias = model.bias + 1e-6
        model._plain = LinearModel.from_files(files)._plain
        return model


class Forgetful(LinearModel):
    """Comes back refusing what it took before."""

    @classmethod
    def from_files(cls, files: Any) -> Any:
        model = LinearModel.from_files(files)
        model.predict_rows = _refuse_nulls(model.predict_rows)  # type: ignore[method-assign]
        return model


def _refuse_nulls(ask: Any) -> Any:
    def predict_rows(rows: Any) -> Any:
        if any(value is None for row in rows for name, value in row.items() if name != "wind"):
            raise RequestError("no nulls here")
        return ask(rows)

    return predict_rows


@pytest.mark.parametrize(("model", "told"), [(Drifting, "difference"), (Forgetful, "refuses")])
def test_package_that_answers_otherwise_is_not_made(
    store: Store, linear: Trained, table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, model: Any, told: str
) -> None:
    monkeypatch.setattr(plugins, "load", lambda kind, name: model)
    with pytest.raises(ParityError, match=told):
        build_package(linear, store=store, sample=table)
    assert store.records.find(Package) == []
    (event,) = [event for event in store.records.events_since(0) if event.verb == "parity_failed"]
    assert told in event.data["message"]


def test_adopted_estimator_says_what_it_does_not_take(store: Store, table: pl.DataFrame) -> None:
    from sklearn.linear_model import LogisticRegression

    from everloop.training import adopt

    features = table.select("distance", "seats")
    estimator = LogisticRegression().fit(features.to_numpy(), table["late"].to_numpy())
    trained = adopt(estimator, features.with_columns(table["late"]), "late")
    package = build_package(trained, store=store, sample=table)
    predictor = load_model(store, package.digest)
    np.testing.assert_allclose(
        predictor.predict([{"distance": 500.0, "seats": 100}]), estimator.predict_proba([[500.0, 100]])[:, 1]
    )
    assert [item["nullable"] for item in package.signature["inputs"]] == [False, False]
    with pytest.raises(RequestError, match=r"rows\[0\]\.distance"):
        predictor.predict([{"distance": None, "seats": 100}])


class Batch:
    """Predicts with something that it computes from the rows of one call."""

    def __init__(self, read: Any) -> None:
        self.read = read

    def predict(self, rows: Any) -> Any:
        return np.asarray(self.read(rows), dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows["distance"] - rows["distance"].mean(),
        lambda rows: rows["distance"].to_numpy().argsort().argsort() / len(rows),
        lambda rows: np.unique(rows["carrier"].fill_null("").to_numpy(), return_inverse=True)[1],
    ],
)
def test_model_whose_prediction_depends_on_the_other_rows_is_not_packaged(
    store: Store, table: pl.DataFrame, read: Any
) -> None:
    from everloop.training import adopt

    rows = table.select("distance", "carrier", y="distance")
    trained = adopt(Batch(read), rows, "y", features=["distance", "carrier"], task="regression")
    with pytest.raises(ParityError, match=r"depends on the other rows of the request: \S+ alone, \S+ among") as caught:
        build_package(trained, store=store, sample=rows)
    assert "in `fit`" in (caught.value.help or "")


@pytest.mark.slow
def test_code_loads_only_when_somebody_trusted_vouches(
    tmp_path: Path, store: Store, table: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.base import BaseEstimator, ClassifierMixin

    from everloop.training import adopt

    class Own(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """An estimator of the user's own: no safe format holds it."""

        def fit(self, x: Any, y: Any) -> Own:
            self.classes_ = np.array([False, True])
            return self

        def predict_proba(self, x: Any) -> Any:
            positive = 1 / (1 + np.exp(-np.asarray(x, dtype=float)[:, 0] / 1000))
            return np.column_stack([1 - positive, positive])

    features = table.select("distance", "seats")
    estimator = Own().fit(features.to_numpy(), table["late"].to_numpy())
    package = build_package(adopt(estimator, features.with_columns(table["late"]), "late"), store=store, sample=table)
    assert package.format == "pickle"
    row = [{"distance": 0.0, "seats": 1}]
    assert load_model(store, package.digest).predict(row).tolist() == [0.5]
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    with pytest.raises(TrustError):
        load_model(folder)
    with pytest.raises(TrustError):
        read_package(store, package.digest, trust={"key": package.trust["key"], "signature": "AAAA"})  # type: ignore[index]
    # The same store on a machine whose keys know nobody.
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "elsewhere"))
    with pytest.raises(TrustError):
        load_model(store, package.digest)


def test_sample_that_cannot_prove_anything(store: Store, linear: Trained, table: pl.DataFrame) -> None:
    with pytest.raises(UsageError, match="no rows"):
        build_package(linear, store=store, sample=table.head(0))
    with pytest.raises(UsageError, match="distance"):
        build_package(linear, store=store, sample=table.drop("distance"))


def test_predicting_by_name(store: Store, linear: Trained, table: pl.DataFrame) -> None:
    version = register(store, "delays", build_package(linear, store=store, sample=table))
    predictor = load_model(store, "delays")
    assert predictor.version == version.key == "delays@1"
    assert predictor.input_names == tuple(name for name in FEATURES if name != "currency")
    assert predictor.validate(sample_rows())[0].keys() == set(predictor.input_names)
    arrow = table.to_arrow()
    np.testing.assert_array_equal(predictor.predict(arrow), predictor.predict(table))
    assert predictor.predict(table.head(0)).shape == (0,)
    with pytest.raises(RequestError, match="'carrier'"):
        predictor.predict(table.drop("carrier"))
    with pytest.raises(UsageError, match="Cannot score a int"):
        predictor.predict(3)
    with pytest.raises(UsageError):
        load_model(store)
    with pytest.raises(NotFoundError, match="Versions: 1"):
        load_model(store, "delays@2")
