"""Requests that the middleware refuses: other host names and origins, bodies that are too long, too slow or truncated,
and malformed requests."""

from __future__ import annotations

import json
import logging
import socket
import string
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.http.host_names import HostRule, host_name
from everloop.http.request_guard import RequestGuard
from everloop.server.server_options import ServerOptions


def talk(control, data, timeout_s=10.0):
    """Send raw bytes and read until the server closes the connection."""
    with socket.create_connection(control.address, timeout=timeout_s) as wire:
        wire.sendall(data)
        said = b""
        while part := wire.recv(65536):
            said += part
        return said


def test_only_its_own_names(store, serve):
    options = ServerOptions(allowed_hosts=("ml.example.com", "*.lab.example.com"))
    with serve(store, options) as control:
        port = control.address[1]
        for host in (
            "localhost",
            f"LOCALHOST:{port}",
            "[::1]:80",
            "ml.example.com",
            "a.lab.example.com:8443",
            "127.0.0.1.",
        ):
            assert control.request("GET", "/health", host=host).status == 200, host
        for host in (
            "evil.example", "lab.example.com", "xlab.example.com", "localhost.evil.example", "127.0.0.1.evil.example",
            "127.0.0.1@evil.example", "evil.example#localhost", "[::1", "[evil]", "", "localhost:80:80", "0.0.0.0",
            "127.0.0.2", "localhost:99x",
        ):  # fmt: skip
            assert control.request("GET", "/health", host=host).status == 421, host
        assert b" 421 " in talk(control, b"GET /health HTTP/1.0\r\n\r\n")
        twice = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert b" 421 " in talk(control, twice)
        absolute = b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        assert b" 421 " in talk(control, absolute)


