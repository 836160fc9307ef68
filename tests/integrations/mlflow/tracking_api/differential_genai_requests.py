"""The requests of the differential test about traces, their assessments, evaluation datasets and scorers.

As in `differential_requests`; the method `SPANS` sends spans to OpenTelemetry's address.
"""

from __future__ import annotations

import json
from typing import Any

A3 = "/api/3.0/mlflow/"
DAY = 1_700_000_000_000
Step = tuple[str, str, Any, tuple[str, str] | None]


def steps() -> list[Step]:
    found: list[Step] = []

    def post(path: str, save: tuple[str, str] | None = None, /, **fields: Any) -> None:
        found.append(("POST", path, fields, save))

    def get(path: str, save: tuple[str, str] | None = None, /, **fields: Any) -> None:
        found.append(("GET", path, fields, save))

    def send(method: str, path: str, /, **fields: Any) -> None:
        found.append((method, path, fields, None))

    _datasets(post, get, send)
    _traces(post, get, send)
    _searches(post)
    _metrics(post)
    _scorers(post, get, send)
    _older(post, get, send)
    return found


def _datasets(post: Any, get: Any, send: Any) -> None:
    d = A3 + "datasets/"
    post("experiments/create", ("exp1", "experiment_id"), name="datasets 1")
    post("experiments/create", ("exp2", "experiment_id"), name="datasets 2")
    post(d + "create", ("one", "dataset.dataset_id"), name="one", experiment_ids=["{exp1}"], tags='{"a": "b"}')
    post(d + "create", ("two", "dataset.dataset_id"), name="two", experiment_ids=["{exp1}", "{exp2}"])
    post(d + "create", ("three", "dataset.dataset_id"), name="three", tags='{"a": "c", "mlflow.user": "ada"}')
    post(d + "create")
    post(d + "create", name=1)
    get(d + "{one}")
    get(d + "d-nothing")
    post(d + "search")
    get(d + "search")
    post(d + "search", experiment_ids=["{exp1}"])
    post(d + "search", experiment_ids=["{exp2}"], order_by=["name DESC"])
    post(d + "search", filter_string="tags.a = 'b'")
    post(d + "search", filter_string="tags.a != 'b'")
    post(d + "search", filter_string="name LIKE 't%'", order_by=["name"])
    post(d + "search", filter_string="name IN ('one', 'three')", order_by=["name"])
    post(d + "search", filter_string="name NOT IN ('one')")
    post(d + "search", filter_string="created_by = 'ada'")
    post(d + "search", filter_string="created_time > 5", max_results=1, order_by=["created_time ASC"])
    post(d + "search", filter_string="wrong = 'x'")
    post(d + "search", order_by=["wrong"])
    post(d + "search", order_by=["tags.a"])
    send("PATCH", d + "{one}/tags", tags='{"a": "new", "n": 5, "gone": null}')
    send("PATCH", d + "{one}/tags")
    send("PATCH", d + "d-nothing/tags", tags="{}")
    send("DELETE", d + "{one}/tags/n")
    send("DELETE", d + "{one}/tags/n")
    send("DELETE", d + "d-nothing/tags/n")
    get(d + "{one}")
    rows = [
        {"inputs": {"q": "why", "n": 1}, "expectations": {"a": "b"}, "tags": {"t": "u"}},
        {
            "inputs": {"q": "when"},
            "outputs": "now",
            "source": {"source_type": "human", "source_data": {"source_id": "x"}},
        },
        {"inputs": {"q": "who", "more": {"x": [1]}}, "outputs": "she", "tags": {"mlflow.user": "bob"}},
        {"inputs": {}, "source": {"source_type": "TRACE", "source_data": {"trace_id": "tr-1"}}},
    ]
    post(d + "{one}/records", records=json.dumps(rows))
    get(d + "{one}")
    get(d + "{one}/records")
    again = [
        {"inputs": {"n": 1, "q": "why"}, "expectations": {"c": True}, "tags": {"v": "w"}},
        {"inputs": {"q": "when"}, "outputs": None},
        {"inputs": {"q": "what"}, "outputs": ["x"]},
    ]
    post(d + "{one}/records", records=json.dumps(again))
    get(d + "{one}")
    get(d + "{one}/records")
    get(d + "{one}/records", max_results=10)
    post(d + "{one}/records")
    post(d + "{one}/records", records="[]")
    get(d + "{two}/records")
    send("DELETE", d + "{one}/records", dataset_record_ids=["dr-nothing"])
    get(d + "{one}/experiment-ids")
    post(d + "{one}/add-experiments", experiment_ids=["{exp2}", "{exp1}"])
    post(d + "d-nothing/add-experiments", experiment_ids=["{exp1}"])
    get(d + "{one}/experiment-ids")
    post(d + "{one}/remove-experiments", experiment_ids=["{exp2}", "777"])
    post(d + "d-nothing/remove-experiments", experiment_ids=["{exp1}"])
    get(d + "{one}/experiment-ids")
    send("DELETE", d + "{one}")
    send("DELETE", d + "{one}")
    get(d + "{one}")


