"""The short way and uvicorn's way answer alike, whatever the bytes come as and however they are cut."""

from __future__ import annotations

import json
import socket
import threading
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log import fold_predictions
from everloop.serving import EndpointProcess
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

ROW = sample_rows()[0]
BODY = json.dumps({"rows": [ROW]}).encode()


@pytest.fixture
def port(store: Store, release: Any, route: Any) -> Iterator[int]:
    route(release().key)
    with EndpointProcess(store, "delays") as process:
        yield int(str(process.url).rpartition(":")[2])


def post(body: bytes = BODY, path: str = "/predict", version: str = "1.1", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def read_one(client: socket.socket, rest: bytes) -> tuple[int, dict[str, str], bytes, bytes]:
    """Status, headers and body of the next answer, and what came behind it."""
    while b"\r\n\r\n" not in rest:
        more = client.recv(65536)
        assert more, rest
        rest += more
    head, _, rest = rest.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    size = int(headers["content-length"])
    while len(rest) < size:
        more = client.recv(65536)
        assert more, rest
        rest += more
    return int(first.split()[1]), headers, rest[:size], rest[size:]


def score(body: bytes) -> float:
    found: float = by_row(json.loads(body))[0]["score"]
    return found


@pytest.mark.slow
def test_however_the_bytes_are_cut(port: int, store: Store) -> None:
    whole = post()
    scores = set()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        rest = b""
        for cuts in ((), (1,), (20,), (len(whole) - len(BODY),), (len(whole) - 1,), (5, 60, 120, 200)):
            at = 0
            for cut in (*cuts, len(whole)):
                client.sendall(whole[at:cut])
                at = cut
                sleep(0.02)
            status, headers, body, rest = read_one(client, rest)
            assert (status, headers["x-everloop-version"]) == (200, "delays@1")
            scores.add(score(body))
        chunked = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunked += b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (10, BODY[:10], len(BODY) - 10, BODY[10:])
        for sent in (chunked, post(BODY, "/predict", "1.1", "Expect: 100-continue")):
            client.sendall(sent)
            if sent is not chunked:
                assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            status, _, body, rest = read_one(client, rest)
            assert status == 200
            scores.add(score(body))
    assert len(scores) == 1
    assert fold_predictions(store, "delays") == 8


@pytest.mark.slow
def test_many_at_once_are_answered_in_order(port: int) -> None:
    rows = sample_rows(30)
    bodies = [json.dumps({"rows": [row], "keys": [f"k{place}"]}).encode() for place, row in enumerate(rows)]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        large = json.dumps({"rows": rows * 20}).encode()
        assert len(large) > 65536
        client.sendall(b"".join(post(body) for body in bodies) + post(large) + post(bodies[0]) + post(b"{"))
        rest, scores = b"", []
        for _ in bodies:
            status, _, body, rest = read_one(client, rest)
            assert status == 200
            scores.append(score(body))
        status, _, body, rest = read_one(client, rest)
        assert (status, len(json.loads(body)["predictions"])) == (200, 600)
        assert by_row(json.loads(body))[0]["score"] == pytest.approx(scores[0], abs=1e-12)
        status, _, body, rest = read_one(client, rest)
        assert (status, score(body)) == (200, scores[0])
        assert read_one(client, rest)[0] == 400
    assert len(set(scores)) > 20


SENT = [
    (post(BODY, "/predict", "1.1", "Connection: close"), 200, False),
    (post(BODY, "/predict", "1.0"), 200, False),
    (post(BODY, "/predict?x=1"), 200, True),
    (post(BODY, "/%70redict"), 200, True),
    (post(BODY, "/v1/models/delays:predict"), 400, True),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, True),
    (b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, True),
    (b"DELETE /predict HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, True),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 200, True),
    # Two lengths, or a length and chunks, are two readings of where a request ends.
    (post(BODY, "/predict", "1.1", "Content-Length: 5"), 400, False),
    (post(BODY, "/predict", "1.1", "Transfer-Encoding: chunked"), 400, False),
]


@pytest.mark.slow
def test_what_stays_open(port: int) -> None:
    for sent, status, stays in SENT:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(sent)
            got, headers, _, rest = read_one(client, b"")
            assert (got, rest) == (status, b""), sent
            if stays:
                client.sendall(post())
                assert read_one(client, b"")[0] == 200, sent
            else:
                assert client.recv(10) == b"", sent
                assert headers.get("connection", "close") == "close", sent


@pytest.mark.slow
def test_a_client_that_leaves_harms_nobody(port: int) -> None:
    for sent in (post()[:-1], post(), post() * 50, b"POST /predict HTTP/1.1\r\nHost"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.sendall(sent)
    done: list[int] = []

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            for _ in range(30):
                client.sendall(post())
                done.append(read_one(client, b"")[0])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [200] * 240
