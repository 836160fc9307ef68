"""Connections whose clients are slow, endless or silent, against a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from everloop.http import connection
from everloop.http.connection import LimitedHttp

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_BYTES = 8 << 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the names of the headers and the length of the body; `/large` with 8 MB."""
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size += len(event.get("body", b""))
        more = event.get("more_body", False)
    told = b",".join(name for name, _ in scope["headers"]) + b" %d" % size
    body = b"x" * ANSWER_BYTES if scope["path"] == "/large" else told
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(connection, "HEADERS_S", 0.4)
    monkeypatch.setattr(connection, "UNREAD_S", 0.4)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=LimitedHttp, ws="none", lifespan="off", log_config=None, access_log=False)
        config.limit_concurrency = getattr(request, "param", None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),), daemon=True)
        thread.start()
        while not server.started:
            sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(20)


def talk(address: tuple[str, int], *parts: bytes) -> bytes:
    """Send and read until the other side closes; a reset counts as an end."""
    said = b""
    with socket.create_connection(address, timeout=20) as client, contextlib.suppress(OSError):
        for part in parts:
            client.sendall(part)
        while more := client.recv(65536):
            said += more
    return said


CLOSE = b"Host: localhost\r\nConnection: close\r\n"


@pytest.mark.slow
def test_headers_end_in_number_size_and_time(address: tuple[str, int]) -> None:
    fine = talk(address, b"GET / HTTP/1.1\r\n" + CLOSE + b"A: 1\r\n" * 90 + b"\r\n")
    assert fine.startswith(b"HTTP/1.1 200")
    many = talk(address, b"GET / HTTP/1.1\r\n" + CLOSE + b"A: 1\r\n" * 100 + b"\r\n")
    assert many.startswith(b"HTTP/1.1 431")
    long = talk(address, b"GET / HTTP/1.1\r\n" + CLOSE + b"A: " + b"x" * 70_000 + b"\r\n\r\n")
    assert long == b"" or long.startswith(b"HTTP/1.1 431")
    address_long = talk(address, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert address_long == b"" or address_long.startswith(b"HTTP/1.1 431")
    endless = talk(address, b"GET / HTTP/1.1\r\nA: ", *[b"x" * 65536] * 200)
    assert b" 200 " not in endless
    began = monotonic()
    assert talk(address, b"GET / HTTP/1.1\r\nHost: l") == b""
    assert talk(address, b"") == b""
    assert monotonic() - began < 15


def test_trailers_change_nothing_and_end(address: tuple[str, int]) -> None:
    head = b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    said = talk(address, head + b"0\r\nAuthorization: Bearer x\r\nOrigin: http://evil.example\r\n\r\n")
    assert said.endswith(b"host,connection,transfer-encoding 5")
    for endless in (b"0\r\nTrailer: " + b"x" * 65536, b"5;" + b"x" * 65536):
        assert b" 200 " not in talk(address, head, endless, *[b"x" * 65536] * 200)
    # Small pieces are not an attack.
    pieces = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    assert talk(address, head + pieces).endswith(b" 20005")


@pytest.mark.slow
def test_who_does_not_read_is_let_go(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(address)
        client.sendall(b"GET /large HTTP/1.1\r\n" + CLOSE + b"\r\n")
        sleep(2.0)
        taken = 0
        with contextlib.suppress(OSError):
            while more := client.recv(1 << 20):
                taken += len(more)
    assert taken < ANSWER_BYTES
    # One that reads slowly, but reads, gets everything.
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(20)
        client.connect(address)
        client.sendall(b"GET /large HTTP/1.1\r\n" + CLOSE + b"\r\n")
        taken = 0
        while more := client.recv(1 << 20):
            taken += len(more)
            sleep(0.002)
    assert taken > ANSWER_BYTES


def test_several_requests_on_one_connection(address: tuple[str, int]) -> None:
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = talk(address, one * 50 + b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert said.count(b"HTTP/1.1 200") == 51


def test_requests_that_wait_behind_another_are_bounded(address: tuple[str, int]) -> None:
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n"
    assert talk(address, one * 200 + last).count(b"HTTP/1.1 200") == 201
    assert talk(address, one * 5_000 + last).count(b"HTTP/1.1 200") < 5_000


@pytest.mark.parametrize("address", [1], indirect=True)
def test_health_is_told_also_with_too_many_connections(address: tuple[str, int]) -> None:
    for path, status in ((b"/", b"503"), (b"/health", b"200"), (b"/", b"503")):
        said = talk(address, b"GET " + path + b" HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert said.startswith(b"HTTP/1.1 " + status)