def _traces(post: Any, get: Any, send: Any) -> None:
    post("experiments/create", ("exp", "experiment_id"), name="traces")
    post("runs/create", ("run", "run.info.run_id"), experiment_id="{exp}", start_time=1000, run_name="r")
    for number in range(1, 7):
        _trace(post, number)
        send("SPANS", "/v1/traces", **_spans(number))
    post(A3 + "traces")
    get(A3 + "traces/" + _id(1))
    get(A3 + "traces/tr-none")
    get(A3 + "traces/get", trace_id="tr-none")
    get(A3 + "traces/get")
    post(A3 + "traces/batchGetInfos", trace_ids=[_id(1), "tr-none", _id(2)])
    get(A3 + "traces/batchGet", trace_ids=["tr-none"])
    post("traces/link-to-run", run_id="{run}", trace_ids=[_id(2), _id(3)])
    post("traces/link-to-run", run_id="{run}", trace_ids=[_id(2)])
    post("traces/link-to-run", run_id="{run}", trace_ids=["x"] * 101)
    post("traces/link-to-run", run_id="{run}")
    post("traces/link-to-run", trace_ids=["x"])
    post("traces/link-prompts", trace_id=_id(3), prompt_versions=[{"name": "greet", "version": "2"}])
    post("traces/link-prompts", trace_id="tr-none", prompt_versions=[{"name": "greet", "version": "2"}])
    post("traces/link-prompts", trace_id=_id(3))
    for root in (A3, ""):
        send("PATCH", f"{root}traces/{_id(1)}/tags", key="set", value="yes")
        send("PATCH", f"{root}traces/{_id(1)}/tags", value="yes")
        send("PATCH", f"{root}traces/{_id(1)}/tags", key="mlflow.trace.spansLocation", value="yes")
        send("DELETE", f"{root}traces/{_id(1)}/tags", key="set")
        send("DELETE", f"{root}traces/{_id(1)}/tags", key="set")
    a = A3 + f"traces/{_id(1)}/assessments"
    for number, (name, said) in enumerate(
        [
            ("good", {"feedback": {"value": True}}),
            ("score", {"feedback": {"value": 0.75}}),
            ("tone", {"feedback": {"value": "yes"}}),
            ("answer", {"expectation": {"value": "because"}}),
        ]
    ):
        source = {"source_type": "HUMAN", "source_id": "ada"}
        body = {"assessment_name": name, "trace_id": _id(1), "source": source, **said}
        post(a, (f"a{number}", "assessment.assessment_id"), assessment=body)
    post(A3 + f"traces/{_id(2)}/assessments", assessment={
        "assessment_name": "score", "trace_id": _id(2), "feedback": {"value": 5},
        "source": {"source_type": "CODE", "source_id": "x"}, "metadata": {"mlflow.trace.session": "s1"},
    })  # fmt: skip
    get(a + "/{a0}")
    get(a + "/a-none")
    send("PATCH", a + "/{a1}", assessment={"feedback": {"value": 0.5}}, update_mask="feedback")


