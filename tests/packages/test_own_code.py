"""Code of the user's own modules travels in the package."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

HELP = "def double(values):\n    return values * 2\n"
STEPS = """
import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from helping import double

class Doubling(TransformerMixin, BaseEstimator):
    def fit(self, rows, target=None):
        self.fitted_ = True
        return self
    def transform(self, rows):
        return double(np.asarray(rows))

def shift(rows):
    return double(rows) + 1
"""
SAVE = """
import numpy as np, pandas as pd, everloop as el
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from steps import Doubling, shift

table = pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50.0) ** 0.5})
model = make_pipeline(Doubling(), FunctionTransformer(shift), Ridge()).fit(table, table["a"])
with el.open_store("home", create=True) as store:
    el.save_model(model, "own", table, store=store)
    print(float(model.predict(table.head(1))[0]))
"""
LOAD = """
import everloop as el
with el.open_store("home") as store:
    print(float(el.load_model(store, "own").predict([{"a": 0.0, "b": 0.0}])[0]))
"""


def test_modules_beside_the_script_travel(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helping.py").write_text(HELP)
    (tmp_path / "code" / "steps.py").write_text(STEPS)
    (tmp_path / "code" / "save.py").write_text(SAVE)
    told = [
        subprocess.run(
            [sys.executable, "-W", "ignore", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        for arguments in (["code/save.py"], ["-c", LOAD])
    ]
    assert [one.returncode for one in told] == [0, 0], [one.stderr for one in told]
    assert float(told[0].stdout) == float(told[1].stdout)
