"""A champion per segment: a project declares one loop for each, with endpoints and releases of their own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from everloop.loop import load_project, run_loop
from everloop.loop.releases.rollout import champion_of
from everloop.records import EndpointRecord
from everloop.registry import get_version, load_model

pytestmark = pytest.mark.slow

SEGMENTS = """
import polars as pl
import everloop as el

@el.step
def orders() -> pl.LazyFrame:
    return el.read("data/orders/*.parquet")

def loop_of(shop: str) -> el.Loop:
    @el.step(name=f"orders_{shop}")
    def rows(orders: pl.DataFrame) -> pl.DataFrame:
        return orders.filter(pl.col("shop") == shop).drop("shop")

    return el.Loop(
        f"returns-{shop}",
        data=el.Dataset(rows, target="returned", time="at", key="order"),
        train=el.AutoTrain(metric="roc_auc", budget_s=5, trials=1, candidates=("linear",), threads=1),
        gates=[el.AtLeast("roc_auc", 0.60), el.NotWorseThan("champion")],
        serve=el.Endpoint(f"returns-{shop}", rollout=el.Canary(steps=[20, 100], least_labels=50, least_days=1)),
    )

north, south = loop_of("north"), loop_of("south")
"""


def test_each_segment_has_a_champion_of_its_own(shop):
    shop.write("loop.py", SEGMENTS)
    inverted = shop.orders(5000, 1500, shop.opens - timedelta(days=2), seed=3, inverted=True)
    usual = shop.orders(0, 1500, shop.opens - timedelta(days=2))
    # In the south, cheap orders are returned, so one model for both would be bad at both.
    shop.land("0", usual.filter(usual["shop"] == "north"))
    shop.land("1", inverted.filter(inverted["shop"] == "south"))
    loops = load_project(shop.folder).loops
    assert list(loops) == ["returns-north", "returns-south"]
    with shop.open() as store:
        for loop in loops.values():
            assert run_loop(loop, store).release.state == "completed"
        dear = usual.filter(usual["price"] > 80).drop("shop")
        means = {one: load_model(store, f"{one}@champion").predict(dear).mean() for one in loops}
        assert means["returns-north"] > 0.7
        assert means["returns-south"] < 0.3
        # A release in one segment leaves the other alone.
        before = store.records.get(EndpointRecord, "returns-south")
        north = get_version(store, "returns-north@champion")
        again = run_loop(loops["returns-north"], store)
        assert again.release is None or again.release.endpoint == "returns-north"
        assert store.records.get(EndpointRecord, "returns-south") == before
        assert champion_of(store, "returns-north") == north.key
