"""Keeps an HTTP server busy: so many connections, each asking again as soon as it is answered, for so many seconds.

    python benchmarks/load.py HOST PORT PATH BODY_FILE CONNECTIONS SECONDS

Prints one JSON object: requests a second, and the latency's quantiles in milliseconds. One process on uvloop,
writing a request that was made once and looking only at the status and the length of the answer, so that it costs
less than what it measures. Anything but 200 ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import uvloop


class Asker(asyncio.Protocol):
    def __init__(self, request: bytes, latencies: list[float], until: float) -> None:
        self.request = request
        self.latencies = latencies
        self.until = until
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
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
            self.finish(RuntimeError("An answer without a length: " + data[:200].decode()))
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
    askers = [Asker(request, latencies, began + seconds) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    for asker in askers:
        await loop.create_connection(lambda asker=asker: asker, host, port)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*(asker.done for asker in askers)), seconds + 20)
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
    asked = load(host, int(port), path, Path(file).read_bytes(), int(connections), float(seconds))
    print(json.dumps(uvloop.run(asked)))
