"""The request guard stands before every route of every HTTP process, found by walking the routes themselves.

A new route is walked without a word here; a new way of serving without the guard fails.
"""

from __future__ import annotations

import ast
import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.http.connection import LimitedHttp
from everloop.http.request_guard import RequestGuard
from everloop.packages import build_package
from everloop.records import EndpointRecord, Route
from everloop.registry import register
from everloop.serving import EndpointApp
from everloop.serving.multi_endpoint import MultiEndpointApp
from everloop.serving.reloader import EndpointReloader
from everloop.stores import Store, open_store
from everloop.testing.models import sample_table, train_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[2] / "src" / "everloop"
ATTACKS: list[tuple[str, int, dict[str, str]]] = [
    ("another name", 421, {"host": "evil.example"}),
    ("no name", 421, {"host": ""}),
    ("another origin", 403, {"origin": "http://evil.example"}),
    ("an opaque origin", 403, {"origin": "null"}),
    ("another site", 403, {"sec-fetch-site": "cross-site"}),
    ("the same site", 403, {"sec-fetch-site": "same-site"}),
    ("many headers", 431, {f"x-{number}": "1" for number in range(101)}),
]
SIMPLE = [
    ("a form", 415, {"content-type": "application/x-www-form-urlencoded"}),
    ("a text", 415, {"content-type": "text/plain;charset=UTF-8"}),
    ("a file", 415, {"content-type": "multipart/form-data; boundary=x"}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch, open_store(folder / "home") as opened:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        package = build_package(train_sample(), store=opened, sample=sample_table(100))
        if not opened.records.find(type(package), ("digest", "=", package.digest)):
            opened.records.put(package)
        version = register(opened, "delays", package)
        endpoint = opened.new(
            EndpointRecord, name="delays", model="delays", routes=(Route(version=version.key, percent=100.0),)
        )
        opened.records.put(endpoint)
        yield opened


def ask(app: Any, method: str, path: str, headers: dict[str, str]) -> tuple[int, bool]:
    """The status of the answer, and whether the body was asked for."""
    read = False
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal read
        read = True
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"", "headers": named,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8100), "state": {},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], read


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "1", path.replace("{model}", "delays"))


def hold(app: Any, routes: set[tuple[str, str]]) -> None:
    for method, path in sorted(routes):
        for what, status, headers in [*ATTACKS, *(SIMPLE if method == "POST" else [])]:
            assert ask(app, method, filled(path), headers) == (status, False), (method, path, what)


@pytest.mark.slow
def test_before_every_route_of_an_endpoint(store: Store) -> None:
    app = EndpointApp(store, "delays")
    EndpointReloader(store, app).load()
    try:
        routes = {*app.routes.exact, *((method, path) for method, _, path, _ in app.routes.patterns)}
        assert len(routes) > 25
        hold(app, {*routes, ("GET", "/nowhere"), ("POST", "/nowhere"), ("OPTIONS", "/predict"), ("DELETE", "/labels")})
        # And it lets through what belongs here.
        for method, path in sorted(routes):
            assert ask(app, method, filled(path), {"content-type": "application/json"})[0] not in (403, 415, 421, 431)
    finally:
        app.close()


def test_before_every_route_of_many_endpoints_behind_one_port(store: Store) -> None:
    house = MultiEndpointApp(store)
    routes = {
        ("GET", "/"), ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/v2/models"),
        ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/delays/load"),
        ("POST", "/v2/repository/models/delays/unload"), ("POST", "/endpoints/delays/predict"),
        ("POST", "/endpoints/delays/labels"), ("GET", "/endpoints/delays/metrics"),
        ("POST", "/v1/models/delays:predict"), ("POST", "/v2/models/delays/infer"), ("GET", "/nowhere"),
    }  # fmt: skip
    hold(house, routes)
    assert house.loaded() == []
    house.close()


@pytest.mark.slow
@pytest.mark.parametrize("auth", [False, True])
def test_before_every_route_of_the_control_plane(store: Store, auth: bool) -> None:
    from everloop.server import ServerOptions, make_app

    app = make_app(store, ServerOptions(auth=auth))
    routes = {
        (method, route.path)
        for route in app.app.routes  # type: ignore[attr-defined]
        for handler in getattr(route, "route_handlers", None) or [route.route_handler]
        for method in getattr(handler, "http_methods", ("GET", "POST"))
    }
    assert len(routes) > 90
    for method, path in sorted(routes):
        for what, status, headers in ATTACKS:
            assert ask(app, method, filled(path), headers) == (status, False), (method, path, what)
        for what, status, headers in SIMPLE if method == "POST" else []:
            # Which media types are taken is for those to know who have logged in, but on the routes that are open.
            expected = 401 if auth and path not in app.open_paths else status
            assert ask(app, method, filled(path), headers) == (expected, False), (method, path, what)


@pytest.mark.slow
def test_every_server_is_made_of_the_shared_parts(store: Store) -> None:
    from everloop.serving.fast_path import FastPathProtocol

    assert issubclass(FastPathProtocol, LimitedHttp)
    allowed = {"LimitedHttp", "FastPathProtocol", "http"}
    found = []
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not any(word in text for word in ("uvicorn", "HTTPServer", "start_server")):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("uvicorn.Config", "Config"):
                named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert named.get("http") in allowed, path
                found.append(path.relative_to(SOURCE).as_posix())
            # No other server stands beside them.
            if isinstance(node, ast.Attribute | ast.Name):
                name = ast.unparse(node)
                assert name not in {"HTTPServer", "ThreadingHTTPServer", "uvicorn.run", "asyncio.start_server"}, path
    assert sorted(found) == ["server/control_server.py", "serving/endpoint_server.py"]
    for app in (EndpointApp(store, "delays"), MultiEndpointApp(store)):
        assert isinstance(app.guard, RequestGuard)
        app.close()
