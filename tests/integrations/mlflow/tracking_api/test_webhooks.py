"""MLflow's webhooks from end to end: its client registers them, a server of its own process tells a real receiver, and
MLflow's own code verifies what came; also across restarts."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from everloop.records import Package
from everloop.registry import register, tag
from everloop.server.webhooks.webhook_payloads import EXAMPLES
from everloop.stores import open_store

pytestmark = pytest.mark.slow

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]
HOOKS = "/api/2.0/mlflow/webhooks"

CLIENT = """
import json, sys
from mlflow import MlflowClient
from mlflow.entities.webhook import VALID_ENTITY_ACTIONS, WebhookEvent

client = MlflowClient(sys.argv[1], registry_uri=sys.argv[1])
events = [WebhookEvent(entity, action) for entity, actions in VALID_ENTITY_ACTIONS.items() for action in actions]
known = [event for event in events if event.entity.value != "budget_policy"]
hook = client.create_webhook("all", sys.argv[2], known, secret="s3cret ü")
client.create_webhook("one", sys.argv[2] + "/one", [WebhookEvent.from_str("model_version_alias.created")])
client.create_registered_model("m", {"team": "x"}, "A model")
client.create_model_version("m", "s3://b/1", tags={"a": "b"}, description="A version")
client.set_model_version_tag("m", "1", "k", "v")
client.delete_model_version_tag("m", "1", "k")
client.set_registered_model_alias("m", "champion", "1")
client.delete_registered_model_alias("m", "champion")
client.create_prompt("p", tags={"team": "x"})
client.create_prompt_version("p", "Hello {{name}}!", tags={"a": "b"})
client.set_prompt_tag("p", "k", "v")
client.delete_prompt_tag("p", "k")
client.set_prompt_version_tag("p", 1, "k", "v")
client.delete_prompt_version_tag("p", 1, "k")
client.set_prompt_alias("p", "live", 1)
client.delete_prompt_alias("p", "live")
tried = [client.test_webhook(hook.webhook_id, event).success for event in known]
print(json.dumps({"events": [str(event) for event in known], "tried": tried}))
"""

VERIFY = """
import json, sys
from mlflow.entities.webhook import WebhookEvent
from mlflow.webhooks.delivery import _generate_hmac_signature
from mlflow.webhooks.types import get_example_payload_for_event

for headers, body in json.load(sys.stdin):
    signed = _generate_hmac_signature(
        "s3cret ü", headers["x-mlflow-delivery-id"], headers["x-mlflow-timestamp"], body
    )
    assert headers["x-mlflow-signature"] == signed, headers
    said = json.loads(body)
    event = WebhookEvent(said["entity"], said["action"])
    assert set(said) == {"entity", "action", "timestamp", "data"}, said
    assert set(said["data"]) == set(get_example_payload_for_event(event)), said
"""


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps what it is sent. Answers with `answers`, then 204; while `gate` is closed it does not answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Keeps)
        self.got, self.answers = [], []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.url = f"http://127.0.0.1:{self.server_port}/hook"

    def wait(self, count):
        """Wait until so many more have come."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=60), self.got

    def said(self, path="/hook"):
        return [json.loads(body) for where, _, body in self.got if where == path]


