"""MLflow's own client against our server, and what everloop then knows of what it did."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from everloop import plugins
from everloop.models.history import alias_history
from everloop.models.registry import get_version
from everloop.records import Endpoint, ModelVersion, Route, Run
from everloop.server.mlflow import ArtifactRoot
from everloop.server.mlflow.reply import record_id
from everloop.server.mlflow.versions import files_of
from everloop.serving import EndpointProcess
from everloop.tracking import read_metrics


@pytest.fixture(scope="module")
def said(served, mlflow_python):
    script = Path(__file__).parent / "client_script.py"
    done = subprocess.run(
        [mlflow_python, str(script), served.url],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "MLFLOW_ENABLE_ASYNC_LOGGING": "false", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_a_run_comes_back_as_it_was_logged(said):
    assert said["status"] == "FINISHED"
    assert said["params"] == {"lr": "0.1", "depth": "3"}
    assert said["loss"] == 0.2
    assert said["nan"] == "nan"
    assert said["dataset"] == "random"
    assert said["history"] == [[step, 1 / (step + 1)] for step in range(5)]
    assert said["changed"] == ["INVALID_PARAMETER_VALUE", True]
    assert said["missing"] == "RESOURCE_DOES_NOT_EXIST"


def test_artifacts_come_back(said):
    assert said["files"] == ["files", "notes"]
    assert (said["text"], said["big"]) == ("hello", 3_000_000)


def test_runs_are_found(said):
    assert said["found"] == [said["outer"]]
    assert said["children"] == [said["inner"]]
    assert (said["after_delete"], said["after_restore"]) == (0, 1)


def test_models_are_logged_registered_loaded_and_renamed(said):
    assert said["predicted"] is True
    assert said["models"] == [["clf", {"champion": "1"}]]
    assert said["version"] == [True, True]
    assert said["copied"] is True
    assert said["latest"] == ["1"]
    assert said["renamed"] == "1"
    assert said["autologged"] == [True, True]
    assert said["logged_models"] == 2


def test_everloop_knows_the_same_run_with_its_metrics(said, served):
    run = served.store.records.get(Run, record_id(said["outer"]))
    assert (run.name, run.state, run.params["lr"], run.metrics["loss"]) == ("outer", "finished", "0.1", 0.2)
    points = read_metrics(served.store, run.id, "loss")
    assert [(point.step, point.value) for point in points] == [(step, 1 / (step + 1)) for step in range(5)]
    assert served.store.records.get(Run, record_id(said["inner"])).parent == run.id


def test_everloop_knows_the_same_version_and_its_alias(said, served):
    version = get_version(served.store, "renamed@champion")
    assert isinstance(version, ModelVersion)
    assert version.version == 1
    assert version.source.startswith("models:/m-")
    assert [tenure.until for tenure in alias_history(served.store, "renamed", "champion")] == [None]


def test_a_logged_model_is_adopted_and_served_and_answers_alike(said, served):
    """Logged, registered and named champion by MLflow's client; answered by everloop's endpoint."""
    store = served.store
    version = get_version(store, "renamed@champion")
    folder = files_of(store, version, ArtifactRoot(served.root))
    adopted = plugins.load("model_folder", "mlflow").adopt(store, version, folder)
    assert (adopted.key, adopted.run, adopted.source) == (version.key, version.run, version.source)
    routes = (Route(version=adopted.key, percent=100.0),)
    store.records.put(store.new(Endpoint, name="clf", model="renamed", routes=routes))
    features = np.random.default_rng(0).random((50, 3))
    with EndpointProcess(store, "clf") as endpoint:
        body = json.dumps({"instances": features.tolist()}).encode()
        asked = urllib.request.Request(f"{endpoint.url}/invocations", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.loads(answer.read())["predictions"] == said["answers"]
