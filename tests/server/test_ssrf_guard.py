"""Webhook messages: allowed addresses, signatures and delivery."""

from __future__ import annotations

import json
import time

import pytest

from everloop.errors import AlreadyExistsError, NotFoundError, UnavailableError, UsageError
from everloop.integrations.mlflow.tracking_api.webhook_handlers import UNSHOWN
from everloop.records import ModelVersion
from everloop.registry import set_alias
from everloop.server.server_options import ServerOptions
from everloop.server.webhooks import ssrf_guard
from everloop.server.webhooks.webhook_delivery import WebhookDelivery, Webhooks
from everloop.server.webhooks.webhook_payloads import PROMPT_TAG, PROMPT_TEXT, sign, sign_as_mlflow

LOCAL = ServerOptions(webhook_networks=("127.0.0.0/8",))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://2130706433/",
        "http://0x7f.1/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://169.254.169.254/",
        "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://100.64.0.1/", "http://[fe80::1]/",
        "http://[fd00::1]/", "http://224.0.0.1/", "http://255.255.255.255/",
        # Spellings of loopback and of the cloud's metadata: octal, hexadecimal, short, with a dot, in IPv6.
        "http://0177.0.0.1/", "http://0x7f000001/", "http://017700000001/", "http://127.1/", "http://0/",
        "http://127.0.1/",
        "http://127.0.0.1./", "http://localhost./", "http://LOCALHOST/", "http://[::]/", "http://[::127.0.0.1]/",
        "http://[0:0:0:0:0:ffff:7f00:1]/", "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b:1::7f00:1]/",
        "http://[fec0::1]/", "http://[fe80::1%25lo]/", "http://[ff02::1]/", "http://[2001:db8::1]/",
        "http://[3fff::1]/",
        "http://[2606:4700::5efe:7f00:1]/", "http://[2606:4700::200:5efe:a00:1]/", "http://[2002:a9fe:a9fe::]/",
        "http://[2001:0:7f00:1:0:0:80ff:fffe]/", "http://2852039166/", "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://[::ffff:a9fe:a9fe]/", "http://192.0.0.8/", "http://192.88.99.1/", "http://198.18.0.1/",
        "http://240.0.0.1/",
        "http://0.1.2.3/", "http://127.0.0.1:80#@8.8.8.8/", "http://127.0.0.1?@8.8.8.8/", "http://127.0.0.1;8.8.8.8/",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(url):
    with pytest.raises((UsageError, UnavailableError)):
        ssrf_guard.post(url, b"", {})


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a/", "gopher://a/", "http://", "http:///x", "http://user@a/", "http://u:p@a/",
     "http://a b/",
     "http://a\r\nX: y/", "http://a\\b/", "http://8.8.8.8\\@127.0.0.1/", "http://①②⑦.⓪.⓪.①/", "http://a\tb/", "http:a",
     "HTTP+UNIX://%2ftmp%2fx/", "unix:/tmp/x", "dict://a/", "ldap://a/", "data:,x", "jar:http://a!/", "http://@a/",
     "\x00",
     "http://a/ HTTP/1.1\r\nX: y", "http://" + "a" * 3000, "//a/", "a", "", "http://a:99999/", "http://a:0/",
     "http://ä/", "http://[::1/"],
)  # fmt: skip
def test_other_urls_are_refused(url):
    with pytest.raises(UsageError):
        ssrf_guard.check_url(url)


def test_a_name_with_one_private_address_is_refused_and_the_name_is_asked_once(monkeypatch, listener):
    asked = []

    def answers(*addresses):
        def getaddrinfo(host, port, **_):
            asked.append(host)
            return [(2, 1, 6, "", (address, port)) for address in addresses]

        return getaddrinfo

    monkeypatch.setattr(ssrf_guard.socket, "getaddrinfo", answers("8.8.8.8", "10.0.0.1"))
    with pytest.raises(UsageError, match=r"10\.0\.0\.1"):
        ssrf_guard.resolve("http://rebinding.example/")
    # The connection goes to the address that was looked at; asking again could give another.
    monkeypatch.setattr(ssrf_guard.socket, "getaddrinfo", answers("127.0.0.1"))
    reached = []
    real = ssrf_guard.socket.create_connection
    monkeypatch.setattr(
        ssrf_guard.socket, "create_connection", lambda to, timeout: reached.append(to) or _connected(real, to, timeout)
    )
    asked.clear()
    status = ssrf_guard.post(f"http://name.example:{listener.server_port}/x?y=1", b"{}", {}, ["127.0.0.0/8"])
    assert (status, asked) == (204, ["name.example"])
    assert reached == [("127.0.0.1", listener.server_port)]
    path, headers, _ = listener.got[0]
    assert (path, headers["Host"]) == ("/x?y=1", f"name.example:{listener.server_port}")


