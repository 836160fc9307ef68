"""What a package says of itself is no reason to run code out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import CorruptionError, EverloopError, ParityError
from everloop.packages import build_package, read_package
from everloop.packages.environment_lock import differences, requirements
from everloop.packages.package import digest_of_files
from everloop.packages.package_manifest import FILE, Manifest, OtherPythonError
from everloop.registry import load_model, save_model
from everloop.stores.trust import Keyring

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store
    from everloop.training.trained_model import Trained

pytestmark = pytest.mark.slow

TABLE = pl.DataFrame({"a": [1.0, 2.0, 3.0]})


def rewrite(folder: Path, **changes: Any) -> None:
    """Change what the manifest of a package in a folder says."""
    place = folder / FILE
    place.chmod(0o644)
    place.write_bytes(replace(Manifest.from_bytes(place.read_bytes()), **changes).to_bytes())


@pytest.mark.usefixtures("forked_trials")
@pytest.mark.parametrize("claimed", ["sklearn", "xgboost", "catboost", "skops", "linear", "lightgbm", "onnx"])
def test_a_pickle_that_calls_itself_safe_is_not_read(tmp_path: Path, store: Store, claimed: str) -> None:
    ran = tmp_path / "ran"

    def function(table: Any, mark: str = str(ran)) -> Any:
        from pathlib import Path

        Path(mark).touch()
        return table["a"]

    version = save_model(function, "plain", TABLE, store=store)
    folder = store.objects.restore_tree(version.package, tmp_path / "package")
    ran.unlink()
    rewrite(folder, format=claimed)
    with pytest.raises(EverloopError):
        load_model(folder).predict([{"a": 1.0}])
    assert not ran.exists()


def test_an_adopted_pickle_that_calls_itself_safe_is_not_read(tmp_path: Path, store: Store) -> None:
    from everloop.training import adopt

    class Own:
        def __init__(self) -> None:
            self.classes_ = [False, True]

        def predict_proba(self, table: Any) -> Any:
            import numpy as np

            return np.full((len(table), 2), 0.5)

    rows = TABLE.with_columns(y=pl.Series([True, False, True]))
    package = build_package(adopt(Own(), rows, "y"), store=store, sample=rows)
    assert package.format == "pickle"
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    rewrite(folder, format="skops")
    with pytest.raises(EverloopError, match=r"model\.skops"):
        load_model(folder)


def test_code_of_another_python_is_refused(tmp_path: Path, store: Store) -> None:
    version = save_model(lambda table: table["a"], "plain", TABLE, store=store)
    folder = store.objects.restore_tree(version.package, tmp_path / "package")
    manifest = Manifest.from_bytes((folder / FILE).read_bytes())
    rewrite(folder, environment=replace(manifest.environment, python="3.2.5"))
    # The operator trusts these very bytes, and still they are not for this Python.
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    Keyring().trust_digest(digest_of_files(files))
    with pytest.raises(OtherPythonError, match=r"code of Python 3\.2\.5 .* this is Python 3\."):
        load_model(folder)


def test_safe_formats_are_for_any_python(tmp_path: Path, store: Store, linear: Trained, table: pl.DataFrame) -> None:
    package = build_package(linear, store=store, sample=table)
    folder = store.objects.restore_tree(package.digest, tmp_path / "package")
    manifest = Manifest.from_bytes((folder / FILE).read_bytes())
    rewrite(folder, environment=replace(manifest.environment, python="3.2.5"))
    assert load_model(folder).predict(table.head(1)).shape == (1,)


def test_a_package_that_answers_otherwise_here_is_not_served(store: Store, tmp_path: Path) -> None:
    """As when a library of another version computes otherwise: the bytes are whole, the answers are not."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(TABLE.to_pandas(), [1.0, 2.0, 3.0])
    version = save_model(model, "line", TABLE.to_pandas(), store=store, compile=False)
    predictor = load_model(store, "line")
    predictor.warm()
    rows, apart = predictor.check_predictions()
    assert rows > 5
    assert apart == 0.0
    predictor.model.estimator.intercept_ += 0.01
    with pytest.raises(ParityError, match="but it predicted"):
        predictor.warm()
    folder = store.objects.restore_tree(version.package, tmp_path / "package")
    (folder / "answers.json").chmod(0o644)
    (folder / "answers.json").write_text("[]")
    with pytest.raises(CorruptionError, match=r"answers\.json"):
        load_model(folder)


def test_the_lock_names_what_answering_needs(store: Store, lightgbm: Trained, table: pl.DataFrame) -> None:
    package = build_package(lightgbm, store=store, sample=table)
    manifest, files = read_package(store, package.digest)
    locked = manifest.environment.locked
    assert {"numpy", "lightgbm", "scipy", "polars", "msgspec"} <= set(locked)
    assert "pytest" not in locked
    assert "scipy" in locked["lightgbm"].requires
    assert str(locked["numpy"].content).startswith("sha256:")
    assert f"numpy=={locked['numpy'].version}\n" in files["requirements.txt"].decode()
    assert differences(locked) == []
    moved = {**locked, "numpy": replace(locked["numpy"], version="0.1"), "lost-wheel": replace(locked["numpy"])}
    moved["scipy"] = replace(locked["scipy"], content="sha256:" + "0" * 64)
    told = differences(moved)
    assert len(told) == 3
    assert any("not 0.1" in line for line in told)
    assert any("lost-wheel" in line and "is not installed" in line for line in told)
    assert any("scipy" in line and "is another build" in line for line in told)
    hashed = {name: replace(one, archive="sha256:" + "a" * 64) for name, one in locked.items()}
    assert requirements(hashed).decode().count("--hash=sha256:") == len(hashed)
    assert b"--hash" not in requirements({**hashed, "numpy": locked["numpy"]})
