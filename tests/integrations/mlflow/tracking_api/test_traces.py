"""Traces and prompts by MLflow's own client, spans by OpenTelemetry's, and what is refused."""

from __future__ import annotations

import gzip
import json
import math

import pytest

from everloop.records import Trace

pytestmark = pytest.mark.slow

pytest.importorskip("opentelemetry.proto")


@pytest.fixture(scope="module")
def said(run_client):
    return run_client("client_traces_script.py")


def test_traces_come_back_with_their_spans(said):
    assert said["trace"][1:] == ["OK", "mine-1", "x"]
    assert said["name"] == "answer"
    assert said["spans"] == [["answer", "UNKNOWN", True], ["look_up", "RETRIEVER", False], ["say", "UNKNOWN", False]]
    assert said["io"] == [{"question": "why?"}, "because", "test"]
    assert said["preview"] == ['{"question": "why?"}', '"because"']
    assert said["broken"] == "ERROR"


@pytest.mark.parametrize("how", [
    "all", "oldest", "by_state", "by_tag", "by_name", "by_run", "whole", "after", "by_link", "by_text", "by_span",
    "by_feedback", "by_pattern", "by_prompt",
])  # fmt: skip
def test_traces_are_found(said, how):
    assert said[how] is True


def test_what_traces_do_not_have_cannot_be_asked(said):
    assert said["refused"] == "INVALID_PARAMETER_VALUE"


def test_tags_and_assessments(said):
    assert said["tags"] == {"seen": "yes"}
    assert said["assessments"] == {"good": False, "answer": "because"}
    assert (said["one"], said["left"], said["deleted"]) == (False, ["answer"], 1)


def test_figures_over_traces(said):
    if "figures" in said:
        assert said["figures"] == [["ERROR", 1.0], ["OK", 2.0]]
    if "correlation" in said:
        assert said["correlation"] == [pytest.approx(1.0), 2, 2, 2, 3, True]


def test_spans_as_a_file(said):
    assert said["file"] == ["attachment; filename=traces.json", True]


def test_the_older_form_of_the_trace_api(said):
    assert said["older"] == [
        ["IN_PROGRESS", 1000, 0, {"meta1": "apple", "meta2": "grape"}],
        ["OK", 1000, 2000, {"meta1": "orange", "meta2": "grape", "meta3": "banana"}],
    ]
    assert said["older_tags"] == {"tag1": "soccer", "tag2": "basketball", "tag3": "tennis"}


def test_scorers(said):
    assert said["scorers"] == [1, 2, [["polite", 2]], [1, 2], '{"name": "polite"}', [2], "RESOURCE_DOES_NOT_EXIST"]


def test_prompts_are_no_models(said):
    assert said["prompt"] == ["Greet Bob", "Say hello to Bob"]
    assert (said["prompts"], said["models"]) == (["hello"], [])


def test_the_traces_are_everloops_records(said, client_server):
    trace = client_server.store.records.get(Trace, said["trace"][0])
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


PLACE = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
A3 = "/api/3.0/mlflow/"


