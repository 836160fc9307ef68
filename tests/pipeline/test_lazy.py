"""The cost of importing the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import everloop.pipeline
from everloop.errors import UsageError
from everloop.pipeline import Step

HEAVY = {"polars", "pyarrow", "numpy", "pandas", "loky", "cloudpickle", "msgspec", "cryptography", "obstore"}


def test_importing_the_room_loads_the_standard_library_only() -> None:
    names = ", ".join(name for name in everloop.pipeline.__all__)
    script = f"import sys\nfrom everloop.pipeline import {names}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_every_public_name_is_there() -> None:
    for name in everloop.pipeline.__all__:
        assert getattr(everloop.pipeline, name).__module__.startswith("everloop.pipeline")
    assert not hasattr(everloop.pipeline, "absent")


def test_a_step_stands_before_a_function() -> None:
    with pytest.raises(UsageError, match="not 3"):
        Step(3)  # type: ignore[arg-type]
