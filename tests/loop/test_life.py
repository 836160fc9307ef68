"""The life cycle as a whole: runs, traffic at a real endpoint, labels, monitoring, triggers, canary, promotion."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from datetime import timedelta

import polars as pl
import pytest

import everloop as el
from everloop.loop import reconcile, run_loop
from everloop.loop.lineage import trace_lineage
from everloop.loop.triggers.trigger_checks import find_due
from everloop.loop.watches.window_checks import due_windows
from everloop.prediction_log import add_labels
from everloop.records import EndpointRecord, Finding, ModelVersion, Release, Run, Snapshot, StepRun
from everloop.serving import EndpointProcess
from everloop.stores.verify import mark_lost, verify
from everloop.testing.serving import by_row

INPUTS = ["price", "weight", "shop"]


def request_predictions(url, orders):
    body = {
        "rows": orders.select(INPUTS).to_dicts(),
        "keys": orders["order"].to_list(),
        "event_at": [at.isoformat() for at in orders["at"]],
    }
    request = urllib.request.Request(f"{url}/predict", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return by_row(json.loads(response.read()))


def send_labels(store, orders):
    labels = orders.select(
        pl.col("order").alias("entity"), pl.col("returned").alias("value"), pl.col("at").alias("event_at")
    )
    add_labels(store, "returns", labels)


@pytest.mark.slow
def test_a_performance_alarm_retrains_and_a_canary_promotes_the_new_version(shop, load):
    """First, expensive orders are returned; later, cheap ones. The old model becomes worse than guessing."""
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        loop = load()
        first = run_loop(loop, store, trigger="first")
        assert first.version.key == "returns@1"
        with EndpointProcess(store, "returns") as endpoint:
            number, start = 1500, shop.opens
            findings: list[Finding] = []
            for week in range(3):
                clock.set(start + timedelta(days=week * 7, minutes=1600))
                flow = shop.orders(number, 1500, start + timedelta(days=week * 7), seed=10 + week, inverted=True)
                number += 1500
                predictions = request_predictions(endpoint.url, flow)
                assert {prediction["version"] for prediction in predictions} == {"returns@1"}
                send_labels(store, flow)
                shop.land(f"w{week}", flow)
                clock.set(start + timedelta(days=(week + 1) * 7))
                tick = reconcile(loop, store)
                findings += tick.findings
            alarms = [finding for finding in findings if finding.severity == "alarm"]
            assert {finding.kind for finding in alarms} == {"performance"}
            assert tick.due is not None
            assert tick.due.trigger == "OnPerformance"
            # The same window is never checked twice.
            assert reconcile(loop, store).findings == []

            second = run_loop(loop, store, trigger="OnPerformance")
            assert second.version.key == "returns@2"
            assert second.release.state == "rolling_out"
            endpoint.wait_for(store.records.get(EndpointRecord, "returns").revision)
            assert find_due(loop, store) is None  # no run is due while a candidate is being rolled out

            flow = shop.orders(number, 600, start + timedelta(days=21), seed=20, inverted=True)
            clock.set(start + timedelta(days=21, minutes=700))
            predictions = request_predictions(endpoint.url, flow)
            shares = pl.Series([prediction["version"] for prediction in predictions]).value_counts()
            canary = dict(shares.iter_rows())["returns@2"]
            assert 70 <= canary <= 180  # 20 percent of 600, by the hash of the key
            assert reconcile(loop, store).release.decisions[-1].action == "hold"  # no labels yet
            send_labels(store, flow)
            clock.set(start + timedelta(days=22, minutes=800))
            release = reconcile(loop, store).release
            assert release.state == "completed"
            assert release.decisions[-1].evidence["champion"] == "returns@1"
            endpoint.wait_for(store.records.get(EndpointRecord, "returns").revision)
            later = request_predictions(endpoint.url, flow.head(50))
            assert {prediction["version"] for prediction in later} == {"returns@2"}

            lineage = trace_lineage(store, predictions[0]["id"])
            assert lineage.prediction.inputs["price"] == pytest.approx(flow["price"][0])
            assert lineage.version.key == predictions[0]["version"]
            assert lineage.run.loop == "shop"
            assert lineage.snapshot.digest.startswith("sha256:")
            assert lineage.code.startswith("code:")
            assert any("orders" in str(source["spec"]) for source in lineage.sources)
        assert verify(store).problems == ()


@pytest.mark.slow
def test_a_worse_candidate_is_rolled_back_automatically(shop, load):
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        loop = load()
        run_loop(loop, store)
        # The new data contradict the live traffic. The gates only see the data, so they pass the worse candidate.
        shop.land("wrong", shop.orders(1500, 3500, shop.opens - timedelta(hours=20), seed=5, inverted=True))
        clock.set(shop.opens + timedelta(hours=40))
        second = run_loop(loop, store)
        assert second.release.state == "rolling_out"
        with EndpointProcess(store, "returns") as endpoint:
            flow = shop.orders(5000, 400, shop.opens + timedelta(hours=41), seed=6)
            clock.set(shop.opens + timedelta(hours=50))
            request_predictions(endpoint.url, flow)
            send_labels(store, flow)
            release = reconcile(loop, store).release
        assert release.state == "rolled_back"
        assert release.decisions[-1].evidence["gain"] < 0
        assert store.records.get(ModelVersion, "returns@2").state == "rolled_back"
        assert [route.version for route in store.records.get(EndpointRecord, "returns").routes] == ["returns@1"]


def test_windows_follow_each_other_without_gaps(shop):
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        store.records.put(store.new(EndpointRecord, name="e", model="m"))
        week = timedelta(days=7)
        assert due_windows(store, "e", el.Drift(), week, timedelta(0)) == []
        clock.set(shop.opens + 2 * week)
        assert due_windows(store, "e", el.Drift(), week, timedelta(0)) == [
            (shop.opens, shop.opens + week),
            (shop.opens + week, shop.opens + 2 * week),
        ]
        assert due_windows(store, "e", el.Drift(), week, timedelta(days=1)) == [(shop.opens, shop.opens + week)]


def test_every_fires_by_its_cron_expression(shop, load):
    shop.change("loop.py", 'el.Every("8w")', 'el.Every("0 6 * * mon")')
    with shop.open() as store:
        clock = store.simulate(shop.opens)  # a Monday, midnight
        loop = load()
        assert find_due(loop, store).trigger == "first"
        run_loop(loop, store)
        assert find_due(loop, store) is None
        clock.set(shop.opens + timedelta(hours=7))
        assert find_due(loop, store).trigger == "Every"


def test_a_run_that_was_interrupted_is_due_again(shop, load):
    with shop.open() as store:
        clock = store.simulate(shop.opens)
        loop = load()

        def record_run(state):
            clock.set(store.now() + timedelta(hours=1))
            store.records.put(store.new(Run, name="shop", loop="shop", state=state, started_at=store.now()))

        record_run("interrupted")
        assert find_due(loop, store).trigger == "first"
        record_run("finished")
        clock.set(shop.opens + timedelta(weeks=9))
        assert find_due(loop, store).trigger == "Every"
        record_run("interrupted")
        record_run("running")  # its process no longer exists
        assert find_due(loop, store).trigger == "Every"
        record_run("lost")
        assert find_due(loop, store).trigger == "Every"
        record_run("lost")  # after three in a row, the next one would probably die as well
        assert find_due(loop, store) is None


KILLED = """
import sys
from pathlib import Path
from everloop.loop import load_project, run_loop
from everloop.stores import open_store
folder = Path(sys.argv[1])
print("ready", flush=True)
loop = load_project(folder).loop()
with open_store(folder / ".everloop", project="shop") as store:
    run_loop(loop, store, trigger="killed")
