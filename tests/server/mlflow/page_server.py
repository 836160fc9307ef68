"""Serves MLflow's built page and puts everything else to an everloop server, noting what it was asked and answered."""

from __future__ import annotations

import http.client
import mimetypes
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

STATIC = "/static-files/"
_OWN = {"connection", "transfer-encoding", "date", "server"}


@dataclass(frozen=True)
class Exchange:
    """One request that went through, and its answer."""

    method: str
    path: str
    status: int
    said: str

    @property
    def address(self) -> str:
        return f"{self.method} {urlsplit(self.path).path}"


@dataclass
class PageServer:
    url: str
    exchanges: list[Exchange] = field(default_factory=list)


@contextmanager
def serving_page(build: Path, behind: tuple[str, int]) -> Iterator[PageServer]:
    """The page of the folder `build`, over the server at `behind`."""

    class Forwards(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            path = urlsplit(self.path).path
            if path == "/":
                self.file(build / "index.html")
            elif path.startswith(STATIC) and ".." not in path:
                self.file(build / path.removeprefix(STATIC))
            else:
                self.forward()

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = answer  # noqa: N815

        def file(self, place: Path) -> None:
            found = place.is_file()
            body = place.read_bytes() if found else b""
            kind = mimetypes.guess_type(place.name)[0] or "application/octet-stream"
            self.reply(200 if found else 404, [("content-type", kind), ("cache-control", "max-age=600")], body)

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            # The page's own address is not the server's, as behind any proxy that does not say so.
            headers = {
                name: value for name, value in self.headers.items() if name.lower() in ("content-type", "accept")
            }
            connection = http.client.HTTPConnection(*behind, timeout=30)
            try:
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                got = answer.read()
            finally:
                connection.close()
            said = got[:300].decode(errors="replace")
            server.exchanges.append(Exchange(self.command, self.path, answer.status, said))
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN]
            self.reply(answer.status, kept, got)

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A browser drops what it no longer wants to see."""

    listening = Quiet(("127.0.0.1", 0), Forwards)
    server = PageServer(f"http://127.0.0.1:{listening.server_port}/")
    thread = Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(timeout=10)
