"""Attacks on the whole server by web pages, other host names, unusual paths and missing rights all fail.

Paths, sources, outside addresses and model files have their own pages: `mlflow/test_attacks.py`, `test_outbound.py`,
`test_middleware.py`, and `tests/integrations/mlflow/model_folders/test_folders.py`.
"""

from __future__ import annotations

import base64
import http.client
import json
import re

import pytest

from everloop.integrations.mlflow.tracking_api import ROUTES
from everloop.records import ModelVersion
from everloop.server.access import UserStore
from everloop.server.control_app import make_app
from everloop.server.server_options import ServerOptions

PASSWORD = "correct horse battery"
XSS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("everloop.server.access.passwords._N", 16)


def changing(store):
    """All routes that change something, MLflow's under both of its prefixes."""
    for route in make_app(store, ServerOptions()).app.routes:
        for handler in getattr(route, "route_handlers", None) or [route.route_handler]:
            for method in getattr(handler, "http_methods", ()):
                if method not in ("GET", "HEAD", "OPTIONS"):
                    yield method, re.sub(r"\{[^}]*\}", "1", route.path)
    for route in ROUTES:
        if route.method != "GET":
            for root in ("api", "ajax-api"):
                yield route.method, f"/{root}/{re.sub(r'{[^}]*}', '1', route.path)}"
    yield "PUT", "/api/2.0/mlflow-artifacts/artifacts/x"
    yield "DELETE", "/api/2.0/mlflow-artifacts/artifacts/x"
    yield "POST", "/v1/traces"
    yield "POST", "/graphql"


FORMS = {
    "text/plain": b'{"name": "forged", "x": "="}',
    "text/plain;charset=UTF-8": b'{"name": "forged", "x": "="}',
    "application/x-www-form-urlencoded": b"name=forged",
    "multipart/form-data; boundary=b": b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\nforged\r\n--b--\r\n',
    "application/json": b'{"name": "forged"}',
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_no_page_of_another_site_changes_anything_by_a_form(store, serve, kind):
    asked = list(changing(store))
    assert len(asked) > 100
    with serve(store) as control:
        before = store.records.last_event()
        for method, path in asked:
            for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}):
                got = control.request(method, path, FORMS[kind], content_type=kind, **headers)
                assert got.status == 403, (method, path, headers, got.body)
        assert store.records.last_event() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1].evil.example"]
)
def test_no_name_that_was_made_to_lead_here_is_answered(store, serve, name):
    with serve(store) as control:
        for method, path in [*list(changing(store))[::7], ("GET", "/"), ("GET", "/health"), ("GET", "/api/v1/runs")]:
            for more in (
                {},
                {"origin": f"http://{name}"},
                {"x_forwarded_host": "localhost"},
                {"forwarded": "host=localhost"},
            ):
                assert control.request(method, path, {}, host=name, **more).status == 421, (method, path, more)
        # Nor do headers that a proxy would set make another name of this one, or of a stranger a friend.
        assert control.request("GET", "/health", x_forwarded_host=name, x_forwarded_for="127.0.0.1").status == 200


@pytest.mark.slow
@pytest.mark.parametrize("override", ["x_http_method_override", "x_http_method", "x_method_override"])
def test_a_method_is_what_the_request_line_says(store, serve, override):
    path = "/api/v1/models/m/aliases/a/policy"
    with serve(store) as control:
        for real, claimed in (("GET", "PUT"), ("POST", "PUT"), ("HEAD", "DELETE")):
            got = control.request(real, path, {"approvals": 1}, **{override: claimed})
            assert got.status in (404, 405), (real, claimed, got.status)
        assert control.request("POST", f"{path}?_method=PUT", {"approvals": 1, "_method": "PUT"}).status in (404, 405)
        assert control.request("GET", "/api/v1/alias-policies").json == []


def spellings(path):
    """Other ways to write a path, which a second router might read as the same path."""
    head, _, tail = path.rpartition("/")
    yield from (f"/{path}", f"{path}/", f"{path}//", f"{head}//{tail}", f"{head}/./{tail}", f"{head}/x/../{tail}")
    yield from (
        f"{head}%2f{tail}",
        f"{head}/{tail};x=1",
        f"{path}%00",
        f"{path}%20",
        f"{path}.json",
        f"{path}%3fx",
        f"{path}#x",
    )
    yield from (f"/health/..{path}", f"/health%2f..{path}", f"/static/../..{path}", path.upper(), f"{head}\\{tail}")
    yield from (f"{head}/{tail[0].replace(tail[0], f'%{ord(tail[0]):02x}')}{tail[1:]}", f"/health;{path}", f"/.{path}")