def _searches(post: Any) -> None:
    place = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "{exp}"}}]
    for text in (
        "", "trace.status = 'OK'", "status != 'OK'", "attributes.status IN ('ERROR', 'IN_PROGRESS')",
        "name = 'name 1'",
        "trace.name LIKE 'name%'", "trace.name ILIKE 'NAME 2'", "name RLIKE 'name [12]$'",
        "timestamp_ms > 1700000000000",
        "trace.timestamp <= 1700000000000", "execution_time_ms >= 2000", "end_time > 1700000003000", "tag.team = 'a'",
        "tags.team != 'a'", "tags.team IS NULL", "tags.team IS NOT NULL", "tags.`team` RLIKE '^a|b$'",
        "tags.none IS NULL",
        "metadata.kind = 'odd'", "request_metadata.kind LIKE 'e%'", "metadata.kind IS NULL", "run_id = '{run}'",
        "attribute.run_id = 'none'", "client_request_id = 'mine-1'", "client_request_id IN ('mine-1', 'mine-2')",
        "trace.text LIKE '%secret 3%'", "trace.text LIKE '%secret_3%'",
        "trace.text LIKE 'secret'",
        "span.name = 'child 2'", "span.name LIKE 'child%'", "span.name IN ('child 1', 'root')", "span.type = 'LLM'",
        "span.type = 'TOOL' AND span.name = 'root'", "span.status = 'ERROR'", "span.name RLIKE 'd [13]$'",
        "span.attributes.note LIKE '%secret 2%'", "span.content LIKE '%secret 4%'",
        "span.attributes.model ILIKE '%GPT%'",
        "prompt = 'greet/2'", "prompt = 'greet/3'", "prompt = 'greet'", "prompt LIKE 'greet/2'",
        "feedback.good = 'true'", "feedback.good = 'false'", "feedback.tone = 'yes'", "feedback.tone != 'yes'",
        "feedback.score > 0.4", "feedback.score < 0.4", "feedback.score >= 5", "feedback.score = '0.5'",
        "feedback.none IS NULL",
        "feedback.score IS NOT NULL", "feedback.tone LIKE '%e%'", "feedback.tone RLIKE 'y.s'",
        "expectation.answer = 'because'",
        "expectation.answer IS NULL", "issue.id = 'x'", "metadata.`mlflow.trace.session` = 's1'",
        "status = 'OK' AND tag.team = 'a' AND timestamp_ms > 5",
        "wrong = 'x'", "invalid.filter = 'test'", "span.wrong = 'x'", "span.name > 'x'", "span.content = 'x'",
        "feedback.score > 'x'", "feedback.score = 5",
        "issue.x = 'x'",
        "issue.id LIKE 'x'", "tag.team > 'a'", "name = 'a' OR name = 'b'",
    ):  # fmt: skip
        post(A3 + "traces/search", locations=place, filter=text, max_results=50)
    for order in (
        ["timestamp_ms ASC"], ["name DESC"], ["execution_time ASC", "timestamp DESC"], ["status"], ["tag.team ASC"],
        ["metadata.kind DESC"], ["run_id"], ["wrong"], ["experiment_id"], ["request_id DESC"],
    ):  # fmt: skip
        post(A3 + "traces/search", locations=place, order_by=order, max_results=50)
    post(A3 + "traces/search", locations=place, max_results=501)
    post(A3 + "traces/search", max_results=5)
    first, second = "tag.team = 'a'", "metadata.kind = 'odd'"
    c, numbers = A3 + "traces/calculate-filter-correlation", ["{exp}"]
    post(c, experiment_ids=numbers, filter_string1=first, filter_string2=second)
    post(c, experiment_ids=numbers, filter_string1=first, filter_string2="tag.team = 'z'")
    post(c, experiment_ids=numbers, filter_string1="status = 'OK'", filter_string2="status = 'ERROR'")
    post(c, experiment_ids=numbers, filter_string1=first, filter_string2=first)
    post(c, experiment_ids=numbers, filter_string1=first, filter_string2=second, base_filter="status = 'OK'")
    post(c, experiment_ids=numbers, filter_string1="timestamp_ms > 0", filter_string2="timestamp_ms > 1")
    post(c, experiment_ids=numbers, filter_string1="invalid.filter = 'test'", filter_string2=second)
    post(c, experiment_ids=["777"], filter_string1=first, filter_string2=second)
    post(c, experiment_ids=numbers, filter_string1=first)
    post(c, filter_string1=first, filter_string2=second)


