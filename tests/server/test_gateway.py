"""The gateway: what it forwards, what it refuses, and its responses if an endpoint is down."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from time import monotonic, sleep
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.packages import build_package
from everloop.records import EndpointRecord, Route
from everloop.registry import register
from everloop.server.access import UserStore
from everloop.server.endpoint_ports import EndpointPorts
from everloop.server.server_options import ServerOptions
from everloop.serving import EndpointProcess
from everloop.serving.access.endpoint_tokens import add_token
from everloop.serving.endpoint_state import lock_name, set_options, set_state
from everloop.testing.models import sample_rows, sample_table, train_sample

PASSWORD = "correct horse battery"


class StandIn(threading.Thread):
    """A stand-in for an endpoint that records requests and responds as the test configures."""

    def __init__(self, answer=None):
        super().__init__(daemon=True)
        self.answer = answer or (lambda wire, head, body: wire.sendall(ok(b'{"fine":true}')))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.requests = []
        self.connections = 0
        self.wires = []

    def run(self):
        while True:
            try:
                wire, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.wires.append(wire)
            threading.Thread(target=self.talk, args=(wire,), daemon=True).start()

    def talk(self, wire):
        reader = wire.makefile("rb")
        try:
            while line := reader.readline():
                head = [line.rstrip(b"\r\n")]
                while (line := reader.readline()) not in (b"\r\n", b""):
                    head.append(line.rstrip(b"\r\n"))
                named = dict(one.lower().split(b": ", 1) for one in head[1:])
                if b"transfer-encoding" in named:
                    body = b""
                    while size := int(reader.readline(), 16):
                        body += reader.read(size)
                        reader.readline()
                    reader.readline()
                else:
                    body = reader.read(int(named.get(b"content-length", 0)))
                self.requests.append((head, body))
                self.answer(wire, head, body)
        except OSError:
            pass
        finally:
            reader.close()
            wire.close()

    def close(self):
        self.listener.close()
        for wire in self.wires:
            # A thread that waits in `recv` holds the socket open until this.
            with_end(wire)


def with_end(wire):
    try:
        wire.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def ok(body, *headers):
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), b"content-type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@contextmanager
def standing_in(store, name="delays", answer=None, **options):
    """An endpoint's record, its lock, and a stand-in at its address."""
    route = Route(version="delays@1", percent=100)
    store.records.put(store.new(EndpointRecord, name=name, model="delays", routes=(route,), options=options))
    stand_in = StandIn(answer)
    stand_in.start()
    with store.lock(lock_name(store, name), block=False) as held:
        assert held
        set_state(store, name, "ready", f"http://127.0.0.1:{stand_in.port}")
        try:
            yield stand_in
        finally:
            stand_in.close()


def test_what_is_sent_arrives_and_what_is_answered_comes_back(store, serve):
    def answer(wire, head, body):
        wire.sendall(
            ok(b"[1]", b"x-everloop-version: delays@1", b"connection: x-inner", b"x-inner: 1", b"keep-alive: 5")
        )

    with standing_in(store, answer=answer) as endpoint, serve(store) as control:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            got = control.request(
                method, "/endpoints/delays/v2/models/a%2Fb/infer?x=1&y=%20", b'{"a": 1}',
                content_type="application/json", x_request_timeout_ms="50", te="trailers", connection="x-mine",
                x_mine="secret", upgrade="websocket", authorization="Bearer evl_of_the_endpoint", expect="nothing",
            )  # fmt: skip
            assert (got.status, got.body) == (200, b"[1]"), got.body
            assert got.headers["x-everloop-version"] == "delays@1"
            assert not {"x-inner", "keep-alive"} & set(got.headers)
            assert got.headers["x-content-type-options"] == "nosniff"
            head, body = endpoint.requests[-1]
            assert head[0] == f"{method} /v2/models/a%2Fb/infer?x=1&y=%20 HTTP/1.1".encode()
            assert body == b'{"a": 1}'
            named = dict(line.lower().split(b": ", 1) for line in head[1:])
            assert named[b"host"] == f"127.0.0.1:{endpoint.port}".encode()
            assert named[b"x-request-timeout-ms"] == b"50"
            # Without a login here, credentials are the endpoint's.
            assert named[b"authorization"] == b"bearer evl_of_the_endpoint"
            assert not {b"te", b"connection", b"x-mine", b"upgrade", b"expect"} & set(named)
        assert control.request("GET", "/endpoints/delays").status == 200
        assert endpoint.requests[-1][0][0] == b"GET / HTTP/1.1"
        head = control.request("HEAD", "/endpoints/delays/health")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "3")
        assert control.request("GET", "/endpoints").json == [
            {"name": "delays", "state": "ready", "path": "/endpoints/delays/predict"}
        ]


