"""A rollout at a real endpoint whose candidate has other inputs than the champion."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from everloop.loop import reconcile, run_loop
from everloop.loop.comparison.schema_compatibility import schema_coverage
from everloop.loop.contract_acceptance import accept_contract, propose_contract
from everloop.prediction_log import add_labels, read_predictions
from everloop.records import EndpointRecord, Route
from everloop.serving import EndpointProcess

OLD = ["price", "weight", "shop"]
NEW = ["price", "shop", "root"]
BOTH = ["price", "weight", "shop", "root"]


def request_predictions(url, orders, columns):
    body = {
        "rows": orders.select(columns).to_dicts(),
        "keys": orders["order"].to_list(),
        "event_at": [at.isoformat() for at in orders["at"]],
    }
    request = urllib.request.Request(f"{url}/predict", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read()), response.headers


def answered_by(payload):
    return set(payload.get("versions", [payload["version"]]))


def send_labels(store, orders):
    labels = orders.select(
        pl.col("order").alias("entity"), pl.col("returned").alias("value"), pl.col("at").alias("event_at")
    )
    add_labels(store, "returns", labels)


@pytest.fixture
def rolling(shop, load):
    """A store during the rollout of `returns@2`, which has the input `root` instead of `weight`."""
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


@pytest.mark.slow
def test_requests_that_either_version_can_score_are_answered_and_counted(shop, rolling):
    store, clock, loop = rolling
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 600, 2)
        old, new, both = flow[:200], flow[200:400], flow[400:]
        payload, headers = request_predictions(endpoint.url, old, OLD)
        assert answered_by(payload) == {1}
        assert headers["x-everloop-unasked"] == "returns@2"
        (missed,) = payload["unasked"]
        assert (missed["version"], missed["rows"], "root" in missed["why"]) == ("returns@2", 200, True)
        payload, headers = request_predictions(endpoint.url, new, NEW)
        assert answered_by(payload) == {2}
        assert headers["x-everloop-unasked"] == "returns@1"
        payload, headers = request_predictions(endpoint.url, both, BOTH)
        assert answered_by(payload) == {1, 2}
        assert "unasked" not in payload
        assert headers["x-everloop-unasked"] is None
        # If neither version can score a request, the error names the inputs of both.
        for body, status in (({"price": 1.0, "shop": "north"}, 422), ({"price": 1.0, "colour": 1}, 422)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                request_predictions(endpoint.url, pl.DataFrame([{**body, "order": "x", "at": shop.opens}]), list(body))
            assert refused.value.code == status
            error = json.loads(refused.value.read())["error"]
            refused.value.close()
        assert "colour" in error["message"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            request_predictions(
                endpoint.url,
                pl.DataFrame({"price": [1.0], "shop": ["n"], "order": ["x"], "at": [shop.opens]}),
                OLD[::2],
            )
        error = json.loads(refused.value.read())["error"]
        refused.value.close()
        assert "weight" in error["message"]
        assert "root" in error["message"]
        assert "returns@1 expects" in error["help"]
        assert "returns@2 expects" in error["help"]

        release = reconcile(loop, store).release
        assert release.decisions[-1].action == "hold"
        assert "returns@2 could not score 200 of 600 rows" in release.decisions[-1].reason
        logged = read_predictions(store, "returns").collect()
        assert logged["unasked"].value_counts().sort("unasked").rows() == [
            ("", 200), ("returns@1", 200), ("returns@2", 200)
        ]  # fmt: skip

        send_labels(store, flow)
        clock.set(shop.opens + timedelta(days=3))
        release = reconcile(loop, store).release
        last = release.decisions[-1]
        # The versions are compared only on the rows that both can score.
        assert last.evidence["rows"] == 200
        assert (last.evidence["candidate_not_asked"], last.evidence["champion_not_asked"]) == (200, 200)
        assert last.evidence["rows_answered"] == 600
        assert release.state == "rolling_out"
        found = schema_coverage(store, release, "returns@1")
        assert (found.rows, found.not_candidate, found.not_champion, found.would_refuse) == (600, 200, 200, True)


@pytest.mark.slow
def test_a_candidate_is_not_promoted_while_it_would_refuse_requests(shop, rolling):
    store, clock, loop = rolling
    # With such a margin the evidence passes. Only the requests that the candidate cannot score hold it.
    loop = replace(loop, serve=replace(loop.serve, rollout=replace(loop.serve.rollout, margin=1.0)))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 500, 2)
        request_predictions(endpoint.url, flow[:100], OLD)
        request_predictions(endpoint.url, flow[100:], BOTH)
        send_labels(store, flow)
        clock.set(shop.opens + timedelta(days=20))
        held = reconcile(loop, store).release
        assert (held.state, held.decisions[-1].action) == ("rolling_out", "hold")
        assert "could not score 100 of 500 rows" in held.decisions[-1].reason
        assert "would refuse such requests" in held.decisions[-1].reason


@pytest.mark.slow
@pytest.mark.parametrize(("if_undecided", "state"), [("hold", "rolling_out"), ("back", "rolled_back")])
def test_without_evidence_a_candidate_is_held_or_goes_back(shop, rolling, if_undecided, state):
    store, clock, loop = rolling
    rollout = replace(loop.serve.rollout, if_undecided=if_undecided)
    loop = replace(loop, serve=replace(loop.serve, rollout=rollout))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 300, 2)
        request_predictions(endpoint.url, flow, OLD)
        send_labels(store, flow)
        clock.set(shop.opens + timedelta(days=90))
        held = reconcile(loop, store).release
        assert (held.state, held.decisions[-1].action) == (state, "hold" if if_undecided == "hold" else "roll_back")
        assert "returns@2 could not score 300 of 300 rows" in held.decisions[-1].reason
        assert held.decisions[-1].evidence["candidate_not_asked"] == 300


@pytest.mark.slow
def test_when_requests_have_the_new_inputs_the_candidate_takes_over(shop, rolling):
    store, clock, loop = rolling
    loop = replace(loop, serve=replace(loop.serve, rollout=replace(loop.serve.rollout, margin=1.0)))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 400, 2)
        request_predictions(endpoint.url, flow, BOTH)
        send_labels(store, flow)
        clock.set(shop.opens + timedelta(days=3))
        done = reconcile(loop, store).release
        assert done.state == "completed"
        assert done.decisions[-1].evidence["rows"] == 400
        endpoint.wait_for(store.records.get(EndpointRecord, "returns").revision)
        payload, headers = request_predictions(endpoint.url, flow[:5], NEW)
        assert answered_by(payload) == {2}
        assert headers["x-everloop-unasked"] is None


@pytest.mark.slow
def test_a_shadow_with_other_inputs_scores_the_requests_that_it_can(shop, rolling):
    store, clock, _ = rolling
    record = store.records.get(EndpointRecord, "returns")
    routes = (Route(version="returns@1", percent=100), Route(version="returns@2", percent=0, role="shadow"))
    store.records.update(replace(record, routes=routes))
    with EndpointProcess(store, "returns") as endpoint:
        clock.set(shop.opens + timedelta(hours=30))
        flow = flow_of(shop, 5000, 60, 2)
        payload, headers = request_predictions(endpoint.url, flow[:20], OLD)
        assert (answered_by(payload), headers["x-everloop-unasked"]) == ({1}, "returns@2")
        payload, headers = request_predictions(endpoint.url, flow[20:], BOTH)
        assert (answered_by(payload), headers["x-everloop-unasked"]) == ({1}, None)
        # A shadow does not answer, so a request that only the shadow can score is refused.
        with pytest.raises(urllib.error.HTTPError) as refused:
            request_predictions(endpoint.url, flow[:1], NEW)
        assert refused.value.code == 422
        refused.value.close()
    shadowed = read_predictions(store, "returns", roles=["shadow"]).collect()
    assert sorted(shadowed["entity"]) == sorted(flow[20:]["order"])
