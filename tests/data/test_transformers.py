"""Transformers work like ordinary functions in scikit-learn and Polars, and are packaged with their model."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from everloop.data.transformers import project_modules
from everloop.registry import load_model, save_model

if TYPE_CHECKING:
    from everloop.stores import Store

MODULE = """
import polars as pl
import everloop as el
from own_helpers import safe

SCALE = 1.5

@el.transformer
def ratio(table):
    return table.assign(ratio=table["a"] * SCALE / safe(table["b"]))

@el.transformer
def prepared(table):
    frame = pl.DataFrame(table)
    return frame.with_columns(ratio=pl.col("a") * SCALE / safe(pl.col("b"))).to_numpy()
"""
HELPERS = """
def safe(values):
    return values.abs() + 1
"""

ELSEWHERE = """
import sys
import polars as pl
from everloop.registry import load_model
from everloop.stores import open_store
assert "own_features" not in sys.modules
with open_store(sys.argv[1]) as store:
    rows = pl.DataFrame({"a": [0.5, -1.0, 2.0], "b": [1.0, 3.0, -2.0]})
    print([round(value, 9) for value in load_model(store, sys.argv[2]).predict(rows).tolist()])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the user's project, which does not exist where the model is served."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "own_features.py").write_text(MODULE)
    (folder / "own_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    import own_features  # type: ignore[import-not-found]

    yield own_features
    for name in ("own_features", "own_helpers"):
        sys.modules.pop(name, None)


def example() -> tuple[pd.DataFrame, pd.Series]:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["a", "b"])
    return table, table["a"] > table["b"].abs()


def answered_elsewhere(store: Store, name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(store.home), name],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("which", [pytest.param("ratio", marks=pytest.mark.slow), "prepared"])
def test_a_pipeline_with_a_users_own_function(store: Store, own: Any, tmp_path: Path, which: str) -> None:
    """A pandas and a Polars transformer give the same results without the project's files."""
    table, truth = example()
    step = FunctionTransformer(getattr(own, which))
    pipeline = make_pipeline(step, StandardScaler(), LogisticRegression()).fit(table, truth)
    save_model(pipeline, which, table, store=store)
    rows = pd.DataFrame({"a": [0.5, -1.0, 2.0], "b": [1.0, 3.0, -2.0]})
    expected = [round(value, 9) for value in pipeline.predict_proba(rows)[:, 1].tolist()]
    assert [round(value, 9) for value in load_model(store, which).predict(pl.DataFrame(rows)).tolist()] == expected
    assert answered_elsewhere(store, which, tmp_path) == str(expected)


def test_a_transformer_is_the_function(own: Any) -> None:
    table, _ = example()
    assert own.ratio(table).columns.tolist() == ["a", "b", "ratio"]
    assert own.ratio.__name__ == "ratio"
    assert clone(FunctionTransformer(own.ratio)).func is own.ratio
    again = pickle.loads(pickle.dumps(own.ratio))  # noqa: S301 - our own bytes
    own.SCALE = 0.0  # what was packed does not follow
    assert (own.ratio(table)["ratio"] == 0).all()
    assert (again(table)["ratio"] != 0).all()


def test_modules_beside_a_function_are_found_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's path is resolved once for all modules in it: in a large process there are thousands of them."""
    real, linked, elsewhere = (tmp_path / name for name in ("real", "linked", "elsewhere"))
    for folder in (real, elsewhere):
        folder.mkdir()
    linked.symlink_to(real)
    files = {f"beside_{number}": linked / f"beside_{number}.py" for number in range(20)}
    files |= {"link_to_here": elsewhere / "link_to_here.py", "link_to_elsewhere": real / "link_to_elsewhere.py"}
    files["link_to_here"].symlink_to(real / "beside_0.py")
    files["link_to_elsewhere"].symlink_to(elsewhere / "other.py")
    installed = {"installed": real / "lib" / "site-packages" / "installed.py"}
    modules = {}
    for name, file in {**files, **installed}.items():
        modules[name] = ModuleType(name)
        modules[name].__file__ = str(file)
    monkeypatch.setattr("everloop.data.transformers.sys", SimpleNamespace(modules=modules))
    resolved: list[Path] = []
    resolve = Path.resolve
    monkeypatch.setattr(Path, "resolve", lambda path: resolved.append(path) or resolve(path))
    found = list(project_modules(SimpleNamespace(__module__="beside_3")))
    assert [module.__name__ for module in found] == [*(f"beside_{number}" for number in range(20)), "link_to_here"]
    # The function's own file, its folder, the two files that are links, and the folder of what is installed.
    assert len(resolved) == 5
