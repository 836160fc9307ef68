"""Evaluation datasets by MLflow's own clients and by hand, and what is refused."""

from __future__ import annotations

import json

import pytest

from everloop.integrations.mlflow.tracking_api.serializers import record_id
from everloop.records import EvaluationDataset, EvaluationRow

pytestmark = pytest.mark.slow

pytest.importorskip("opentelemetry.proto")

ROOT = "/api/3.0/mlflow/datasets/"


@pytest.fixture(scope="module")
def said(run_client):
    return run_client("client_datasets_script.py")


def test_datasets_come_back_and_are_found(said):
    assert said["made"] == ["questions", True, "ml", True]
    assert said["search"] == {
        "all": ["third", "others", "questions"],
        "experiment": ["others", "questions"],
        "tag": ["third", "questions"],
        "name": ["third", "others"],
        "page": ["third"],
    }
    assert said["refused"] == "INVALID_PARAMETER_VALUE"
    assert said["tags"] == {"stage": "final", "new": "yes"}
    assert said["gone"][0] == "RESOURCE_DOES_NOT_EXIST"
    assert "not found" in said["gone"][1]


def test_rows_are_merged_by_their_inputs(said):
    assert said["rows"] == [
        [{"question": "why?", "n": 1}, {"answer": "because", "source": "book"}, "HUMAN"],
        [{"question": "when?", "n": 2}, None, "CODE"],
    ]
    assert said["level"] == "easy"
    assert said["schema"]["inputs"] == {"question": "string", "n": "integer"}
    assert said["schema"]["expectations"] == {"answer": "string", "source": "string"}
    assert (said["profile"], said["changed"]) == ({"num_records": 3}, True)
    assert said["traced"] == [{"question": "whence?"}, "TRACE", True]
    assert (said.get("deleted_rows", 1), said.get("left", 3)) == (1, 3)
    assert said["many"] == list(range(2500))


def test_experiments_come_and_go(said):
    if "linked" not in said:
        pytest.skip("This client does not know of it")
    assert (said["linked"], said["unlinked"]) == (True, True)
    assert said["nowhere"][0] == "RESOURCE_DOES_NOT_EXIST"


def test_a_dataset_is_evaluated_and_its_traces_are_found(said):
    assert said["evaluated"] == [0.75, 4]
    assert (said["wrong"], said["input"]) == (['{"question": "q3"}'], "asked")
    # The traces ask what is in the dataset already.
    assert said["again"] == 4


def test_they_are_everloops_records(said, client_server):
    store = client_server.store
    big = next(one for one in store.records.find(EvaluationDataset) if one.name == "many")
    assert big.rows == 2500
    assert len(store.records.find(EvaluationRow, ("dataset", "=", big.id))) == 2500
    # The one that was deleted took its rows along.
    left = {dataset.id for dataset in store.records.find(EvaluationDataset)}
    assert {row.dataset for row in store.records.find(EvaluationRow)} <= left


def make(api, **fields):
    return api.post(ROOT + "create", name="d", experiment_ids=["0"], **fields)["dataset"]["dataset_id"]


def put(api, name, rows):
    return api.call("POST", f"{ROOT}{name}/records", {"records": rows if isinstance(rows, str) else json.dumps(rows)})


def read(api, name, **asked):
    got = api.get(f"{ROOT}{name}/records", **asked)
    return json.loads(got["records"]), got.get("next_page_token")