class _Keeps(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append((self.path, headers, body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.server.arrived.release()
        self.server.gate.wait(30)
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    made = Receiver()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.gate.set()
    made.shutdown()
    made.server_close()
    thread.join()


@contextmanager
def running(folder):
    """A server of its own process; gives the process and its address."""
    environment = {**os.environ, "EVERLOOP_KEYS": str(folder / "keys")}
    command = [*EVERLOOP, "server", "--port", "0", "--home", str(folder / "home")]
    command += ["--allow-webhook-network", "127.0.0.0/8"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child, f"http://{urlsplit(child.stdout.readline().split()[-1]).netloc}"
        finally:
            child.kill()


def ended(child):
    """Tell a server to stop, and wait until it has."""
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors


def test_every_event_comes_in_order_and_mlflow_verifies_it(tmp_path, receiver, mlflow_python):
    with running(tmp_path) as (child, url):
        done = subprocess.run(
            [mlflow_python, "-W", "ignore", "-c", CLIENT, url, receiver.url],
            capture_output=True, text=True, check=False, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        receiver.wait(2 * len(EXAMPLES) + 1)
        ended(child)
    assert set(said["events"]) == set(EXAMPLES)
    assert said["tried"] == [True] * len(EXAMPLES)
    assert [(one["entity"], one["data"]["name"]) for one in receiver.said("/hook/one")] == [
        ("model_version_alias", "m")
    ]
    live = [one for one in receiver.said() if one["data"]["name"] in ("m", "p")]
    assert [f"{one['entity']}.{one['action']}" for one in live] == [
        "registered_model.created", "model_version.created", "model_version_tag.set", "model_version_tag.deleted",
        "model_version_alias.created", "model_version_alias.deleted", "prompt.created", "prompt_version.created",
        "prompt_tag.set", "prompt_tag.deleted", "prompt_version_tag.set", "prompt_version_tag.deleted",
        "prompt_alias.created", "prompt_alias.deleted",
    ]  # fmt: skip
    tried = {f"{one['entity']}.{one['action']}" for one in receiver.said() if one not in live}
    assert tried == set(EXAMPLES)
    signed = [(headers, body) for path, headers, body in receiver.got if path == "/hook"]
    assert len({headers["x-mlflow-delivery-id"] for headers, _ in signed}) == len(signed)
    verified = subprocess.run(
        [mlflow_python, "-W", "ignore", "-c", VERIFY], input=json.dumps(signed), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    (unsigned,) = [headers for path, headers, _ in receiver.got if path == "/hook/one"]
    assert "x-mlflow-signature" not in unsigned


def hook_for_tags(folder, receiver):
    """A home with one version and a webhook that is told of its tags."""
    with open_store(folder / "home") as store:
        package = store.new(Package, digest=f"sha256:{1:064d}", format="linear", signature={}, size_bytes=1)
        store.records.put(package)
        register(store, "m", package)
    with running(folder) as (child, url):
        body = {"name": "t", "url": receiver.url, "events": [{"entity": "MODEL_VERSION_TAG", "action": "SET"}]}
        made = subprocess.run(
            ["curl", "-sf", f"{url}{HOOKS}", "-H", "content-type: application/json", "-d", json.dumps(body)],
            check=False,
        )
        assert made.returncode == 0
        ended(child)


def add_hook(url, body):
    asked = urllib.request.Request(f"{url}{HOOKS}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        assert answer.status == 200


def keys_of(receiver):
    return [one["data"]["key"] for one in receiver.said()]


def test_a_stop_in_the_middle_sends_nothing_twice(tmp_path, receiver):
    hook_for_tags(tmp_path, receiver)
    with open_store(tmp_path / "home") as store:
        tag(store, "m@1", {"a": "1", "b": "2", "c": "3"})
        tag(store, "m@1", {"d": "4"})
    # The server is told to stop while the receiver keeps it waiting for the first of three messages of one event.
    receiver.gate.clear()
    with running(tmp_path) as (child, _):
        receiver.wait(1)
        child.send_signal(signal.SIGTERM)
        receiver.gate.set()
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
    with running(tmp_path) as (child, _):
        while "d" not in keys_of(receiver):
            receiver.wait(1)
        ended(child)
    assert keys_of(receiver) == ["a", "b", "c", "d"]


def test_what_nobody_took_is_sent_again_after_a_restart_in_order(tmp_path, receiver):
    hook_for_tags(tmp_path, receiver)
    with open_store(tmp_path / "home") as store:
        tag(store, "m@1", {"a": "1", "b": "2"})
        tag(store, "m@1", {"c": "3"})
    receiver.answers = [204, *[503] * 5]
    with running(tmp_path) as (child, _):
        receiver.wait(2)
        ended(child)
    assert set(keys_of(receiver)) == {"a", "b"}
    receiver.answers.clear()
    with running(tmp_path) as (child, _):
        while "c" not in keys_of(receiver):
            receiver.wait(1)
        ended(child)
    came = keys_of(receiver)
    assert came == ["a", *["b"] * (len(came) - 2), "c"]
    assert len({headers["x-mlflow-delivery-id"] for _, headers, _ in receiver.got}) == 3


def test_a_kill_in_the_middle_loses_nothing(tmp_path, receiver):
    hook_for_tags(tmp_path, receiver)
    with open_store(tmp_path / "home") as store:
        for number in range(20):
            tag(store, "m@1", {f"k{number}": "v"})
    wanted, before = [f"k{number}" for number in range(20)], 0
    for kill_after in (3, 5, 4):
        with running(tmp_path) as (child, _):
            receiver.wait(kill_after)
            child.send_signal(signal.SIGKILL)
            child.wait()
        seen = dict.fromkeys(keys_of(receiver))
        assert list(seen) == wanted[: len(seen)]
        assert len(seen) > before
        before = len(seen)
    with running(tmp_path) as (child, _):
        while "k19" not in keys_of(receiver):
            receiver.wait(1)
        ended(child)
    came = keys_of(receiver)
    assert list(dict.fromkeys(came)) == wanted
    # Each kill can make one message come twice, with the same number, and no other.
    assert len(came) <= len(wanted) + 3
    numbers = {(headers["x-mlflow-delivery-id"], json.loads(body)["data"]["key"]) for _, headers, body in receiver.got}
    assert len(numbers) == len(wanted)


def test_one_that_does_not_answer_holds_up_no_other(tmp_path, receiver):
    hook_for_tags(tmp_path, receiver)
    stuck = Receiver()
    stuck.gate.clear()
    thread = threading.Thread(target=stuck.serve_forever, daemon=True)
    thread.start()
    try:
        with running(tmp_path) as (child, url):
            body = {"name": "stuck", "url": stuck.url, "events": [{"entity": "MODEL_VERSION_TAG", "action": "SET"}]}
            add_hook(url, body)
            with open_store(tmp_path / "home") as store:
                for number in range(5):
                    tag(store, "m@1", {f"k{number}": "v"})
            stuck.wait(1)
            receiver.wait(5)
            assert len(stuck.got) <= 2  # it is asked again by its own measure, not once for each message of the other
            stuck.gate.set()
            ended(child)
    finally:
        stuck.gate.set()
        stuck.shutdown()
        stuck.server_close()
        thread.join()
