"""What an image keeps of its answers: everything, somewhere else, or nothing and it says so."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from everloop.errors import UnavailableError, UsageError
from everloop.packages import build_package
from everloop.prediction_log import read_labels, read_predictions
from everloop.records import Package
from everloop.registry import export_package, register
from everloop.stores import open_store
from everloop.testing.models import sample_rows, sample_table, train_sample

pytestmark = pytest.mark.slow

ENTRY = [sys.executable, "-m", "everloop.cli.container", "serve"]
BODY = json.dumps({"rows": sample_rows(1), "keys": ["k"]}, default=str).encode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A package as platforms mount it."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "home", create=True) as store:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        version = register(store, "delays", build_package(train_sample(), store=store, sample=sample_table()))
        export_package(store, version.key, folder / "package")
        digest = store.records.find(Package, limit=1)[0].digest
    return folder / "package", digest


def environment(exported, root, **more):
    place = root / "opt/ml/model"
    if not place.exists():
        place.parent.mkdir(parents=True)
        place.symlink_to(exported[0])
    (root / "tmp").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EVERLOOP", "AWS", "AIP", "AZ"))}
    return {
        **kept,
        "TMPDIR": str(root / "tmp"),
        "EVERLOOP_CONTAINER_ROOT": str(root),
        "EVERLOOP_HOST": "127.0.0.1",
        "EVERLOOP_MODEL": "delays",
        "EVERLOOP_LOG_SEGMENT_S": "0.2",
        **more,
    }


@contextmanager
def container(env, *arguments, ends=0):
    """A container's process and a way to ask it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [*ENTRY, "--port", str(port), *arguments]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as process:
        one = Container(process, port)
        try:
            for _ in range(1200):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr.read().decode()
                    time.sleep(0.05)
            yield one
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                one.stderr_text = process.stderr.read().decode()
                assert process.wait(30) == ends, one.stderr_text
        finally:
            one.kill()


class Container:
    def __init__(self, process, port):
        self.process, self.port, self.stderr_text = process, port, ""
        self.ids = []

    def send(self, method, path, body=None, kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"content-type": kind} if body else {})
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def predict(self, times=1):
        for _ in range(times):
            status, _, answer = self.send("POST", "/predict", BODY)
            assert status == 200, answer
            self.ids += json.loads(answer)["ids"]

    def kill(self):
        # The container's kernel takes all of its processes at once.
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


