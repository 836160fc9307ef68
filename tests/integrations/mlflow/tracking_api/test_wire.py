"""The protocol without MLflow's client: paging, retried writes, one noun one record, and what is refused how."""

from __future__ import annotations

import http.client
import json
import math
import time

import pytest

from everloop.integrations.mlflow.tracking_api import ROUTES, access_of
from everloop.integrations.mlflow.tracking_api.serializers import record_id
from everloop.loop import promote
from everloop.records import EndpointRecord, ModelVersion, RegisteredModel, Run
from everloop.registry import aliases
from everloop.registry.approvals import set_policy
from everloop.registry.history import alias_history
from everloop.stores import open_store
from everloop.tracking import read_metrics, start_run

PROXY = "/api/2.0/mlflow-artifacts/artifacts"


def test_a_retried_metric_is_logged_once(api, served):
    run = api.run()
    for _ in range(3):
        api.post("runs/log-metric", run_id=run, key="m", value=1.5, timestamp=10, step=1)
    api.post("runs/log-metric", run_id=run, key="m", value=2.5, timestamp=10, step=1)
    assert [p.value for p in read_metrics(served.store, record_id(run), "m")] == [1.5, 2.5]
    history = api.get("metrics/get-history", run_id=run, metric_key="m")["metrics"]
    assert [point["value"] for point in history] == [1.5, 2.5]


def test_the_latest_metric_is_by_step_then_time_then_value(api):
    run = api.run()
    for value, at, step in ((1.0, 50, 2), (9.0, 90, 1), (3.0, 60, 2), (2.0, 60, 2)):
        api.post("runs/log-metric", run_id=run, key="m", value=value, timestamp=at, step=step)
    (latest,) = api.get("runs/get", run_id=run)["run"]["data"]["metrics"]
    assert (latest["value"], latest["timestamp"], latest["step"]) == (3.0, 60, 2)


def test_nan_and_the_infinities(api, served):
    run = api.run()
    for key, value in (("n", "NaN"), ("i", "Infinity"), ("j", "-Infinity")):
        api.post("runs/log-metric", run_id=run, key=key, value=value, timestamp=1)
    body = f'{{"run_id":"{run}","key":"bare","value":NaN,"timestamp":1}}'.encode()
    assert api.send("POST", "/api/2.0/mlflow/runs/log-metric", body, content_type="application/json").status == 200
    shown = {m["key"]: m["value"] for m in api.get("runs/get", run_id=run)["run"]["data"]["metrics"]}
    assert shown == {"n": "NaN", "i": 1.7976931348623157e308, "j": -1.7976931348623157e308, "bare": "NaN"}
    assert served.store.records.get(Run, record_id(run)).metrics["i"] == float("inf")


