"""The control plane: the API over real HTTP, requests that it refuses, and the web page in a real browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from tests.monitoring.incidents.incident_records import put_incident

from everloop.errors import ConflictError
from everloop.loop.releases.rollout import start_release
from everloop.records import Finding, ModelVersion, Run
from everloop.server.child_processes import RESTART_AFTER_S, Restarts
from everloop.server.server_settings import ServerSettings
from everloop.server.supervisor import Supervisor
from everloop.stores import open_store
from everloop.testing.serving import by_row


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A store with a little of everything, and its API on a free port."""
    import uvicorn

    from everloop.server import make_app

    home = tmp_path_factory.mktemp("served") / ".everloop"
    with open_store(home, project="p") as store:
        for number in (1, 2):
            version = store.new(
                ModelVersion, model="m", version=number, package=f"sha256:{number:064d}", metrics={"roc_auc": 0.7},
                evaluation={"left_out": [{"column": "region", "reason": "every row has the same value"}]},
            )  # fmt: skip
            store.records.put(version)
            start_release(store, "e", version, steps=(10, 100))
        store.records.put(store.new(Run, name="<script>alert(1)</script>", started_at=store.now(), state="failed"))
        put_incident(store, "<b>'age'</b> has risen.", endpoint="e", message="The score has moved.")
        for week in range(3):  # a line needs points
            store.records.put(
                store.new(
                    Finding,
                    endpoint="e",
                    kind="performance",
                    severity="info",
                    subject="window",
                    window_from=store.now(),
                    window_to=store.now(),
                    value=0.7 + week / 100,
                    message="m",
                )
            )
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(store), log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()


def fetch(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def test_records_by_kind_and_by_key(served):
    status, body, _ = fetch(f"{served}/api/v1/model-versions")
    assert status == 200
    assert [version["version"] for version in json.loads(body)] == [2, 1]
    assert json.loads(fetch(f"{served}/api/v1/model-versions?limit=1")[1])[0]["version"] == 2
    last = json.loads(body)[0]["id"]
    assert [v["version"] for v in json.loads(fetch(f"{served}/api/v1/model_version?after={last}")[1])] == [1]
    assert json.loads(fetch(f"{served}/api/v1/model-versions/m@1")[1])["state"] == "released"
    assert len(json.loads(fetch(f"{served}/api/v1/releases?state=rolling_out")[1])) == 1
    events = json.loads(fetch(f"{served}/api/v1/events?limit=3")[1])
    assert [event["seq"] for event in events] == [1, 2, 3]
    assert json.loads(fetch(f"{served}/health")[1]) == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("/api/v1/nothing", 400, "There is no kind"),
        ("/api/v1/runs?limit=0", 400, "out of range"),
        ("/api/v1/runs?limit=abc", 400, "limit"),
        ("/api/v1/runs?wrong=1", 400, "no field"),
        ("/api/v1/model-versions/m@9", 404, "m@9"),
        ("/static/..%2f..%2fapp.py", 404, ""),
        ("/static/app.py", 404, "app.py"),
        ("/nothing", 404, ""),
    ],
)
def test_wrong_questions_are_4xx_and_say_why(served, path, code, says):
    status, body, _ = fetch(served + path)
    assert (status, says in body) == (code, True), body


def test_other_hosts_are_refused_and_answers_are_guarded(served):
    assert fetch(f"{served}/api/v1/status", Host="evil.example")[0] == 421
    _, _, headers = fetch(f"{served}/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{served}/api/v1/runs", method=method, data=b"{}", headers=kind)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        assert refused.value.code == 405


def test_a_child_that_dies_is_started_again_later_and_later():
    child = Restarts()
    assert child.may_start(0.0)
    assert not child.may_start(0.1)  # found dead
    assert child.may_start(0.1 + RESTART_AFTER_S[0])
    assert not child.may_start(2.0)
    assert not child.may_start(2.0 + RESTART_AFTER_S[0])
    assert child.may_start(2.0 + RESTART_AFTER_S[1])
    assert not child.may_start(500.0)  # it lived long: patience is new
    assert child.may_start(500.0 + RESTART_AFTER_S[0])


def test_taken_port_is_named(tmp_path):
    with socket.socket() as taken, open_store(tmp_path / "home") as store:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port}.*--port"):
            Supervisor(store, None, settings=ServerSettings(port=port))


@pytest.mark.slow
def test_up_turns_serves_and_stops_clean(tmp_path):
    """`everloop up` on a new project: it starts the first run itself, serves, and Ctrl-C leaves no process running."""
    environment = {**os.environ, "EVERLOOP_KEYS": str(tmp_path / "keys"), "NO_COLOR": "1"}
    environment.pop("EVERLOOP_PROJECT", None)
    everloop = [sys.executable, "-c", "from everloop.cli import main; main()"]
    folder = tmp_path / "wine"
    subprocess.run([*everloop, "init", str(folder)], check=True, env=environment, capture_output=True)
    loop = folder / "loop.py"
    loop.write_text(loop.read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)"))
    with subprocess.Popen(
        [*everloop, "up", "--dir", str(folder), "--port", "0", "--every", "0.5"],
        env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as up:  # fmt: skip
        # Whatever goes wrong here, nothing stays behind.
        guard = threading.Timer(100, up.kill)
        guard.start()
        lines = []
        while not any("POST" in line for line in lines):
            lines.append(up.stderr.readline())
            assert lines[-1], "".join(lines)
        told = "".join(lines)
        url = told.partition("POST ")[2].partition("/predict")[0]
        wines = (folder / "data" / "wine.csv").read_text().splitlines()
        names, values = wines[0].split(","), wines[1].split(",")
        row = {n: float(v) for n, v in zip(names, values, strict=True) if n not in ("wine_id", "cultivar")}
        row["darkness"] = row["color_intensity"] / row["hue"]
        body = json.dumps({"rows": [row], "keys": ["1"]}).encode()
        request = urllib.request.Request(f"{url}/predict", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            (prediction,) = by_row(json.loads(answer.read()))
        assert prediction["label"] == "barolo"
        up.send_signal(2)
        rest = up.stderr.read()
        assert up.wait(timeout=60) == 0, told + rest
        guard.cancel()
    with open_store(folder / ".everloop", project="wine") as store:
        from everloop.serving import is_served
        from everloop.stores.verify import verify

        assert not is_served(store, "wine")
        assert verify(store).problems == ()
        assert store.records.find(Run, ("state", "=", "running")) == []
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout
    assert left == ""
    logs = folder / ".everloop" / "logs"
    assert [(logs / f"{name}.log").read_text() for name in ("reconciler", "runner")] == ["", ""]
