"""Requests of all shapes to every route of MLflow's protocol: no answer is a 5xx, and the server lives."""

from __future__ import annotations

import json
import os
import string
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from everloop.server.mlflow import ROUTES

EXAMPLES = int(os.environ.get("EVERLOOP_FUZZ", "5"))
FIELDS = (
    "alias", "archive_existing_versions", "artifact_location", "dataset_digest", "datasets", "description", "end_step",
    "end_time", "event", "events", "experiment_id", "experiment_ids", "experiment_name", "filter", "key", "max_results",
    "max_timestamp_millis", "metric_key", "metrics", "model_id", "model_json", "models", "name", "new_name", "order_by",
    "page_token", "params", "path", "request_ids", "run_id", "run_ids", "run_name", "run_view_type", "secret", "source",
    "source_run_id", "stage", "stages", "start_step", "start_time", "status", "step", "tags", "timestamp", "trace",
    "trace_id", "trace_ids", "url", "user_id", "value", "version", "view_type", "locations", "assessment",
    "update_mask",
)  # fmt: skip
TEXTS = st.text(alphabet=string.printable + "äß漢\x00\u202e\ud7ff", max_size=20) | st.sampled_from(
    ["0", "1", "-1", "9" * 40, "NaN", "m", "m@1", "..", "%2e%2e", "a/b", "metrics.m > 1", "tags.a = 'b'", "name DESC",
     "FINISHED", "ACTIVE", "1970-01-01T00:00:00Z", "eyJvZmZzZXQiOiAxfQ==", "mlflow.runName", "http://127.0.0.1/"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, inner, max_size=3),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8)


@pytest.fixture(scope="module")
def real(served):
    """Fields that name what is there: most of what could go wrong lies behind the first few checks."""
    api = served.caller
    api.post("registered-models/create", name="m")
    api.post("model-versions/create", name="m", source="s3://b/x")
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    return {
        "run_id": api.run(),
        "experiment_id": "0",
        "experiment_ids": ["0"],
        "locations": [place],
        "name": "m",
        "version": "1",
        "key": "k",
        "value": 1,
        "timestamp": 1,
        "source": "s3://b/x",
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_nothing_that_is_sent_gives_a_5xx(api, real, route):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def ask(data):
        path = f"/{data.draw(st.sampled_from(['api', 'ajax-api']))}/{route.path}"
        while "{" in path:
            before, _, rest = path.partition("{")
            path = before + quote(data.draw(TEXTS) or "x", safe="") + rest.partition("}")[2]
        body = data.draw(BODIES) | {name: real[name] for name in data.draw(st.sets(st.sampled_from(sorted(real))))}
        if route.method == "GET":
            path += "?" + "&".join(f"{name}={quote(text)}" for name, text in _pairs(body))
            got = api.send("GET", path)
        else:
            sent = data.draw(st.just(json.dumps(body).encode()) | st.binary(max_size=40))
            got = api.send(route.method, path, sent, content_type="application/json")
        # 501 is MLflow's own answer of a server whose files are in a folder, to who wants them in parts.
        assert got.status < 500 or got.status == 501, (route.method, path, body, got.body)

    ask()


def _pairs(body):
    for name, value in body.items():
        for item in value if isinstance(value, list) else [value]:
            yield name, item if isinstance(item, str) else json.dumps(item)