@pytest.fixture(scope="module")
def asked(served):
    """Searches the traces of an experiment of its own: three, of which two have spans; their numbers are answered."""
    api = served.caller
    number = api.post("experiments/create", name="searched")["experiment_id"]
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}}
    for count in (1, 2, 3):
        info = {
            "trace_id": f"tr-{count:032x}",
            "trace_location": place,
            "request_time": f"2026-01-01T00:00:0{count}Z",
            "state": "OK",
            "trace_metadata": {"mlflow.trace.session": "s" if count < 3 else "t"},
            "tags": {"long": "a" * 5000 + "!"},
        }
        api.post(A3 + "traces", trace={"trace_info": info})
        if count < 3:
            whole = exported(f"root {count}", "leaf", trace=f"{count:032x}", error=count == 2).SerializeToString()
            assert send(api, whole, x_mlflow_experiment_id=number).status == 200

    def search(text: str, **more):
        got = api.call("POST", A3 + "traces/search", {"locations": [place], "filter": text, **more})
        if got.status != 200:
            return got.json["error_code"]
        return [int(trace["trace_id"][3:], 16) for trace in got.json.get("traces", [])]

    search.api, search.number = api, number
    return search


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("span.name = 'root 1'", [1]),
        ("span.name LIKE 'root%'", [2, 1]),
        ("span.name != 'leaf'", [2, 1]),
        ("span.name IN ('root 2', 'x')", [2]),
        ("span.name NOT IN ('leaf', 'root 1')", [2]),
        ("span.status = 'ERROR'", [2]),
        # All that is asked of spans is asked of one span.
        ("span.name = 'root 1' AND span.name = 'leaf'", []),
        ("span.type = 'LLM'", []),
        ("span.attributes.count = '1152921504606846976'", [2, 1]),
        ("span.attributes.`mlflow.spanInputs` LIKE '%in%'", [2, 1]),
        ("span.attributes.none != 'x'", []),
        ("span.content LIKE '%root 2%'", [2]),
        ("trace.text ILIKE '%ROOT 2%'", [2]),
        # What a span says is not how protobuf spells it.
        ("trace.text LIKE '%string_value%'", []),
        ("tags.long RLIKE '^a+!$'", [3, 2, 1]),
        ("tags.long RLIKE '(a+)+$'", []),
        ("span.name RLIKE '^root [13]$'", [1]),
        ("metadata.`mlflow.trace.session` IN ('s')", "INVALID_PARAMETER_VALUE"),
        ("span.nothing = 'x'", "INVALID_PARAMETER_VALUE"),
        ("span.attributes. = 'x'", "INVALID_PARAMETER_VALUE"),
        ("span.content = 'x'", "INVALID_PARAMETER_VALUE"),
        ("span.name > 'x'", "INVALID_PARAMETER_VALUE"),
        ("span.name = 5", "INVALID_PARAMETER_VALUE"),
        ("span.name RLIKE '('", "INVALID_PARAMETER_VALUE"),
        ("span.name RLIKE '(?=a)'", "INVALID_PARAMETER_VALUE"),
        (f"span.name RLIKE '{'a' * 501}'", "INVALID_PARAMETER_VALUE"),
        ("span.name RLIKE '((a{1,900}){1,900}){1,900}'", "INVALID_PARAMETER_VALUE"),
        ("trace.text = 'x'", "INVALID_PARAMETER_VALUE"),
        ("trace.text IS NULL", "INVALID_PARAMETER_VALUE"),
        ("feedback. = 'x'", "INVALID_PARAMETER_VALUE"),
        ("issue.name = 'x'", "INVALID_PARAMETER_VALUE"),
        ("prompt = 'a/b/c'", "INVALID_PARAMETER_VALUE"),
    ],
)
def test_what_spans_contain(asked, text, found):
    assert asked(text) == found


def test_what_people_think_counts_for_the_whole_session(asked):
    api = asked.api

    def think(count, name, said, **more):
        source = {"source_type": "HUMAN", "source_id": "ada"}
        body = {"assessment_name": name, "source": source, **said, **more}
        return api.post(f"{A3}traces/tr-{count:032x}/assessments", assessment=body)["assessment"]["assessment_id"]

    first = think(1, "score", {"feedback": {"value": 3}})
    think(1, "fluent", {"feedback": {"value": True}}, metadata={"mlflow.trace.session": "s"})
    packed = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": '{"a": 1}'}}
    think(3, "answer", {"expectation": packed})
    assert asked("feedback.score > 2") == [1]
    assert asked("feedback.score > 3.5") == []
    assert asked("feedback.score IS NULL") == [3, 2]
    assert asked("feedback.fluent = 'true'") == [2, 1]
    assert asked("feedback.fluent IS NOT NULL") == [2, 1]
    assert asked("""expectation.answer LIKE '%"a": 1%'""") == [3]
    assert asked("feedback.answer IS NOT NULL") == []
    # One that another overrides does not count.
    think(1, "score", {"feedback": {"value": 9}}, overrides=first)
    assert asked("feedback.score = '3.0'") == []
    assert asked("feedback.score >= 9") == [1]


def test_no_pattern_holds_the_server_up(asked):
    import time

    from everloop.integrations.mlflow.tracking_api.regex_filters import matches
    from everloop.stores.records.like_patterns import is_like

    begun = time.monotonic()
    for pattern in ("(a+)+$", "(a|aa)+$", "(.*)*b", "(a*)*b"):
        assert not matches(pattern + "z", "a" * 100_000)
        assert asked(f"tags.long RLIKE '{pattern}z'") == []
    for pattern in ("%" + "_" * 400 + "b%", "%" + "a" * 90_000 + "b%", "%a_a_a_a_b"):
        assert not is_like("a" * 1_000_000, pattern, any_case=True)
    assert time.monotonic() - begun < 20
    assert is_like("x\na b", "%a_b")
    assert is_like("A" * 5_000_000 + "_x%", "%_X_", any_case=True)
    assert not is_like("A" * 5_000_000 + "_x%", "%_X", any_case=True)


