"""One package, one row, every protocol: the same answer, and no input that fails the endpoint."""

from __future__ import annotations

import json
import struct
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop import plugins
from everloop.prediction_log import fold_predictions, read_predictions
from everloop.registry import load_model
from everloop.serving import EndpointProcess
from everloop.serving.protocols.kserve_v1 import healthy, predict, routes
from everloop.serving.protocols.protocol import Request
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from everloop.stores import Store

ROWS = sample_rows(3)
NAMES = list(ROWS[0])
KINDS = {"distance": "FP64", "seats": "INT64", "wind": "FP64", "weekend": "BOOL"}


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": KINDS.get(name, "BYTES"),
            "data": [row[name] for row in rows],
        }
        for name in NAMES
    ]


def send(app: Any, path: str, body: bytes, **headers: str) -> Any:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return app.app.respond(Request("POST", path, body, perf_counter(), named))


def text(rows: list[dict[str, Any]], *, header: bool = True) -> bytes:
    lines = [",".join(NAMES)] if header else []
    for row in rows:
        cells = ["" if row[name] is None else str(row[name]) for name in NAMES]
        lines.append(",".join(cells))
    return "\n".join(lines).encode()


@pytest.mark.parametrize("algorithm", ["linear", "lightgbm"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_every_protocol_answers_alike(
    store: Store, release: Any, route: Any, local: Any, task: str, algorithm: str
) -> None:
    version = release(task=task, algorithm=algorithm)
    route(version.key)
    app = local()
    predictor = load_model(store, version.key)
    scores = predictor.predict(ROWS)
    expected: dict[str, Any] = {"predictions": predictor.labels(scores) or scores.tolist()}
    if task != "regression":
        expected["probabilities"] = scores.tolist()
    split = {"columns": NAMES, "data": [[row[name] for name in NAMES] for row in ROWS]}
    by_column = {name: [row[name] for row in ROWS] for name in NAMES}
    for path, body in (
        ("/v1/models/delays:predict", {"instances": ROWS}),
        ("/score", {"instances": ROWS}),
        ("/invocations", {"dataframe_records": ROWS}),
        ("/invocations", {"dataframe_split": split}),
        ("/invocations", {"instances": ROWS}),
        ("/invocations", {"inputs": by_column}),
    ):
        status, answer = app.post(path, body)
        assert (status, answer) == (200, expected), path
    answered = send(app, "/invocations", text(ROWS), content_type="text/csv; charset=utf-8")
    assert json.loads(answered.body) == expected
    for path in ("/v2/models/delays/infer", "/v2/models/delays/versions/1/infer"):
        status, answer = app.post(path, {"id": "mine", "inputs": tensors(ROWS)})
        assert (status, answer["id"], answer["model_version"]) == (200, "mine", "1")
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert outputs["predictions"]["data"] == expected["predictions"]
        if task == "multiclass":
            assert outputs["probabilities"]["shape"] == [3, 3]
            assert outputs["probabilities"]["data"] == scores.ravel().tolist()
        elif task == "binary":
            assert outputs["probabilities"]["data"] == scores.tolist()
    native = by_row(app.post("/predict", {"rows": ROWS})[1])
    assert [one.get("label", one["score"]) for one in native] == expected["predictions"]
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays").collect().height == 3 * 10
    # One row goes through the model's own function for it.
    for row, score in zip(ROWS, scores.tolist(), strict=True):
        (one,) = by_row(app.post("/predict", {"rows": [row]})[1])
        assert one.get("scores", one["score"]) == pytest.approx(score, abs=1e-12)


def test_binary_tensors_in_and_out(release: Any, route: Any, local: Any, store: Store) -> None:
    route(release().key)
    app = local()
    binary, inputs = [], []
    for tensor in tensors(ROWS):
        values = tensor.pop("data")
        if tensor["datatype"] == "BYTES":
            data = b"".join(struct.pack("<I", len(value)) + value.encode() for value in values)
        else:
            letter = {"FP64": "d", "INT64": "q", "BOOL": "?"}[tensor["datatype"]]
            filled = [float("nan") if value is None else value for value in values]
            data = struct.pack(f"<3{letter}", *filled)
        inputs.append({**tensor, "parameters": {"binary_data_size": len(data)}})
        binary.append(data)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    answered = send(
        app, "/v2/models/delays/infer", head + b"".join(binary), inference_header_content_length=str(len(head))
    )
    assert answered.status == 200, answered.body
    length = int(dict(answered.headers)[b"inference-header-content-length"])
    answer = json.loads(answered.body[:length])
    assert answer["id"]
    assert [output["parameters"]["binary_data_size"] for output in answer["outputs"]] == [3, 24]
    scores = load_model(store, "delays@1").predict(ROWS).tolist()
    assert list(struct.unpack("<3d", answered.body[length + 3 :])) == scores
    for wrong in (str(len(head) - 1), "-1", "x", str(10**9)):
        body = head + b"".join(binary)
        assert send(app, "/v2/models/delays/infer", body, inference_header_content_length=wrong).status == 400
    body = head + b"".join(binary)[:-1]
    assert send(app, "/v2/models/delays/infer", body, inference_header_content_length=str(len(head))).status == 400


def test_one_tensor_for_all_inputs(release: Any, route: Any, local: Any) -> None:
    route(release(features=("distance", "seats", "wind")).key)
    app = local()
    rows = [[row["distance"], float(row["seats"]), row["wind"]] for row in ROWS]
    nested = {"name": "x", "shape": [3, 3], "datatype": "FP64", "data": rows}
    flat = {**nested, "data": [value for row in rows for value in row]}
    answers = [app.post("/v2/models/delays/infer", {"inputs": [one]})[1]["outputs"] for one in (nested, flat)]
    by_name = [dict(zip(("distance", "seats", "wind"), row, strict=True)) for row in rows]
    assert answers[0] == answers[1]
    assert answers[0][0]["data"] == app.post("/score", {"instances": by_name})[1]["predictions"]
    assert app.post("/score", {"instances": rows})[1]["predictions"] == answers[0][0]["data"]


@pytest.mark.slow
def test_what_a_model_says_about_itself(release: Any, route: Any, local: Any) -> None:
    one, two = release(), release(seed=1)
    route(one.key, canary=(two.key, 50))
    app = local()
    assert app.ask("GET", "/v2")[1]["name"] == "everloop"
    assert app.ask("GET", "/v2/health/ready") == (200, {"ready": True})
    status, told = app.ask("GET", "/v2/models/delays")
    assert (status, sorted(told["versions"])) == (200, ["1", "2"])
    assert {item["name"]: item["datatype"] for item in told["inputs"]}["seats"] == "INT64"
    assert [item["version"] for item in app.post("/v2/repository/index", {})[1]] == ["2", "1"]
    assert app.ask("GET", "/v2/models/delays/versions/2/ready")[0] == 200
    assert app.ask("GET", "/v1/models/delays") == (200, {"name": "delays", "ready": True})
    assert app.ask("GET", "/v1/models")[1] == {"models": ["delays"]}
    assert app.app.respond(Request("GET", "/ping", b"", perf_counter())).body == b"\n"
    for path in ("/v2/models/nope", "/v2/models/delays/versions/9", "/v1/models/nope"):
        status, told = app.ask("GET", path)
        assert status == 404
        assert isinstance(told["error"], str)
    # A version in the path takes the whole request, whatever its share of the traffic.
    for number in ("1", "2"):
        status, answer = app.post(f"/v2/models/delays/versions/{number}/infer", {"inputs": tensors(ROWS * 5)})
        assert (status, answer["model_version"]) == (200, number)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_openapi_has_the_models_own_fields(release: Any, route: Any, local: Any, task: str) -> None:
    route(release(task=task).key)
    app = local()
    status, told = app.ask("GET", "/openapi.json")
    assert status == 200
    row = told["components"]["schemas"]["Row"]
    assert list(row["properties"]) == list(app.app.service.loaded_endpoint().signature.names)
    assert row["properties"]["seats"]["type"] in ("integer", ["integer", "null"])
    assert row["properties"]["booked_on"]["format"] == "date"
    # What the document promises is what comes.
    answer = told["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answer["required"]) == set(app.post("/predict", {"rows": ROWS})[1])
    for path in ("/predict", "/invocations", "/v1/models/delays:predict", "/score"):
        schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        given = schema.get("oneOf", [schema])[0]["required"]
        assert app.post(path, dict.fromkeys(given, ROWS))[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/invocations", {}, 400, "exactly one of"),
        ("/invocations", {"instances": ROWS, "inputs": ROWS}, 400, "exactly one of"),
        ("/invocations", {"dataframe_split": {"columns": ["distance"], "data": [[1, 2]]}}, 400, "data[0]"),
        ("/invocations", {"dataframe_records": [{**ROWS[0], "seats": "many"}]}, 400, "rows[0].seats"),
        ("/invocations", {"dataframe_records": []}, 400, "no row"),
        ("/v1/models/delays:predict", {}, 400, "instances"),
        ("/v1/models/delays:predict", {"instances": [1]}, 400, "instances[0]"),
        ("/v1/models/nope:predict", {"instances": ROWS}, 404, "does not exist"),
        ("/v2/models/delays/infer", {"inputs": []}, 400, "list of tensors is empty"),
        ("/v2/models/delays/infer", {"inputs": tensors(ROWS)[1:]}, 400, "departs_at"),
        ("/v2/models/delays/infer", {"inputs": tensors(ROWS), "outputs": [{"name": "y"}]}, 400, "'y'"),
        ("/v2/models/delays/infer", {"inputs": [{**tensors(ROWS)[1], "shape": [4]}]}, 400, "distance"),
        ("/v2/models/delays/infer", {"inputs": [{**tensors(ROWS)[1], "datatype": "FP7"}]}, 400, "FP7"),
    ],
)
def test_errors_in_the_protocols_own_form(
    release: Any, route: Any, local: Any, path: str, body: Any, status: int, told: str
) -> None:
    route(release().key)
    got, answer = local().post(path, body)
    assert got == status
    message = answer["message"] if path == "/invocations" else answer["error"]
    assert told in message
    if path == "/invocations":
        assert answer["error_code"] == "BAD_REQUEST"


def test_content_types_of_invocations(release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    assert send(app, "/invocations", b"x", content_type="application/x-avro").status == 415
    # Without a header: the order of the signature, which leaves out what training ignored.
    names = app.app.service.loaded_endpoint().signature.names
    line = ",".join("" if ROWS[0][name] is None else str(ROWS[0][name]) for name in names).encode()
    plain = send(app, "/invocations", line, content_type="text/csv")
    named = send(app, "/invocations", text(ROWS[:1]), content_type="text/csv")
    assert plain.status == named.status == 200
    assert plain.body == named.body
    bad = text(ROWS[:1]).replace(str(ROWS[0]["seats"]).encode(), b"many")
    answered = send(app, "/invocations", bad, content_type="text/csv")
    assert answered.status == 400
    assert b"rows[0].seats" in answered.body


def test_vertex_says_where(release: Any, route: Any, local: Any) -> None:
    found = routes({"AIP_PREDICT_ROUTE": "/here", "AIP_HEALTH_ROUTE": "/well"})
    assert found["POST", "/here"] is predict
    assert found["GET", "/well"] is healthy
    assert routes({"AIP_PREDICT_ROUTE": "no-path", "AIP_HEALTH_ROUTE": "/health"}) == routes({})


PATHS = sorted(
    path.replace("{model}", "delays").replace("{version}", "1")
    for name in plugins.names("protocol")
    for method, path in plugins.load("protocol", name)
    if method == "POST"
)
WORDS = ["rows", "inputs", "instances", "dataframe_split", "dataframe_records", "columns", "data", "name", "shape"]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "distance", "FP64", "BYTES", "INT64", 10**40, -1, 1e308]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "datatype", "id", "outputs", "parameters"]), inner, max_size=4)
    ),
    max_leaves=10,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from([*NAMES, "x"]),
        "shape": st.lists(st.integers(-2, 9), max_size=3),
        "datatype": st.sampled_from(["FP64", "BYTES", "BOOL", "INT64", "UINT8", "FP7"]),
        "data": st.lists(st.one_of(st.floats(allow_nan=False), st.text(max_size=3), st.none()), max_size=9),
    }
)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    body=st.one_of(
        st.binary(max_size=80),
        JUNK.map(lambda value: json.dumps(value).encode()),
        st.lists(TENSOR, max_size=3).map(lambda value: json.dumps({"inputs": value}).encode()),
        st.sampled_from([b"[" * 200_000, b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":1,"a":2}']),
    ),
    header=st.sampled_from(["", "0", "5", "99999999999"]),
    kind=st.sampled_from(["application/json", "text/csv", "image/png", ""]),
)
def test_no_bytes_fail_any_route(answering: Any, path: str, body: bytes, header: str, kind: str) -> None:
    headers = {"content_type": kind}
    if header:
        headers["inference_header_content_length"] = header
    assert send(answering, path, body, **headers).status < 500


@pytest.fixture
def answering(release: Any, route: Any, local: Any) -> Any:
    route(release().key)
    return local()


@pytest.mark.slow
def test_tritons_own_client(release: Any, route: Any, store: Store) -> None:
    client = pytest.importorskip("tritonclient.http", exc_type=ImportError)
    import numpy as np

    route(release().key)
    expected = load_model(store, "delays@1").predict(ROWS)
    numpy_types = {"FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}
    with EndpointProcess(store, "delays") as process:
        triton = client.InferenceServerClient(str(process.url).removeprefix("http://"))
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready("delays")
        assert triton.get_model_metadata("delays")["versions"] == ["1"]
        for binary in (True, False):
            inputs = []
            for tensor in tensors(ROWS):
                given = client.InferInput(tensor["name"], tensor["shape"], tensor["datatype"])
                values = [float("nan") if value is None else value for value in tensor["data"]]
                given.set_data_from_numpy(np.array(values, dtype=numpy_types[tensor["datatype"]]), binary_data=True)
                inputs.append(given)
            outputs = [client.InferRequestedOutput("probabilities", binary_data=binary)]
            answer = triton.infer("delays", inputs, outputs=outputs)
            assert np.array_equal(answer.as_numpy("probabilities"), expected)
        triton.close()