def _metrics(post: Any) -> None:
    def ask(view: str, metric: str, *kinds: str, **more: Any) -> None:
        found = []
        for kind in kinds:
            said: dict[str, Any] = {"aggregation_type": kind.rstrip("0123456789.")}
            if kind.startswith("PERCENTILE") and kind != "PERCENTILE":
                said["percentile_value"] = float(kind.removeprefix("PERCENTILE"))
            found.append(said)
        post(
            A3 + "traces/metrics",
            experiment_ids=["{exp}"],
            view_type=view,
            metric_name=metric,
            aggregations=found,
            **more,
        )

    figures = ("AVG", "MIN", "MAX", "PERCENTILE50", "PERCENTILE95", "PERCENTILE12.5")
    spread = {"start_time_ms": DAY - 3_600_000, "end_time_ms": DAY + 3_600_000}
    hours = {**spread, "time_interval_seconds": 2}
    ask("TRACES", "trace_count", "COUNT")
    ask("TRACES", "trace_count", "COUNT", dimensions=["trace_status"])
    ask("TRACES", "trace_count", "COUNT", dimensions=["trace_name", "trace_status"])
    ask("TRACES", "trace_count", "COUNT", **hours)
    ask("TRACES", "trace_count", "COUNT", dimensions=["trace_status"], **hours)
    ask("TRACES", "trace_count", "COUNT", start_time_ms=DAY + 2000)
    ask("TRACES", "trace_count", "COUNT", end_time_ms=5)
    ask("TRACES", "trace_count", "COUNT", time_interval_seconds=60)
    ask("TRACES", "session_count", "COUNT")
    ask("TRACES", "latency", *figures)
    ask("TRACES", "latency", *figures, dimensions=["trace_name"])
    ask("TRACES", "latency", "AVG", **hours)
    ask("TRACES", "total_tokens", "SUM", *figures)
    ask("TRACES", "input_tokens", "SUM")
    ask("TRACES", "cache_read_input_tokens", "SUM")
    for text in (
        "trace.status = 'OK'", "trace.tag.team = 'a'", "trace.metadata.kind = 'odd'",
        "trace.tag.`mlflow.traceName` = 'name 1'",
        "trace.metadata.`mlflow.sourceRun` = '{run}'", "trace.status != 'OK'", "trace.tag = 'a'",
        "trace.status.x = 'a'",
        "span.name = 'root'", "assessment.name = 'good'", "wrong.name = 'x'", "trace.wrong = 'x'",

    ):  # fmt: skip
        ask("TRACES", "trace_count", "COUNT", filters=[text])
    ask("SPANS", "span_count", "COUNT")
    ask("SPANS", "span_count", "COUNT", dimensions=["span_type", "span_status"])
    ask("SPANS", "span_count", "COUNT", dimensions=["span_name"], **hours)
    ask("SPANS", "span_count", "COUNT", dimensions=["span_model_name", "span_model_provider"])
    ask("SPANS", "latency", *figures)
    ask("SPANS", "latency", *figures, dimensions=["span_name"], filters=["span.type = 'LLM'", "trace.status = 'OK'"])
    ask("SPANS", "total_cost", "SUM", *figures)
    ask("SPANS", "total_cost", "SUM", dimensions=["span_model_name"], **spread)
    ask("SPANS", "span_count", "COUNT", filters=["assessment.name = 'x'"])
    ask("ASSESSMENTS", "assessment_count", "COUNT")
    ask("ASSESSMENTS", "assessment_count", "COUNT", dimensions=["assessment_name"])
    ask("ASSESSMENTS", "assessment_count", "COUNT", dimensions=["assessment_name", "assessment_value"])
    ask("ASSESSMENTS", "assessment_value", *figures, dimensions=["assessment_name"])
    ask("ASSESSMENTS", "assessment_value", "AVG", filters=["assessment.type = 'feedback'", "assessment.name = 'score'"])
    ask("ASSESSMENTS", "assessment_value", "AVG", filters=["trace.status = 'OK'"], **hours)
    ask("TRACES", "wrong", "COUNT")
    ask("TRACES", "trace_count", "SUM")
    ask("TRACES", "trace_count", "COUNT", dimensions=["span_name"])
    ask("TRACES", "trace_count", "COUNT", max_results=1, dimensions=["trace_status"])
    post(A3 + "traces/metrics", experiment_ids=["{exp}"], view_type="TRACES", metric_name="trace_count")
    post(A3 + "traces/metrics", view_type="TRACES", metric_name="trace_count")


