"""The same requests to MLflow's own server and to ours: the answers differ only where it is said why."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

EXPLAINED = {
    # Theirs is a 500, which their own client then asks for again, seven times over two minutes.
    "'error_code': 'INVALID_STATE'",
    # We give such addresses for what the proxy keeps, too.
    "Presigned upload is not supported for proxied artifact storage",
    "Presigned download is not supported for runs with proxied artifact storage",
    "Multipart download is not supported for the current artifact repository",
    # Both name the clause that cannot be read; theirs as its parser has cut it up.
    "Invalid clause(s) in filter string: 'metrics.m >'",
    # Both name the key and those that there are.
    "Invalid attribute key 'wrong' specified. Valid keys are",
}


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mlflow_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def real(tmp_path, mlflow_python):
    """MLflow's own server on a free port."""
    if "mlflow" not in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
        pytest.skip("MLflow's own server takes half a minute to start; EVERLOOP_REQUIRE=mlflow asks for it")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    command = [mlflow_python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/m.db", "--artifacts-destination", str(tmp_path / "a")]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
        try:
            for _ in range(240):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.5)
            yield port
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=30)


def test_the_answers_are_those_of_mlflow(api, real):
    differential = _module("differential")
    steps = [*_module("differential_requests").steps(), *_module("differential_genai_requests").steps()]
    assert len(steps) > 500
    theirs = type(api)(real)
    try:
        found = differential.compare(api, theirs, steps)
    finally:
        theirs.close()
    unexplained = [text for text in found if not any(said in text for said in EXPLAINED)]
    assert not unexplained, "\n".join(unexplained)