@pytest.mark.slow
def test_connections_are_used_again(store, serve):
    with standing_in(store) as endpoint, serve(store) as control:
        for _ in range(30):
            assert control.request("POST", "/endpoints/delays/predict", {}).status == 200
        assert endpoint.connections == 1
        # A kept connection that the endpoint has closed is not used for the next request.
        with_end(endpoint.wires[0])
        sleep(0.2)
        assert control.request("POST", "/endpoints/delays/predict", {}).status == 200
        assert endpoint.connections == 2


def test_a_kept_connection_that_breaks_gives_nobody_the_answer_before(store, serve):
    def answer(wire, head, body):
        if b"die" in head[0]:
            with_end(wire)
        else:
            wire.sendall(ok(b"[1]"))

    with standing_in(store, answer=answer) as endpoint, serve(store) as control:
        for _ in range(3):
            assert control.request("POST", "/endpoints/delays/predict", {}).status == 200
            assert control.request("POST", "/endpoints/delays/die", {}).status == 502
        assert endpoint.connections == 3
        # What changes nothing is asked again, once.
        assert control.request("GET", "/endpoints/delays/health").status == 200
        assert control.request("GET", "/endpoints/delays/die").status == 502
        assert len([head for head, _ in endpoint.requests if b"GET /die" in head[0]]) == 2


def test_long_bodies_stream_both_ways(store, serve):
    gate = threading.Event()

    def answer(wire, head, body):
        wire.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert gate.wait(20)
        wire.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    with standing_in(store, answer=answer) as endpoint, serve(store) as control:
        sent = os.urandom(3_000_000)
        connection = http.client.HTTPConnection(*control.address, timeout=20)
        connection.request("POST", "/endpoints/delays/predict", sent)
        got = connection.getresponse()
        # The first piece is here before the endpoint has sent the second.
        assert got.read(5) == b"first"
        gate.set()
        assert got.read() == sent
        assert endpoint.requests[0][1] == sent
        connection.request("POST", "/endpoints/delays/predict", iter([sent[:1000], sent[1000:400_000]]))
        assert connection.getresponse().read() == b"first" + sent[:400_000]
        connection.close()


@pytest.mark.slow
def test_names_choose_only_endpoints_of_the_store(store, serve):
    with standing_in(store) as endpoint, serve(store) as control:
        port = endpoint.port
        for path in (
            "nope/predict",
            "..%2fdelays/health",
            "%2e%2e/delays",
            "../delays/health",
            "./delays",
            "delays%00/health",
            "delays%2f..%2f..%2fapi",
            f"127.0.0.1:{port}/health",
            f"http:%2f%2f127.0.0.1:{port}/",
            "@delays/health",
            "delays@evil.example/health",
            "%252e%252e/x",
            "delays%0d%0aHost:%20evil/x",
            "delays;x/health",
            "DELAYS/health",
            "x" * 300,
        ):
            got = control.request("POST", f"/endpoints/{path}", {})
            assert got.status == 404, (path, got.body)
            assert got.json["error"]["help"] == "Endpoints: delays"
        assert endpoint.requests == []
        # Below a name that is right, the path is the endpoint's own matter, and goes there as it came.
        for path in ("..%2f..%2fapi/v1/runs", "../../api/v1/runs", "%2e%2e/x", "//evil.example/x", "a%0d%0ab"):
            assert control.request("GET", f"/endpoints/delays/{path}").status == 200
            assert endpoint.requests[-1][0][0] == f"GET /{path} HTTP/1.1".encode()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.text(max_size=20), st.booleans())
        def any_name(name, encoded):
            before = len(endpoint.requests)
            got = control.request("GET", f"/endpoints/{quote(name, safe='' if encoded else '/.:@;')}/health")
            if name.partition("/")[0] != "delays":
                assert got.status in (200, 404) if not name.strip("/") else got.status == 404
                assert len(endpoint.requests) == before

        any_name()


def test_an_unknown_endpoint_where_there_is_none(store, serve):
    with serve(store) as control:
        got = control.request("POST", "/endpoints/delays/predict", {})
        assert got.status == 404
        assert "none yet" in got.json["error"]["help"]
        assert control.request("GET", "/endpoints").json == []