def _scorers(post: Any, get: Any, send: Any) -> None:
    s = A3 + "scorers/"
    definition = json.dumps({"name": "polite", "instructions": "Is it polite?"})
    post(s + "register", experiment_id="{exp1}", name="polite", serialized_scorer=definition)
    post(s + "register", experiment_id="{exp1}", name="polite", serialized_scorer='{"name": "second"}')
    post(s + "register", experiment_id="{exp1}", name="brief", serialized_scorer=definition)
    post(s + "register", experiment_id="{exp2}", name="brief", serialized_scorer=definition)
    post(s + "register", experiment_id="{exp1}", name=" ", serialized_scorer=definition)
    post(s + "register", experiment_id="{exp1}", name="x", serialized_scorer="no json")
    post(s + "register", experiment_id="{exp1}", name="x")
    post(s + "register", experiment_id="777", name="x", serialized_scorer=definition)
    get(s + "list", experiment_id="{exp1}")
    get(s + "list", experiment_ids=["{exp1}", "{exp2}", "777"])
    get(s + "list")
    get(s + "list", experiment_id="777")
    get(s + "list", experiment_id="{exp1}", experiment_ids=["{exp2}"])
    get(s + "versions", experiment_id="{exp1}", name="polite")
    get(s + "versions", experiment_id="{exp1}", name="nothing")
    get(s + "get", experiment_id="{exp1}", name="polite")
    get(s + "get", experiment_id="{exp1}", name="polite", version=1)
    get(s + "get", experiment_id="{exp1}", name="polite", version=9)
    get(s + "get", experiment_id="{exp1}", name="nothing")
    get(s + "get", name="polite")
    send("DELETE", s + "delete", experiment_id="{exp1}", name="polite", version=1)
    send("DELETE", s + "delete", experiment_id="{exp1}", name="polite", version=1)
    get(s + "versions", experiment_id="{exp1}", name="polite")
    send("DELETE", s + "delete", experiment_id="{exp1}", name="polite")
    send("DELETE", s + "delete", experiment_id="{exp1}", name="polite")
    get(s + "list", experiment_id="{exp1}")


