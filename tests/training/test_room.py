"""The public names of the package."""

import subprocess
import sys

import pytest

import everloop.training as room


def test_every_public_name_exists():
    for name in room.__all__:
        assert name == "METRICS" or getattr(room, name).__module__.startswith("everloop.training")
    assert "roc_auc" in room.METRICS
    with pytest.raises(AttributeError, match="nothing"):
        room.nothing  # noqa: B018


def test_importing_the_room_costs_the_standard_library_only():
    code = """
import sys
import everloop.training
import everloop.training.trained_model
heavy = {"numpy", "polars", "lightgbm", "sklearn", "scipy", "pandas", "pyarrow", "msgspec"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_declaring_costs_no_training_library():
    code = """
import sys
from everloop.training import AutoTrain
AutoTrain(metric="roc_auc", budget_s=5)
heavy = {"polars", "lightgbm", "sklearn", "scipy", "pandas", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
