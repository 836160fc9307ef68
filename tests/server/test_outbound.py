"""Messages to the outside: where they may go, that they are signed, and that they come."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from everloop.errors import AlreadyExistsError, NotFoundError, UnavailableError, UsageError
from everloop.models import set_alias
from everloop.records import ModelVersion
from everloop.server import outbound
from everloop.server.notifying import Notifier, Webhooks, sign
from everloop.server.options import ServerOptions

LOCAL = ServerOptions(webhook_networks=("127.0.0.0/8",))


@pytest.fixture
def listener():
    """A server that keeps what it is sent and answers with `answers`, then 204."""

    class Keeps(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.got.append((self.path, dict(self.headers), body))
            status = self.server.answers.pop(0) if self.server.answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keeps)
    server.got, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://0.0.0.0/", "http://2130706433/", "http://0x7f.1/",
        "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://169.254.169.254/",
        "http://10.0.0.1/", "http://192.168.1.1/", "http://172.16.0.1/", "http://100.64.0.1/", "http://[fe80::1]/",
        "http://[fd00::1]/", "http://224.0.0.1/", "http://255.255.255.255/",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(url):
    with pytest.raises((UsageError, UnavailableError)):
        outbound.post(url, b"", {})


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a/", "gopher://a/", "http://", "http:///x", "http://user@a/", "http://u:p@a/",
     "http://a b/",
     "http://a\r\nX: y/", "http://a\\b/", "//a/", "a", "", "http://a:99999/", "http://a:0/", "http://ä/", "http://[::1/"],
)  # fmt: skip
def test_other_urls_are_refused(url):
    with pytest.raises(UsageError):
        outbound.check_url(url)


def test_a_name_with_one_private_address_is_refused_and_the_name_is_asked_once(monkeypatch, listener):
    asked = []

    def answers(*addresses):
        def getaddrinfo(host, port, **_):
            asked.append(host)
            return [(2, 1, 6, "", (address, port)) for address in addresses]

        return getaddrinfo

    monkeypatch.setattr(outbound.socket, "getaddrinfo", answers("8.8.8.8", "10.0.0.1"))
    with pytest.raises(UsageError, match=r"10\.0\.0\.1"):
        outbound.resolve("http://rebinding.example/")
    # The connection goes to the address that was looked at; asking again could give another.
    monkeypatch.setattr(outbound.socket, "getaddrinfo", answers("127.0.0.1"))
    reached = []
    real = outbound.socket.create_connection
    monkeypatch.setattr(
        outbound.socket, "create_connection", lambda to, timeout: reached.append(to) or _connected(real, to, timeout)
    )
    asked.clear()
    status = outbound.post(f"http://name.example:{listener.server_port}/x?y=1", b"{}", {}, ["127.0.0.0/8"])
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


def test_redirects_are_not_followed(listener):
    listener.answers = [302]
    assert outbound.post(f"http://127.0.0.1:{listener.server_port}/", b"", {}, ["127.0.0.0/8"]) == 302
    assert len(listener.got) == 1


def test_nobody_there_is_said(listener):
    with pytest.raises(UnavailableError):
        outbound.post("http://127.0.0.1:9/", b"", {}, ["127.0.0.0/8"])
    with pytest.raises(UnavailableError):
        outbound.post(f"https://127.0.0.1:{listener.server_port}/", b"", {}, ["127.0.0.0/8"])


def test_events_come_signed_in_order_and_again_until_taken(store, listener):
    hooks = Webhooks(store, LOCAL)
    for number in (1, 2):
        version = store.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}")
        store.records.put(version)
    hook = hooks.add("ops", f"http://127.0.0.1:{listener.server_port}/hook", ["alias.alias_set"])
    set_alias(store, "m", "champion", "m@1", reason="first")
    set_alias(store, "m", "champion", "m@2")
    listener.answers = [500, 204, 204]
    notifier = Notifier(store, LOCAL, retry_after_s=(0.0, 0.0))
    for _ in range(5):
        notifier.look()
    bodies = [json.loads(body) for _, _, body in listener.got]
    assert [body["event"]["data"]["version"] for body in bodies] == ["m@1", "m@1", "m@2"]
    _, headers, body = listener.got[0]
    assert headers["X-Everloop-Event"] == "alias.alias_set"
    assert headers["X-Everloop-Signature"] == sign(hook.secret, headers["X-Everloop-Timestamp"], body)
    assert listener.got[0][1]["X-Everloop-Delivery"] == listener.got[1][1]["X-Everloop-Delivery"]
    # What was delivered is not sent again by the next process.
    Notifier(store, LOCAL).look()
    assert len(listener.got) == 3
    assert hooks.test("ops") == 204


def test_what_nobody_takes_is_given_up(store, listener):
    hooks = Webhooks(store, LOCAL)
    store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:0"))
    hooks.add("ops", f"http://127.0.0.1:{listener.server_port}/", ["alias.alias_set"])
    set_alias(store, "m", "a", "m@1")
    set_alias(store, "m", "b", "m@1")
    listener.answers = [500, 500, 204]
    notifier = Notifier(store, LOCAL, retry_after_s=(0.0,))
    for _ in range(3):
        notifier.look()
    assert [json.loads(body)["event"]["key"] for _, _, body in listener.got] == ["m@a", "m@a", "m@b"]
    assert hooks.get("ops").failures == 0


def test_webhooks_over_http(store, serve):
    with serve(store, LOCAL) as place:
        made = place.ask("POST", "/api/v1/webhooks", {"name": "a", "url": "http://127.0.0.1:9/"})
        assert (made.status, len(made.json["secret"]) > 30) == (201, True)
        listed = place.ask("GET", "/api/v1/webhooks").json
        assert [(one["name"], one["secret"]) for one in listed] == [("a", None)]
        assert place.ask("POST", "/api/v1/webhooks", {"name": "b", "url": "http://10.0.0.1/"}).status == 400
        assert place.ask("POST", "/api/v1/webhooks", {"name": "b", "url": 5}).status == 400
        assert place.ask("POST", "/api/v1/webhooks/a/test").status == 503
        assert place.ask("DELETE", "/api/v1/webhooks/a").status == 204
        assert place.ask("DELETE", "/api/v1/webhooks/a").status == 404


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
