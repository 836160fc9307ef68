"""A candidate of a real loop is rolled back before labels arrive if a column that only it reads is broken live."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import numpy as np
import polars as pl
import pytest

from everloop.loop import run_loop
from everloop.loop.releases import unlabelled_evidence
from everloop.loop.releases.rollout import find_rolling
from everloop.loop.worker.reconciler import reconcile
from everloop.prediction_log.prediction_log import Group, PredictionLog
from everloop.records import EndpointRecord
from everloop.registry import load_model
from everloop.stores.clock import micros, new_id

pytestmark = pytest.mark.slow


def send(store, orders, release):
    """Log what champion and canary answer to orders; labels never come."""
    models = {key: load_model(store, key) for key in (release.previous, release.candidate)}
    scores = {key: model.predict(orders) for key, model in models.items()}
    inputs = {"price": "float", "weight": "float", "shop": "string"}
    log = PredictionLog(store, "returns")
    now = store.now()
    for number, row in enumerate(orders.to_dicts()):
        key, role = (release.candidate, "canary") if number % 5 == 0 else (release.previous, "champion")
        score = float(scores[key][number])
        log.append(
            [
                Group(
                    request=new_id(now), arrived=micros(now), seconds=0.002, version=key, role=role,
                    inputs=msgspec.Raw(msgspec.msgpack.encode(inputs)), positions=None, entities=[row["order"]],
                    events=None, scores=[score], labels=["true" if score > 0.5 else "false"],
                    rows=[[row[name] for name in inputs]], unasked=[""],
                )
            ]
        )  # fmt: skip
    log.close()


@pytest.fixture
def release(shop, load):
    """A release under way: the champion does not read the weight, the candidate does."""
    unlabelled_evidence._kept.clear()
    shop.change("rules.py", "orders.filter(orders", "orders.drop('weight').filter(orders")
    shop.change("loop.py", "least_labels=50", "least_labels=5000")
    with shop.open() as store:
        store.clock = store.simulate(shop.opens)
        assert run_loop(load(), store).release.state == "completed"
        shop.change("rules.py", "orders.drop('weight').filter(orders", "orders.filter(orders")
        loop = load()
        run_loop(loop, store)
        found = find_rolling(store, "returns")
        assert found is not None
        store.clock.set(shop.opens + timedelta(hours=1))
        yield store, loop, found


def test_a_column_that_is_broken_live(shop, release):
    store, loop, rolling = release
    orders = shop.orders(5000, 800, shop.opens, seed=8)
    send(store, orders.with_columns(weight=pl.col("weight") * 1000), rolling)
    ended = reconcile(loop, store).release
    assert ended is not None
    assert ended.state == "rolled_back"
    assert "before labels" in ended.decisions[-1].reason
    assert ended.decisions[-1].evidence["guard"] in ("disagreement", "score distribution")
    assert [route.version for route in store.records.get(EndpointRecord, "returns").routes] == [rolling.previous]


def test_usual_orders_and_orders_that_both_see_change(shop, release):
    store, loop, rolling = release
    for seed in (9, 10):
        send(store, shop.orders(1000 * seed, 600, shop.opens, seed=seed), rolling)
        reconcile(loop, store)
        assert find_rolling(store, "returns") is not None
    # All orders are dear. Both versions answer otherwise than for the held-out orders.
    dear = shop.orders(20_000, 600, shop.opens, seed=11).with_columns(
        price=np.random.default_rng(1).uniform(80, 100, 600)
    )
    send(store, dear, rolling)
    reconcile(loop, store)
    assert find_rolling(store, "returns") is not None
