"""Traces and prompts by MLflow's own client, spans by OpenTelemetry's, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

from everloop.records import Trace

pytest.importorskip("opentelemetry.proto")


@pytest.fixture(scope="module")
def said(served, mlflow_python):
    script = Path(__file__).parent / "client_traces_script.py"
    done = subprocess.run(
        [mlflow_python, str(script), served.url],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_traces_come_back_with_their_spans(said):
    assert said["trace"][1:] == ["OK", "mine-1", "x"]
    assert said["name"] == "answer"
    assert said["spans"] == [["answer", "UNKNOWN", True], ["look_up", "RETRIEVER", False], ["say", "UNKNOWN", False]]
    assert said["io"] == [{"question": "why?"}, "because", "test"]
    assert said["preview"] == ['{"question": "why?"}', '"because"']
    assert said["broken"] == "ERROR"


@pytest.mark.parametrize("how", ["all", "oldest", "by_state", "by_tag", "by_name", "by_run", "whole", "after"])
def test_traces_are_found(said, how):
    assert said[how] is True


def test_what_traces_do_not_have_cannot_be_asked(said):
    assert said["refused"] == "INVALID_PARAMETER_VALUE"


def test_tags_and_assessments(said):
    assert said["tags"] == {"seen": "yes"}
    assert said["assessments"] == {"good": False, "answer": "because"}
    assert (said["one"], said["left"], said["deleted"]) == (False, ["answer"], 1)


def test_prompts_are_no_models(said):
    assert said["prompt"] == ["Greet Bob", "Say hello to Bob"]
    assert (said["prompts"], said["models"]) == (["hello"], [])


def test_the_traces_are_everloops_records(said, served):
    trace = served.store.records.get(Trace, said["trace"][0])
    assert (trace.state, trace.client_request) == ("ok", "mine-1")


def exported(*names: str, trace: str = "ab" * 16, error: bool = False):
    """An export whose first span is the root of a trace."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    export = ExportTraceServiceRequest()
    scope = export.resource_spans.add().scope_spans.add()
    for number, name in enumerate(names, start=1):
        span = scope.spans.add(
            trace_id=bytes.fromhex(trace),
            span_id=number.to_bytes(8, "big"),
            parent_span_id=b"" if number == 1 else (1).to_bytes(8, "big"),
            name=name,
            start_time_unix_nano=1_700_000_000_000_000_000 + number,
            end_time_unix_nano=1_700_000_002_500_000_000,
        )
        span.attributes.add(key="mlflow.spanInputs").value.string_value = '"in"'
        span.attributes.add(key="count").value.int_value = 2**60
        if error:
            span.status.code = 2
    return export


def send(api, body: bytes, kind: str = "application/x-protobuf", **headers: str):
    headers.setdefault("x_mlflow_experiment_id", "0")
    return api.send("POST", "/v1/traces", body, content_type=kind, **headers)


def test_spans_alone_make_a_trace(api):
    whole = exported("root", "leaf").SerializeToString()
    for _ in range(2):  # an exporter that got no answer sends again
        assert send(api, whole).status == 200
    got = api.get("/api/3.0/mlflow/traces/get", trace_id=f"tr-{'ab' * 16}")["trace"]
    assert [span["name"] for span in got["spans"]] == ["root", "leaf"]
    assert got["spans"][0]["attributes"][1]["value"]["int_value"] == 2**60
    info = got["trace_info"]
    assert (info["state"], info["request_time"], info["execution_duration"]) == (
        "OK",
        "2023-11-14T22:13:20Z",
        "2.499999999s",
    )
    assert (info["request_preview"], info["tags"]["mlflow.traceName"]) == ('"in"', "root")