def test_other_origins_and_names_reach_no_endpoint(store, serve):
    with standing_in(store) as endpoint, serve(store) as control:
        ask = "/endpoints/delays/predict"
        assert control.request("POST", ask, {}, origin="http://evil.example").status == 403
        assert control.request("POST", ask, {}, sec_fetch_site="cross-site").status == 403
        assert control.request("POST", ask, {}, host="evil.example").status == 421
        assert endpoint.requests == []


def test_a_body_beyond_the_endpoints_limit_is_refused_with_an_answer(store, serve):
    with standing_in(store, max_body_bytes=300_000) as endpoint, serve(store) as control:
        assert control.request("POST", "/endpoints/delays/predict", b" " * 300_000).status == 200
        got = control.request("POST", "/endpoints/delays/predict", b" " * 20_000_000)
        assert got.status == 413
        assert "300000 bytes" in got.json["error"]["message"]
        connection = http.client.HTTPConnection(*control.address, timeout=20)
        connection.request("POST", "/endpoints/delays/predict", iter([b" " * 200_000] * 2))
        assert connection.getresponse().status == 413
        connection.close()
        assert len(endpoint.requests) == 1


@pytest.mark.slow
def test_an_endpoint_that_is_not_there(store, serve):
    route = Route(version="delays@1", percent=100)
    store.records.put(store.new(EndpointRecord, name="idle", model="delays"))
    store.records.put(store.new(EndpointRecord, name="off", model="delays", routes=(route,)))
    with serve(store) as control, socket.create_server(("127.0.0.1", 0)) as stranger:
        got = control.request("POST", "/endpoints/idle/predict", {})
        assert (got.status, "everloop run" in got.json["error"]["help"]) == (503, True)
        got = control.request("POST", "/endpoints/off/predict", {})
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert "everloop serve off" in got.json["error"]["help"]
        # An address that a killed process left behind, where another program listens by now: nothing is sent there.
        set_state(store, "off", "ready", f"http://127.0.0.1:{stranger.getsockname()[1]}")
        sleep(0.3)
        got = control.request("POST", "/endpoints/off/predict", {})
        assert (got.status, "down" in got.json["error"]["message"]) == (503, True)
        stranger.settimeout(0.1)
        with pytest.raises(TimeoutError):
            stranger.accept()


def test_an_endpoint_that_breaks_off(store, serve):
    ways = {}

    def answer(wire, head, body):
        wire.sendall(ways["now"])
        with_end(wire)

    with standing_in(store, answer=answer) as endpoint, serve(store) as control:
        for broken in (b"", b"HTTP/1.1 200 OK\r\ncontent-", b"nonsense\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"):
            ways["now"] = broken
            got = control.request("POST", "/endpoints/delays/predict", {})
            assert got.status == 502, (broken, got.body)
            assert got.json["error"]["message"].startswith(
                "The endpoint 'delays' closed the connection before it responded"
            )
        # Each was sent once: nobody knows whether it was scored.
        assert len(endpoint.requests) == 4
        ways["now"] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"
        with pytest.raises(http.client.IncompleteRead):
            control.request("POST", "/endpoints/delays/predict", {})
        # Without a length, the end of the connection is the end of the answer.
        ways["now"] = b"HTTP/1.1 200 OK\r\n\r\nwhole"
        assert control.request("POST", "/endpoints/delays/predict", {}).body == b"whole"


