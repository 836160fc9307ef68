"""A quick project in a git repository, with a branch for changes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from everloop.ci import ChangeReport, check_change
from everloop.loop import load_project, run_loop
from everloop.stores import Store, open_store

OPENS = datetime(2024, 1, 1, tzinfo=UTC)
MODULES = ("loop", "features")

LOOP = """
import polars as pl
import everloop as el
from features import add_features

@el.step
def orders() -> pl.LazyFrame:
    return el.read("data/orders.parquet")

@el.step
def prepare(orders: pl.DataFrame) -> pl.DataFrame:
    return add_features(orders)

loop = el.Loop(
    "shop",
    data=el.Dataset(prepare, target="returned", time="at", key="order", exclude=["refund"]),
    train=el.AutoTrain(metric="roc_auc", budget_s=5, trials=1, candidates=("linear",), threads=1),
    gates=[el.AtLeast("roc_auc", 0.60), el.NotWorseThan("champion", margin=0.02), el.Slices("shop", worst_gap=0.3),
           el.NoLeakage()],
    serve=el.Endpoint("returns"),
)
"""

FEATURES = """
def add_features(orders):
    return orders
"""


class Repository:
    """A project in a git repository: `main` is the branch that changes are made for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        self.write("loop.py", LOOP)
        self.write("features.py", FEATURES)
        self.write("everloop.toml", '[project]\nname = "shop"\n')
        self.write("README.md", "A shop.\n")
        self.write(".gitignore", ".everloop/\n__pycache__/\n")
        self.write_orders(1500)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("The shop")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def write_orders(self, rows: int) -> None:
        rng = np.random.default_rng(0)
        price, weight = rng.uniform(2, 100, rows), rng.normal(5, 2, rows)
        returned = rng.uniform(size=rows) < 1 / (1 + np.exp(-((price - 50) / 12 + (weight - 5) / 4)))
        frame = pl.DataFrame(
            {
                "order": [f"o{i}" for i in range(rows)],
                "at": [OPENS + timedelta(minutes=i) for i in range(rows)],
                "price": price,
                "weight": weight,
                "shop": rng.choice(["north", "south"], rows),
                "refund": np.where(returned, price, 0.0),
                "returned": returned,
            }
        )
        frame.write_parquet(self.folder / "data" / "orders.parquet")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=A Developer", "-c", "user.email=dev@example.com", "-c", "commit.gpgsign=false"]
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        command = ["git", *who, *arguments]
        done = subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True, env=environment)
        return done.stdout.strip()

    def commit(self, title: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", title)

    def branch(self, name: str = "change") -> None:
        self.git("checkout", "--quiet", "-b", name)

    def load(self):
        forget()
        return load_project(self.folder).loop()

    def open(self) -> Store:
        return open_store(self.folder / ".everloop", project="shop")

    def train(self) -> None:
        with self.open() as store:
            assert run_loop(self.load(), store).release.state == "completed"

    def check(self, **options) -> ChangeReport:
        options.setdefault("sample", 1000)
        return check_change(self.load(), self.folder, **{"base": "main", "home": self.folder / ".everloop", **options})


def forget() -> None:
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """A new project in a git repository. Its modules are unloaded afterwards."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = list(sys.path)
    made = Repository(tmp_path / "shop")
    monkeypatch.chdir(made.folder)
    yield made
    sys.path[:] = before
    forget()


@pytest.fixture
def command(repository: Repository, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a command line in the project, and returns its exit code and output."""
    from everloop.cli.app import run

    def call(*arguments: str) -> tuple[int, str]:
        forget()
        capsys.readouterr()
        code = run([str(one) for one in arguments])
        return code, capsys.readouterr().out

    return call
