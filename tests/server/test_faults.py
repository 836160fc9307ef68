"""A server is killed while many clients log to it: all acknowledged data is there after a restart."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]
KILLS = max(1, int(os.environ.get("EVERLOOP_KILLS", "10")) // 10)
API = "/api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"


@contextmanager
def running(folder):
    """Start a server process on the same home; returns the process and its address."""
    environment = {**os.environ, "EVERLOOP_KEYS": str(folder / "keys")}
    command = [*EVERLOOP, "server", "--port", "0", "--home", str(folder / "home")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child, urlsplit(child.stdout.readline().split()[-1]).netloc
        finally:
            child.kill()


class Writer(threading.Thread):
    """A client that logs continuously and remembers what was acknowledged."""

    def __init__(self, address, number):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(address, timeout=20)
        self.number = number
        self.run_id = self.send("POST", f"{API}/runs/create", {"experiment_id": "0", "start_time": 1})["run"]["info"][
            "run_id"
        ]
        self.points, self.params, self.files, self.versions = set(), {}, {}, set()
        self.model = f"model-{self.run_id}"
        self.send("POST", f"{API}/registered-models/create", {"name": self.model})

    def send(self, method, path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) else {"content-type": "application/json"}
        self.connection.request(method, path, data, kind)
        answer = self.connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        return json.loads(said)

    def run(self):
        step = 0
        try:
            while True:
                step += 1
                point = {"run_id": self.run_id, "key": "m", "value": step, "timestamp": step, "step": step}
                self.send("POST", f"{API}/runs/log-metric", point)
                self.points.add(("m", step))
                batch = [{"key": "b", "value": step, "timestamp": step, "step": step * 10 + n} for n in range(10)]
                params = [{"key": f"p{step}", "value": str(step)}]
                self.send("POST", f"{API}/runs/log-batch", {"run_id": self.run_id, "metrics": batch, "params": params})
                self.points |= {("b", step * 10 + n) for n in range(10)}
                self.params[f"p{step}"] = str(step)
                body = bytes([step % 256]) * (1000 if step % 3 else 3_000_000)
                self.send("PUT", f"{PROXY}/0/{self.run_id}/artifacts/{step}.bin", body)
                self.files[f"{step}.bin"] = hashlib.sha256(body).hexdigest()
                source = {"name": self.model, "source": f"s3://b/{step}"}
                made = self.send("POST", f"{API}/model-versions/create", source)
                self.versions.add((made["model_version"]["version"], f"s3://b/{step}"))
        except (OSError, http.client.HTTPException):
            self.connection.close()


@pytest.mark.slow
def test_what_was_acknowledged_outlives_kill_9(tmp_path):
    told = []
    for number in range(KILLS):
        with running(tmp_path) as (child, address):
            writers = [Writer(address, one) for one in range(6)]
            for writer in writers:
                writer.start()
            time.sleep(0.7 + number % 5 / 3)
            child.send_signal(signal.SIGKILL)
            for writer in writers:
                writer.join(timeout=20)
                assert not writer.is_alive()
            told += writers
    assert min(len(writer.points) for writer in told) > 10
    with running(tmp_path) as (child, address):
        connection = http.client.HTTPConnection(address, timeout=20)

        def get(path):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, (path, body)
            return body

        for writer in told:
            run = json.loads(get(f"{API}/runs/get?run_id={writer.run_id}"))["run"]["data"]
            kept = {param["key"]: param["value"] for param in run["params"]}
            assert {key: kept.get(key) for key in writer.params} == writer.params
            latest = {metric["key"]: metric["step"] for metric in run["metrics"]}
            found = set()
            for key in ("m", "b"):
                history = json.loads(get(f"{API}/metrics/get-history?run_id={writer.run_id}&metric_key={key}"))
                steps = [point["step"] for point in history["metrics"]]
                assert len(steps) == len(set(steps))
                assert latest[key] == max(steps)
                found |= {(key, step) for step in steps}
            assert writer.points <= found
            for name, digest in writer.files.items():
                body = get(f"{PROXY}/0/{writer.run_id}/artifacts/{name}")
                assert hashlib.sha256(body).hexdigest() == digest
            shown = json.loads(get(f"{API}/model-versions/search?filter=name%3D%27{writer.model}%27"))
            known = {(version["version"], version["source"]) for version in shown.get("model_versions", [])}
            assert writer.versions <= known
        connection.close()
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=20)
        assert (child.returncode, errors) == (0, "")
