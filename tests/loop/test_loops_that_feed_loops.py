"""One loop's predictions are another loop's data: `el.read("predictions:returns")`."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import polars as pl
import pytest

import everloop as el
from everloop.errors import SourceError
from everloop.loop import load_project, run_loop
from everloop.loop.triggers.trigger_checks import find_due
from everloop.prediction_log.prediction_log import Group, PredictionLog
from everloop.records import Snapshot
from everloop.registry import load_model
from everloop.stores.clock import micros, new_id

SECOND = """
@el.step
def answers() -> pl.LazyFrame:
    \"\"\"What the first loop has answered.\"\"\"
    return el.read("predictions:returns")

@el.step
def refunds(answers: pl.DataFrame, orders: pl.DataFrame) -> pl.DataFrame:
    expected = answers.select("key", expected="score")
    rows = orders.join(expected, left_on="order", right_on="key")
    return rows.select("order", "at", "expected", refund=pl.col("price") * pl.col("returned"))

second = el.Loop(
    "refunds",
    data=el.Dataset(refunds, target="refund", time="at", key="order"),
    train=el.AutoTrain(metric="rmse", budget_s=5, trials=1, candidates=("linear",), threads=1),
    serve=el.Endpoint("refunds"),
    retrain=[el.OnNewData(cooldown="1h")],
)
"""


@pytest.fixture
def chain(shop):
    """The project with a second loop that learns from the first one's answers, and the loops by name."""
    with (shop.folder / "loop.py").open("a") as file:
        file.write(SECOND)
    return load_project(shop.folder).loops


def send(store, orders):
    """Log answers of the first loop's endpoint, as its process does."""
    scores = load_model(store, "returns@champion").predict(orders)
    inputs = {"price": "float", "weight": "float", "shop": "string"}
    log = PredictionLog(store, "returns")
    now = store.now()
    for row, score in zip(orders.to_dicts(), scores, strict=True):
        log.append(
            [
                Group(
                    request=new_id(now), arrived=micros(now), seconds=0.002, version="returns@1", role="champion",
                    inputs=msgspec.Raw(msgspec.msgpack.encode(inputs)), positions=None, entities=[row["order"]],
                    events=[micros(row["at"])], scores=[float(score)], labels=["true" if score > 0.5 else "false"],
                    rows=[[row[name] for name in inputs]],
                )
            ]
        )  # fmt: skip
    log.close()


@pytest.mark.slow
def test_one_loop_learns_from_the_answers_of_another(shop, chain):
    with shop.open() as store:
        store.clock = store.simulate(shop.opens)
        assert run_loop(chain["shop"], store).release.state == "completed"
        with pytest.raises(el.EverloopError, match="has not answered any request yet"):
            run_loop(chain["refunds"], store)
        orders = shop.orders(0, 1500, shop.opens - timedelta(days=2))
        send(store, orders[:600])
        first = run_loop(chain["refunds"], store)
        assert first.release.state == "completed"
        (snapshot,) = store.records.find(Snapshot, ("dataset", "=", "refunds"))
        assert snapshot.rows == 600
        assert load_model(store, "refunds@champion").input_names == ("expected",)
        # Nothing is due, and a repeated run computes nothing, until the first loop has answered more.
        store.clock.set(shop.opens + timedelta(hours=2))
        assert find_due(chain["refunds"], store) is None
        send(store, orders[600:900])
        due = find_due(chain["refunds"], store)
        assert (due.trigger, due.evidence) == ("OnNewData", {"steps": ["answers"]})
        assert "300 new predictions" in due.reason
        assert find_due(chain["shop"], store) is None, "the first loop has learned nothing new"
        run_loop(chain["refunds"], store, trigger=due)
        newest = store.records.find(Snapshot, ("dataset", "=", "refunds"), order="-version", limit=1)[0]
        assert newest.rows == 900


def test_the_columns_of_an_endpoints_answers(shop, chain, monkeypatch):
    monkeypatch.chdir(shop.folder)
    with shop.open() as store:
        with pytest.raises(SourceError, match="No endpoint 'returns' to read predictions of") as refused:
            el.read("predictions:returns")
        assert "everloop run" in refused.value.help
        run_loop(chain["shop"], store)
        orders = shop.orders(0, 50, shop.opens)
        send(store, orders)
        found = el.read("predictions:returns").collect().sort("event_at")
        assert found.columns[:7] == ["id", "key", "event_at", "arrived_at", "version", "score", "label"]
        assert found.select("price", "weight", "shop").equals(orders.select("price", "weight", "shop"))
        assert found["key"].to_list() == orders["order"].to_list()
        few = el.read("predictions:returns", columns=["key", "score"]).collect()
        assert few.schema == pl.Schema({"key": pl.String, "score": pl.Float64})
        for options in ({"format": "csv"}, {"query": "SELECT 1"}, {"separator": ";"}):
            with pytest.raises(el.EverloopError, match="is the log of an endpoint"):
                el.read("predictions:returns", **options)
        with pytest.raises(SourceError, match="No endpoint 'return' ") as refused:
            el.read("predictions:return")
        assert "Endpoints: returns" in refused.value.help