def test_history_in_pages(api):
    run = api.run()
    metrics = [{"key": "m", "value": n, "timestamp": n, "step": n} for n in range(1000)]
    api.post("runs/log-batch", run_id=run, metrics=metrics)
    seen, token = [], ""
    while True:
        page = api.get("metrics/get-history", run_id=run, metric_key="m", max_results=300, page_token=token)
        seen += [point["step"] for point in page["metrics"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert seen == list(range(1000))


def test_runs_in_pages_neither_skip_nor_repeat(api):
    experiment = api.post("experiments/create", name="pages")["experiment_id"]
    made = [api.run(experiment) for _ in range(7)]
    seen, token = [], ""
    while True:
        page = api.post("runs/search", experiment_ids=[experiment], max_results=3, page_token=token)
        seen += [run["info"]["run_id"] for run in page["runs"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert sorted(seen) == sorted(made)


def test_a_failed_batch_leaves_nothing(api, served):
    run = api.run()
    api.post("runs/log-parameter", run_id=run, key="p", value="1")
    batch = {
        "run_id": run,
        "metrics": [{"key": "m", "value": 1, "timestamp": 1}],
        "params": [{"key": "q", "value": "1"}, {"key": "p", "value": "2"}],
    }
    got = api.call("POST", "runs/log-batch", batch)
    assert got.status == 400
    assert "Changing param values" in got.json["message"]
    record = served.store.records.get(Run, record_id(run))
    assert record.params == {"p": "1"}
    assert read_metrics(served.store, record.id) == []


def test_runs_of_everloop_are_seen_and_can_be_logged_to(api, served):
    with start_run("native", store=served.store, params={"lr": 0.1, "deep": {"a": 1}}) as run:
        run.log(loss=0.5, step=3)
    name = run.id.replace("-", "")
    shown = api.get("runs/get", run_id=name)["run"]
    assert shown["info"]["experiment_id"] == "0"
    assert {p["key"]: p["value"] for p in shown["data"]["params"]} == {"lr": "0.1", "deep": '{"a":1}'}
    api.post("runs/set-tag", run_id=name, key="seen", value="yes")
    found = api.post("runs/search", experiment_ids=["0"], filter="tags.seen = 'yes'")["runs"]
    assert [one["info"]["run_id"] for one in found] == [name]
    assert served.store.records.get(Run, run.id).tags["seen"] == "yes"


def test_searches_for_nan_states_and_nearly_right_names(api, served):
    for name, loss in (("nan", math.nan), ("inf", math.inf), ("one", 1.0)):
        with start_run(name, store=served.store, tags={"odd": "yes"}) as run:
            run.log({"loss": loss, "val": {"auc": 0.9}})

    def found(where):
        asked = f"{where} and tags.odd = 'yes'"
        got = api.post("runs/search", experiment_ids=["0"], filter=asked).get("runs", [])
        return sorted(one["info"]["run_name"] for one in got)

    assert found("metrics.loss = nan") == found("metrics.loss = NaN and metrics.loss != 1") == ["nan"]
    assert found("metrics.loss != nan") == ["inf", "one"]
    assert found("metrics.loss = inf") == found("metrics.loss > 1") == ["inf"]
    assert found("metrics.loss > -inf") == ["inf", "one"]
    assert found("metrics.`val/auc` > 0.5 and attributes.status = 'FINISHED'") == ["inf", "nan", "one"]
    for where, word in (
        ("metrics.loss > nan", "Invalid comparator"),
        ("attributes.status = 'DONE'", "'RUNNING', 'FINISHED', 'FAILED', 'KILLED'"),
        ("status != 'finished'", "Invalid run status 'finished'"),
        ("metrics.val.auc > 0.5", 'Did you mean metrics."val/auc"?'),
        ("params.loss = nan", "Expected a quoted string"),
    ):
        got = api.call("POST", "runs/search", {"experiment_ids": ["0"], "filter": where})
        assert got.status == 400, where
        assert word in got.json["message"]


def test_versions_of_everloop_are_seen_without_a_registered_model(api, served):
    store = served.store
    store.records.put(store.new(ModelVersion, model="own", version=1, package="sha256:" + "1" * 64))
    aliases.set_alias(store, "own", "champion", "own@1")
    shown = api.get("registered-models/get", name="own")["registered_model"]
    assert shown["latest_versions"][0]["source"] == "everloop:/sha256:" + "1" * 64
    assert shown["aliases"] == [{"alias": "champion", "version": "1"}]
    assert api.get("registered-models/alias", name="own", alias="champion")["model_version"]["version"] == "1"
    made = api.post("model-versions/create", name="own", source="s3://bucket/x")["model_version"]
    assert made["version"] == "2"
    assert store.records.get(RegisteredModel, "own").name == "own"


def test_version_numbers_are_never_given_twice(api):
    api.post("registered-models/create", name="once")
    api.post("model-versions/create", name="once", source="s3://b/1")
    api.post("model-versions/create", name="once", source="s3://b/2")
    assert api.call("DELETE", "model-versions/delete", {"name": "once", "version": "2"}).status == 200
    assert api.post("model-versions/create", name="once", source="s3://b/3")["model_version"]["version"] == "3"


def test_names_with_spaces_take_aliases_and_keep_them_through_a_new_name(api, served):
    api.post("registered-models/create", name="my model")
    api.post("model-versions/create", name="my model", source="s3://b/1")
    api.post("registered-models/alias", name="my model", alias="champion", version="1")
    api.post("registered-models/rename", name="my model", new_name="our model")
    assert api.get("registered-models/alias", name="our model", alias="champion")["model_version"]["version"] == "1"
    (before,) = alias_history(served.store, "my model", "champion")
    (now,) = alias_history(served.store, "our model", "champion")
    assert (before.until is None, now.until) == (False, None)


def test_what_an_endpoint_serves_stays_where_it_is(api, served):
    store = served.store
    for number in (1, 2):
        package = f"sha256:{number:064x}"
        store.records.put(store.new(ModelVersion, model="live", version=number, package=package))
    promote(store, "place", store.records.get(ModelVersion, "live@1"), "first")
    api.post("model-versions/create", name="live", source="s3://bucket/x")
    for method, path, asked in (
        ("POST", "registered-models/rename", {"name": "live", "new_name": "other"}),
        ("DELETE", "registered-models/delete", {"name": "live"}),
        ("DELETE", "model-versions/delete", {"name": "live", "version": "1"}),
        # Nothing can answer by files that nobody has made a package of.
        ("POST", "registered-models/alias", {"name": "live", "alias": "champion", "version": "3"}),
    ):
        answer = api.call(method, path, asked)
        assert (answer.status, answer.json["error_code"]) == (409, "RESOURCE_CONFLICT")
    assert alias_history(store, "live", "champion")[-1].until is None
    # Where the champion moves, the traffic moves with it.
    api.post("registered-models/alias", name="live", alias="champion", version="2")
    assert [route.version for route in store.records.get(EndpointRecord, "place").routes] == ["live@2"]
    assert api.call("DELETE", "model-versions/delete", {"name": "live", "version": "1"}).status == 200


def test_a_guarded_alias_is_guarded_here_too(api, served):
    api.post("registered-models/create", name="guarded")
    for number in (1, 2):
        api.post("model-versions/create", name="guarded", source=f"s3://b/{number}")
    api.post("registered-models/alias", name="guarded", alias="champion", version="1")
    set_policy(served.store, "guarded", "champion", 1)
    refused = [
        api.call("POST", "registered-models/alias", {"name": "guarded", "alias": "champion", "version": "2"}),
        api.call("DELETE", "registered-models/alias", {"name": "guarded", "alias": "champion"}),
        api.call("POST", "registered-models/rename", {"name": "guarded", "new_name": "free"}),
        api.call("DELETE", "model-versions/delete", {"name": "guarded", "version": "1"}),
        api.call("DELETE", "registered-models/delete", {"name": "guarded"}),
    ]
    assert all(got.status in (403, 409) for got in refused), refused
    assert api.get("registered-models/alias", name="guarded", alias="champion")["model_version"]["version"] == "1"


def test_an_experiment_takes_its_runs_along(api):
    experiment = api.post("experiments/create", name="taken")["experiment_id"]
    run = api.run(experiment)
    api.post("experiments/delete", experiment_id=experiment)
    assert api.get("runs/get", run_id=run)["run"]["info"]["lifecycle_stage"] == "deleted"
    api.post("experiments/restore", experiment_id=experiment)
    assert api.get("runs/get", run_id=run)["run"]["info"]["lifecycle_stage"] == "active"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "BAD_REQUEST"),
        (b"[1]", 400, "INVALID_PARAMETER_VALUE"),
        (b"5", 400, "INVALID_PARAMETER_VALUE"),
        (b"\xff\xfe", 400, "BAD_REQUEST"),
        (b"[" * 100_000, 400, "BAD_REQUEST"),
        (b'{"run_id": null}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"run_id": "x", "key": "m", "value": 1, "timestamp": 1e300}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"run_id": "x", "key": "m", "value": 1, "timestamp": 9223372036854775807}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"run_id": "x", "key": "m", "value": 1, "timestamp": 1, "step": 1e99}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"run_id": "x\\u0000", "key": "m", "value": 1, "timestamp": 1}', 400, "INVALID_PARAMETER_VALUE"),
        (b'{"run_id": "x", "key": "m\\u0000", "value": 1, "timestamp": 1}', 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_no_body_gives_a_server_error(api, body, status, code):
    got = api.send("POST", "/api/2.0/mlflow/runs/log-metric", body, content_type="application/json")
    assert (got.status, got.json["error_code"]) == (status, code), got.body


def test_a_form_or_text_of_another_origin_is_refused(api):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        got = api.send("POST", "/api/2.0/mlflow/experiments/create", b'{"name":"forged"}', content_type=kind)
        assert (got.status, got.json["error_code"]) == (400, "BAD_REQUEST")


def test_a_large_batch_is_refused(api):
    run = api.run()
    params = [{"key": "p", "value": "x" * 1_000_001}]
    got = api.call("POST", "runs/log-batch", {"run_id": run, "params": params})
    assert got.status == 400
    assert "at most 1000000 bytes" in got.json["message"]


def test_unknown_addresses_and_both_prefixes(api):
    got = api.call("GET", "nothing")
    assert (got.status, got.json["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert api.send("GET", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0").status == 200
    assert api.send("GET", "/version").body == b"3.17.2"
    assert json.loads(api.send("GET", "/api/3.0/mlflow/server-info").body)["store_type"] == "SqlStore"


def test_every_route_says_its_access():
    for route in ROUTES:
        path = route.path.replace("{model_id}", "m-1").replace("{key}", "k").replace("{path}", "a/b")
        assert access_of(route.method, f"/api/{path}") == route.access
        assert access_of(route.method, f"/ajax-api/{path}") == route.access
    assert access_of("GET", "/get-artifact") == "read"
    assert access_of("POST", "/api/2.0/mlflow/runs/nothing") is None


def test_metrics_reach_the_record_when_a_process_dies_in_between(tmp_path):
    from everloop.integrations.mlflow.tracking_api.codec import moment_at
    from everloop.integrations.mlflow.tracking_api.metric_buffer import MetricBuffer
    from everloop.records import Point
    from everloop.tracking import series_of

    with open_store(tmp_path, project="p") as store:
        run = store.new(Run, name="r", started_at=store.now(), artifacts_at="mlflow-artifacts:/0/x")
        store.records.put(run)
        points = [Point(key="m", value=float(n), step=n, at=moment_at("t", n)) for n in range(3)]
        store.records.append_points(series_of(run.id), points)  # and the process that noted them is gone
        assert MetricBuffer().current(store, run.id).metrics == {"m": 2.0}
        assert store.records.get(Run, run.id).metric_at == {"m": (2, 2)}


def test_an_upload_that_breaks_off_leaves_nothing(api, served):
    assert api.send("PUT", f"{PROXY}/whole/file.bin", b"x").status == 200
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest("PUT", f"{PROXY}/broken/file.bin")
    connection.putheader("content-length", str(10_000_000))
    connection.endheaders()
    connection.send(b"x" * 3_000_000)
    connection.close()
    until = time.monotonic() + 30
    while list((served.root / ".uploads").iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not list((served.root / ".uploads").iterdir())
    assert not (served.root / "broken").exists()


def test_ranges_of_a_file(api):
    body = bytes(range(256)) * 20_000
    assert api.send("PUT", f"{PROXY}/ranges/data%20file.bin", body).status == 200
    path = f"{PROXY}/ranges/data%20file.bin"
    whole = api.send("GET", path)
    assert whole.body == body
    assert whole.headers["content-disposition"] == 'attachment; filename="data file.bin"'
    part = api.send("GET", path, range="bytes=10-19")
    assert (part.status, part.body, part.headers["content-range"]) == (206, body[10:20], f"bytes 10-19/{len(body)}")
    assert api.send("GET", path, range="bytes=-5").body == body[-5:]
    assert api.send("GET", path, range=f"bytes={len(body)}-").status == 416
    listed = api.get(PROXY, path="ranges")["files"]
    assert listed == [{"path": "data file.bin", "is_dir": False, "file_size": len(body)}]
    assert api.call("DELETE", path).status == 200
    assert api.send("GET", path).status == 404


def test_the_older_way_to_say_that_a_run_has_a_model(api):
    run = api.run()
    model = {"artifact_path": "m", "flavors": {}, "utc_time_created": "now", "run_id": run}
    for _ in range(2):
        api.post("runs/log-model", run_id=run, model_json=json.dumps(model))
    tags = {tag["key"]: tag["value"] for tag in api.get("runs/get", run_id=run)["run"]["data"]["tags"]}
    assert json.loads(tags["mlflow.log-model.history"]) == [model]
    for wrong, says in (("{", "not a valid JSON"), ("{}", "missing mandatory fields"), ("[]", "missing mandatory")):
        got = api.call("POST", "runs/log-model", {"run_id": run, "model_json": wrong})
        assert (got.status, says in got.json["message"]) == (400, True), got.body


def test_histories_of_several_runs_for_charts(api):
    runs = [api.run(), api.run()]
    for run in runs:
        metrics = [{"key": "m", "value": n, "timestamp": n, "step": n} for n in range(500)]
        api.post("runs/log-batch", run_id=run, metrics=metrics)
    sampled = api.get("metrics/get-history-bulk-interval", run_ids=runs, metric_key="m", max_results=10)["metrics"]
    assert [point["run_id"] for point in sampled] == [run for run in runs for _ in range(10)]
    assert [sampled[0]["step"], sampled[9]["step"]] == [0, 499]
    part = {"run_ids": runs[:1], "metric_key": "m", "start_step": 5, "end_step": 7}
    assert [p["step"] for p in api.get("metrics/get-history-bulk-interval", **part)["metrics"]] == [5, 6, 7]
    bulk = api.get("metrics/get-history-bulk", run_id=runs, metric_key="m")["metrics"]
    assert len(bulk) == 1000
    assert api.call("GET", "metrics/get-history-bulk", {"run_id": ["x"] * 101, "metric_key": "m"}).status == 400


@pytest.mark.parametrize("key", [[1], {"a": 1}, 5, True])
def test_a_batch_whose_names_are_no_texts_is_refused_whole(api, key):
    run = api.run()
    good = {"key": "m", "value": 1.0, "timestamp": 1}
    got = api.call("POST", "runs/log-batch", {"run_id": run, "metrics": [good, {**good, "key": key}]})
    assert (got.status, got.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "metrics[1].key" in got.json["message"]
    assert "metrics" not in api.get("runs/get", run_id=run)["run"]["data"]
