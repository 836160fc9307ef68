"""`everloop webhooks test` sends a signed event, and says what the receiver responded."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from everloop.stores import open_store

LOCAL = ("--allow-webhook-network", "127.0.0.0/8")


@pytest.fixture
def receiver():
    """A server that keeps the requests it receives; its attribute `status` is what it responds."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append((dict(self.headers), body))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.received, server.status = [], 204
        server.url = f"http://127.0.0.1:{server.server_port}/events"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_test_event_arrives_and_the_status_is_shown(everloop, receiver):
    open_store(".everloop", create=True).close()
    made = everloop("webhooks", "add", "chat", receiver.url, "--json", *LOCAL).json
    result = everloop("webhooks", "test", "chat", *LOCAL)
    assert (result.code, result.out) == (0, "'chat' responded with status 204.\n")
    receiver.status = 500
    assert everloop("webhooks", "test", "chat", "--json", *LOCAL).json == {"name": "chat", "status": 500}
    headers, body = receiver.received[0]
    assert len(receiver.received) == 2
    assert isinstance(json.loads(body), dict)
    assert any("signature" in name.lower() for name in headers), headers
    assert made["secret"] not in body.decode() + str(headers)


def test_a_network_has_to_be_allowed(everloop, receiver):
    open_store(".everloop", create=True).close()
    assert everloop("webhooks", "add", "chat", receiver.url, *LOCAL).code == 0
    refused = everloop("webhooks", "test", "chat")
    assert refused.code != 0
    assert "--allow-webhook-network" in refused.err
    assert receiver.received == []
