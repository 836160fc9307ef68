"""What only MLflow's page asks, without a browser: histories, a prompt that was tried, a gateway that is not there."""

from __future__ import annotations

import json

import pytest

BULK, INTERVAL = "metrics/get-history-bulk", "metrics/get-history-bulk-interval"
PROMPT = {
    "experiment_id": "0",
    "prompt_template": "Is {{flight}} late?",
    "prompt_parameters": [{"key": "flight", "value": "UA 17"}],
    "model_route": "a-model",
    "model_input": "Is UA 17 late?",
    "mlflow_version": "3.17.2",
}


def ajax(api, method, path, fields=None):
    return api.call(method, f"/ajax-api/2.0/mlflow/{path}", fields)


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        (BULK, {"metric_key": "m"}, "GetMetricHistoryBulk request must specify at least one run_id"),
        (BULK, {"run_id": ["x"]}, "GetMetricHistoryBulk request must specify a metric_key"),
        (BULK, {"run_id": ["x"] * 1000, "metric_key": "m"}, "GetMetricHistoryBulk request cannot specify more than"),
        (INTERVAL, {"metric_key": "m"}, "Missing value for required parameter 'run_ids'"),
        (INTERVAL, {"run_ids": ["x"] * 1000, "metric_key": "m"}, "must specify at most 100 run_ids"),
        (INTERVAL, {"run_ids": ["x"]}, "Missing value for required parameter 'metric_key'"),
        (INTERVAL, {"run_ids": ["x"], "metric_key": "m", "max_results": 0}, "max_results must be between 1 and 2500"),
        (INTERVAL, {"run_ids": ["x"], "metric_key": "m", "start_step": 1}, "both must be specified"),
    ],
)
def test_histories_of_nothing_are_refused_in_its_words(api, path, fields, words):
    got = ajax(api, "GET", path, fields)
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert words in got.json["message"]


def test_histories_in_order_and_thinned_as_its_server_does(api):
    runs = [api.run() for _ in range(2)]
    history = [(1, 2, 10.0), (1, 3, 11.0), (1, 3, 12.0), (2, 3, 12.0)]
    for run in runs:
        for at, step, value in history:
            api.post("runs/log-metric", run_id=run, key="a", value=value, timestamp=at, step=step)
    got = ajax(api, "GET", BULK, {"run_id": list(reversed(runs)), "metric_key": "a"}).json["metrics"]
    assert [(p["run_id"], p["timestamp"], p["step"], p["value"]) for p in got] == [
        (run, *point) for run in sorted(runs) for point in history
    ]
    assert len(ajax(api, "GET", BULK, {"run_id": runs[:1], "metric_key": "a", "max_results": 2}).json["metrics"]) == 2
    for step in range(10):
        api.post("runs/log-metric", run_id=runs[0], key="b", value=1.0, timestamp=1, step=step)
    thin = ajax(api, "GET", INTERVAL, {"run_ids": runs[:1], "metric_key": "b", "max_results": 5}).json["metrics"]
    assert (thin[0]["step"], thin[-1]["step"]) == (0, 9)
    whole = {"run_ids": runs[:1], "metric_key": "b", "start_step": 0, "end_step": 4, "max_results": 5}
    assert [p["step"] for p in ajax(api, "GET", INTERVAL, whole).json["metrics"]] == [0, 1, 2, 3, 4]


def test_runs_that_began_at_once_come_by_their_ids(api):
    experiment = api.post("experiments/create", name="at once")["experiment_id"]
    runs = sorted(api.run(experiment) for _ in range(6))
    found = api.post("runs/search", experiment_ids=[experiment], max_results=4)
    rest = api.post("runs/search", experiment_ids=[experiment], page_token=found["next_page_token"])
    assert [one["info"]["run_id"] for one in [*found["runs"], *rest["runs"]]] == runs


def test_a_logged_model_says_which_versions_it_has_become(api):
    model = api.post("logged-models", experiment_id="0", name="m")["model"]["info"]["model_id"]
    api.post("registered-models/create", name="noted")
    for _ in range(2):
        api.post("model-versions/create", name="noted", source=f"models:/{model}", model_id=model)
    tags = {tag["key"]: tag["value"] for tag in api.get(f"logged-models/{model}")["model"]["info"]["tags"]}
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": "noted", "version": n} for n in (1, 2)]


