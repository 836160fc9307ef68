"""Microsoft's own inference server serves our scoring script, in an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.deploy.azure_ml import export_script
from everloop.packages import build_package
from everloop.registry import load_model, register
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores import Store
    from everloop.training.trained_model import Trained

pytestmark = pytest.mark.slow

SERVER = Path(__file__).parents[2] / ".bench" / "azureml" / "bin" / "azmlinfsrv"


def send(url: str, body: bytes | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, found = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, found = error.code, error.read()
    return status, json.loads(found) if found.startswith(b"{") else found


def test_microsofts_server_serves_the_script(
    tmp_path: Path, store: Store, table: pl.DataFrame, lightgbm: Trained, need: Any
) -> None:
    if not SERVER.exists():
        need("azureml", "azureml-inference-server-http in .bench/azureml", "see .ci/run")
    register(store, "delays", build_package(lightgbm, store=store, sample=table))
    folder = export_script(store, "delays@1", tmp_path / "script")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EVERLOOP", "VIRTUAL_ENV"))
    }
    env |= {"AML_APP_INSIGHTS_ENABLED": "false", "EVERLOOP_KEYS": str(tmp_path / "nobody")}
    env |= {"EVERLOOP_STORE": str(store.home), "EVERLOOP_ENDPOINT": f"{store.project}/delays"}
    command = [str(SERVER), "--entry_script", str(folder / "score.py"), "--port", str(port)]
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True) as server,
    ):
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.1)
            url = f"http://127.0.0.1:{port}"
            assert send(url + "/")[1] == b"Healthy", log.read_text()
            rows = sample_rows(5)
            status, answer = send(url + "/score", json.dumps({"instances": rows}, default=str).encode())
            assert status == 200, log.read_text()
            predictor = load_model(store, "delays")
            scores = predictor.predict(rows)
            assert answer == {"predictions": predictor.labels(scores), "probabilities": scores.tolist()}
            assert answer["probabilities"] == lightgbm.predict_scores(table.head(5)).tolist()
            status, refused = send(url + "/score", b'{"instances": [{"distance": "far"}]}')
            assert status == 400
            assert "distance" in refused["error"]
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)
    from everloop.prediction_log import read_predictions

    logged = read_predictions(store, "delays").collect()
    assert sorted(logged["score"]) == sorted(answer["probabilities"])
    assert set(logged["version"]) == {"delays@1"}
