"""Model folders that MLflow itself has written, once for all tests."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]


@pytest.fixture(scope="session")
def mlflow_python() -> str:
    """The Python of an environment that has MLflow and the libraries of its flavours."""
    named = os.environ.get("EVERLOOP_MLFLOW_PYTHON") or str(ROOT / ".bench" / "mlflow" / "bin" / "python")
    imports = "import mlflow.version, lightgbm, xgboost, catboost, polars, msgspec"
    looked = subprocess.run([named, "-c", imports], capture_output=True, check=False) if Path(named).exists() else None
    if looked is None or looked.returncode:
        if "mlflow" in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail("MLflow with the libraries of its flavours is required and not installed")
        pytest.skip("MLflow with the libraries of its flavours is not installed; see .ci/run")
    return named


@dataclass
class Folders:
    place: Path
    answers: dict[str, list[Any]]
    rows: pl.DataFrame


@pytest.fixture(scope="session")
def folders(mlflow_python: str, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    # Made once, whichever of the processes that share the tests comes first: it takes half a minute.
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    place = shared / "mlflow-folders"
    with (shared / "mlflow-folders.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "answers.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            run_by(mlflow_python, str(HERE / "make_folders.py"), str(place))
    return Folders(place, json.loads((place / "answers.json").read_text()), pl.read_csv(place / "rows.csv"))


def run_by(python: str, *arguments: str, everloop: bool = False, **more: str) -> str:
    """Run a program; with `everloop`, its sources are in front of what is installed there."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "true", **more}
    environment["PYTHONPATH"] = str(ROOT / "src") if everloop else ""
    done = subprocess.run([python, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(name="run_by")
def _run_by() -> Any:
    return run_by