def _older(post: Any, get: Any, send: Any) -> None:
    pair = [{"key": "k", "value": "v"}]
    post(
        "traces",
        ("old", "trace_info.request_id"),
        experiment_id="{exp}",
        timestamp_ms=1000,
        request_metadata=pair,
        tags=pair,
    )
    get("traces/{old}/info")
    send(
        "PATCH", "traces/{old}", timestamp_ms=3500, status="OK", request_metadata=[{"key": "m", "value": "n"}],
        tags=[{"key": "k", "value": "w"}],
    )  # fmt: skip
    send("PATCH", "traces/none", timestamp_ms=3500, status="OK")
    get("traces/{old}/info")
    get("traces/none/info")
    get("traces", experiment_ids=["{exp}"], max_results=3)
    get("traces", experiment_ids=["{exp}"], filter="status = 'ERROR'", order_by=["timestamp_ms ASC"])
    get("traces")
    get(A3 + "traces/{old}")
    d = A3 + "traces/delete-traces"
    post(d, experiment_id="{exp}")
    post(d, experiment_id="{exp}", request_ids=[_id(1)], max_timestamp_millis=5)
    post(d, experiment_id="{exp}", request_ids=[_id(1)], max_traces=5)
    post(d, experiment_id="{exp}", max_timestamp_millis=DAY, max_traces=0)
    post(d, experiment_id="{exp}", max_timestamp_millis=DAY, max_traces=1)
    post(d, experiment_id="{exp}", request_ids=[_id(1), _id(2), "tr-none"])
    post("traces/delete-traces", experiment_id="{exp}", max_timestamp_millis=DAY + 10_000_000)
    post(A3 + "traces/search", locations=[{"mlflow_experiment": {"experiment_id": "{exp}"}}])


def _id(number: int) -> str:
    return f"tr-{number:032x}"


def _trace(post: Any, number: int) -> None:
    info = {
        "trace_id": _id(number),
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "{exp}"}},
        "client_request_id": f"mine-{number}",
        "request_preview": f"ask {number}",
        "response_preview": f"say {number}",
        "request_time": f"2023-11-14T22:13:{20 + number}.123Z",
        "execution_duration": f"{number}.5s",
        "state": ["OK", "ERROR", "OK", "IN_PROGRESS"][number % 4],
        "trace_metadata": {
            "kind": "odd" if number % 2 else "even",
            "mlflow.trace.tokenUsage": json.dumps(
                {"input_tokens": number, "output_tokens": 10 * number, "total_tokens": 11 * number}
            ),
            **({"mlflow.trace.session": f"s{number // 3}"} if number != 5 else {}),
        },
        "tags": {"mlflow.traceName": f"name {number}", **({"team": "ab"[number % 2]} if number < 5 else {})},
    }
    post(A3 + "traces", trace={"trace_info": info})


def _spans(number: int) -> dict[str, Any]:
    begin = DAY * 1_000_000 + number * 1_000_000_000
    spans = []
    for place, name in enumerate(("root", f"child {number}"), start=1):
        spans.append(
            {
                "traceId": f"{number:032x}",
                "spanId": f"{number * 16 + place:016x}",
                **({"parentSpanId": f"{number * 16 + 1:016x}"} if place > 1 else {}),
                "name": name,
                "startTimeUnixNano": str(begin + place * 1_000_000),
                "endTimeUnixNano": str(begin + place * 700_000_000 + number),
                "status": {"code": 2 if number == 4 and place == 2 else 1},
                "attributes": [
                    {"key": "mlflow.spanType", "value": {"stringValue": "LLM" if place > 1 else "TOOL"}},
                    {"key": "note", "value": {"stringValue": f"a secret {number}"}},
                    {"key": "mlflow.llm.model", "value": {"stringValue": f"gpt-{number % 2}"}},
                    {"key": "mlflow.llm.provider", "value": {"stringValue": "open"}},
                    {"key": "mlflow.llm.cost", "value": {"stringValue": json.dumps({"total_cost": number / 4})}},
                    {"key": "count", "value": {"intValue": str(number)}},
                ],
            }
        )
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