def logged(home, endpoint="delays"):
    with open_store(home, create=True) as store:
        return read_predictions(store, endpoint).collect()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"SAGEMAKER_BIND_TO_PORT": "8080"},
        {"AIP_HTTP_PORT": "8080", "AIP_STORAGE_URI": "{root}/opt/ml/model"},
        {"PORT": "8080", "AZUREML_MODEL_DIR": "{root}/opt/ml"},
        {"EVERLOOP_STORE": " ", "EVERLOOP_LOG": ""},
    ],
)
def test_without_a_place_for_the_log_it_does_not_start(exported, tmp_path, given):
    env = environment(exported, tmp_path, **{name: value.format(root=tmp_path) for name, value in given.items()})
    done = subprocess.run(ENTRY, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == UsageError.exit_code
    for word in ("EVERLOOP_STORE", "s3://", "postgresql://", "EVERLOOP_LOG=none"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "word", "status"),
    [
        ({"EVERLOOP_LOG": "off"}, "'off'", UsageError.exit_code),
        ({"EVERLOOP_STORE": "relative/folder"}, "absolute", UsageError.exit_code),
        ({"EVERLOOP_STORE": "memory://x"}, "memory://", UsageError.exit_code),
        ({"EVERLOOP_STORE": "https://ann:secret@example.org/x"}, "https://", UsageError.exit_code),
        ({"EVERLOOP_STORE": "postgresql://ann:secret@127.0.0.1:1/x"}, "does not answer", UnavailableError.exit_code),
        ({"EVERLOOP_STORE": "postgresql://ann:secret@[::1/x"}, "postgresql://", None),
        ({"EVERLOOP_STORE": "/proc/nothing"}, "/proc/nothing", None),
        ({"EVERLOOP_STORE": "/srv/x", "EVERLOOP_LOG_DURABLE": "yes"}, "EVERLOOP_LOG_DURABLE", UsageError.exit_code),
        ({"EVERLOOP_STORE": "/srv/x", "EVERLOOP_LOG_BACKLOG_MB": "-1"}, "EVERLOOP_LOG_BACKLOG_MB", None),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(exported, tmp_path, given, word, status):
    env = environment(exported, tmp_path, **given)
    done = subprocess.run(ENTRY, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status or (status is None and done.returncode in (2, 9, 10))
    assert word in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("given", [["--log", "none"], []])
def test_without_a_log_every_answer_says_so(exported, tmp_path, given):
    env = environment(exported, tmp_path, **({} if given else {"EVERLOOP_LOG": "none"}))
    with container(env, *given) as one:
        large = json.dumps({"rows": sample_rows(1) * 900}, default=str).encode()
        for method, path, body, wanted in (
            ("POST", "/predict", BODY, 200),
            ("POST", "/predict", large, 200),
            ("POST", "/predict", b'{"rows": [{"x": 1}]}', 422),
            ("POST", "/predict", b"{", 400),
            ("POST", "/invocations", b"x" * (9 << 20), 413),
            ("POST", "/labels", b'{"labels": [{"key": "k", "value": 1}]}', 409),
            ("GET", "/nothing", None, 404),
            ("GET", "/", None, 200),
            ("GET", "/health", None, 200),
            ("GET", "/ready", None, 200),
            ("GET", "/ping", None, 200),
            ("GET", "/metrics", None, 200),
            ("GET", "/v2/models/delays-1", None, 200),
        ):
            status, headers, answer = one.send(method, path, body)
            assert (status, headers["x-everloop-log"]) == (wanted, "none"), (path, answer)
            if path in ("/", "/health", "/ready"):
                assert json.loads(answer)["log"] == "none"
            if path == "/metrics":
                assert re.search(rb'everloop_log_info\{endpoint="delays-1",log="none"\} 1\n', answer)
            if path == "/labels":
                assert b"EVERLOOP_LOG=none" in answer
    assert "everloop log: none" in one.stderr_text
    # The same words as `everloop serve`, and what is served.
    assert "Endpoint 'delays-1' of project 'default' is ready at http://" in one.stderr_text
    assert "and serves delays@1 from " in one.stderr_text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_an_image_answers_is_folded_elsewhere(exported, tmp_path):
    home = tmp_path / "volume"
    env = environment(exported, tmp_path, EVERLOOP_STORE=str(home), EVERLOOP_ENDPOINT="delays", EVERLOOP_INSTANCE="a.b")
    with container(env) as one:
        one.predict(20)
        status, headers, answer = one.send("POST", "/labels", b'{"labels": [{"key": "k", "value": 1}]}')
        assert (status, json.loads(answer)["unmatched"]) == (200, None)
        assert "x-everloop-log" not in headers
        assert b'log="store"} 1' in one.send("GET", "/metrics")[2]
    found = logged(home)
    assert sorted(found["id"]) == sorted(one.ids)
    assert set(found["version"]) == {"delays@1"}
    assert set(found["package"]) == {exported[1]}
    assert len(set(found["instance"])) == 1
    assert found["instance"][0].startswith("a-b.")
    with open_store(home) as store:
        assert read_labels(store, "delays").collect()["entity"].to_list() == ["k"]
    # Nothing waits any more: not on the instance's disk, and not in the store.
    assert [path for path in home.rglob("*") if path.suffix == ".journal"] == []
    assert [path.name for path in (home / "segments").rglob("*") if path.is_file()] == ["writable"]


def test_containers_that_are_killed_lose_and_double_nothing(exported, tmp_path):
    """Several at once on one volume, each with two workers; the last one ships what the dead have left."""
    chance = random.Random(5)
    home = tmp_path / "volume"
    env = environment(exported, tmp_path, EVERLOOP_STORE=str(home), EVERLOOP_ENDPOINT="delays", EVERLOOP_WORKERS="2")
    ids = []
    with container(env) as first, container({**env, "EVERLOOP_WORKERS": "1"}) as second:
        for one in (first, second):
            for _ in range(5):
                one.predict(chance.randrange(5, 30))
                time.sleep(chance.uniform(0, 0.1))
            if one is second:
                logged(home)
            one.kill()
            ids += one.ids
    with container({**env, "EVERLOOP_WORKERS": "1"}) as third:
        third.predict(3)
        ids += third.ids
    found = logged(home)["id"].to_list()
    assert sorted(found) == sorted(ids)
    assert sorted(logged(home)["id"].to_list()) == sorted(ids)


def test_durable_in_the_store_outlives_the_containers_disk(exported, tmp_path):
    home = tmp_path / "volume"
    env = environment(
        exported,
        tmp_path,
        EVERLOOP_STORE=str(home),
        EVERLOOP_ENDPOINT="delays",
        EVERLOOP_LOG_DURABLE="store",
        EVERLOOP_LOG_FOLDER=str(tmp_path / "disk"),
    )
    with container(env) as one:
        one.predict(15)
        one.kill()
    shutil.rmtree(tmp_path / "disk")
    assert sorted(logged(home)["id"]) == sorted(one.ids)


def test_a_container_whose_store_went_away_says_what_it_has_left(exported, tmp_path):
    home = tmp_path / "volume"
    env = environment(
        exported,
        tmp_path,
        EVERLOOP_STORE=str(home),
        EVERLOOP_ENDPOINT="delays",
        EVERLOOP_LOG_FOLDER=str(tmp_path / "disk"),
        EVERLOOP_LOG_GRACE_S="0.5",
        EVERLOOP_LOG_SEGMENT_S="60",
    )
    with container(env, ends=UnavailableError.exit_code) as one:
        one.predict(4)
        # A volume that was taken away: there is something else at its place.
        shutil.rmtree(home)
        home.write_text("")
    assert "have not reached" in one.stderr_text
    assert str(tmp_path / "disk") in one.stderr_text
    home.unlink()
    with container(env) as next_one:
        next_one.predict()
    assert sorted(logged(home)["id"]) == sorted(one.ids + next_one.ids)