def test_other_origins_change_nothing(store, serve):
    with serve(store) as control:
        own = f"http://127.0.0.1:{control.address[1]}"
        path = "/api/v1/models/m/aliases/a/policy"

        def put(**headers):
            return control.request("PUT", path, {"approvals": 1}, **headers).status

        for headers in (
            {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": own.replace("http", "file")},
            {"origin": "http://127.0.0.1:1"}, {"origin": f"{own}.evil.example"}, {"origin": ""},
            {"sec_fetch_site": "cross-site"}, {"sec_fetch_site": "same-site"},
            {"origin": own, "sec_fetch_site": "cross-site"},
        ):  # fmt: skip
            assert put(**headers) == 403, headers
        assert control.request("GET", "/api/v1/alias-policies").json == []
        assert put(origin=own, sec_fetch_site="same-origin") == 200
        assert put() == 200
        answer = control.request("GET", "/api/v1/status", origin="http://evil.example")
        assert not any(name.startswith("access-control") for name in answer.headers)
        preflight = control.request("OPTIONS", path, origin="http://evil.example", access_control_request_method="PUT")
        assert not any(name.startswith("access-control") for name in preflight.headers)


@pytest.mark.slow
def test_every_answer_is_guarded(store, serve):
    with serve(store) as control:
        for path in (
            "/",
            "/nothing",
            "/health",
            "/api/v1/status",
            "/static/unbuilt.css",
            "/api/openapi.json",
            "/api/v1/runs?limit=x",
        ):
            headers = control.request("GET", path).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert headers["x-frame-options"] == "DENY", path
            assert "server" not in headers


@pytest.mark.slow
def test_openapi_tells_of_the_routes(store, serve):
    with serve(store) as control:
        document = control.request("GET", "/api/openapi.json").json
    assert document["info"]["title"] == "everloop"
    for path in ("/api/v1/status", "/api/v1/access/users", "/api/v1/diff", "/api/v1/webhooks"):
        assert path in document["paths"]
    assert document["paths"]["/api/v1/access/users"]["post"]["description"]


@pytest.mark.parametrize(
    "name",
    ["..%2fapp.py", "%2e%2e/app.py", "..%252fapp.py", "..\\app.py", "....//app.py", "%00unbuilt.css", "unbuilt.css%00",
     "unbuilt.css/", "/etc/passwd", "unbuilt.css;x", "UNBUILT.CSS", "C:\\x", "unbuilt.css%2f..", "unbuilt.css."],
)  # fmt: skip
def test_static_names_are_looked_up_not_opened(store, serve, name):
    with serve(store) as control:
        answer = control.request("GET", f"/static/{name}")
        assert answer.status in (400, 404) or answer.body == control.request("GET", "/static/unbuilt.css").body
        assert b"def make_app" not in answer.body


def test_headers_cannot_be_injected(store, serve):
    with serve(store) as control:
        for path in (
            "/static/x%0d%0aSet-Cookie:a=b",
            "/api/v1/runs/x%0d%0aX-Evil:1",
            "/api/v1/runs?limit=%0d%0aX-Evil:1",
        ):
            answer = control.request("GET", path)
            assert not {"set-cookie", "x-evil"} & set(answer.headers)
            assert answer.status < 500


def test_long_bodies_are_413(store, serve):
    with serve(store, ServerOptions(json_bytes=1000, upload_bytes=2000)) as control:
        path = "/api/v1/models/m/aliases/a/policy"
        assert (
            control.request("PUT", path, b'{"approvals": 1}' + b" " * 900, content_type="application/json").status
            == 200
        )
        assert control.request("PUT", path, b" " * 1001, content_type="application/json").status == 413
        # Said before it is sent, and said to be short but sent in pieces without end.
        head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
        assert b" 413 " in talk(control, head + b"Content-Length: 99999999999\r\n\r\n{")
        pieces = (b"3e8\r\n" + b" " * 1000 + b"\r\n") * 2
        assert b" 413 " in talk(control, head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces)


@pytest.mark.slow
def test_slow_bodies_are_408(store, serve):
    with serve(store, ServerOptions(stall_s=0.3, body_s=5.0)) as control:
        head = b"PUT /api/v1/models/m/aliases/a/policy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        began = monotonic()
        assert b" 408 " in talk(control, head)
        assert monotonic() - began < 8
        assert control.request("GET", "/health").status == 200


@pytest.mark.slow
def test_slow_and_endless_headers_end(store, serve, monkeypatch):
    monkeypatch.setattr("everloop.http.connection.HEADERS_S", 0.3)
    with serve(store) as control:
        assert talk(control, b"GET /health HTTP/1.1\r\nHost: local") == b""
        filler = (b"X-Filler: " + b"a" * 4000 + b"\r\n") * 100_000
        with pytest.raises(OSError, match=r"reset|Broken|aborted"):
            talk(control, b"GET /health HTTP/1.1\r\n" + filler)
        assert control.request("GET", "/health").status == 200


def test_bodies_cut_off_leave_nothing(store, serve, caplog):
    with serve(store) as control:
        body = b'{"approvals": 1}'
        path, length = "/api/v1/models/m/aliases/a/policy", len(body) + 5
        head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        with socket.create_connection(control.address, 5) as wire:
            wire.sendall(head.encode() + body)
        assert control.request("GET", "/api/v1/alias-policies").json == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_access_log_cannot_be_forged(store, serve, caplog):
    with caplog.at_level(logging.INFO, logger="everloop.access"), serve(store) as control:
        control.request("GET", "/x%0a127.0.0.1%20-%20GET%20/fine")
        control.request("GET", "/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "everloop.access"]
    assert len(lines) == 2
    assert "\n" not in lines[0]
    assert caplog.records[-1].request["status"] == 200 or "/health" in lines[1]


_TEXT = st.text(alphabet=string.printable + "äß漢\x00\u202e%'\"", max_size=30)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_NAMES = [
    "name",
    "roles",
    "version",
    "reason",
    "approvals",
    "url",
    "verbs",
    "tags",
    "archived",
    "description",
    "password",
]


@pytest.mark.slow
def test_nothing_that_is_sent_gives_a_5xx(store, serve):
    from urllib.parse import quote

    from everloop.server.control_app import make_app

    routes = [
        (method, route.path)
        for route in make_app(store).app.routes
        for handler in getattr(route, "route_handlers", [])
        for method in handler.http_methods
        if "mlflow" not in route.path
    ]
    with serve(store) as control:

        @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(st.data())
        def fuzz(data):
            method, path = data.draw(st.sampled_from(routes))
            while "{" in path:
                before, _, rest = path.partition("{")
                value = data.draw(_TEXT | st.sampled_from(["1", "m", "runs", "users", "champion", "approve", "9" * 30]))
                path = before + quote(value, safe="") + rest.partition("}")[2]
            asked = data.draw(
                st.dictionaries(st.sampled_from(["limit", "after", "since", "state", "at", "a", "b", "x"]), _TEXT)
            )
            if asked:
                path += "?" + "&".join(f"{name}={quote(value)}" for name, value in asked.items())
            body = data.draw(
                st.none() | st.binary(max_size=50) | _JSON | st.dictionaries(st.sampled_from(_NAMES), _JSON)
            )
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            answer = control.request(
                method, path, body, content_type=data.draw(st.sampled_from(["application/json", "text/plain", "a"]))
            )
            assert answer.status < 500, (method, path, body, answer.body)

        fuzz()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a:1", "a"),
        ("A.b", "a.b"),
        ("[::1]:1", "::1"),
        ("[0:0::1]", "::1"),
        ("a b", None),
        ("a/b", None),
        ("ä", None),
        (":1", None),
    ],
)
def test_names_of_hosts(value, name):
    assert host_name(value) == name


def test_the_address_itself_is_always_right():
    rule = HostRule()
    assert rule.allows(b"10.0.0.5:80", "10.0.0.5")
    assert not rule.allows(b"10.0.0.6:80", "10.0.0.5")
    guard = RequestGuard(HostRule(("a",)))
    for method in ("GET", "POST"):
        assert guard.refusal(method, [(b"host", b"a"), (b"origin", b"http://evil")], None).status == 403
        twice = [(b"origin", b"http://a"), (b"origin", b"http://a"), (b"host", b"a")]
        assert guard.refusal(method, twice, None).status == 403