def _connected(real, to, timeout):
    import _socket
    import socket

    wire = socket.socket()
    wire.settimeout(timeout)
    assert _socket is not None
    wire.connect(to)
    return wire


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(listener, status):
    listener.answers = [status]
    assert ssrf_guard.post(f"http://127.0.0.1:{listener.server_port}/", b"", {}, ["127.0.0.0/8"]) == status
    assert len(listener.got) == 1


def test_a_name_that_leads_elsewhere_later_is_looked_at_each_time(store, monkeypatch, listener):
    leads = ["8.8.8.8"]
    monkeypatch.setattr(
        ssrf_guard.socket, "getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", (leads[0], port))] if host else []
    )
    hooks = Webhooks(store, ServerOptions())
    hook = hooks.add("ops", f"http://rebinding.example:{listener.server_port}/")
    # Once it was taken the name is made to lead to this machine, then to the cloud's metadata.
    for leads[0] in ("127.0.0.1", "169.254.169.254", "::1"):
        with pytest.raises(UsageError, match="not a public address"):
            hooks.test("ops")
        with pytest.raises(UsageError, match="not a public address"):
            hooks.change(hook.id, url=f"http://other.example:{listener.server_port}/")
        store.records.put(store.new(ModelVersion, model=f"m{leads[0]}", version=1, package="sha256:0"))
        WebhookDelivery(store, ServerOptions(), retry_after_s=()).send_due()
    assert listener.got == []


def test_what_comes_back_is_not_told(store, serve, listener):
    with serve(store, LOCAL) as control:
        body = {"name": "a", "url": f"http://127.0.0.1:{listener.server_port}/", "events": [MODEL_VERSION]}
        hook = control.request("POST", HOOKS, body).json["webhook"]
        told = control.request("POST", f"{HOOKS}/{hook['webhook_id']}/test", {}).json["result"]
        assert told == {"success": True, "response_status": 204, "response_body": UNSHOWN}


def test_nobody_there_is_said(listener):
    with pytest.raises(UnavailableError):
        ssrf_guard.post("http://127.0.0.1:9/", b"", {}, ["127.0.0.0/8"])
    with pytest.raises(UnavailableError):
        ssrf_guard.post(f"https://127.0.0.1:{listener.server_port}/", b"", {}, ["127.0.0.0/8"])


def test_events_come_signed_in_order_and_again_until_taken(store, listener):
    hooks = Webhooks(store, LOCAL)
    for number in (1, 2):
        version = store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}")
        store.records.put(version)
    hook = hooks.add("ops", f"http://127.0.0.1:{listener.server_port}/hook", ["alias.alias_set"])
    set_alias(store, "m", "champion", "m@1", reason="first")
    set_alias(store, "m", "champion", "m@2")
    listener.answers = [500, 204, 204]
    delivery = WebhookDelivery(store, LOCAL, retry_after_s=(0.0, 0.0))
    for _ in range(5):
        delivery.send_due()
    bodies = [json.loads(body) for _, _, body in listener.got]
    assert [body["event"]["data"]["version"] for body in bodies] == ["m@1", "m@1", "m@2"]
    _, headers, body = listener.got[0]
    assert headers["X-Everloop-Event"] == "alias.alias_set"
    assert headers["X-Everloop-Signature"] == sign(hook.secret, headers["X-Everloop-Timestamp"], body)
    assert listener.got[0][1]["X-Everloop-Delivery"] == listener.got[1][1]["X-Everloop-Delivery"]
    # What was delivered is not sent again by the next process.
    WebhookDelivery(store, LOCAL).send_due()
    assert len(listener.got) == 3
    assert hooks.test("ops") == 204


def test_what_nobody_takes_is_given_up(store, listener):
    hooks = Webhooks(store, LOCAL)
    store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:0"))
    hooks.add("ops", f"http://127.0.0.1:{listener.server_port}/", ["alias.alias_set"])
    set_alias(store, "m", "a", "m@1")
    set_alias(store, "m", "b", "m@1")
    listener.answers = [500, 500, 204]
    delivery = WebhookDelivery(store, LOCAL, retry_after_s=(0.0,))
    for _ in range(3):
        delivery.send_due()
    assert [json.loads(body)["event"]["key"] for _, _, body in listener.got] == ["m@a", "m@a", "m@b"]
    assert hooks.get("ops").failures == 0