def test_many_names_at_once(asked):
    api, names = asked.api, [f"tr-{number:032x}" for number in range(5000)]
    found = api.post(A3 + "traces/batchGetInfos", trace_ids=names)["trace_infos"]
    assert {one["trace_id"] for one in found} >= set(names[1:4])
    places = [{"mlflow_experiment": {"experiment_id": str(number)}} for number in (*range(100, 5000), asked.number)]
    assert len(api.post(A3 + "traces/search", locations=places)["traces"]) == 3
    asked_for = {"experiment_id": "777", "request_ids": names}
    assert api.post(A3 + "traces/delete-traces", **asked_for) == {"traces_deleted": 0}


def test_a_trace_is_linked_before_it_comes(api):
    number = api.post("experiments/create", name="linked early")["experiment_id"]
    run, name = api.run(), f"tr-{'c0' * 16}"
    for _ in range(2):
        api.post("traces/link-to-run", run_id=run, trace_ids=[name])
    place = {"mlflow_experiment": {"experiment_id": "0"}}
    assert api.call("GET", f"{A3}traces/{name}").status == 404
    asked_for = {"filter": f"run_id = '{run}'"}
    assert api.post(A3 + "traces/search", locations=[place], **asked_for) == {}
    assert send(api, exported("late", trace="c0" * 16).SerializeToString(), x_mlflow_experiment_id=number).status == 200
    place = {"mlflow_experiment": {"experiment_id": number}}
    [trace] = api.post(A3 + "traces/search", locations=[place], **asked_for)["traces"]
    assert trace["trace_id"] == name
    assert trace["tags"]["mlflow.artifactLocation"].startswith(f"mlflow-artifacts:/{number}/")
    assert api.call("POST", "traces/link-to-run", {"run_id": run, "trace_ids": ["../x"]}).status == 400
    assert api.call("POST", "traces/link-to-run", {"run_id": "0" * 32, "trace_ids": [name]}).status == 404


def test_orders(asked):
    assert asked("", order_by=["timestamp ASC"]) == [1, 2, 3]
    assert asked("", order_by=["metadata.`mlflow.trace.session` DESC", "timestamp"]) == [3, 1, 2]
    assert asked("", order_by=["span.name"]) == "INVALID_PARAMETER_VALUE"
    assert asked("", order_by=["name", "name DESC"]) == "INVALID_PARAMETER_VALUE"


def figure(api, number, view, metric, kinds, **more):
    said = [{"aggregation_type": kind} if isinstance(kind, str) else kind for kind in kinds]
    body = {"experiment_ids": [number], "view_type": view, "metric_name": metric, "aggregations": said, **more}
    got = api.call("POST", A3 + "traces/metrics", body)
    return got.json.get("data_points", []) if got.status == 200 else got.json["error_code"]


def test_figures_by_groups_and_buckets(asked):
    api, number = asked.api, asked.number
    counted = figure(api, number, "SPANS", "span_count", ["COUNT"], dimensions=["span_name"])
    assert [(one["dimensions"]["span_name"], one["values"]["COUNT"]) for one in counted] == [
        ("leaf", 2), ("root 1", 1), ("root 2", 1),
    ]  # fmt: skip
    [whole] = figure(
        api, number, "SPANS", "latency", ["AVG", {"aggregation_type": "PERCENTILE", "percentile_value": 50}]
    )
    assert whole["values"] == {"AVG": 2499.0, "P50.0": 2499.0}
    times = {"time_interval_seconds": 2, "start_time_ms": 0, "end_time_ms": 2**60}
    buckets = figure(api, number, "TRACES", "trace_count", ["COUNT"], **times)
    assert [(one["dimensions"]["time_bucket"], one["values"]["COUNT"]) for one in buckets] == [
        ("2026-01-01T00:00:00+00:00", 1), ("2026-01-01T00:00:02+00:00", 2),
    ]  # fmt: skip
    assert figure(api, number, "TRACES", "session_count", ["COUNT"])[0]["values"] == {"COUNT": 2.0}
    assert figure(api, number, "TRACES", "latency", ["AVG"]) == []
    assert figure(api, "777", "TRACES", "trace_count", ["COUNT"])[0]["values"] == {"COUNT": 0.0}