def test_a_prompt_that_was_tried_becomes_a_run_with_a_table(api):
    more = {
        "run_name": "tried",
        "model_parameters": [{"key": "temperature", "value": "0.1"}],
        "model_output": "It is.",
        "model_output_parameters": [{"key": "latency", "value": 100}],
        "user_id": "ada",
        "start_time": 456,
    }
    run = ajax(api, "POST", "runs/create-promptlab-run", {**PROMPT, **more}).json["run"]
    info, data = run["info"], run["data"]
    assert (info["run_name"], info["user_id"], info["status"], info["start_time"]) == ("tried", "ada", "FINISHED", 456)
    assert {p["key"]: p["value"] for p in data["params"]} == {
        "model_route": "a-model",
        "prompt_template": "Is {{flight}} late?",
        "temperature": "0.1",
    }
    tags = {tag["key"]: tag["value"] for tag in data["tags"]}
    assert tags["mlflow.runSourceType"] == "PROMPT_ENGINEERING"
    (named,) = json.loads(tags["mlflow.loggedArtifacts"])
    table = api.send("GET", f"/get-artifact?run_uuid={info['run_id']}&path={named['path']}").json
    assert table == {
        "columns": ["flight", "prompt", "output", "latency"],
        "data": [["UA 17", "Is UA 17 late?", "It is.", "100"]],
    }


@pytest.mark.parametrize("lacking", sorted(PROMPT))
def test_a_prompt_without_its_parts_is_none(api, lacking):
    fields = {name: value for name, value in PROMPT.items() if name != lacking}
    got = ajax(api, "POST", "runs/create-promptlab-run", fields)
    assert (got.status, got.json["message"]) == (400, f"CreatePromptlabRun request must specify {lacking}.")


def test_there_is_no_gateway_and_nothing_is_passed_on(api):
    assert ajax(api, "GET", "gateway-proxy", {"gateway_path": "api/2.0/endpoints/"}).json == {"endpoints": []}
    for method, fields, words in (
        ("POST", {}, "Deployments proxy request must specify a gateway_path."),
        ("POST", {"gateway_path": "foo/bar"}, "Invalid gateway_path: foo/bar for method: POST"),
        ("GET", {"gateway_path": "http://10.0.0.1/"}, "Invalid gateway_path: http://10.0.0.1/ for method: GET"),
    ):
        got = ajax(api, method, "gateway-proxy", fields)
        assert (got.status, got.json["message"]) == (400, words)
    assert ajax(api, "POST", "gateway-proxy", {"gateway_path": "gateway/chat/invocations"}).status == 404


def test_another_method_is_told_from_no_route(api):
    for method, path in (("DELETE", "gateway-proxy"), ("PUT", "runs/get"), ("GET", "runs/create")):
        got = ajax(api, method, path)
        assert (got.status, got.json["error_code"]) == (405, "METHOD_NOT_ALLOWED"), path
    assert ajax(api, "GET", "nothing").status == 404


def test_an_address_with_two_slashes(api):
    run = api.run()
    api.send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/a.txt", b"x")
    assert api.send("GET", f"//get-artifact?run_uuid={run}&path=a.txt").body == b"x"


def test_an_expectation_of_several_values_stands_as_text(api):
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {"trace_id": "tr-expected", "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    api.post("/api/3.0/mlflow/traces", trace={"trace_info": info})
    address = "/api/3.0/mlflow/traces/tr-expected/assessments"
    source = {"source_type": "CODE", "source_id": "test"}
    for value in ({"limit": 5}, [1, 2]):
        said = {"assessment_name": "e", "expectation": {"value": value}, "source": source}
        made = api.post(address, assessment=said)["assessment"]["expectation"]
        assert made["serialized_value"]["serialization_format"] == "JSON_FORMAT"
        assert json.loads(made["serialized_value"]["value"]) == value
    made = api.post(address, assessment={"assessment_name": "e", "expectation": {"value": 5}, "source": source})
    assert made["assessment"]["expectation"] == {"value": 5}