@pytest.mark.slow
def test_no_spelling_of_a_path_needs_less(store, serve):
    user_store = UserStore(store)
    for name, role in (("root", "admin"), ("eve", "viewer")):
        user_store.add_user(name, {"*": role}, PASSWORD)
    viewer = "Bearer " + user_store.create_token("t", "eve")[1]
    store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:0"))
    paths = [
        ("PUT", "/api/v1/models/m/aliases/live", {"version": "m@1"}),
        ("POST", "/api/2.0/mlflow/registered-models/alias", {"name": "m", "alias": "live", "version": "1"}),
        ("POST", "/ajax-api/2.0/mlflow/registered-models/create", {"name": "forged"}),
        ("DELETE", "/api/2.0/mlflow/model-versions/delete", {"name": "m", "version": "1"}),
        ("POST", "/api/v1/access/users", {"name": "mallory", "roles": {"*": "admin"}}),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x", {}),
    ]
    with serve(store) as control:
        before = [event.seq for event in store.records.events_since(0)]
        for method, path, body in paths:
            for spelled in (path, *spellings(path)):
                assert control.request(method, spelled, body).status in (401, 421, 400), (method, spelled)
                got = control.request(method, spelled, body, authorization=viewer)
                assert got.status in (400, 403, 404, 405), (method, spelled, got.status, got.body)
        assert [event.seq for event in store.records.events_since(0)] == before
        assert [user.name for user in user_store.users()] == ["eve", "root"]


def test_nobody_signs_up_and_no_password_is_known(store, serve):
    UserStore(store).add_user("admin", {"*": "admin"}, PASSWORD)
    with serve(store) as control:
        for path in (
            "/signup",
            "/api/2.0/mlflow/users/create",
            "/api/2.0/mlflow/users/create-ui",
            "/register",
            "/login",
        ):
            for kind, body in FORMS.items():
                assert control.request("POST", path, body, content_type=kind).status == 401, path
        for password in ("admin", "password", "password1234", "mlflow", "everloop", ""):
            header = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
            assert control.request("GET", "/api/v1/runs", authorization=header).status in (401, 429)


def test_what_a_list_or_a_batch_names_is_of_this_project(store, serve):
    """No route with ids, names or filters can reach users, webhooks' secrets or another project."""
    other = store.for_project("other")
    run = other.records
    version = other.new(ModelVersion, model="hidden", version=1, package="sha256:0", description="secret-of-other")
    run.put(version)
    UserStore(store).add_user("root", {"*": "admin", "p": "viewer"}, PASSWORD)
    header = "Basic " + base64.b64encode(f"root:{PASSWORD}".encode()).decode()
    with serve(store) as control:
        asked = [
            ("GET", "/api/v1/model-versions", None), ("GET", f"/api/v1/model-versions/{version.id}", None),
            ("GET", "/api/v1/model-versions/hidden@1", None), ("GET", "/api/v1/model-versions?project=other", None),
            ("GET", "/api/v1/events", None), ("GET", "/api/v1/diff?a=hidden@1&b=hidden@1", None),
            ("GET", "/api/v1/models/hidden/versions/1/card", None), ("GET", "/api/v1/users", None),
            ("GET", "/api/v1/tokens", None), ("GET", "/api/v1/user/root", None), ("GET", "/api/v1/webhook", None),
            ("GET", "/api/2.0/mlflow/model-versions/search", None),
            ("GET", "/api/2.0/mlflow/model-versions/get?name=hidden&version=1", None),
            ("GET", "/api/2.0/mlflow/registered-models/search", None),
            ("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["0", "1", "_access"], "filter": ""}),
            ("GET", "/api/2.0/mlflow/metrics/get-history-bulk?run_id=x&run_id=y&metric_key=m", None),
            ("POST", "/api/3.0/mlflow/traces/search", {"locations": []}),
        ]  # fmt: skip
        for method, path, body in asked:
            got = control.request(method, path, body, authorization=header, x_mlflow_workspace="other")
            assert b"secret-of-other" not in got.body, path
            assert b"scrypt" not in got.body, path
            assert got.status < 500, (path, got.body)


def test_names_are_never_markup(store, serve):
    """Names with markup are always returned as data that no browser renders."""
    with serve(store) as control:
        name = XSS.replace("/", "|")
        assert control.request("POST", "/api/2.0/mlflow/registered-models/create", {"name": name}).status == 200
        made = {"name": name, "source": "s3://b/x", "description": XSS, "tags": [{"key": "k", "value": XSS}]}
        assert control.request("POST", "/api/2.0/mlflow/model-versions/create", made).status == 200
        run = control.request("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": "0", "run_name": XSS})
        assert run.status == 200
        assert control.request("POST", "/api/2.0/mlflow/experiments/create", {"name": XSS}).status == 200
        for path in (
            "/api/v1/model-versions", "/api/v1/runs", "/api/v1/events", "/api/v1/status", f"/api/v1/{_spelled(XSS)}",
            f"/api/v1/runs/{_spelled(XSS)}", f"/api/v1/runs?limit={_spelled(XSS)}", f"/{_spelled(XSS)}",
            f"/static/{_spelled(XSS)}", f"/api/v1/diff?a={_spelled(XSS)}&b=x",
            f"/api/v1/models/{_spelled(name)}/versions/1/card", "/api/2.0/mlflow/registered-models/search",
            f"/api/2.0/mlflow/registered-models/get?name={_spelled(XSS)}",
            "/api/2.0/mlflow/experiments/search?max_results=9",
            f"/get-artifact?run_id={_spelled(XSS)}&path={_spelled(XSS)}", f"/api/2.0/mlflow/{_spelled(XSS)}",
        ):  # fmt: skip
            got = control.request("GET", path, accept="text/html")
            kind = got.headers["content-type"].partition(";")[0]
            assert kind in ("application/json", "text/markdown", "text/plain"), (path, kind)
            assert got.headers["x-content-type-options"] == "nosniff"
            assert (
                "script-src 'self'" in got.headers["content-security-policy"]
                or "sandbox" in got.headers["content-security-policy"]
            )
            assert not any("<script>" in value for value in got.headers.values())
        card = control.request("GET", f"/api/v1/models/{_spelled(name)}/versions/1/card")
        told = card.body.decode()
        # What somebody wrote as a description is his markdown; everything else in a card is text.
        assert "<script>" not in told.replace(XSS, "")
        page = control.request("GET", "/").body.decode()
        assert XSS not in page
        assert "<script>alert" not in page


