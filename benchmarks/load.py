"""Keep an HTTP server busy: a number of connections, each sending its next request as soon as the last is answered.

    python benchmarks/load.py HOST PORT PATH BODY_FILE CONNECTIONS SECONDS

Prints one JSON object: requests per second, and quantiles of the latency in milliseconds. To cost less than what it
measures, it is one process on uvloop that sends a prepared request and looks only at the status and the length of the
response. Any status but 200 stops it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop


class Client(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float], until: float) -> None:
        self.request = request
        self.latencies = latencies
        self.until = until
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's classes.
        self.transport: Any = transport
        self.began = perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        head = data.find(b"\r\n\r\n")
        if head < 0:
            self.buffer = data
            return
        if not data.startswith(b"HTTP/1.1 200"):
            self.finish(RuntimeError(data[:500].decode("utf-8", "replace")))
            return
        lower = data[:head].lower()
        at = lower.find(b"content-length:")
        if at < 0:
            self.finish(RuntimeError("A response without a length: " + data[:200].decode()))
            return
        end = lower.find(b"\r\n", at)
        if len(data) < head + 4 + int(lower[at + 15 : end if end > 0 else head]):
            self.buffer = data
            return
        self.buffer = b""
        now = perf_counter()
        self.latencies.append(now - self.began)
        if now > self.until:
            self.finish(None)
            return
        self.began = now
        self.transport.write(self.request)

    def connection_lost(self, error: Exception | None) -> None:
        self.finish(error or RuntimeError("The server hung up."))

    def finish(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        self.transport.close()


async def load(host: str, port: int, path: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    latencies: list[float] = []
    began = perf_counter()
    clients = [Client(request, latencies, began + seconds) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    for client in clients:
        await loop.create_connection(lambda client=client: client, host, port)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), seconds + 20)
    took = perf_counter() - began
    latencies.sort()
    size = len(latencies)
    return {
        "per_s": size / took,
        "p50_ms": latencies[size // 2] * 1e3,
        "p95_ms": latencies[int(size * 0.95)] * 1e3,
        "p99_ms": latencies[int(size * 0.99)] * 1e3,
    }


if __name__ == "__main__":
    host, port, path, file, connections, seconds = sys.argv[1:]
    quantiles = load(host, int(port), path, Path(file).read_bytes(), int(connections), float(seconds))
    print(json.dumps(uvloop.run(quantiles)))
