import subprocess
import sys

import pytest

import everloop.monitoring


def test_importing_the_package_loads_only_the_standard_library() -> None:
    heavy = ["numpy", "polars", "pyarrow", "deltalake", "msgspec", "scipy", "sklearn", "lightgbm"]
    code = f"import sys, everloop.monitoring as room; room.__dir__(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_check_needs_neither_scipy_nor_scikit_learn() -> None:
    code = (
        "import sys; from everloop.monitoring import check_drift, check_performance, build_baseline; "
        "import polars as pl; build_baseline(pl.DataFrame({'x': [1.0, 2.0]})); "
        "print([m for m in ('scipy', 'sklearn', 'lightgbm', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in everloop.monitoring.__all__:
        assert getattr(everloop.monitoring, name).__doc__
    assert not hasattr(everloop.monitoring, "no_such_name")