def _spelled(text):
    return "".join(f"%{byte:02x}" for byte in text.encode())


def test_texts_that_are_kept_have_an_end(store, serve):
    store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:0"))
    long = "x" * 200_000
    roles = {f"p{number}": "viewer" for number in range(2000)}
    hook = {"name": "w", "url": "http://127.0.0.1/"}
    with serve(store, ServerOptions(webhook_networks=("127.0.0.0/8",))) as control:
        for method, path, body in (
            ("PATCH", "/api/v1/models/m/versions/1", {"description": long}),
            ("PATCH", "/api/v1/models/m/versions/1", {"tags": {long: "x"}}),
            ("PATCH", "/api/v1/models/m/versions/1", {"tags": {"x": long}}),
            ("PUT", "/api/v1/models/m/versions/1/archived", {"archived": True, "reason": long}),
            ("PUT", "/api/v1/models/m/aliases/live", {"version": "m@1", "reason": long}),
            ("PUT", f"/api/v1/models/m/aliases/{'a' * 200}", {"version": "m@1"}),
            ("PUT", f"/api/v1/models/{'m' * 300}/aliases/a/policy", {"approvals": 1}),
            ("POST", "/api/v1/models/m/aliases/live/requests", {"version": "m@1", "reason": long}),
            ("POST", "/api/v1/access/users", {"name": "u" * 100, "roles": {}}),
            ("POST", "/api/v1/access/users", {"name": "u", "roles": {"p" * 101: "viewer"}}),
            (
                "POST",
                "/api/v1/access/users",
                {"name": "u", "roles": roles},
            ),
            ("POST", "/api/v1/access/users", {"name": "u", "roles": {}, "password": long}),
            ("POST", "/api/v1/webhooks", {**hook, "name": "w" * 100}),
            ("POST", "/api/v1/webhooks", {**hook, "url": "http://127.0.0.1/" + long}),
            ("POST", "/api/v1/webhooks", {**hook, "secret": long}),
            (
                "POST",
                "/api/v1/webhooks",
                {**hook, "verbs": ["alias.alias_set"] * 1000},
            ),
        ):
            got = control.request(method, path, body)
            assert got.status == 400, (method, path, got.status, got.body[:300])
        assert store.records.find(ModelVersion)[0].state == "registered"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"approvals":' * 3000 + b"1" + b"}" * 3000,
        b'{"name": 1e999999}',
        b"\xff\xfe{\x00}\x00",
        b"{}{}",
        b"\x00" * 1000,
        b'{"name": "' + b"\\ud800" * 10 + b'"}',
        b'{"approvals": 1, "approvals": 2}',
        b"NaN",
    ],
)
def test_wicked_json_is_a_4xx(store, serve, body):
    with serve(store) as control:
        for method, path in [*list(changing(store))[::5], ("PUT", "/api/v1/models/m/aliases/a/policy")]:
            got = control.request(method, path, body, content_type="application/json")
            assert got.status < 500 or got.status == 501, (method, path, got.status, got.body)
        assert control.request("GET", "/health").status == 200


START = b"POST /api/2.0/mlflow/runs/create HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   ",
        START + b"Content-Length: +5\r\n\r\n{}   ",
        START + b"Content-Length: -5\r\n\r\n{}   ",
        START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        START + b"X: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n",
        b"GET /api/v1/runs\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_requests_that_two_readers_could_read_differently_end_the_connection(store, serve, raw):
    with serve(store) as control:
        connection = http.client.HTTPConnection(*control.address, timeout=10)
        connection.connect()
        # A second request hides behind the first: it must not be answered as one of its own.
        connection.sock.sendall(raw + b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        said = b""
        while part := connection.sock.recv(65536):
            said += part
        connection.close()
        assert b'"runs"' not in said.partition(b"\r\n\r\n")[2] or said.count(b"HTTP/1.1 ") <= 1, said
        assert b" 500 " not in said
        assert control.request("GET", "/health").status == 200


def test_json_is_said_to_be_json(store, serve):
    with serve(store) as control:
        got = control.request("GET", "/api/v1/runs")
        assert json.loads(got.body) == []
        assert got.headers["content-type"].startswith("application/json")