@pytest.mark.slow
def test_a_slow_endpoint_holds_up_nothing_else(store, serve):
    let_go = threading.Event()

    def answer(wire, head, body):
        let_go.wait(30)
        wire.sendall(ok(b"{}"))

    with standing_in(store, answer=answer), serve(store, ServerOptions(endpoint_answer_s=1.5)) as control:
        statuses = []
        threads = [
            threading.Thread(
                target=lambda: statuses.append(control.request("POST", "/endpoints/delays/predict", {}).status),
                daemon=True,
            )
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        # The control plane answers while twenty requests wait for the endpoint.
        for _ in range(5):
            assert control.request("GET", "/health").status == 200
            assert control.request("GET", "/api/v1/status").status == 200
        assert statuses == []
        for thread in threads:
            thread.join(20)
        assert statuses == [504] * 20
        let_go.set()


@pytest.mark.slow
def test_a_slow_client_holds_no_connection_to_the_endpoint(store, serve):
    with standing_in(store) as endpoint, serve(store, ServerOptions(stall_s=0.5)) as control:
        with socket.create_connection(control.address, timeout=10) as wire:
            head = b"POST /endpoints/delays/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            wire.sendall(head)
            said = b""
            while part := wire.recv(65536):
                said += part
        assert b" 408 " in said
        assert endpoint.connections == 0


def test_handshakes_of_web_sockets_get_an_ordinary_answer(store, serve):
    with standing_in(store) as endpoint, serve(store) as control:
        got = control.request(
            "GET", "/endpoints/delays/predict", connection="Upgrade", upgrade="websocket",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==", sec_websocket_version="13",
        )  # fmt: skip
        assert got.status == 200
        assert not any(b"upgrade" in line.lower() for line in endpoint.requests[-1][0])


@pytest.fixture
def tokens(store, monkeypatch):
    monkeypatch.setattr("everloop.server.access.passwords._N", 16)
    user_store = UserStore(store)
    made = {}
    for role in ("viewer", "editor", "admin"):
        user_store.add_user(role, {"*": role}, PASSWORD)
        made[role] = "Bearer " + user_store.create_token(f"of-{role}", role)[1]
    user_store.add_user("elsewhere", {"other": "admin"}, PASSWORD)
    made["elsewhere"] = "Bearer " + user_store.create_token("of-elsewhere", "elsewhere")[1]
    return made


@pytest.mark.slow
def test_who_may_call_an_endpoint(store, serve, tokens):
    with standing_in(store), standing_in(store, "other"), serve(store) as control:
        tokens["endpoint"] = "Bearer " + add_token(store, "delays", "app")
        tokens["of other"] = "Bearer " + add_token(store, "other", "app")
        sleep(0.3)
        paths = ("predict", "labels", "health", "v2/models/delays/infer", "")
        wanted = {
            None: (401, 401), "elsewhere": (403, 403), "viewer": (200, 403), "editor": (200, 200), "admin": (200, 200),
            "endpoint": (200, 200), "of other": (401, 401),
        }  # fmt: skip
        for who, (reading, calling) in wanted.items():
            # Failed logins are counted, so there are few of them.
            for path in paths if who != "of other" else paths[:2]:
                headers = {} if who is None else {"authorization": tokens[who]}
                for method, status in (("GET", reading), ("HEAD", reading), ("POST", calling), ("DELETE", calling)):
                    got = control.request(method, f"/endpoints/delays/{path}", None, **headers)
                    assert got.status == status, (who, method, path, got.body)
        basic = "Basic " + base64.b64encode(f"editor:{PASSWORD}".encode()).decode()
        assert control.request("POST", "/endpoints/delays/predict", {}, authorization=basic).status == 200


@pytest.mark.slow
def test_an_endpoints_token_opens_nothing_but_what_is_below_its_name(store, serve, tokens, monkeypatch):
    monkeypatch.setattr(
        "everloop.server.access.authentication.FailureLimit.wait_s", lambda self, address, account="": 0.0
    )
    with standing_in(store) as endpoint, standing_in(store, "other"), serve(store) as control:
        secret = "Bearer " + add_token(store, "delays", "app")
        sleep(0.3)
        for path in (
            "/api/v1/runs", "/api/v1/endpoints", "/endpoints", "/endpoints/", "/", "/endpoints/other/health",
            "/endpoints/delays%2f..%2f..%2fapi/v1/runs", "/api/v1/access/me", "/endpoints/../api/v1/runs",
            "//endpoints/delays/health", "/%65ndpoints/delays/health", "/api/2.0/mlflow/experiments/search",
        ):  # fmt: skip
            assert control.request("GET", path, authorization=secret).status == 401, path
        assert endpoint.requests == []
        # A path below the name goes to the endpoint, whatever it says, and never to a route of this server.
        got = control.request("GET", "/endpoints/delays/../../api/v1/runs", authorization=secret)
        assert (got.body, endpoint.requests[-1][0][0]) == (b'{"fine":true}', b"GET /../../api/v1/runs HTTP/1.1")


def test_credentials_for_the_server_do_not_reach_the_endpoint(store, serve, tokens):
    with standing_in(store) as endpoint, serve(store) as control:
        own = add_token(store, "delays", "app")
        sleep(0.3)
        control.request("POST", "/endpoints/delays/predict", {}, authorization=tokens["editor"], cookie="a=b")
        assert not any(line.lower().startswith((b"authorization", b"cookie")) for line in endpoint.requests[-1][0])
        # Who logs in here and needs the endpoint's token as well sends it beside.
        control.request(
            "POST", "/endpoints/delays/predict", {}, authorization=tokens["editor"], x_everloop_endpoint_token=own
        )
        lines = endpoint.requests[-1][0]
        assert [line for line in lines if line.lower().startswith(b"authorization")] == [
            b"authorization: Bearer " + own.encode()
        ]
        assert not any(b"endpoint-token" in line.lower() for line in lines)
        control.request("POST", "/endpoints/delays/predict", {}, authorization=f"Bearer {own}")
        assert f"authorization: Bearer {own}".encode() in endpoint.requests[-1][0]


@pytest.mark.slow
def test_a_real_endpoint_and_one_that_is_killed_under_load(store, serve):
    package = build_package(train_sample(), store=store, sample=sample_table(100, 0))
    version = register(store, "delays", package)
    route = Route(version=version.key, percent=100)
    store.records.put(store.new(EndpointRecord, name="delays", model="delays", routes=(route,)))
    (row,) = sample_rows(1)
    body = {"rows": [row], "keys": ["a"]}
    with serve(store) as control, EndpointProcess(store, "delays") as first:
        url = str(first.url)
        port = int(url.rpartition(":")[2])
        sleep(0.3)
        answered = control.request("POST", "/endpoints/delays/predict", body)
        direct = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        direct.request("POST", "/predict", json.dumps(body), {"content-type": "application/json"})
        assert answered.json["probabilities"] == json.loads(direct.getresponse().read())["probabilities"]
        direct.close()
        labels = {"labels": [{"key": "a", "value": True}]}
        assert control.request("POST", "/endpoints/delays/labels", labels).status == 200
        for path in ("health", "ready", "metrics", "openapi.json", "v2", "v2/models/delays", "ping", "version", ""):
            assert control.request("GET", f"/endpoints/delays/{path}").status == 200, path
        assert control.request("POST", "/endpoints/delays/invocations", {"dataframe_records": [row]}).status == 200
        assert control.request("POST", "/endpoints/delays/predict", {"rows": [{}]}).status == 422
        refused = control.request("GET", "/endpoints/delays/predict")
        assert refused.status == 405
        # The example is for the address that the client knows.
        assert f":{control.address[1]}/endpoints/delays/predict " in refused.json["error"]["curl"]

        done, statuses = threading.Event(), []

        def load():
            while not done.is_set():
                statuses.append(control.request("POST", "/endpoints/delays/predict", body).status)

        threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        sleep(0.5)
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        first.kill()
        with EndpointProcess(store, "delays", port=port) as second:
            assert second.url == url
            deadline = monotonic() + 20
            while statuses[-20:] != [200] * 20 and monotonic() < deadline:
                sleep(0.05)
            done.set()
            for thread in threads:
                thread.join(20)
            assert set(statuses) <= {200, 502, 503}
            assert {502, 503} & set(statuses)
            assert statuses[-20:] == [200] * 20


def test_options_that_cannot_be_read_open_nothing(store, serve, tokens):
    with standing_in(store, tokens="all") as endpoint, standing_in(store, "other"), serve(store) as control:
        assert control.request("POST", "/endpoints/delays/predict", {}, authorization="Bearer all").status == 401
        assert control.request("POST", "/endpoints/other/predict", {}, authorization=tokens["editor"]).status == 200
        assert endpoint.requests == []
    with pytest.raises(Exception, match="max_body_bytes"):
        set_options(store, "other", {"max_body_bytes": "-1"})


def test_endpoints_keep_their_ports(store):
    ports = EndpointPorts(store)
    first = ports.choose("a")
    assert first > 8100
    assert ports.keep("a", first) is None
    second = ports.choose("b")
    assert second != first
    ports.keep("b", second)
    # Another process reads the same.
    assert [EndpointPorts(store).choose(name) for name in ("a", "b")] == [first, second]
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", first))
        stranger.listen()
        moved = ports.choose("a")
        assert moved not in (first, second)
        assert ports.keep("a", moved) == first
    assert ports.choose("a") == moved
    assert ports.keep("a", moved) is None
    other = EndpointPorts(store.for_project("q"))
    assert other.choose("a") != 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "8101"}', '{"a": 80}', '{"a": true}', '{"a": 99999}'])
def test_a_damaged_file_of_ports_keeps_nothing_from_starting(store, text):
    ports = EndpointPorts(store)
    ports.keep("b", 8101)
    (store.home / "run" / "ports-p.json").write_text(text)
    assert ports.choose("a") > 8100