def test_percentiles_are_numpys():
    import numpy as np

    from everloop.integrations.mlflow.tracking_api.genai.trace_metrics import Aggregation

    values = np.random.default_rng(0).normal(size=57).tolist()
    for percentile in (0, 0.1, 12.5, 50, 95, 99.9, 100):
        expected = np.percentile(values, percentile)
        assert math.isclose(Aggregation("PERCENTILE", percentile).of(values), expected, rel_tol=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {"aggregations": [{"aggregation_type": "PERCENTILE"}]},
        {"aggregations": [{"aggregation_type": "PERCENTILE", "percentile_value": 101}]},
        {"aggregations": [{"aggregation_type": "COUNT", "percentile_value": 5}]},
        {"aggregations": [{"aggregation_type": "MEDIAN"}]},
        {"aggregations": ["COUNT"]},
        {"time_interval_seconds": 5},
        {"time_interval_seconds": -5, "start_time_ms": 0, "end_time_ms": 1},
        {"time_interval_seconds": 2**62, "start_time_ms": 0, "end_time_ms": 1},
        {"max_results": 0},
        {"view_type": "WRONG"},
        {"metric_name": "wrong"},
        {"dimensions": ["span_name"]},
        {"filters": ["trace.status = 'OK' AND trace.status = 'OK'"]},
        {"filters": ["span.name = 'x'"]},
        {"filters": ["x" * 20_000]},
        {"filters": ["trace." + "a" * 5000]},
    ],
)
def test_figures_that_there_are_not(api, fields):
    body = {"experiment_ids": ["0"], "view_type": "TRACES", "metric_name": "trace_count"}
    body |= {"aggregations": [{"aggregation_type": "COUNT"}], **fields}
    got = api.call("POST", A3 + "traces/metrics", body)
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_correlations():
    """Values of MLflow's own `calculate_npmi_from_counts`."""
    from everloop.integrations.mlflow.tracking_api.genai.trace_correlation import npmi

    for counts, plain, smoothed in (
        ((6, 6, 7, 10), 0.6982322877799215, 0.5404578674731575),
        ((3, 4, 3, 10), 0.7610560044063087, 0.6021516451320165),
        ((10, 20, 15, 100), 0.5228787452803378, 0.5098689991831412),
        ((0, 2, 3, 6), -1.0, -0.3962406251802892),
        ((5, 5, 5, 5), 1.0, 1.0),
    ):
        assert math.isclose(npmi(*counts), plain, rel_tol=1e-12)
        assert math.isclose(npmi(*counts, smoothing=0.5), smoothed, rel_tol=1e-12)
    for counts in ((0, 0, 5, 10), (0, 5, 0, 10), (0, 0, 0, 0), (6, 5, 6, 10)):
        assert math.isnan(npmi(*counts))
        assert math.isnan(npmi(*counts, smoothing=0.5))


def test_what_spans_say_of_the_whole(api):
    """Tokens and costs roll up without counting twice; session, user, tags and the resource come along."""
    trace = "0a" * 16

    def attribute(key, value):
        return {"key": key, "value": {"stringValue": value if isinstance(value, str) else json.dumps(value)}}

    def span(number, parent, *attributes):
        return {
            "traceId": trace,
            "spanId": f"{number:016x}",
            **({"parentSpanId": f"{parent:016x}"} if parent else {}),
            "name": f"span {number}",
            "startTimeUnixNano": "1700000000000000000",
            "endTimeUnixNano": "1700000001000000000",
            "attributes": list(attributes),
        }

    usage, cost = "mlflow.chat.tokenUsage", "mlflow.llm.cost"
    tokens = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    resource = {"attributes": [attribute("service.name", "shop"), attribute("mlflow.artifactLocation", "/etc")]}
    for group in (
        [span(3, 2, attribute(usage, tokens)), span(4, 1, attribute(usage, {**tokens, "cache_read_input_tokens": 1}))],
        [
            # What it says includes what span 3 has said before.
            span(2, 1, attribute(usage, tokens), attribute(cost, {"total_cost": 0.5}), attribute("user.id", "ada")),
            span(1, 0, attribute("session.id", "s-1"), attribute("mlflow.traceTag.team", "x")),
        ],
    ):
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": group}]}]}).encode()
        assert send(api, body, "application/json").status == 200
    info = api.get(f"{A3}traces/tr-{trace}")["trace"]["trace_info"]
    said = info["trace_metadata"]
    assert json.loads(said["mlflow.trace.tokenUsage"]) == {
        "input_tokens": 10, "output_tokens": 4, "total_tokens": 14, "cache_read_input_tokens": 1,
    }  # fmt: skip
    assert json.loads(said["mlflow.trace.cost"]) == {"input_cost": 0.0, "output_cost": 0.0, "total_cost": 0.5}
    assert (said["mlflow.trace.session"], said["mlflow.trace.user"]) == ("s-1", "ada")
    assert (info["tags"]["team"], info["tags"]["service.name"], info["state"]) == ("x", "shop", "OK")
    assert info["tags"]["mlflow.artifactLocation"] == f"mlflow-artifacts:/0/traces/tr-{trace}/artifacts"


