"""Requests of all shapes to every route of MLflow's protocol: no answer is a 5xx, and the server lives."""

from __future__ import annotations

import json
import os
import string
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from everloop.integrations.mlflow.tracking_api import ROUTES

EXAMPLES = int(os.environ.get("EVERLOOP_FUZZ", "5"))
FIELDS = (
    "alias", "archive_existing_versions", "artifact_location", "dataset_digest", "datasets", "description", "end_step",
    "end_time", "event", "events", "experiment_id", "experiment_ids", "experiment_name", "filter", "key", "max_results",
    "max_timestamp_millis", "metric_key", "metrics", "model_id", "model_json", "models", "name", "new_name", "order_by",
    "page_token", "params", "path", "request_ids", "run_id", "run_ids", "run_name", "run_view_type", "secret", "source",
    "source_run_id", "stage", "stages", "start_step", "start_time", "status", "step", "tags", "timestamp", "trace",
    "trace_id", "trace_ids", "url", "user_id", "value", "version", "view_type", "locations", "assessment",
    "update_mask", "records", "dataset_record_ids", "filter_string", "inputs", "expectations", "timestamp_ms",
    "request_metadata", "request_id", "view_type", "metric_name", "aggregations", "aggregation_type", "dimensions",
    "filters", "time_interval_seconds", "start_time_ms", "end_time_ms", "filter_string1", "filter_string2",
    "base_filter", "prompt_versions", "serialized_scorer",
)  # fmt: skip
TEXTS = st.text(alphabet=string.printable + "äß漢\x00\u202e\ud7ff", max_size=20) | st.sampled_from(
    ["0", "1", "-1", "9" * 40, "NaN", "m", "m@1", "..", "%2e%2e", "a/b", "metrics.m > 1", "tags.a = 'b'", "name DESC",
     "FINISHED", "ACTIVE", "1970-01-01T00:00:00Z", "eyJvZmZzZXQiOiAxfQ==", "mlflow.runName", "http://127.0.0.1/",
     "[{}]", '[{"inputs": {"a": 1}}]', '{"a": "b"}', "span.name RLIKE '(a+)+$'", "feedback.x > 1", "prompt = 'a/1'",
     "trace.text LIKE '%a%'", "TRACES", "SPANS", "ASSESSMENTS", "COUNT", "PERCENTILE", "trace_count", "latency",
     "span_count", "assessment_value", "trace_status", "span_name", "trace.status = 'OK'"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, inner, max_size=3),
    max_leaves=8,
)
TRACE = "tr-fuzzed"
KNOWN = [TRACE]
"""What there is, by the ids that stand in paths."""
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8)


@pytest.fixture(scope="module")
def real(served):
    """Fields that name what is there: most of what could go wrong lies behind the first few checks."""
    api = served.caller
    api.post("registered-models/create", name="m")
    api.post("model-versions/create", name="m", source="s3://b/x")
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {"trace_id": TRACE, "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    api.post("/api/3.0/mlflow/traces", trace={"trace_info": info})
    KNOWN.append(api.post("/api/3.0/mlflow/datasets/create", name="d")["dataset"]["dataset_id"])
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
        "records": '[{"inputs": {"a": 1}}]',
        "trace_id": TRACE,
        "trace_ids": [TRACE],
        "request_id": TRACE,
        "metric_name": "trace_count",
        "view_type": "TRACES",
        "aggregations": [{"aggregation_type": "COUNT"}],
        "filter_string1": "trace.status = 'OK'",
        "filter_string2": "tags.a = 'b'",
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
            part = data.draw(TEXTS | st.sampled_from(KNOWN)) or "x"
            path = before + quote(part, safe="") + rest.partition("}")[2]
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
