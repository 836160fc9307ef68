"""A control plane on a free port of this machine, in a thread of its own."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from everloop.server.control_plane import ControlPlane
from everloop.server.server_options import ServerOptions
from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Place:
    """Where a server is, and how to ask it."""

    def __init__(self, url: str, store: Store) -> None:
        parts = urlsplit(url)
        self.url, self.store = url, store
        self.address = (str(parts.hostname), int(parts.port or 0))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Names of headers with `_` for `-`; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(*self.address, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
                sent.setdefault("content-type", "application/json")
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, answer.read(), named)
        finally:
            connection.close()


@contextmanager
def serving(store: Store, options: ServerOptions | None = None, **more: Any) -> Iterator[Place]:
    control = ControlPlane(store, port=0, options=options, **more)
    ready = threading.Event()
    thread = threading.Thread(target=control.serve, args=(ready.set,), daemon=True)
    thread.start()
    try:
        assert ready.wait(20)
        yield Place(control.url, store)
    finally:
        control.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[Store]:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with open_store(tmp_path / "home", project="p", actor="user:operator") as opened:
        yield opened


@pytest.fixture(scope="session")
def serve():
    """`with serve(store, options, auth=…) as place`."""
    return serving


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