def test_the_same_request_twice_changes_nothing_more(api, served):
    name = make(api)
    rows = [{"inputs": {"b": [1, 2.5], "a": {"x": None}}, "outputs": ["o"]}, {"inputs": {}}]
    assert put(api, name, rows).json == {"inserted_count": 2, "updated_count": 0}
    first, _ = read(api, name)
    assert put(api, name, rows).json == {"inserted_count": 0, "updated_count": 2}
    again, _ = read(api, name)
    assert [one["dataset_record_id"] for one in first] == [one["dataset_record_id"] for one in again]
    assert [(one["inputs"], one["outputs"]) for one in again] == [(rows[0]["inputs"], ["o"]), ({}, {})]
    row = served.store.records.get(EvaluationRow, record_id(first[0]["dataset_record_id"].removeprefix("dr-")))
    assert row.revision == 0
    shown = api.get(ROOT + name)["dataset"]
    assert json.loads(shown["schema"])["outputs"] == "array"
    assert json.loads(shown["profile"]) == {"num_records": 2}
    # Twice in one request is once as well.
    assert put(api, name, [{"inputs": {"n": 1}}, {"inputs": {"n": 1}, "tags": {"mlflow.user": "ada"}}]).json == {
        "inserted_count": 1,
        "updated_count": 1,
    }
    assert api.get(ROOT + name)["dataset"]["last_updated_by"] == "ada"


def test_rows_in_pages_while_some_are_deleted(api):
    name = make(api)
    put(api, name, [{"inputs": {"n": number}} for number in range(5)])
    page, token = read(api, name, max_results=2)
    gone = page[1]["dataset_record_id"]
    other = make(api)
    asked = {"dataset_record_ids": [gone]}
    assert api.call("DELETE", f"{ROOT}{other}/records", asked).json == {"deleted_count": 0}
    assert api.call("DELETE", f"{ROOT}{name}/records", asked).json == {"deleted_count": 1}
    rest, token = read(api, name, max_results=3, page_token=token)
    assert ([row["inputs"]["n"] for row in rest], token) == ([2, 3, 4], None)


@pytest.mark.parametrize(
    "rows",
    [
        "no json",
        "[" * 100_000,
        "{}",
        [1],
        [{"inputs": None}],
        [{"inputs": []}],
        [{"inputs": {}, "tags": "x"}],
        [{"inputs": {}, "expectations": [1]}],
        [{"inputs": {}, "source": {"source_type": "nowhere"}}],
        [{"inputs": {}, "source": {"source_type": "HUMAN", "source_data": 1}}],
        [{"inputs": {"n": 10**30}}],
        [{"inputs": {"n": "\0"}}],
        '[{"inputs": {"n": "\\ud800"}}]',
        '[{"inputs": {"n": ' + "[" * 900 + "]" * 900 + "}}]",
    ],
)
def test_what_are_no_rows_is_refused(api, rows):
    name = make(api)
    got = put(api, name, rows)
    assert got.status in (200, 400), got.body
    if got.status == 400:
        assert got.json["error_code"] == "INVALID_PARAMETER_VALUE"
        assert read(api, name) == ([], None)


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("POST", "create", {}, 400),
        ("POST", "create", {"name": "x" * 256}, 400),
        ("POST", "create", {"name": "x", "tags": {"a": "b"}}, 400),
        ("POST", "create", {"name": "x", "tags": "[1]"}, 400),
        ("POST", "create", {"name": "x", "tags": '{"a": {}}'}, 400),
        ("POST", "create", {"name": "x", "experiment_ids": ["404"]}, 404),
        ("POST", "create", {"name": "x", "experiment_ids": ["0"] * 1001}, 400),
        ("POST", "search", {"max_results": 60_000}, 400),
        ("POST", "search", {"order_by": ["tags.a"]}, 400),
        ("POST", "search", {"filter_string": "name NOT IN ('a')"}, 400),
        ("GET", "d-" + "0" * 32, {}, 404),
        ("GET", "..", {}, 404),
        ("GET", "d-1/records", {"page_token": "%"}, 400),
        ("POST", "d-1/records", {"records": "[]"}, 404),
        ("DELETE", "d-1", {}, 200),
        ("DELETE", "d-1/tags/k", {}, 200),
        ("PATCH", "d-1/tags", {"tags": "{}"}, 404),
        ("POST", "d-1/remove-experiments", {"experiment_ids": ["0"]}, 404),
    ],
)
def test_what_cannot_be_is_refused(api, method, path, fields, status):
    assert api.call(method, ROOT + path, fields).status == status
