"""A small project on disk whose loop runs quickly enough for tests."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from everloop.stores import Store, open_store

OPENS = datetime(2024, 1, 1, tzinfo=UTC)

LOOP = '''
import polars as pl
import everloop as el
from rules import keep

@el.step
def orders() -> pl.LazyFrame:
    """The orders that have arrived so far."""
    return el.read("data/orders/*.parquet")

@el.step
def prepare(orders: pl.DataFrame) -> pl.DataFrame:
    # the rows that the model may learn from
    return keep(orders)

loop = el.Loop(
    "shop",
    data=el.Dataset(prepare, target="returned", time="at", key="order"),
    train=el.AutoTrain(metric="roc_auc", budget_s=5, trials=1, candidates=("linear",), threads=1),
    gates=[el.AtLeast("roc_auc", 0.60), el.NotWorseThan("champion"), el.Slices("shop", worst_gap=0.3)],
    serve=el.Endpoint("returns", rollout=el.Canary(steps=[20, 100], least_labels=50, least_days=1)),
    watch=[el.Drift(), el.Performance("roc_auc")],
    retrain=[el.OnDrift(cooldown="1d"), el.OnPerformance(cooldown="1d"), el.Every("8w")],
)
'''

RULES = '''
"""A helper of the preparation."""
from limits import LEAST_PRICE

def keep(orders):
    return orders.filter(orders["price"] >= LEAST_PRICE)
'''

LIMITS = """
LEAST_PRICE = 1.0
"""


def orders(first: int, rows: int, start: datetime, *, seed: int = 0, inverted: bool = False) -> pl.DataFrame:
    """Return orders, one per minute. Expensive ones are returned more often; with `inverted`, cheap ones are."""
    rng = np.random.default_rng(seed)
    price = rng.uniform(2, 100, rows)
    weight = rng.normal(5, 2, rows)
    shop = rng.choice(["north", "south"], rows)
    drive = (price - 50) / 20 * (-1 if inverted else 1) + (weight - 5) / 4
    return pl.DataFrame(
        {
            "order": [f"o{first + i}" for i in range(rows)],
            "at": [start + timedelta(minutes=i) for i in range(rows)],
            "price": price,
            "weight": weight,
            "shop": shop,
            "returned": rng.uniform(size=rows) < 1 / (1 + np.exp(-drive)),
        }
    )


class Shop:
    """A project on disk, with methods to change its files, add data and open its store."""

    opens = OPENS
    orders = staticmethod(orders)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data" / "orders").mkdir(parents=True)
        self.write("loop.py", LOOP)
        self.write("rules.py", RULES)
        self.write("limits.py", LIMITS)
        self.write("everloop.toml", '[project]\nname = "shop"\n')
        self.land("0", orders(0, 1500, OPENS - timedelta(days=2)))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text).lstrip())

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def land(self, name: str, frame: pl.DataFrame) -> None:
        frame.write_parquet(self.folder / "data" / "orders" / f"{name}.parquet")

    def open(self) -> Store:
        return open_store(self.folder / ".everloop", project="shop")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A new project. The modules that it imports are unloaded afterwards."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    # Python reuses bytecode if the size and the second of the source are the same, but tests edit files faster.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before_path, before_modules = list(sys.path), set(sys.modules)
    yield Shop(tmp_path / "shop")
    sys.path[:] = before_path
    for name in ("loop", "rules", "limits"):
        if name not in before_modules:
            sys.modules.pop(name, None)


@pytest.fixture
def load(shop: Shop) -> Callable[[], object]:
    """A function that imports the project's loop again, as a new process would."""
    from everloop.loop import load_project

    def load_again() -> object:
        for name in ("loop", "rules", "limits"):
            sys.modules.pop(name, None)
        return load_project(shop.folder).loop()

    return load_again