def test_webhooks_over_http(store, serve):
    with serve(store, LOCAL) as control:
        made = control.request("POST", "/api/v1/webhooks", {"name": "a", "url": "http://127.0.0.1:9/"})
        assert (made.status, len(made.json["secret"]) > 30) == (201, True)
        listed = control.request("GET", "/api/v1/webhooks").json
        assert [(one["name"], one["secret"]) for one in listed] == [("a", None)]
        assert control.request("POST", "/api/v1/webhooks", {"name": "b", "url": "http://10.0.0.1/"}).status == 400
        assert control.request("POST", "/api/v1/webhooks", {"name": "b", "url": 5}).status == 400
        assert control.request("POST", "/api/v1/webhooks/a/test").status == 503
        assert control.request("DELETE", "/api/v1/webhooks/a").status == 204
        assert control.request("DELETE", "/api/v1/webhooks/a").status == 404


def test_names_secrets_and_verbs_are_checked(store):
    hooks = Webhooks(store, LOCAL)
    hooks.add("a", "http://127.0.0.1/")
    with pytest.raises(AlreadyExistsError):
        hooks.add("a", "http://127.0.0.1/")
    for more in ({"name": "b c"}, {"name": "b", "verbs": ["x"]}, {"name": "b", "secret": "short"}):
        with pytest.raises(UsageError):
            hooks.add(**{"url": "http://127.0.0.1/", **more})
    with pytest.raises(NotFoundError):
        hooks.remove("b")


MODEL_VERSION = {"entity": "MODEL_VERSION", "action": "CREATED"}
HOOKS = "/api/2.0/mlflow/webhooks"


@pytest.mark.slow
def test_mlflows_webhooks_are_told_in_mlflows_words(store, serve, listener):
    verbs = ["model_version.created", "model_version_tag.set", "model_version_tag.deleted"]
    verbs += ["model_version_alias.created", "model_version_alias.deleted", "registered_model.created"]
    verbs += ["prompt.created", "prompt_version.created", "prompt_tag.set", "prompt_alias.created"]
    events = [dict(zip(("entity", "action"), verb.upper().split("."), strict=True)) for verb in verbs]
    url = f"http://127.0.0.1:{listener.server_port}/m"
    with serve(store, LOCAL) as control:
        made = control.request("POST", HOOKS, {"name": "ci", "url": url, "events": events, "secret": "s3cret"}).json[
            "webhook"
        ]
        assert (made["status"], made["events"]) == ("ACTIVE", events)
        assert "secret" not in made
        api = "/api/2.0/mlflow/"
        listener.answers = [500]
        steps = [
            ("POST", "registered-models/create", {"name": "m", "tags": [{"key": "a", "value": "b"}]}),
            ("POST", "model-versions/create", {"name": "m", "source": "s3://b/x", "description": "d"}),
            ("POST", "model-versions/set-tag", {"name": "m", "version": "1", "key": "k", "value": "v"}),
            ("DELETE", "model-versions/delete-tag", {"name": "m", "version": "1", "key": "k"}),
            ("POST", "registered-models/alias", {"name": "m", "alias": "champion", "version": "1"}),
            ("DELETE", "registered-models/alias", {"name": "m", "alias": "champion"}),
            ("POST", "registered-models/set-tag", {"name": "m", "key": "k", "value": "v"}),
            ("POST", "registered-models/create", {"name": "p", "tags": [{"key": PROMPT_TAG, "value": "true"}]}),
            ("POST", "model-versions/create", {"name": "p", "source": "dummy", "tags": [
                {"key": PROMPT_TAG, "value": "true"}, {"key": PROMPT_TEXT, "value": "Hi"}]}),
            ("POST", "registered-models/set-tag", {"name": "p", "key": "k", "value": "v"}),
            ("POST", "registered-models/alias", {"name": "p", "alias": "live", "version": "1"}),
        ]  # fmt: skip
        for method, path, body in steps:
            answer = control.request(method, api + path, body)
            assert answer.status == 200, answer.body
        until = time.monotonic() + 30
        while len(listener.got) < 11 and time.monotonic() < until:
            time.sleep(0.05)
    told = [json.loads(body) for _, _, body in listener.got]
    assert told[0] == told[1]
    assert listener.got[0][1]["X-MLflow-Delivery-Id"] == listener.got[1][1]["X-MLflow-Delivery-Id"]
    said = [(f"{one['entity']}.{one['action']}", one["data"]) for one in told[1:]]
    assert said == [
        ("registered_model.created", {"name": "m", "tags": {"a": "b"}, "description": ""}),
        (
            "model_version.created",
            {"name": "m", "version": "1", "source": "s3://b/x", "run_id": None, "tags": {}, "description": "d"},
        ),
        ("model_version_tag.set", {"name": "m", "version": "1", "key": "k", "value": "v"}),
        ("model_version_tag.deleted", {"name": "m", "version": "1", "key": "k"}),
        ("model_version_alias.created", {"name": "m", "alias": "champion", "version": "1"}),
        ("model_version_alias.deleted", {"name": "m", "alias": "champion"}),
        ("prompt.created", {"name": "p", "tags": {}, "description": ""}),
        (
            "prompt_version.created",
            {"name": "p", "version": "1", "template": "Hi", "tags": {}, "description": None},
        ),
        ("prompt_tag.set", {"name": "p", "key": "k", "value": "v"}),
        ("prompt_alias.created", {"name": "p", "alias": "live", "version": "1"}),
    ]
    _, headers, body = listener.got[-1]
    signed = sign_as_mlflow("s3cret", headers["X-MLflow-Delivery-Id"], headers["X-MLflow-Timestamp"], body)
    assert headers["X-MLflow-Signature"] == signed


