"""A rollout whose candidate has other inputs than the champion, at a real endpoint, decided by what it answered."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from everloop.loop import reconcile, run_loop
from everloop.loop.contract_acceptance import accept_contract, propose_contract
from everloop.loop.schema_compatibility import schema_coverage
from everloop.prediction_log import add_labels, read_predictions
from everloop.records import EndpointRecord, Route
from everloop.serving import EndpointProcess

OLD = ["price", "weight", "shop"]
NEW = ["price", "shop", "root"]
BOTH = ["price", "weight", "shop", "root"]


def ask(url, orders, columns):
    body = {
        "rows": orders.select(columns).to_dicts(),
        "keys": orders["order"].to_list(),
        "event_at": [at.isoformat() for at in orders["at"]],
    }
    request = urllib.request.Request(f"{url}/predict", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        said = json.loads(answer.read())
        return said, answer.headers


def answered_by(said):
    return set(said.get("versions", [said["version"]]))


def label(store, orders):
    truth = orders.select(
        pl.col("order").alias("entity"), pl.col("returned").alias("value"), pl.col("at").alias("event_at")
    )
    add_labels(store, "returns", truth)


@pytest.fixture
def rolling(shop, load):
    """The store in the middle of a rollout of `returns@2`, which has `root` where `returns@1` has `weight`."""
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        run_loop(load(), store)
        shop.change("loop.py", "return keep(orders)", "return keep(orders).drop('weight')" + ROOT)
        loop = load()
        accept_contract(store, propose_contract(store, "shop", loop))
        clock.set(shop.opens + timedelta(hours=1))
        second = run_loop(loop, store)
        assert second.release.state == "rolling_out"
        yield store, clock, loop


ROOT = ".with_columns(pl.col('price').sqrt().alias('root'))"


def flow_of(shop, first, rows, hours):
    orders = shop.orders(first, rows, shop.opens + timedelta(hours=hours), seed=first)
    return orders.with_columns(pl.col("price").sqrt().alias("root"))


def test_requests_that_either_version_understands_are_answered_and_counted(shop, rolling):
    store, clock, loop = rolling
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 600, 2)
        old, new, both = flow[:200], flow[200:400], flow[400:]
        said, headers = ask(endpoint.url, old, OLD)
        assert answered_by(said) == {1}
        assert headers["x-everloop-unasked"] == "returns@2"
        (missed,) = said["unasked"]
        assert (missed["version"], missed["rows"], "root" in missed["why"]) == ("returns@2", 200, True)
        said, headers = ask(endpoint.url, new, NEW)
        assert answered_by(said) == {2}
        assert headers["x-everloop-unasked"] == "returns@1"
        said, headers = ask(endpoint.url, both, BOTH)
        assert answered_by(said) == {1, 2}
        assert "unasked" not in said
        assert headers["x-everloop-unasked"] is None
        # Neither: the answer says what each wants.
        for body, status in (({"price": 1.0, "shop": "north"}, 422), ({"price": 1.0, "colour": 1}, 422)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(endpoint.url, pl.DataFrame([{**body, "order": "x", "at": shop.opens}]), list(body))
            assert refused.value.code == status
            told = json.loads(refused.value.read())["error"]
            refused.value.close()
        assert "colour" in told["message"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(
                endpoint.url,
                pl.DataFrame({"price": [1.0], "shop": ["n"], "order": ["x"], "at": [shop.opens]}),
                OLD[::2],
            )
        told = json.loads(refused.value.read())["error"]
        refused.value.close()
        assert "weight" in told["message"]
        assert "root" in told["message"]
        assert "returns@1 takes" in told["help"]
        assert "returns@2 takes" in told["help"]

        beat = reconcile(loop, store).release
        assert beat.decisions[-1].action == "hold"
        assert "returns@2 could not score 200 of 600 rows" in beat.decisions[-1].reason
        logged = read_predictions(store, "returns").collect()
        assert logged["unasked"].value_counts().sort("unasked").rows() == [
            ("", 200), ("returns@1", 200), ("returns@2", 200)
        ]  # fmt: skip

        label(store, flow)
        clock.set(shop.opens + timedelta(days=3))
        beat = reconcile(loop, store).release
        last = beat.decisions[-1]
        # Compared on the rows that both understand, and on no others.
        assert last.evidence["rows"] == 200
        assert (last.evidence["candidate_not_asked"], last.evidence["champion_not_asked"]) == (200, 200)
        assert last.evidence["rows_answered"] == 600
        assert beat.state == "rolling_out"
        found = schema_coverage(store, beat, "returns@1")
        assert (found.rows, found.not_candidate, found.not_champion, found.would_refuse) == (600, 200, 200, True)


def test_a_candidate_is_not_promoted_while_it_would_refuse_requests(shop, rolling):
    store, clock, loop = rolling
    # Too patient to end, and certain to pass: what holds it is that it cannot be asked.
    loop = replace(loop, serve=replace(loop.serve, rollout=replace(loop.serve.rollout, margin=1.0)))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 500, 2)
        ask(endpoint.url, flow[:100], OLD)
        ask(endpoint.url, flow[100:], BOTH)
        label(store, flow)
        clock.set(shop.opens + timedelta(days=20))
        held = reconcile(loop, store).release
        assert (held.state, held.decisions[-1].action) == ("rolling_out", "hold")
        assert "could not score 100 of 500 rows" in held.decisions[-1].reason
        assert "would refuse such requests" in held.decisions[-1].reason


def test_no_evidence_promotes_nothing(shop, rolling):
    store, clock, loop = rolling
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 300, 2)
        ask(endpoint.url, flow, OLD)
        label(store, flow)
        clock.set(shop.opens + timedelta(days=90))
        held = reconcile(loop, store).release
        assert (held.state, held.decisions[-1].action) == ("rolling_out", "hold")
        assert "returns@2 could not score 300 of 300 rows" in held.decisions[-1].reason
        assert held.decisions[-1].evidence["candidate_not_asked"] == 300


def test_when_clients_have_moved_on_the_candidate_takes_over(shop, rolling):
    store, clock, loop = rolling
    loop = replace(loop, serve=replace(loop.serve, rollout=replace(loop.serve.rollout, margin=1.0)))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 400, 2)
        ask(endpoint.url, flow, BOTH)
        label(store, flow)
        clock.set(shop.opens + timedelta(days=3))
        done = reconcile(loop, store).release
        assert done.state == "completed"
        assert done.decisions[-1].evidence["rows"] == 400
        endpoint.wait_for(store.records.get(EndpointRecord, "returns").revision)
        said, headers = ask(endpoint.url, flow[:5], NEW)
        assert answered_by(said) == {2}
        assert headers["x-everloop-unasked"] is None


def test_a_shadow_of_another_schema_sees_what_it_understands(shop, rolling):
    store, clock, _ = rolling
    place = store.records.get(EndpointRecord, "returns")
    routes = (Route(version="returns@1", percent=100), Route(version="returns@2", percent=0, role="shadow"))
    store.records.update(replace(place, routes=routes))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 60, 2)
        said, headers = ask(endpoint.url, flow[:20], OLD)
        assert (answered_by(said), headers["x-everloop-unasked"]) == ({1}, "returns@2")
        said, headers = ask(endpoint.url, flow[20:], BOTH)
        assert (answered_by(said), headers["x-everloop-unasked"]) == ({1}, None)
        # A shadow is not heard, so what only it understands is refused.
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(endpoint.url, flow[:1], NEW)
        assert refused.value.code == 422
        refused.value.close()
    shadowed = read_predictions(store, "returns", roles=["shadow"]).collect()
    assert sorted(shadowed["entity"]) == sorted(flow[20:]["order"])
