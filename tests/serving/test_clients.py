"""Other people's clients, each in its own environment: one package answers one row identically through all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log import fold_predictions, read_predictions
from everloop.registry import load_model
from everloop.serving import EndpointProcess
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
BENCH = HERE.parents[1] / ".bench"
VERTEX = "projects/p/locations/us-central1/endpoints/1"
CLIENTS = {
    "triton": ("triton", "Triton's client"),
    "kserve_sdk": ("kserve", "KServe's client"),
    "mlflow_scoring": ("mlflow", "MLflow"),
    "vertex": ("vertex", "Vertex AI's SDK"),
}
ROW = sample_rows()[0]


@pytest.fixture
def served(
    store: Store, release: Any, route: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[EndpointProcess, list[Any]]]:
    monkeypatch.setenv("AIP_PREDICT_ROUTE", f"/v1/{VERTEX}:predict")
    version = release()
    route(version.key)
    predictor = load_model(store, version.key)
    answer = predictor.row_function()(predictor.signature.rows_of([ROW])[0])
    with EndpointProcess(store, "delays", grpc_port=0) as process:
        yield process, list(answer)


@pytest.mark.parametrize("client", CLIENTS)
def test_other_peoples_clients(served: tuple[EndpointProcess, list[Any]], store: Store, client: str) -> None:
    process, expected = served
    environment, what = CLIENTS[client]
    python = BENCH / environment / "bin" / "python"
    if environment not in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
        pytest.skip(f"set EVERLOOP_REQUIRE={environment} to ask by {what}")
    if not python.exists():
        pytest.fail(f"{what} is required and not installed; .ci/run makes {BENCH / environment}")
    signature = load_model(store, "delays@1").signature
    given = {
        "url": process.url,
        "grpc": f"127.0.0.1:{process.grpc_port}",
        "name": "delays",
        "row": ROW,
        "inputs": {item.name: item.type for item in signature.inputs},
        "vertex": VERTEX,
    }
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), str(HERE / "clients" / f"{client}.py")],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=plain,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told
    for name, (prediction, probability) in told.items():
        assert prediction == expected[0], name
        # Vertex's SDK keeps what it knows of an answer, which is the predictions.
        assert probability in (expected[1], None), name
    fold_predictions(store, "delays")
    kept = read_predictions(store, "delays").collect()
    assert kept.height == len(told)
    assert set(kept["score"]) == {expected[1]}


def test_sagemakers_runtime_client(served: tuple[EndpointProcess, list[Any]], store: Store) -> None:
    boto3 = pytest.importorskip("boto3")
    process, expected = served
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=process.url,
        region_name="us-east-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="none",
    )
    names = list(ROW)
    for kind, body in (
        ("application/json", json.dumps({"instances": [ROW]})),
        ("application/json", json.dumps({"dataframe_split": {"columns": names, "data": [list(ROW.values())]}})),
        ("text/csv", ",".join(names) + "\n" + ",".join(str(value) for value in ROW.values())),
    ):
        answer = client.invoke_endpoint(EndpointName="delays", ContentType=kind, Body=body)
        told = json.loads(answer["Body"].read())
        assert (told["predictions"], told["probabilities"]) == ([expected[0]], [expected[1]])
    with pytest.raises(client.exceptions.ClientError, match="400"):
        client.invoke_endpoint(EndpointName="delays", ContentType="application/json", Body="{}")
    client.close()


def test_every_way_in_answers_identically(served: tuple[EndpointProcess, list[Any]], store: Store) -> None:
    """The protocols themselves, without a client of their own: bit for bit."""
    import http.client

    process, expected = served
    host, _, port = str(process.url).removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)

    def post(path: str, body: Any) -> Any:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        told = json.loads(response.read())
        assert response.status == 200, told
        assert response.headers["x-everloop-version"] == "delays@1"
        return told["predictions"][0], told["probabilities"][0]

    split = {"columns": list(ROW), "data": [list(ROW.values())]}
    found = {
        post("/predict", {"rows": [ROW]}),
        post("/score", {"instances": [ROW]}),
        post("/v1/models/delays:predict", {"instances": [ROW]}),
        post(f"/v1/{VERTEX}:predict", {"instances": [ROW]}),
        post("/invocations", {"dataframe_records": [ROW]}),
        post("/invocations", {"dataframe_split": split}),
        post("/invocations", {"inputs": {name: [value] for name, value in ROW.items()}}),
        post("/endpoints/delays/invocations", {"instances": [ROW]}),
    }
    connection.close()
    assert found == {tuple(expected)}


def test_a_load_by_wrk_is_answered_and_logged(
    served: tuple[EndpointProcess, list[Any]], store: Store, tmp_path: Path, need: Any
) -> None:
    """A second of wrk at 16 connections: every answer is a 200, and every one that was sent is in the log."""
    program = shutil.which("wrk")
    if program is None:
        need("wrk", "wrk", "it is a package of Debian")
    process, _ = served
    asks = 'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
    (tmp_path / "ask.lua").write_text(f"{asks}wrk.body = [[{json.dumps({'rows': [ROW]})}]]\n")
    done = subprocess.run(
        [str(program), "-t1", "-c16", "-d1s", "-s", str(tmp_path / "ask.lua"), f"{process.url}/predict"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "Non-2xx" not in done.stdout
    assert "Socket errors" not in done.stdout
    answered = int(done.stdout.split(" requests in ")[0].split()[-1])
    assert answered > 100
    fold_predictions(store, "delays")
    # What was on its way when wrk ended was logged, too.
    assert read_predictions(store, "delays").collect().height >= answered