print("done", flush=True)
"""


def start_process(shop):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(shop.folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_leaves_a_valid_store_and_repeats_nothing(shop, load):
    """A few random moments are tested here, and more in CI by EVERLOOP_KILLS."""
    kills = int(os.environ.get("EVERLOOP_KILLS", "4"))
    moments = random.Random(7)
    with shop.open() as store:
        for number in range(kills):
            if number % 4 == 3:
                # After a finished run nothing is left to do, so new orders are needed for another run.
                shop.land(f"more{number}", shop.orders(10_000 + 100 * number, 60, shop.opens, seed=number))
            with start_process(shop) as child:
                child.stdout.readline()
                time.sleep(moments.uniform(0.3, 3.0))
                child.send_signal(signal.SIGKILL)
            mark_lost(store)
            assert verify(store).problems == ()
        loop_run = run_loop(load(), store)
        assert loop_run.release.state in ("completed", "rolling_out")
        assert verify(store).problems == ()
        # External data are not part of a step's fingerprint, but with other data it is a different piece of work.
        ran = [(step.fingerprint, str(step.observed)) for step in store.records.find(StepRun, ("status", "=", "ran"))]
        assert len(ran) == len(set(ran))  # no finished step was repeated
        versions = store.records.find(ModelVersion)
        assert len({version.package for version in versions}) == len(versions)
        snapshots = store.records.find(Snapshot)
        assert len({snapshot.digest for snapshot in snapshots}) == len(snapshots)
        assert store.records.find(Run, ("state", "=", "running")) == []


@pytest.mark.slow
def test_two_runs_at_the_same_time_share_their_work(shop):
    children = [start_process(shop), start_process(shop)]
    assert ["done" in child.communicate(timeout=120)[0] for child in children] == [True, True]
    with shop.open() as store:
        ran = [step.fingerprint for step in store.records.find(StepRun, ("status", "=", "ran"))]
        assert len(ran) == len(set(ran))
        assert [version.key for version in store.records.find(ModelVersion)] == ["returns@1"]
        assert [release.state for release in store.records.find(Release)] == ["completed"]
        assert verify(store).problems == ()


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_says_so(shop):
    with start_process(shop) as child, shop.open() as store:
        child.stdout.readline()
        deadline = time.monotonic() + 60
        while not store.records.find(StepRun, ("name", "=", "prepare")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGINT)
        child.wait(timeout=60)
        (run,) = store.records.find(Run)
        assert run.state in ("interrupted", "finished")
        assert mark_lost(store) == []
        assert verify(store).problems == ()
