"""A server of MLflow's protocol on a free port, and the Python that has MLflow's own client."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.fixtures.control_plane import Answer

from everloop.stores import open_store

API = "/api/2.0/mlflow/"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


class Caller:
    """One connection to a server, without MLflow's client."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.used_at = monotonic()

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        if monotonic() - self.used_at > 2:
            # The server closes connections that rest for five seconds, such as while MLflow is imported.
            self.connection.close()
        self.used_at = monotonic()
        self.connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        with self.connection.getresponse() as got:
            return Answer(got.status, got.read(), {k.lower(): v for k, v in got.getheaders()})

    def call(self, method: str, path: str, fields: Any = None) -> Answer:
        """One call of the protocol: fields in the query of a GET, as JSON otherwise."""
        address = path if path.startswith("/") else API + path
        if method == "GET":
            return self.send("GET", f"{address}?{urlencode(fields, doseq=True)}" if fields else address)
        return self.send(method, address, json.dumps(fields or {}).encode(), content_type="application/json")

    def post(self, path: str, /, **fields: Any) -> Any:
        got = self.call("POST", path, fields)
        assert got.status == 200, got.body
        return got.json

    def get(self, path: str, /, **fields: Any) -> Any:
        got = self.call("GET", path, fields)
        assert got.status == 200, got.body
        return got.json

    def run(self, experiment: str = "0", **fields: Any) -> str:
        made = self.post("runs/create", experiment_id=experiment, start_time=1000, **fields)
        return made["run"]["info"]["run_id"]

    def close(self) -> None:
        self.connection.close()


@dataclass
class Served:
    store: Any
    root: Path
    port: int
    caller: Caller

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    import uvicorn
    from litestar import Litestar, get

    from everloop.integrations.mlflow.tracking_api import ArtifactLocations, ArtifactRoot, make_routes
    from everloop.server.server_options import ServerOptions

    @get("/health", sync_to_thread=False)
    def health() -> str:
        return "OK"

    home = tmp_path_factory.mktemp("mlflow")
    with open_store(home / ".everloop", project="p") as store:
        places = ArtifactLocations(ArtifactRoot(home / "artifacts"), allowed=("s3://allowed/",))
        handlers = [health, *make_routes(store, places, ServerOptions(webhook_networks=("127.0.0.0/8",)))]
        app = Litestar(route_handlers=handlers, openapi_config=None, logging_config=None)
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        caller = Caller(port)
        yield Served(store, home / "artifacts", port, caller)
        caller.close()
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()


@pytest.fixture
def api(served):
    return served.caller


@pytest.fixture(scope="session")
def mlflow_python() -> str:
    """The Python of an environment that has MLflow's newest release, which everloop's own does not need."""
    return _mlflow_python("mlflow", "EVERLOOP_MLFLOW_PYTHON")


@pytest.fixture(scope="session", params=["mlflow", "mlflow-older"])
def client_python(request: pytest.FixtureRequest) -> str:
    """The same with MLflow's newest release, then with the one of a year before."""
    older = request.param == "mlflow-older"
    return _mlflow_python(request.param, "EVERLOOP_MLFLOW_OLDER_PYTHON" if older else "EVERLOOP_MLFLOW_PYTHON")


@pytest.fixture(scope="module")
def client_server(client_python, serve, tmp_path_factory):
    """A whole control plane of its own for each client."""
    with open_store(tmp_path_factory.mktemp("client") / "home", project="p") as store, serve(store) as control:
        yield control


@pytest.fixture(scope="module")
def run_client(client_python, client_server):
    """Runs a script of MLflow's client against that server, and gives what it says."""

    def run(script: str) -> Any:
        done = subprocess.run(
            [client_python, str(Path(__file__).parent / script), client_server.url],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def _mlflow_python(name: str, variable: str) -> str:
    here = Path(__file__).parents[4] / ".bench" / name / "bin" / "python"
    python = os.environ.get(variable) or (str(here) if here.exists() else "")
    missing = not python
    if python:
        looked = subprocess.run([python, "-c", "import mlflow.version"], capture_output=True, check=False)
        missing = looked.returncode != 0
    if missing:
        reason = "MLflow's client is not there: make an environment with `pip install mlflow lightgbm xgboost-cpu` and"
        reason += f" name its Python in {variable}, or put it at .bench/{name}"
        if name in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    return python
