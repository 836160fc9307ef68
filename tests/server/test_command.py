"""`everloop server`, `users`, `tokens` and `models`, as people run them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from everloop.records import Package
from everloop.registry import register
from everloop.stores import open_store

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command on a separate home; returns exit code and JSON."""
    from everloop.cli.app import run as run_here

    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments, actor=None):
        import contextlib
        import io

        if actor:
            monkeypatch.setenv("LOGNAME", actor)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = run_here([*arguments, "--home", "home", "--json"])
        return code, json.loads(out.getvalue())

    return call


@contextmanager
def server(folder, *arguments):
    environment = {**os.environ, "EVERLOOP_KEYS": str(folder / "keys")}
    command = [*EVERLOOP, "server", "--port", "0", "--home", str(folder / "home"), *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def status_of(request):
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_answers_and_stops(tmp_path, number):
    with server(tmp_path) as child:
        line = child.stdout.readline()
        assert line.startswith("Project 'default' is ready at http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[-1] + "/health", timeout=10) as answer:
            assert answer.status == 200
        maps = Path(f"/proc/{child.pid}/maps")
        if maps.exists():
            # NumPy and Polars take memory and start-up time; a server that has not read any table needs neither.
            assert not {name for name in ("numpy", "polars", "pyarrow", "lightgbm") if f"/{name}" in maps.read_text()}
        child.send_signal(number)
        rest, errors = child.communicate(timeout=20)
        assert (child.returncode, rest, errors) == (0, "", "")


def test_public_addresses_need_an_admin(tmp_path):
    with server(tmp_path, "--host", "0.0.0.0", "--json") as child:
        out, _ = child.communicate(timeout=20)
        assert child.returncode == 2
        assert "everloop users add" in json.loads(out)["error"]["help"]


@pytest.mark.slow
def test_users_and_tokens_open_the_door(tmp_path, run):
    code, user = run("users", "add", "ada", "--role", "admin", "--role", "other=viewer")
    assert (code, user["roles"]) == (0, {"*": "admin", "other": "viewer"})
    assert run("users", "add", "ada")[0] == 4
    _, token = run("tokens", "create", "ci", "--user", "ada", "--role", "viewer", "--expires", "30d")
    assert run("tokens", "create", "x", "--user", "nobody")[0] == 3
    assert [one["name"] for one in run("users", "ls")[1]] == ["ada"]
    with server(tmp_path, "--json") as child:
        text = ""
        while not text.rstrip().endswith("}"):
            text += child.stdout.readline()
        facts = json.loads(text)
        assert facts["login"] is True
        basic = base64.b64encode(f"ada:{user['password']}".encode()).decode()
        for header, code in ((f"Bearer {token['secret']}", 200), (f"Basic {basic}", 200), ("Bearer evl_no", 401)):
            request = urllib.request.Request(f"{facts['url']}/api/v1/runs", headers={"authorization": header})
            assert status_of(request) == code
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
    assert run("tokens", "revoke", "ci")[0] == 0
    (listed,) = run("tokens", "ls")[1]
    assert listed["revoked_at"]
    assert "digest" not in listed
    assert run("users", "password", "ada")[1]["password"] != user["password"]
    assert run("users", "role", "ada", "--role", "viewer")[0] == 4
    assert run("users", "rm", "ada")[0] == 4


@pytest.mark.slow
def test_two_people_promote(tmp_path, run):
    with open_store(tmp_path / "home") as store:
        for number in (1, 2):
            package = store.new(
                Package, digest=f"sha256:{number:064d}", format="linear", signature={"task": "regression"}, size_bytes=1
            )
            store.records.put(package)
            register(store, "delays", package, metrics={"auc": number / 10})
    assert run("models", "promote", "delays@1", actor="ann")[1]["state"] == "completed"
    assert run("models", "policy", "delays", "--approvals", "1")[1] == {"alias": "delays@champion", "approvals": 1}
    _, asked = run("models", "promote", "delays@2", "--reason", "better", actor="ann")
    assert asked["state"] == "open"
    assert run("models", "approve", asked["id"], actor="ann")[0] == 5
    assert [one["id"] for one in run("models", "requests")[1]] == [asked["id"]]
    assert run("models", "approve", asked["id"], actor="bob")[1]["state"] == "approved"
    assert run("models", "promote", "delays@2", actor="ann")[1]["state"] == "completed"
    _, history = run("models", "history", "delays")
    assert [(one["version"], one["reason"]) for one in history] == [("delays@1", "by hand"), ("delays@2", "better")]
    assert history[-1]["approved_by"][0].startswith("user:bob@")
    assert run("models", "history", "delays", "--at", "2001-01-01")[1] == []
    assert run("models", "history", "delays", "--at", "2999-01-01T00:00Z")[1][0]["version"] == "delays@2"
    assert run("models", "history", "delays", "--at", "noon")[0] == 2
    assert run("models", "rollback", "delays")[1]["state"] == "rolled_back"
    assert run("models", "tag", "delays@2", "team=ops", "x=")[1]["tags"] == {"team": "ops"}
    assert run("models", "describe", "delays@2", "for winter")[1]["description"] == "for winter"
    assert run("models", "archive", "delays@1")[0] == 4
    assert run("models", "archive", "delays@2")[1]["state"] == "archived"
    assert run("models", "unarchive", "delays@2")[1]["state"] == "rolled_back"
    assert run("models", "diff", "delays@1", "delays@2")[1]["metrics"]["auc"]["change"] == pytest.approx(0.1)
    assert "for winter" in run("models", "card", "delays@2")[1]["card"]
    _, second = run("models", "promote", "delays@2", actor="ann")
    assert run("models", "reject", second["id"], actor="bob")[1]["state"] == "rejected"


def test_webhooks_are_added_tried_and_removed(tmp_path, run):
    open_store(tmp_path / "home").close()
    assert run("webhooks", "ls") == (0, [])
    refused = run("webhooks", "add", "chat", "http://127.0.0.1:9/")
    assert (refused[0], "--allow-webhook-network" in refused[1]["error"]["help"]) == (2, True)
    local = ("--allow-webhook-network", "127.0.0.0/8")
    _, made = run("webhooks", "add", "chat", "http://127.0.0.1:9/", "--on", "alias.alias_set", *local)
    assert (made["verbs"], len(made["secret"]) > 30) == (["alias.alias_set"], True)
    assert run("webhooks", "add", "chat", "http://127.0.0.1:9/", *local)[0] == 4
    _, (listed,) = run("webhooks", "ls")
    assert (listed["name"], "secret" in listed) == ("chat", False)
    assert run("webhooks", "test", "chat", *local)[0] == 9
    _, renewed = run("webhooks", "renew", "chat", "--url", "http://127.0.0.1:10/", *local)
    assert renewed["url"] == "http://127.0.0.1:10/"
    assert renewed["secret"] != made["secret"]
    assert run("webhooks", "rekey") == (0, {"webhooks": 1})
    assert run("webhooks", "rm", "chat")[0] == 0
    assert run("webhooks", "rm", "chat")[0] == 3


@pytest.mark.slow
def test_a_proxy_is_named_on_the_command_line(tmp_path, run):
    run("users", "add", "ada", "--role", "admin")
    with server(tmp_path, "--trusted-proxy", "proxy.example.com", "--json") as child:
        out, _ = child.communicate(timeout=20)
        assert child.returncode == 2
        assert "--trusted-proxy" in json.loads(out)["error"]["message"]
    with server(tmp_path, "--trusted-proxy", "127.0.0.0/8", "--trusted-proxy", "10.0.0.5") as child:
        url = child.stdout.readline().split()[-1]
        for number in range(11):
            headers = {"authorization": "Bearer evl_no", "x-forwarded-for": "203.0.113.9"}
            code = status_of(urllib.request.Request(f"{url}/api/v1/runs", headers=headers))
            assert code == (401 if number < 10 else 429)
        # Another client behind the same proxy has failed at nothing.
        headers["x-forwarded-for"] = "203.0.113.10"
        assert status_of(urllib.request.Request(f"{url}/api/v1/runs", headers=headers)) == 401
