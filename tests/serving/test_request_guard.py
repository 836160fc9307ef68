"""An endpoint's process is addressed by its own names, and by no page of another origin, on both of its ways."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log import fold_labels, fold_predictions
from everloop.records import EndpointRecord
from everloop.serving import EndpointProcess
from everloop.serving.access.endpoint_tokens import add_token
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

BODY = json.dumps({"rows": sample_rows()}).encode()
LABELS = b'{"labels": [{"key": "a", "value": true}]}'


@pytest.fixture
def port(store: Store, release: Any, route: Any) -> Iterator[int]:
    route(release().key)
    with EndpointProcess(store, "delays") as process:
        yield int(str(process.url).rpartition(":")[2])


def ask(port: int, method: str, path: str, body: bytes = b"", cut: int | None = None, **headers: str) -> int:
    """The status of the answer; `cut`: the request comes in two parts, which takes the long way through uvicorn."""
    named = {"host": "localhost", "content-type": "application/json", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in named.items())]
    data = "\r\n".join([*lines, f"content-length: {len(body)}", "connection: close"]).encode() + b"\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data[:cut])
        if cut is not None:
            client.sendall(data[cut:])
        said = b""
        while more := client.recv(65536):
            said += more
    return int(said.split()[1])


CROSS = (
    {"origin": "http://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"}, {"origin": "http://localhost:3000"},
)  # fmt: skip


@pytest.mark.slow
def test_no_page_of_another_origin(port: int, store: Store) -> None:
    for headers in CROSS:
        for path, body in (("/predict", BODY), ("/labels", LABELS), ("/v1/models/delays:predict", b"{}")):
            assert ask(port, "POST", path, body, **headers) == 403, headers
            assert ask(port, "POST", path, body, cut=40, **headers) == 403, headers
        for path in ("/", "/metrics", "/openapi.json", "/health", "/v2/models/delays", "/nowhere"):
            assert ask(port, "GET", path, **headers) == 403, (path, headers)
        assert ask(port, "OPTIONS", "/predict", **headers) == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        for path, body in (("/predict", BODY), ("/labels", LABELS), ("/invocations", BODY)):
            assert ask(port, "POST", path, body, **{"content-type": kind}) == 415
    for name in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "10.0.0.1", ""):
        for method, path, body in (("POST", "/predict", BODY), ("POST", "/labels", LABELS), ("GET", "/metrics", b"")):
            assert ask(port, method, path, body, host=name) == 421
            assert ask(port, method, path, body, cut=25, host=name) == 421
    assert (fold_predictions(store, "delays"), fold_labels(store, "delays")) == (0, 0)
    # What programs and the endpoint's own pages send.
    own = f"127.0.0.1:{port}"
    assert ask(port, "POST", "/predict", BODY, host=own) == 200
    assert ask(port, "POST", "/predict", BODY, host=own, origin=f"http://{own}", sec_fetch_site="same-origin") == 200
    assert ask(port, "GET", "/metrics", host="[::1]") == 200


@pytest.mark.slow
def test_the_configured_names_hold_in_every_process(store: Store, release: Any, route: Any, monkeypatch: Any) -> None:
    route(release().key)
    monkeypatch.setenv("EVERLOOP_ALLOWED_HOSTS", "ml.example.com,*.lab.example.com")
    with EndpointProcess(store, "delays") as process:
        port = int(str(process.url).rpartition(":")[2])
        for name, status in (("ml.example.com", 200), ("a.lab.example.com:1", 200), ("evil.example", 421)):
            assert ask(port, "POST", "/predict", BODY, host=name) == status
        # A proxy in front has changed the host, and a page of the site asks.
        assert ask(port, "POST", "/predict", BODY, origin="https://ml.example.com") == 200


@pytest.mark.slow
@pytest.mark.parametrize("token", [True, False])
def test_at_another_address_a_token_stands_for_the_name(
    store: Store, release: Any, route: Any, tmp_path: Any, token: bool
) -> None:
    """With a token every name is answered, as behind a proxy; in a container without a platform only inner ones."""
    route(release().key)
    secret = add_token(store, "delays", "team") if token else ""
    place = tmp_path / "port.json"
    code = (
        "import sys; from everloop.serving.endpoint_server import serve_endpoint\n"
        f"serve_endpoint('delays', {str(store.home)!r}, '0.0.0.0', port_file={str(place)!r}, exposed={not token})"
    )
    named = ("KUBERNETES", "AIP_", "SAGEMAKER", "AWS_", "ECS_", "AZUREML", "K_SERVICE", "EVERLOOP_ALLOWED")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(named)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        while not place.exists():
            assert process.poll() is None
        port = json.loads(place.read_text())["port"]
        given = {"authorization": f"Bearer {secret}"} if token else {}
        assert ask(port, "POST", "/predict", BODY, host="10.9.8.7:8080", **given) == 200
        assert ask(port, "POST", "/predict", BODY, host="ml.example.com", **given) == (200 if token else 421)
        assert ask(port, "POST", "/predict", BODY, host="model.local", **given) == 200
        assert ask(port, "POST", "/predict", BODY, origin="http://evil.example", **given) == 403
        if token:
            assert ask(port, "POST", "/predict", BODY, host="ml.example.com") == 401
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_slow_and_endless_headers(port: int) -> None:
    many = {f"x-{number}": "1" for number in range(120)}
    assert ask(port, "POST", "/predict", BODY, **many) == 431
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: ")

        def flood() -> None:
            for _ in range(2_000):
                client.sendall(b"x" * 65536)

        with pytest.raises(OSError, match=r"reset|Broken|aborted"):
            flood()
    assert ask(port, "GET", "/health") == 200


@pytest.mark.slow
def test_where_the_first_line_names_a_host_that_one_counts(port: int) -> None:
    for cut in (None, 30):
        assert ask(port, "POST", "http://evil.example/predict", BODY, cut=cut) == 421
        assert ask(port, "POST", "HTTPS://localhost@evil.example/predict", BODY, cut=cut) == 421
        assert ask(port, "POST", f"http://localhost:{port}/predict", BODY, cut=cut) == 200
        assert ask(port, "POST", "http://localhost/predict", BODY, cut=cut, host="evil.example") == 200


@pytest.mark.slow
def test_slow_bodies_keep_nobody_else_from_being_answered(port: int, store: Store) -> None:
    record = store.records.get(EndpointRecord, "delays")
    store.records.update(replace(record, options={"max_in_flight": 2}))
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{"
    with ExitStack() as slow:
        for _ in range(6):
            client = slow.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            client.sendall(head.encode())
        # Until the setting holds, and two of them wait: a third whose body comes in parts is refused.
        while True:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(head.encode())
                client.settimeout(0.2)
                with suppress(TimeoutError):
                    if client.recv(20).startswith(b"HTTP/1.1 503"):
                        break
        assert ask(port, "POST", "/predict", BODY) == 200
        assert ask(port, "GET", "/metrics") == 200
        assert ask(port, "GET", "/health", cut=10) == 200


@pytest.mark.slow
def test_many_requests_at_once_on_one_connection(port: int) -> None:
    one = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(one * 200)
        said = b""
        while said.count(b"HTTP/1.1 200") < 200:
            said += client.recv(65536)
    assert ask(port, "GET", "/health") == 200
