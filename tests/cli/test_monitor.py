"""`everloop monitor` on endpoints that are served without a loop: it needs only the logged predictions."""

from __future__ import annotations

import json
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

import everloop as el
from everloop.records import EndpointRecord, Finding, Route
from everloop.serving import EndpointApp
from everloop.serving.protocols.protocol import Request
from everloop.serving.reloader import EndpointReloader
from everloop.stores import open_store

KINDS = ("binary", "multiclass", "regression")


def table(rows, seed=0, shift=0.0):
    random = np.random.default_rng(seed)
    return pd.DataFrame({"age": random.normal(40 + shift, 9, rows), "city": random.choice(["oslo", "rome"], rows)})


def serve(store, task, example_rows=200):
    """A model with an endpoint, as `el.save_model` and `everloop serve` make it."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    train = table(200)[["age"]]
    labels = {
        "binary": (train["age"] > 40).astype(int),
        "multiclass": pd.cut(train["age"], [-99, 35, 45, 999], labels=["low", "mid", "high"]).astype(str),
        "regression": train["age"] * 2.0,
    }[task]
    model = (LinearRegression() if task == "regression" else LogisticRegression()).fit(train, labels)
    version = el.save_model(model, task, example=train.head(example_rows), y=labels.head(example_rows), store=store)
    routes = (Route(version=version.key, percent=100.0),)
    store.records.put(store.new(EndpointRecord, name=task, model=task, routes=routes))


def send(store, name, rows, labels):
    app = EndpointApp(store, name)
    EndpointReloader(store, app).load()
    keys = list(range(len(rows)))
    body = {"rows": rows[["age"]].to_dict("records"), "keys": keys}
    for path, sent in (
        ("/predict", body),
        ("/labels", {"labels": [{"key": key, "value": value} for key, value in zip(keys, labels, strict=True)]}),
    ):
        answer = app.respond(Request("POST", path, json.dumps(sent).encode(), perf_counter()))
        assert answer.status == 200, answer.body
    app.close()


@pytest.fixture
def store(everloop, tmp_path):
    with open_store(".everloop") as opened:
        yield opened


@pytest.mark.slow
def test_labels_sent_to_a_served_endpoint_are_measured_at_once(everloop, store):
    serve(store, "binary")
    rows = table(60, seed=1)
    send(store, "binary", rows, [bool(age > 40) for age in rows["age"]])
    (period,) = everloop("monitor", "performance", "binary", "--json").json
    assert (period["predictions"], period["labelled"]) == (60, 60)
    assert period["value"] > 0.9
    assert "roc_auc of 'binary'" in everloop("monitor", "performance", "binary").out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "wrong", "fits"),
    [
        ("regression", "roc_auc", "rmse, mae, median_ae, mape, r2"),
        ("regression", "accuracy", "rmse, mae, median_ae, mape, r2"),
        ("multiclass", "brier", "roc_auc, log_loss, accuracy, f1, precision, recall, ece"),
        ("binary", "rmse", "roc_auc, average_precision, log_loss, brier"),
        ("binary", "auc", "Metrics: roc_auc"),
    ],
)
def test_metric_that_does_not_fit_the_task_is_refused(everloop, store, task, wrong, fits):
    serve(store, task)
    rows = table(20, seed=1)
    send(store, task, rows, {"multiclass": ["mid"] * 20, "binary": [0, 1] * 10}.get(task, list(rows["age"] * 2)))
    result = everloop("monitor", "performance", task, "--metric", wrong)
    assert result.code == 2
    assert fits in result.err
    assert everloop("monitor", "performance", task).code == 0


@pytest.mark.slow
def test_drift_without_a_loop_names_its_reference(everloop, store):
    serve(store, "binary")
    result = everloop("monitor", "drift", "binary")
    assert result.code != 0
    assert "no predictions" in result.err
    rows = table(300, seed=1, shift=60.0)
    send(store, "binary", rows, [True] * 300)
    rough = everloop("monitor", "drift", "binary", "--json")
    assert rough.json["subjects"]["age"]["verdict"] != "quiet"
    assert rough.json["reference_rows"] == 20
    assert "20 rows of the example that it was saved with" in rough.json["notice"]
    assert "everloop monitor baseline binary@1 FILE" in rough.err
    table(2000).to_csv("train.csv", index=False)
    made = everloop("monitor", "baseline", "binary@1", "train.csv", "--json").json
    assert (made["rows"], made["watched"]) == (2000, ["age"])
    better = everloop("monitor", "drift", "binary", "--json")
    assert (better.json["reference_rows"], better.json["notice"], better.err) == (2000, None, "")
    assert better.json["subjects"]["age"]["verdict"] != "quiet"
    drawn = everloop("monitor", "drift", "binary", "--window", "1d").out
    assert "300 predictions against 2,000 rows" in " ".join(drawn.split())
    # Nothing was stored: a loop that starts to monitor begins with a clean record.
    assert everloop("monitor", "findings", "binary", "--json").json == []


@pytest.mark.slow
def test_same_rows_as_in_training_do_not_drift(everloop, store):
    serve(store, "regression")
    rows = table(300, seed=2)
    send(store, "regression", rows, list(rows["age"]))
    table(2000).to_csv("train.csv", index=False)
    everloop("monitor", "baseline", "regression@1", "train.csv")
    assert {
        seen["verdict"] for seen in everloop("monitor", "drift", "regression", "--json").json["subjects"].values()
    } == {"quiet"}


@pytest.mark.slow
@pytest.mark.parametrize("words", [("ls",), ("findings",), ("drift",), ("performance",)])
def test_endpoint_that_does_not_exist_is_refused(everloop, store, words):
    serve(store, "binary")
    result = everloop("monitor", *words, "binari")
    assert result.code == 3
    assert "binary" in result.err
    assert everloop("monitor", "ls").code == 0


def test_unknown_severities_and_kinds_are_refused(everloop, store):
    for option, word, known in (("--severity", "loud", "info, warning, alarm"), ("--kind", "drfit", "drift, perf")):
        result = everloop("monitor", "findings", option, word)
        assert result.code == 2
        assert known in result.err
    assert everloop("monitor", "baseline", "nothing@1", "x.csv").code != 0


def test_a_store_of_an_earlier_version_of_everloop_is_readable(everloop, store):
    """Its alarms are findings with a limit, and it has no incidents."""
    now = store.now()
    window = {"endpoint": "delays", "version": "delays@1", "kind": "drift", "window_from": now, "window_to": now}
    states = {
        "age": {"psi": 0.3, "p_value": 0.0, "limit": 0.1, "verdict": "alarm"},
        "city": {"psi": None, "p_value": None, "limit": None, "verdict": "quiet"},
        "wind": {},
    }
    store.records.put(
        store.new(EndpointRecord, name="delays", model="delays"),
        store.new(Finding, severity="alarm", subject="age", message="PSI 0.3, above 0.1.", value=0.3, threshold=0.1,
                  evidence={"limit": 0.1, "psi": 0.3}, **window),
        store.new(Finding, severity="info", subject="window", message="1 of 3.", threshold=0.1,
                  evidence={"subjects": states, "limit": 0.1, "told": []}, **window),
    )  # fmt: skip
    assert everloop("monitor", "ls", "delays").out.strip().startswith("No open incidents.")
    assert [one["subject"] for one in everloop("monitor", "findings", "delays", "--json").json] == ["window", "age"]
    assert "PSI 0.3, above 0.1." in everloop("monitor", "findings", "--severity", "alarm").out
    drawn = everloop("monitor", "drift", "delays")
    assert drawn.code == 0
    assert "alarm" in drawn.out
    assert everloop("monitor", "drift", "delays", "--json").json["evidence"]["subjects"] == states