def test_spans_come_packed_and_as_json(api):
    packed = gzip.compress(exported("root", trace="cd" * 16, error=True).SerializeToString())
    assert send(api, packed, content_encoding="gzip").status == 200
    span = {"traceId": "ef" * 16, "spanId": "01" * 8, "name": "by json", "startTimeUnixNano": "1700000000000000000"}
    as_json = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    assert send(api, as_json, "application/json").status == 200
    got = api.get("/api/3.0/mlflow/traces/batchGet", trace_ids=[f"tr-{'cd' * 16}", f"tr-{'ef' * 16}", "tr-none"])
    assert [one["trace_info"]["state"] for one in got["traces"]] == ["ERROR", "IN_PROGRESS"]
    assert [one["spans"][0]["name"] for one in got["traces"]] == ["root", "by json"]


def test_opentelemetrys_own_exporter(api, served):
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = sdk.TracerProvider()
    exporter = exporters.OTLPSpanExporter(f"{served.url}/v1/traces", headers={"x-mlflow-experiment-id": "0"})
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer") as outer, tracer.start_as_current_span("inner"):
        name = f"tr-{outer.get_span_context().trace_id:032x}"
    provider.shutdown()
    got = api.get("/api/3.0/mlflow/traces/get", trace_id=name)["trace"]
    assert [span["name"] for span in got["spans"]] == ["outer", "inner"]
    assert got["trace_info"]["state"] == "OK"


@pytest.mark.parametrize(
    ("body", "kind", "headers", "status"),
    [
        (b"garbage", "application/x-protobuf", {}, 400),
        (b"", "application/x-protobuf", {}, 400),
        (b"{}", "application/json", {}, 400),
        (b"[1]", "application/json", {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', "application/json", {}, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "ab"}]}]}]}', "application/json", {}, 400),
        (b"x", "text/plain", {}, 400),
        (b"x", "application/x-protobuf", {"content_encoding": "gzip"}, 400),
        (gzip.compress(bytes(100 << 20)), "application/x-protobuf", {"content_encoding": "gzip"}, 400),
        (b"x", "application/x-protobuf", {"content_encoding": "br"}, 400),
        (b"x", "application/x-protobuf", {"x_mlflow_experiment_id": "404"}, 404),
        (b"x", "application/x-protobuf", {"x_mlflow_experiment_id": ""}, 400),
    ],
)
def test_what_is_no_export_is_refused(api, body, kind, headers, status):
    assert send(api, body, kind, **headers).status == status


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "INVALID_PARAMETER_VALUE"),
        ({"trace": {}}, "INVALID_PARAMETER_VALUE"),
        ({"trace_id": "../x"}, "INVALID_PARAMETER_VALUE"),
        ({"trace_id": "x" * 51}, "INVALID_PARAMETER_VALUE"),
        ({"state": "GOOD"}, "INVALID_PARAMETER_VALUE"),
        ({"request_time": "yesterday"}, "INVALID_PARAMETER_VALUE"),
        ({"execution_duration": "1 hour"}, "INVALID_PARAMETER_VALUE"),
        ({"tags": {"a": 1}}, "INVALID_PARAMETER_VALUE"),
        ({"assessments": [{"assessment_name": "a"}]}, "INVALID_PARAMETER_VALUE"),
        ({"trace_location": {"mlflow_experiment": {"experiment_id": "404"}}}, "RESOURCE_DOES_NOT_EXIST"),
    ],
)
def test_what_is_no_trace_is_refused(api, fields, code):
    info = {
        "trace_id": "tr-1",
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "request_time": "2026-01-01T00:00:00.123456789Z",
        "state": "OK",
    }
    body = fields if not fields or "trace" in fields else {"trace": {"trace_info": {**info, **fields}}}
    got = api.call("POST", "/api/3.0/mlflow/traces", body)
    assert (got.status in (400, 404), got.json["error_code"]) == (True, code)
    assert api.call("GET", "/api/3.0/mlflow/traces/tr-1").status == 404


def test_deleting_takes_one_way_of_saying_which(api):
    for fields in ({}, {"request_ids": ["tr-1"], "max_timestamp_millis": 1}, {"request_ids": ["x"], "max_traces": 1}):
        got = api.call("POST", "/api/3.0/mlflow/traces/delete-traces", {"experiment_id": "0", **fields})
        assert got.status == 400
