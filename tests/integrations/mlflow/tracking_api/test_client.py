"""MLflow's own client against our server, and what everloop then knows of what it did."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from everloop import plugins
from everloop.integrations.mlflow.tracking_api import ArtifactLocations, ArtifactRoot
from everloop.integrations.mlflow.tracking_api.model_version_routes import files_of
from everloop.integrations.mlflow.tracking_api.serializers import record_id
from everloop.records import EndpointRecord, ModelVersion, Route, Run
from everloop.registry.history import alias_history
from everloop.registry.model_versions import get_version
from everloop.server.server_options import ServerOptions
from everloop.serving import EndpointProcess
from everloop.stores import open_store
from everloop.tracking import read_metrics

pytestmark = pytest.mark.slow

TEXTS = ("table.json", "values.json", "values.yaml")


class Heard(http.server.BaseHTTPRequestHandler):
    """Where webhooks go."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def heard():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Heard)
    server.heard = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def served(heard, client_python, serve, tmp_path_factory):
    """A whole control plane of its own for each client."""
    options = ServerOptions(webhook_networks=("127.0.0.0/8",))
    home = tmp_path_factory.mktemp("client") / "home"
    heard.heard.clear()
    with open_store(home, project="p") as store, serve(store, options) as control:
        yield control


@pytest.fixture(scope="module")
def said(served, heard, client_python):
    script = Path(__file__).parent / "client_script.py"
    done = subprocess.run(
        [client_python, str(script), served.url, f"http://127.0.0.1:{heard.server_port}/"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **os.environ,
            "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
            # What a model needs is found out in a process of its own, which takes seconds.
            "MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "1",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
        },
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


@pytest.mark.parametrize("booster", ["xgboost", "lightgbm"])
def test_boosters_log_themselves_and_come_back(said, booster):
    told = said["boosters"][booster]
    assert (told["params"], told["steps"], told["predicted"]) == (True, 4, 50)
    assert "feature_importance_gain.json" in told["files"] or "feature_importance_weight.json" in told["files"]


def test_every_word_of_the_explicit_client(said):
    assert said["experiments"] == [["explicitly"], "try"]
    name, status, ended, params, last, tags, points = said["explicit"]
    assert (name, status, ended, params, last, points) == ("renamed", "FAILED", 5, 100, 349.5, 700)
    assert tags == {"a": "1", "b": "2"}
    assert said["pages"] is True
    assert (said["deleted"], said["restored"]) == (["deleted", "deleted"], "active")


def test_artifacts_of_every_kind(said):
    kinds = said["kinds"]
    assert sorted(kinds["files"]) == [f"kinds/{name}" for name in ("deep", "page ü.html", *TEXTS)]
    assert kinds["files"]["kinds/deep"] is None
    assert kinds["files"]["kinds/page ü.html"] == len("<b>ü</b>".encode())
    assert (kinds["dict"], kinds["image"], kinds["table"], kinds["empty"]) == ([[1, 2]], [3, 8], 3, 0)
    # Older clients put signs into these names that look like encoded ones.
    assert said["images"] == [6, True]


def test_the_registry_is_described_tagged_and_searched(said):
    description, tags, aliases, first, second, numbers, found, uri = said["tagged"]
    assert (description, tags, aliases) == ("second", {"c": "d"}, {"one": "1"})
    assert (first, second) == ({"n": "0", "seen": "yes"}, "changed")
    assert (numbers, found) == (["1", "2"], ["2"])
    assert uri.startswith("runs:/")
    assert said["tagged_gone"] == "RESOURCE_DOES_NOT_EXIST"


def test_webhooks_are_told(said, heard):
    assert said["webhook"] == [["ci"], "changed", True]
    until = time.monotonic() + 20
    while not any(message["data"]["name"] == "hooked" for message in heard.heard) and time.monotonic() < until:
        time.sleep(0.05)
    told = [message["data"] for message in heard.heard if message["data"]["name"] == "hooked"]
    assert [(one["version"], one["source"]) for one in told] == [("1", "s3://bucket/x")]


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
    folder = files_of(store, version, ArtifactLocations(ArtifactRoot(store.home / "artifacts")))
    # Older clients log pickles.
    pickled = not (folder / "model.skops").exists()
    adopted = plugins.load("model_folder", "mlflow").adopt(store, version, folder, allow_code=pickled)
    assert (adopted.key, adopted.run, adopted.source) == (version.key, version.run, version.source)
    routes = (Route(version=adopted.key, percent=100.0),)
    store.records.put(store.new(EndpointRecord, name="clf", model="renamed", routes=routes))
    features = np.random.default_rng(0).random((50, 3))
    with EndpointProcess(store, "clf") as endpoint:
        body = json.dumps({"instances": features.tolist()}).encode()
        asked = urllib.request.Request(f"{endpoint.url}/invocations", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=30) as answer:
            assert json.loads(answer.read())["predictions"] == said["answers"]
