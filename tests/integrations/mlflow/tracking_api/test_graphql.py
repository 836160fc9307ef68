"""What MLflow's page asks by GraphQL, and what nobody gets by it: more than routes give, or a 5xx."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from everloop.errors import UnavailableError
from everloop.integrations.mlflow.tracking_api import access_of
from everloop.integrations.mlflow.tracking_api.graphql import query_execution
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerRoute

RUN = "query q($id: String) { mlflowGetRun(input: {runId: $id}) { run { %s } } }"
ECHO = 'test(inputString: "x") { output }'


@pytest.fixture
def ask(api):
    def asked(query, **variables):
        got = api.call("POST", "/graphql", {"query": query, "variables": variables})
        assert got.status == 200, got.body
        assert set(got.json) == {"data", "errors"}
        return got.json

    return asked


def _data(answer):
    assert answer["errors"] is None, answer
    return answer["data"]


def test_a_run_with_all_that_belongs_to_it(api, ask):
    experiment = api.post("experiments/create", name="whole", tags=[{"key": "a", "value": "b"}])["experiment_id"]
    run = api.run(experiment, run_name="named")
    for key, value, at, step in (("m", 1.5, 2**53 + 1, 2**60), ("nan", "NaN", 1, 0), ("inf", "Infinity", 1, 0)):
        api.post("runs/log-metric", run_id=run, key=key, value=value, timestamp=min(at, 10**12), step=step)
    api.post("registered-models/create", name="of-run")
    for _ in range(2):
        api.post("model-versions/create", name="of-run", source="s3://b/x", run_id=run)
    said = _data(
        ask(
            RUN % "info { status startTime endTime runUuid } experiment { name tags { key value } }"
            " modelVersions { name version status runId aliases creationTimestamp }"
            " outputs { modelOutputs { modelId } }"
            " data { metrics { key value step timestamp modelId } params { key } }",
            id=run,
        )
    )["mlflowGetRun"]["run"]
    assert said["info"] == {"status": "RUNNING", "startTime": "1000", "endTime": "0", "runUuid": run}
    assert said["experiment"] == {"name": "whole", "tags": [{"key": "a", "value": "b"}]}
    assert sorted(one.pop("version") for one in said["modelVersions"]) == ["1", "2"]
    assert all(int(one.pop("creationTimestamp")) > 0 for one in said["modelVersions"])
    assert said["modelVersions"] == [{"name": "of-run", "status": "READY", "runId": run, "aliases": []}] * 2
    assert said["outputs"] == {"modelOutputs": []}
    metrics = {one["key"]: one for one in said["data"]["metrics"]}
    assert metrics["m"] == {"key": "m", "value": 1.5, "step": str(2**60), "timestamp": str(10**12), "modelId": ""}
    assert metrics["nan"]["value"] is None
    assert metrics["inf"]["value"] == 1.7976931348623157e308
    assert said["data"]["params"] == []


def test_metrics_on_their_way_are_shown(api, ask):
    run = api.run()
    for step in range(3):
        api.post("runs/log-metric", run_id=run, key="m", value=step, timestamp=step, step=step)
        (shown,) = _data(ask(RUN % "data { metrics { value } }", id=run))["mlflowGetRun"]["run"]["data"]["metrics"]
        assert shown == {"value": float(step)}


def test_many_runs_ask_for_their_versions_together(api, ask, monkeypatch):
    experiment = api.post("experiments/create", name="together")["experiment_id"]
    made = [api.run(experiment) for _ in range(5)]
    api.post("registered-models/create", name="together")
    for run in made[:2]:
        api.post("model-versions/create", name="together", source="s3://b/x", run_id=run)
    asked = []
    looked = query_execution.Query._look_up
    monkeypatch.setattr(
        query_execution.Query, "_look_up", lambda query, ids: (asked.append(list(ids)), looked(query, ids))
    )
    monkeypatch.setattr(query_execution, "_RUNS_PER_SEARCH", 3)
    query = "{ mlflowSearchRuns(input: {experimentIds: [%s]}) { runs { info { runId } modelVersions { version } } } }"
    found = _data(ask(query % json.dumps(experiment)))["mlflowSearchRuns"]["runs"]
    assert {one["info"]["runId"]: len(one["modelVersions"]) for one in found} == {
        run: int(run in made[:2]) for run in made
    }
    assert [len(ids) for ids in asked] == [3, 2]


def test_histories_artifacts_datasets_and_versions(api, ask):
    run = api.run()
    for step in range(5):
        api.post("runs/log-metric", run_id=run, key="m", value=step, timestamp=step, step=step)
    api.send("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/a.txt", b"text")
    data = {"name": "read", "digest": "1", "source_type": "local", "source": "s"}
    api.post("runs/log-inputs", run_id=run, datasets=[{"dataset": data}])
    said = _data(
        ask(
            "query q($runs: [String], $run: String) {"
            ' mlflowGetMetricHistoryBulkInterval(input: {runIds: $runs, metricKey: "m", startStep: 1, endStep: 3})'
            " { metrics { value step runId } }"
            " mlflowListArtifacts(input: {runId: $run}) { rootUri files { path isDir fileSize } }"
            " mlflowSearchModelVersions(input: {maxResults: 1}) { modelVersions { name } } }",
            runs=[run],
            run=run,
        )
    )
    points = said["mlflowGetMetricHistoryBulkInterval"]["metrics"]
    assert points == [{"value": float(n), "step": str(n), "runId": run} for n in (1, 2, 3)]
    assert said["mlflowListArtifacts"]["files"] == [{"path": "a.txt", "isDir": False, "fileSize": "4"}]
    assert said["mlflowListArtifacts"]["rootUri"].endswith(f"{run}/artifacts")
    query = 'mutation { mlflowSearchDatasets(input: {experimentIds: ["0"]}) { datasetSummaries { name context } } }'
    assert {"name": "read", "context": ""} in _data(ask(query))["mlflowSearchDatasets"]["datasetSummaries"]
    assert _data(ask('mutation { testMutation(inputString: "x") { output } }')) == {"testMutation": {"output": "x"}}


def test_one_field_that_fails_leaves_the_others(ask):
    said = ask(f'{{ {ECHO} mlflowGetRun(input: {{runId: "{"0" * 32}"}}) {{ run {{ info {{ runId }} }} }} }}')
    assert said["data"] == {"test": {"output": "x"}, "mlflowGetRun": None}
    assert said["errors"] == [f"Run with id={'0' * 32} not found"]


NESTED = "{ " + "a { " * 3000 + "b" + " }" * 3001
CYCLE = "{ ...f } fragment f on Query { ...g } fragment g on Query { ...f }"
BOMB = "{ test { ...f0 } } " + " ".join(
    f"fragment f{n} on Test {{ {' '.join(f'...f{n + 1}' for _ in range(10))} }}" for n in range(9)
)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("{", "Syntax Error"),
        ("nonsense", "Syntax Error"),
        ("\x00", "Syntax Error"),
        ("", None),
        ("{ nothing }", "Cannot query field"),
        ("query ($a: Nothing) { test }", "Unknown type"),
        ("subscription { test { output } }", "subscription operation"),
        ("fragment f on Test { output }", None),
        ("type Query { a: Int }", None),
        (CYCLE, "Cannot spread fragment"),
        (BOMB + " fragment f9 on Test { output }", None),
        ("{ test { ...f } } fragment f on Test { output ...f }", "Cannot spread fragment"),
        (NESTED, "nested too deeply"),
        ("{ test(inputString: " + "[" * 3000 + "]" * 3000 + ") { output } }", "nested too deeply"),
        ("{ a { a { a { a { a { a { a { a { a { a { a } } } } } } } } } } }", "maximum depth of 10"),
        ("{ " + "... on Query { " * 3000 + ECHO + " }" * 3001, None),
        ("{ " + (ECHO + " ") * 11 + "}", "at most 10 root fields, got 11 root fields."),
        ("{ test { " + " ".join(f"a{n}: output" for n in range(11)) + " } }", "at most 10 aliases, got 11 aliases."),
        ("{ test { " + " ".join(f"... on Test {{ a{n}: output }}" for n in range(11)) + " } }", "at most 10 aliases"),
        (
            "query a { test { output } } query b { " + " ".join(f"a{n}: test {{ output }}" for n in range(10)) + " }",
            "at most 10 root fields",
        ),
        ("{ test { " + "output " * 1001 + "} }", "maximum total selections of 1000"),
        ("{ test { output } } fragment f on Test { " + "output " * 1001 + "}", "maximum total selections of 1000"),
        (
            "{ test { " + "output " * 900 + "} } fragment f on Test { " + "...g " * 500 + "} fragment g on Test {a}",
            None,
        ),
        ("{ test { " + "test { ...f } " * 200 + "} } fragment f on Test { " + "...g " * 900 + "}", "total selections"),
        ("{ test { output " + "@nothing " * 1900 + "} }", "Unknown directive"),
        ("{ test { output " + "@skip(if: false) " * 1000 + "} }", "can only be used once"),
        ("query q " + '@component(name: "x") ' * 800 + "{ test { output } }", "can only be used once"),
        ("query q @component { test { output } }", "is required, but it was not provided"),
        ("query q(" + "$a: Int " * 1500 + ") { test { output } }", None),
        ("# " + "x" * 30_000, "maximum length of 20000"),
        ("{ __schema { types { fields { type { ofType { ofType { ofType { ofType { ofType { ofType { name }"
         + " }" * 10, "maximum depth of 10"),
        ('{ mlflowGetRun(input: {runId: "x\' OR 1=1"}) { run { info { runId } } } }', "not found"),
        ("{ mlflowGetRun { run { info { runId } } } }", "Missing value for required parameter 'run_id'"),
        ('{ mlflowListArtifacts(input: {runId: "../..", path: "../../etc"}) { files { path } } }', "Invalid path"),
        ("{ mlflowSearchModelVersions(input: {maxResults: 99999999999999999999}) { nextPageToken } }", "Invalid value"),
        ('{ mlflowSearchModelVersions(input: {maxResults: "x"}) { nextPageToken } }', "Invalid value"),
        ("{ mlflowSearchModelVersions(input: {maxResults: {a: [1]}}) { nextPageToken } }", None),
        ('{ mlflowSearchRuns(input: {experimentIds: [null, "0"]}) { nextPageToken } }', "Invalid value"),
        ('{ mlflowSearchRuns(input: {experimentIds: ["0"], maxResults: 50001}) { nextPageToken } }', "Invalid value"),
        ("{ mlflowSearchRuns(input: {experimentIds: " + json.dumps(["0"] * 3000) + "}) { nextPageToken } }", None),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_asked_wrongly_or_for_too_much(api, query, says):
    begun = time.monotonic()
    got = api.call("POST", "/graphql", {"query": query})
    assert got.status in (200, 400), got.body
    assert len(got.body) < 100_000
    if says is not None:
        assert got.status == 200
        assert got.json["data"] is None or set(got.json["data"].values()) == {None}
        assert any(says in error for error in got.json["errors"]), got.json["errors"][:3]
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b"5", b'"text"', b"nonsense", b'{"query": 5}', b'{"query": null}', b'{"query": []}',
        b'{"query": "{ test { output } }", "variables": []}', b'{"query": "{ test { output } }", "variables": "x"}',
        b'{"query": "{ test { output } }", "operationName": 5}', b'[{"query": "{ test { output } }"}]',
        b'{"query": "\xff"}', b'{"query": ' + b"[" * 100_000 + b"}", b'{"query": "' + b"x" * (1 << 20) + b'"}',
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused(api, body):
    got = api.send("POST", "/graphql", body, content_type="application/json")
    assert (got.status, got.json["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")) == (400, True), got.body


def test_variables_of_any_shape(api):
    query = "query q($input: MlflowSearchRunsInput) { mlflowSearchRuns(input: $input) { nextPageToken } }"
    nested: object = "0"
    for _ in range(400):
        nested = [nested]
    values = [5, "x", [], {"nothing": 1}, {"experimentIds": nested}, {"experimentIds": [{}] * 5000}]
    values += [{"maxResults": 1e400}, {"maxResults": 2**40}, {"runViewType": "SOME"}, {"filter": "x" * 200_000}]
    for value in values:
        got = api.call("POST", "/graphql", {"query": query, "variables": {"input": value}})
        assert got.status == 200, got.body
        assert len(got.body) < 100_000


def test_only_json_by_post_is_a_query(api):
    query = json.dumps({"query": "{ test { output } }"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/graphql", "multipart/form-data"):
        assert api.send("POST", "/graphql", query, content_type=kind).status == 400
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        got = api.send(method, "/graphql?query=%7Btest%7Boutput%7D%7D", query, content_type="application/json")
        assert 400 <= got.status < 500, method
    assert access_of("POST", "/graphql") == "read"
    assert access_of("GET", "/graphql") is None


def test_aliases_do_not_multiply_what_a_search_may_give(api, ask, monkeypatch):
    monkeypatch.setattr(query_execution, "MOST_VALUES", 500)
    experiment = api.post("experiments/create", name="multiplied")["experiment_id"]
    for _ in range(10):
        api.run(experiment)
    query = "{ mlflowSearchRuns(input: {experimentIds: [%s]}) { runs { %s } } }"
    inner = " ".join(f"i{a}: info {{ {' '.join(f'r{b}: runId' for b in range(10))} }}" for a in range(10))
    said = ask(query % (json.dumps(experiment), inner))
    assert said == {
        "data": None,
        "errors": ["The response would have more than 500 values. Request fewer rows or fields."],
    }
    assert len(_data(ask(query % (json.dumps(experiment), "info { runId }")))["mlflowSearchRuns"]["runs"]) == 10


def test_each_root_field_stands_by_the_role_of_its_route(served, monkeypatch):
    """The address lets viewers in; a field whose route needs more does not become readable by that."""
    from litestar.exceptions import PermissionDeniedException

    from everloop.integrations.mlflow.tracking_api.codec import Fields

    known = query_execution.ROOTS
    assert {route.access for route in known.values()} == {"read"}
    kinds = query_execution.schema()
    fields = {*kinds.query_type.fields, *kinds.mutation_type.fields}
    assert fields == {*known, "test", "testMutation"}
    asked = []

    def refuse(route: HandlerRoute, said: Fields):
        asked.append(route.access)
        raise PermissionDeniedException(detail="not for you")

    for name in known:
        kind = "query" if name in kinds.query_type.fields else "mutation"
        said = query_execution.answer_query(Fields({"query": f"{kind} {{ {name} {{ __typename }} }}"}), refuse)
        assert said == {"data": {name: None}, "errors": ["not for you"]}
    assert asked == ["read"] * len(known)


def test_what_goes_wrong_inside_is_not_told(caplog):
    from everloop.integrations.mlflow.tracking_api.codec import Fields

    def fails(route: HandlerRoute, said: Fields):
        raise error

    fields = Fields({"query": '{ mlflowGetRun(input: {runId: "x"}) { run { info { runId } } } }'})
    error: Exception = KeyError("a secret")
    said = query_execution.answer_query(fields, fails)
    assert said == {
        "data": {"mlflowGetRun": None},
        "errors": ["The server could not handle this field. Its log has the details."],
    }
    assert "a secret" in caplog.text
    error = UnavailableError("The store is away.")
    assert query_execution.answer_query(fields, fails)["errors"] == ["The store is away."]


@pytest.mark.slow
def test_the_library_comes_with_the_first_query():
    modules = "mlflow_app", "mounting"
    code = "\n".join(f"import everloop.integrations.mlflow.tracking_api.{name}" for name in modules)
    code += "\nimport sys; assert 'graphql' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
