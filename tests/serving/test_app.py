from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from everloop import plugins
from everloop.serving import EndpointApp
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.observability.endpoint_metrics import Metrics
from everloop.serving.protocols.protocol import Response
from everloop.serving.reloader import EndpointReloader
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from everloop.stores import Store

ROW = sample_rows()[0]


def over_asgi(app: EndpointApp, method: str, path: str, *chunks: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request in the given chunks of body."""
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks or (b"",))
    ]

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"localhost")], "query_string": b""}
    asyncio.run(app(scope, receive, send))
    if not sent:
        return 0, {}, b""
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture
def app(release: Any, route: Any, local: Any) -> EndpointApp:
    route(release().key, shadow=release(seed=1).key)
    return local().app  # type: ignore[no-any-return]


@pytest.mark.slow
def test_body_in_pieces(app: EndpointApp) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    whole = over_asgi(app, "POST", "/predict", body)
    pieces = over_asgi(app, "POST", "/predict", body[:10], body[10:11], b"", body[11:])
    assert whole[0] == pieces[0] == 200
    assert by_row(json.loads(pieces[2]))[0]["score"] == by_row(json.loads(whole[2]))[0]["score"]
    assert pieces[1][b"content-length"] == str(len(pieces[2])).encode()


@pytest.mark.slow
def test_large_body_is_scored_beside_the_loop_and_counted(app: EndpointApp) -> None:
    body = json.dumps({"rows": [ROW] * 1000}).encode()
    assert len(body) > 65536
    assert over_asgi(app, "POST", "/predict", body)[0] == 200
    text = over_asgi(app, "GET", "/metrics")[2].decode()
    assert 'everloop_predictions_total{endpoint="delays",version="delays@1",role="champion"} 1000' in text
    assert 'everloop_predictions_total{endpoint="delays",version="delays@2",role="shadow"} 1000' in text


@pytest.mark.slow
def test_a_client_that_leaves_half_way(app: EndpointApp) -> None:
    async def leave() -> None:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "headers": [(b"host", b"localhost")],
            "query_string": b"",
        }
        await app(scope, receive, send)

    asyncio.run(leave())


def test_body_that_is_too_large(store: Store, release: Any, route: Any) -> None:
    route(release().key)
    app = EndpointApp(store, "delays")
    EndpointReloader(store, app).load()
    app.service.configure(EndpointSettings(max_body_bytes=100))
    assert over_asgi(app, "POST", "/predict", b"x" * 60, b"x" * 60, b"x" * 60)[0] == 413
    assert over_asgi(app, "POST", "/predict", b"x" * 100)[0] == 400
    app.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/labels", 405),
        ("POST", "/health", 405),
        ("HEAD", "/health", 200),
        ("HEAD", "/", 200),
        ("GET", "/\x00\xff", 404),
        ("OPTIONS", "/predict", 405),
        ("BREW", "/predict", 405),
        ("GET", "/" + "a" * 100_000, 404),
    ],
)
def test_methods_and_paths(app: EndpointApp, method: str, path: str, status: int) -> None:
    got, headers, body = over_asgi(app, method, path)
    assert got == status
    assert len(body) < 2000 or path == "/"
    if status == 405:
        assert headers[b"allow"]


@pytest.mark.slow
def test_metrics_are_prometheus_text(app: EndpointApp) -> None:
    for _ in range(3):
        over_asgi(app, "POST", "/predict", json.dumps({"rows": [ROW, ROW]}).encode())
    over_asgi(app, "POST", "/predict", b"{")
    over_asgi(app, "GET", "/nowhere/at/all")
    status, headers, body = over_asgi(app, "GET", "/metrics")
    assert status == 200
    assert headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    sample = re.compile(r'[a-z_]+\{([a-z]+="[^"]*",?)*\} [0-9.e+-]+')
    lines = body.decode().splitlines()
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in lines)
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['everloop_predictions_total{endpoint="delays",version="delays@1",role="champion"}'] == "6"
    assert values['everloop_responses_total{endpoint="delays",path="/predict",status="200"}'] == "3"
    assert values['everloop_responses_total{endpoint="delays",path="/predict",status="400"}'] == "1"
    assert values['everloop_responses_total{endpoint="delays",path="other",status="404"}'] == "1"
    assert values['everloop_request_seconds_count{endpoint="delays"}'] == "3"
    assert values['everloop_request_seconds_bucket{endpoint="delays",le="+Inf"}'] == "3"
    # Prometheus' own parser reads the same, with a type and a help text for each family.
    families = list(text_string_to_metric_families(body.decode()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    parsed = {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}
    assert parsed["everloop_predictions_total", "delays", "delays@1", "champion"] == 6
    assert len(parsed) == len(values)


def test_buckets_add_up() -> None:
    metrics = Metrics('de"lays')
    for seconds in (0.0001, 0.001, 0.003, 9.0):
        metrics.time_request(seconds)
    text = metrics.text().decode()
    counts = [int(count) for count in re.findall(r'_bucket\{endpoint="de\\"lays",le="[^"]+"\} (\d+)', text)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-2:] == [3, 4]


def test_a_protocol_is_a_table_of_paths(
    store: Store, release: Any, route: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def echo(service: Any, request: Any) -> Response:
        return Response(body=json.dumps([service.endpoint, request.params]).encode())

    def broken(service: Any, request: Any) -> Response:
        raise ZeroDivisionError

    tables = {("POST", "/v9/models/{model}/go"): echo, ("GET", "/broken"): broken}
    monkeypatch.setattr(plugins, "names", lambda kind: ["toy"])
    monkeypatch.setattr(plugins, "load", lambda kind, name: tables)
    app = EndpointApp(store, "delays")
    status, _, body = over_asgi(app, "POST", "/v9/models/a.b/go")
    assert (status, json.loads(body)) == (200, ["delays", {"model": "a.b"}])
    assert over_asgi(app, "GET", "/v9/models/a.b/go")[0] == 405
    assert over_asgi(app, "POST", "/v9/models/a/b/go")[0] == 404
    status, _, body = over_asgi(app, "GET", "/broken")
    assert status == 500
    assert b"Traceback" not in body
    app.close()


@pytest.mark.slow
def test_only_http(app: EndpointApp) -> None:
    with pytest.raises(RuntimeError, match="websocket"):
        asyncio.run(app({"type": "websocket"}, None, None))  # type: ignore[arg-type]


@pytest.mark.slow
def test_no_space_for_the_log_means_no_answer(app: EndpointApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.errors import InsufficientStorageError

    def full(payload: bytes) -> int:
        raise InsufficientStorageError("No space left.")

    monkeypatch.setattr(app.service._log.sink._journal, "append", full)
    status, _, body = over_asgi(app, "POST", "/predict", json.dumps({"rows": [ROW]}).encode())
    assert status == 507
    assert b"predictions" not in body


@pytest.mark.slow
def test_large_requests_queue_up_to_a_limit_and_no_longer_than_their_clients_wait(app: EndpointApp) -> None:
    import threading

    from everloop.serving.endpoint_service import WORKERS

    app.service.configure(EndpointSettings(max_queued=WORKERS + 1))
    body = json.dumps({"rows": [ROW] * 500}).encode()
    held = threading.Event()
    for _ in range(WORKERS):
        app.executor.threads.submit(held.wait)

    async def ask(wait_ms: str | None) -> tuple[int, dict[bytes, bytes]]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost")]
        headers += [] if wait_ms is None else [(b"x-request-timeout-ms", wait_ms.encode())]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    async def all_of_them() -> list[tuple[int, dict[bytes, bytes]]]:
        patient = [asyncio.create_task(ask(None)) for _ in range(WORKERS)]
        hasty = asyncio.create_task(ask("50"))
        await asyncio.sleep(0.01)
        busy = await ask(None)
        late = await hasty
        held.set()
        return [busy, late, *await asyncio.gather(*patient)]

    busy, late, *answered = asyncio.run(all_of_them())
    assert (busy[0], busy[1][b"retry-after"]) == (503, b"1")
    assert late[0] == 408
    assert [status for status, _ in answered] == [200] * WORKERS
    # What came too late was not scored.
    counted = f'everloop_predictions_total{{endpoint="delays",version="delays@1",role="champion"}} {500 * WORKERS}\n'
    assert counted in app.metrics.text().decode()