@pytest.mark.slow
def test_mlflows_webhooks_are_changed_tried_and_removed(store, serve, listener):
    url = f"http://127.0.0.1:{listener.server_port}/m"
    with serve(store, LOCAL) as control:
        body = {"name": "ci", "url": url, "events": [MODEL_VERSION]}
        first, second = (control.request("POST", HOOKS, body).json["webhook"] for _ in range(2))
        page = control.request("GET", f"{HOOKS}?max_results=1").json
        assert [hook["webhook_id"] for hook in page["webhooks"]] == [second["webhook_id"]]
        page = control.request("GET", f"{HOOKS}?page_token={page['next_page_token']}").json
        assert [hook["webhook_id"] for hook in page["webhooks"]] == [first["webhook_id"]]
        one = f"{HOOKS}/{first['webhook_id']}"
        changed = control.request("PATCH", one, {"name": "cd", "status": "DISABLED", "description": "off"}).json[
            "webhook"
        ]
        assert (changed["name"], changed["status"], changed["description"]) == ("cd", "DISABLED", "off")
        assert control.request("GET", one).json["webhook"] == changed
        told = control.request("POST", f"{one}/test", {}).json["result"]
        assert told == {"success": True, "response_status": 204, "response_body": UNSHOWN}
        event = {"event": {"entity": "PROMPT_ALIAS", "action": "DELETED"}}
        listener.answers = [500]
        answer = control.request("POST", f"{one}/test", event).json["result"]
        assert answer == {"success": False, "response_status": 500, "response_body": UNSHOWN}
        assert json.loads(listener.got[-1][2])["entity"] == "prompt_alias"
        shown = control.request("GET", "/api/v1/webhooks").json
        assert [(hook["name"], hook["form"], hook["active"]) for hook in shown] == [
            ("cd", "mlflow", False),
            ("ci", "mlflow", True),
        ]
        assert control.request("DELETE", one).status == 200
        gone = control.request("GET", one)
        assert (gone.status, gone.json["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_what_happens_while_a_webhook_is_off_is_not_sent_later(store, listener):
    hooks = Webhooks(store, LOCAL)
    store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:0"))
    url = f"http://127.0.0.1:{listener.server_port}/m"
    more = {"description": "", "secret": "", "active": True}
    hook = hooks.add_for_mlflow("a", url, ["model_version_alias.created"], **more)
    delivery = WebhookDelivery(store, LOCAL)
    for active, alias in ((False, "missed"), (True, "heard")):
        hooks.change(hook.id, active=active)
        set_alias(store, "m", alias, "m@1")
        delivery.send_due()
    assert [json.loads(body)["data"]["alias"] for _, _, body in listener.got] == ["heard"]
    assert "X-MLflow-Signature" not in listener.got[0][1]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""}, {"name": "a b"}, {"name": "-a"}, {"name": "x" * 64}, {"name": 5}, {"events": []}, {"events": {}},
        {"events": [{"entity": "MODEL_VERSION", "action": "DELETED"}]}, {"events": [{"entity": "NOTHING"}]},
        {"events": ["MODEL_VERSION.CREATED"]}, {"status": "ON"}, {"url": " "}, {"url": "ftp://a/"}, {"url": 5},
        {"url": "http://10.0.0.1/"}, {"url": "http://169.254.169.254/latest"}, {"url": "http://[::ffff:10.0.0.1]/"},
        {"url": "http://nothing.invalid/"}, {"url": "file:///etc/passwd"}, {"url": "http://u:p@8.8.8.8/"},
    ],
)  # fmt: skip
def test_what_is_no_webhook_is_refused(store, serve, changes):
    with serve(store) as control:
        body = {"name": "a", "url": "http://8.8.8.8/", "events": [MODEL_VERSION], **changes}
        refused = control.request("POST", HOOKS, body)
        assert (refused.status, refused.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), refused.body
        assert control.request("GET", HOOKS).json == {}
