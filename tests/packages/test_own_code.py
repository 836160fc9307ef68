"""Code of the user's own modules travels in the package."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import CorruptionError, MissingExtraError
from everloop.training.user_code import load_code

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


RULE = "class Rule:\n    def __setstate__(self, state):\n        raise OSError('gone')\n"
NET = """
import torch

class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(2, 1)
    def forward(self, rows):
        return self.inner(rows * 2)
"""
SAVE_NET = """
import numpy as np, pandas as pd, torch, everloop as el
from steps import Doubled

table = pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50.0) ** 0.5})
model = Doubled().eval()
with el.open_store("home", create=True) as store:
    el.save_model(model, "own", table, store=store)
    print(float(model(torch.zeros(1, 2))[0, 0]))
"""


def test_modules_beside_the_script_travel(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helping.py").write_text(HELP)
    _travel(tmp_path, STEPS, SAVE)


def test_a_network_of_a_module_beside_the_script_travels(tmp_path: Path, need: Any) -> None:
    if find_spec("torch") is None or find_spec("safetensors") is None:
        need("torch", "PyTorch with safetensors", "pip install torch safetensors")
    (tmp_path / "code").mkdir()
    _travel(tmp_path, NET, SAVE_NET)


def _travel(folder: Path, steps: str, save: str) -> None:
    (folder / "code" / "steps.py").write_text(steps)
    (folder / "code" / "save.py").write_text(save)
    told = [
        subprocess.run(
            [sys.executable, "-W", "ignore", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
        )
        for arguments in (["code/save.py"], ["-c", LOAD])
    ]
    assert [one.returncode for one in told] == [0, 0], [one.stderr for one in told]
    assert float(told[0].stdout) == float(told[1].stdout)


def test_a_model_whose_module_is_missing_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    rules = import_module("own_rules")
    rule = rules.Rule()
    rule.factor = 2
    named = pickle.dumps(rule)
    with pytest.raises(CorruptionError, match=r"cannot be loaded: OSError: gone"):
        load_code(named)
    monkeypatch.setattr(rules, "OSError", MissingExtraError, raising=False)
    with pytest.raises(MissingExtraError, match="gone"):
        load_code(named)
    monkeypatch.undo()
    del sys.modules["own_rules"]
    with pytest.raises(CorruptionError, match="needs the Python module 'own_rules', which is not installed") as refused:
        load_code(named)
    assert "package the model again" in (refused.value.help or "")
