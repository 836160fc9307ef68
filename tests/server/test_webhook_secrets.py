"""Secrets and URLs of webhooks: the server can use them, and they are never stored in clear text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from everloop.errors import UnavailableError
from everloop.records import ModelVersion, Webhook
from everloop.server.access.users import PROJECT
from everloop.server.server_options import ServerOptions
from everloop.server.webhooks.webhook_delivery import WebhookDelivery, Webhooks
from everloop.server.webhooks.webhook_payloads import sign
from everloop.stores import open_store
from everloop.stores.backup import backup, restore
from everloop.stores.clock import new_id

LOCAL = ServerOptions(webhook_networks=("127.0.0.0/8",))
PATH = "T0001-path-token"
SECRET = "a-secret-of-twenty-letters"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    monkeypatch.delenv("EVERLOOP_SECRET_KEY", raising=False)
    monkeypatch.delenv("EVERLOOP_SECRET_KEY_FILE", raising=False)


@pytest.fixture
def url(listener):
    return f"http://127.0.0.1:{listener.server_port}/services/{PATH}?token={PATH}"


def bytes_of(home):
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "secret.key")


def publish(store, number=1):
    store.records.put(store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))


def put_in_clear(store, url, name="old"):
    """A webhook as earlier versions stored it, with a history."""
    records = store.records.for_project(PROJECT)
    now = store.now()
    fields = {"name": name, "url": url, "for_project": store.project, "secret": SECRET}
    hook = Webhook(id=new_id(now), project=PROJECT, created_at=now, **fields)
    records.put(hook, data={"url": url})
    gone = replace(hook, id=new_id(now), name=f"{name}-gone")
    records.put(gone, data={"url": url})
    records.delete(Webhook, gone.id)
    return records.update(replace(hook, failures=1), verb="given_up")[0]


def test_a_secret_is_used_and_lies_sealed_in_the_store(store, listener, url):
    hooks = Webhooks(store, LOCAL)
    hook = hooks.add("ops", url, secret=SECRET)
    assert hook.secret == SECRET, "whoever adds it gets it back once"
    publish(store)
    assert WebhookDelivery(store, LOCAL).send_due()
    _, headers, body = listener.got[0]
    assert headers["X-Everloop-Signature"] == sign(SECRET, headers["X-Everloop-Timestamp"], body)
    assert hooks.get("ops").url == url
    assert hooks.get("ops").secret == ""
    assert all(one.secret == "" for one in hooks.list())
    home = store.home
    store.close()
    held = bytes_of(home)
    assert SECRET.encode() not in held
    assert PATH.encode() not in held


def test_what_was_stored_in_clear_is_sealed_and_its_traces_go(store, listener, url):
    put_in_clear(store, url)
    hooks = Webhooks(store, LOCAL)
    assert hooks.get("old").url == url
    publish(store)
    assert WebhookDelivery(store, LOCAL).send_due()
    _, headers, body = listener.got[0]
    assert headers["X-Everloop-Signature"] == sign(SECRET, headers["X-Everloop-Timestamp"], body)
    home = store.home
    store.close()
    held = bytes_of(home)
    assert SECRET.encode() not in held
    assert PATH.encode() not in held


def test_a_home_that_cannot_be_written_still_sends_what_is_in_clear(store, listener, url, monkeypatch):
    from everloop.errors import InsufficientStorageError
    from everloop.stores.sealing import SecretKeys

    put_in_clear(store, url)

    def full(*_: object, **__: object) -> str:
        raise InsufficientStorageError("No space left.")

    with monkeypatch.context() as patch:
        patch.setattr(SecretKeys, "seal", full)
        assert Webhooks(store, LOCAL).test("old") == 204
    assert Webhooks(store, LOCAL).test("old") == 204
    assert all(hook.sealed_url for hook in Webhooks(store, LOCAL).stored())


def test_without_the_key_nothing_is_lost_and_nothing_is_shown(store, listener, url, caplog):
    hooks = Webhooks(store, LOCAL)
    hooks.add("ops", url, secret=SECRET)
    kept = hooks.secrets.keys.path.read_bytes()
    hooks.secrets.keys.path.unlink()
    publish(store)
    delivery = WebhookDelivery(store, LOCAL, retry_after_s=())
    for _ in range(3):
        assert not delivery.send_due()
    assert listener.got == []
    assert PATH not in hooks.get("ops").url
    assert hooks.get("ops").url.startswith("http://127.0.0.1:")
    assert [hook.name for hook in hooks.secrets.without_key()] == ["ops"]
    with pytest.raises(UnavailableError, match="'ops' cannot be used") as caught:
        hooks.test("ops")
    assert "everloop webhooks renew ops --url URL" in str(caught.value.help)
    assert SECRET not in caplog.text
    assert PATH not in caplog.text
    hooks.secrets.keys.path.write_bytes(kept)
    assert WebhookDelivery(store, LOCAL).send_due(), "with the key again, the message that waited is sent"
    assert len(listener.got) == 1


def test_a_secret_is_set_again_where_the_key_is_lost(store, listener, url):
    hooks = Webhooks(store, LOCAL)
    hooks.add("ops", url, secret=SECRET)
    hooks.secrets.keys.path.unlink()
    with pytest.raises(UnavailableError):
        hooks.renew("ops")
    hook = hooks.renew("ops", url)
    assert len(hook.secret) >= 32
    assert hook.secret != SECRET
    publish(store)
    assert WebhookDelivery(store, LOCAL).send_due()
    _, headers, body = listener.got[0]
    assert headers["X-Everloop-Signature"] == sign(hook.secret, headers["X-Everloop-Timestamp"], body)


def test_changes_are_sealed_as_well(store, listener, url):
    hooks = Webhooks(store, LOCAL)
    hook = hooks.add_for_mlflow("m", url, ("model_version.created",), description="", secret="", active=True)
    assert hooks.test(hook.id) == 204
    assert "X-MLflow-Signature" not in listener.got[-1][1]
    hooks.change(hook.id, secret=SECRET)
    assert hooks.test(hook.id) == 204
    assert "X-MLflow-Signature" in listener.got[-1][1]
    assert hooks.change(hook.id, description="x").secret == ""
    assert hooks.change(hook.id, url=f"{url}&more={PATH}").url.endswith(f"more={PATH}")
    assert hooks.test(hook.id) == 204
    home = store.home
    store.close()
    assert SECRET.encode() not in bytes_of(home)
    assert PATH.encode() not in bytes_of(home)


def test_a_new_key_seals_everything_and_the_old_one_opens_nothing(store, listener, url):
    hooks = Webhooks(store, LOCAL)
    hooks.add("ops", url, secret=SECRET)
    Webhooks(store.for_project("other"), LOCAL).add("others", url, secret=SECRET)
    old = hooks.secrets.keys.path.read_bytes()
    assert hooks.secrets.renew_key() == 2
    assert hooks.test("ops") == 204
    hooks.secrets.keys.path.write_bytes(old)
    assert len(hooks.secrets.without_key()) == 2


def test_a_key_of_the_environment_takes_over(store, listener, url, monkeypatch):
    import secrets

    hooks = Webhooks(store, LOCAL)
    hooks.add("ops", url, secret=SECRET)
    monkeypatch.setenv("EVERLOOP_SECRET_KEY", secrets.token_urlsafe(32))
    assert hooks.secrets.renew_key() == 1
    hooks.secrets.keys.path.unlink()
    assert hooks.test("ops") == 204


@pytest.mark.slow
def test_a_restored_home_says_what_has_to_be_set_again(store, tmp_path, url):
    Webhooks(store, LOCAL).add("ops", url, secret=SECRET)
    kept = backup(store, tmp_path / "kept.tar")
    assert SECRET.encode() not in kept.read_bytes()
    assert PATH.encode() not in kept.read_bytes()
    command = [
        sys.executable,
        "-c",
        "from everloop.cli import main; main()",
        "restore",
        str(kept),
        "--home",
        str(tmp_path / "again"),
    ]
    environment = {**os.environ, "EVERLOOP_KEYS": str(tmp_path / "keys"), "COLUMNS": "200"}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout)["webhooks_without_key"] == ["ops"]
    whole = restore(backup(store, tmp_path / "whole.tar", with_key=True), tmp_path / "whole")
    with open_store(whole, project=store.project) as again:
        assert Webhooks(again, LOCAL).get("ops").url == url


@pytest.mark.slow
def test_the_api_gives_a_secret_once(store, serve, url):
    with serve(store, LOCAL) as control:
        made = control.request("POST", "/api/v1/webhooks", {"name": "ops", "url": url}).json
        assert len(made["secret"]) >= 32
        listed = control.request("GET", "/api/v1/webhooks").json
        assert listed[0]["url"] == url
        assert listed[0]["secret"] is None
        assert made["secret"] not in json.dumps(listed)