def test_files_of_traces_lie_where_the_server_says(api, served):
    info = {"trace_id": "tr-file", "trace_location": PLACE, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    info["tags"] = {"mlflow.artifactLocation": "mlflow-artifacts:/../../etc"}
    made = api.post(A3 + "traces", trace={"trace_info": info})["trace"]["trace_info"]
    assert made["tags"]["mlflow.artifactLocation"] == "mlflow-artifacts:/0/traces/tr-file/artifacts"
    kept = "/api/2.0/mlflow-artifacts/artifacts/0/traces/tr-file/artifacts/"
    assert api.send("PUT", kept + "traces.json", b'{"spans": []}').status == 200
    attached = "0f0e0d0c-0000-4000-8000-000000000000"
    assert api.send("PUT", f"{kept}attachments/{attached}", b"picture").status == 200
    for root in ("/ajax-api/2.0/mlflow/", "/ajax-api/3.0/mlflow/"):
        got = api.send("GET", f"{root}get-trace-artifact?request_id=tr-file")
        assert (got.status, got.body) == (200, b'{"spans": []}')
        assert api.send("GET", f"{root}get-trace-artifact?request_id=tr-file&path={attached}").body == b"picture"
        for path, status in (("..%2ftraces.json", 400), ("traces.json", 400), (attached.upper(), 400)):
            assert api.send("GET", f"{root}get-trace-artifact?request_id=tr-file&path={path}").status == status
        assert api.send("GET", f"{root}get-trace-artifact?request_id=tr-none").status == 404
        assert api.send("GET", f"{root}get-trace-artifact").status == 400
    for key in ("mlflow.artifactLocation", "mlflow.trace.spansLocation"):
        for method, path in (("PATCH", "3.0"), ("DELETE", "3.0"), ("PATCH", "2.0"), ("DELETE", "2.0")):
            address = f"/api/{path}/mlflow/traces/tr-file/tags"
            assert api.call(method, address, {"key": key, "value": "x"}).status == 400


def test_scorers_are_texts_that_nobody_reads(api):
    code = json.dumps({"name": "s", "call_source": "raise SystemExit", "original_func_name": "s"})
    for number in (1, 2):
        made = api.post(A3 + "scorers/register", experiment_id="0", name="a@1/b", serialized_scorer=code)
        assert (made["version"], made["serialized_scorer"]) == (number, code)
    assert [one["scorer_version"] for one in api.get(A3 + "scorers/list", experiment_id="0")["scorers"]] == [2]
    for fields in (
        {},
        {"experiment_id": "0", "name": "  ", "serialized_scorer": "{}"},
        {"experiment_id": "0", "name": "x" * 257, "serialized_scorer": "{}"},
        {"experiment_id": "0", "name": "x", "serialized_scorer": "{"},
        {"experiment_id": "0", "name": "x", "serialized_scorer": "[" * 100_000},
        {"experiment_id": "0", "name": "x", "serialized_scorer": f'"{"x" * (1 << 20)}"'},
        {"experiment_id": "0", "name": "x\0", "serialized_scorer": "{}"},
    ):
        assert api.call("POST", A3 + "scorers/register", fields).status == 400


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("POST", "traces", {}, 400),
        ("POST", "traces", {"experiment_id": "404", "timestamp_ms": 1}, 404),
        ("POST", "traces", {"experiment_id": "0", "timestamp_ms": -1}, 400),
        ("POST", "traces", {"experiment_id": "0", "timestamp_ms": 1, "tags": [1]}, 400),
        ("PATCH", "traces/none", {"timestamp_ms": 1, "status": "OK"}, 404),
        ("PATCH", "traces/tr-1", {"timestamp_ms": 1, "status": "GOOD"}, 400),
        ("GET", "traces/none/info", {}, 404),
        ("GET", "traces", {}, 400),
    ],
)
def test_the_older_form_refuses(api, method, path, fields, status):
    assert api.call(method, path, fields).status == status
