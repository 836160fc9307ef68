"""Tokens: who has none is refused on every route but the health checks."""

from __future__ import annotations

import http.client
import json
from time import perf_counter
from typing import Any

import pytest

from everloop.errors import NotFoundError, UsageError
from everloop.records import EndpointRecord
from everloop.serving import EndpointProcess
from everloop.serving.access.endpoint_tokens import OPEN_PATHS, add_token, admitted, digest_of, remove_token
from everloop.serving.endpoint_server import serve_endpoint
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.protocols.protocol import Request
from everloop.stores import Store
from everloop.testing.models import sample_rows

BODY = json.dumps({"rows": sample_rows()}).encode()
HOST = [(b"host", b"localhost")]


def ask(app: Any, path: str, method: str = "GET", token: str | None = None) -> int:
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    status: int = app.app.respond(Request(method, path, BODY, perf_counter(), headers)).status
    return status


def test_every_route_but_the_health_checks(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    assert ask(app, "/predict", "POST") == 200
    token = add_token(store, "delays", "team")
    app.reloader.reload()
    routes = [*app.app.routes.exact, *((method, path) for method, _, path, _ in app.app.routes.patterns)]
    for method, path in routes:
        status = ask(app, path.replace("{model}", "delays").replace("{version}", "1"), method)
        assert (status == 401) is (path not in OPEN_PATHS), path
    assert ask(app, "/nowhere") == 401
    for wrong in (token[:-1], "", token.upper(), "evl_" + "a" * 43):
        assert ask(app, "/predict", "POST", wrong) == 401
    assert ask(app, "/predict", "POST", token) == 200
    assert token not in json.dumps(store.records.get(EndpointRecord, "delays").options)
    remove_token(store, "delays", "team")
    app.reloader.reload()
    # An endpoint that had tokens does not fall open when the last is taken back.
    assert ask(app, "/predict", "POST", token) == ask(app, "/predict", "POST") == 401
    with pytest.raises(NotFoundError, match="'team'"):
        remove_token(store, "delays", "team")


def test_the_scheme_counts() -> None:
    digests = {"one": digest_of("a"), "two": digest_of("b")}
    assert admitted(digests, b"Bearer b") == "two"
    assert admitted(digests, b"bearer a") == "one"
    assert admitted(digests, b"Basic a") is None
    assert admitted(digests, b"a") is None
    assert admitted(digests, None) is None
    assert admitted({}, b"Bearer a") is None


@pytest.mark.slow
def test_other_machines_only_with_a_token(store: Store, release: Any, route: Any) -> None:
    route(release().key)
    with pytest.raises(UsageError, match="has no token"):
        serve_endpoint("delays", store.home, "0.0.0.0")
    token = add_token(store, "delays", "team")
    with EndpointProcess(store, "delays", host="0.0.0.0") as process:
        host, _, port = str(process.url).removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 200)):
            connection.request("POST", "/predict", BODY, headers)
            response = connection.getresponse()
            response.read()
            assert response.status == status
        connection.close()


@pytest.mark.slow
def test_too_many_at_once_are_told_to_come_back(store: Store, release: Any, route: Any) -> None:
    import asyncio

    from everloop.serving import EndpointApp
    from everloop.serving.reloader import EndpointReloader

    route(release().key)
    app = EndpointApp(store, "delays")
    EndpointReloader(store, app).load()
    app.service.configure(EndpointSettings(max_in_flight=1, request_timeout_s=0.2))

    async def both() -> list[list[Any]]:
        sent: list[list[Any]] = [[], []]

        async def one(place: int) -> None:
            async def never() -> Any:
                await asyncio.sleep(60)

            async def keep(message: Any) -> None:
                sent[place].append(message)

            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": HOST, "query_string": b""}
            await app(scope, never, keep)

        await asyncio.gather(one(0), one(1))
        return sent

    slow, busy = asyncio.run(both())
    assert slow[0]["status"] == 408
    assert busy[0]["status"] == 503
    assert dict(busy[0]["headers"])[b"retry-after"] == b"1"
    assert app.metrics.in_flight.value == 0
    app.close()
