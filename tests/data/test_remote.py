"""Remote files: from a real web server that breaks connections, and from a bucket."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.data import read
from everloop.data.sources.remote_files import find_remote, remote_change, remote_state
from everloop.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = pl.DataFrame({"id": range(20_000), "name": [f"row {number}" for number in range(20_000)]})


class Site(ThreadingHTTPServer):
    """Serves `files` by path, with ETag and ranges; hangs up after `most` bytes while `most` is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.files: dict[str, bytes] = {}
        self.most: int | None = None
        self.tags = True
        self.heads = True
        self.failures = 0
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Page(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if not self.server.heads:
            self.send_error(405)
            return
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if body and self.server.failures:
            self.server.failures -= 1
            self.send_error(503)
            return
        content = self.server.files.get(self.path.partition("?")[0].lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.server.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        if body:
            self.wfile.write(content[start:][: self.server.most])


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.setattr("everloop.data.sources.remote_files._PAUSE_S", 0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def parquet(frame: pl.DataFrame = TABLE) -> bytes:
    path = Path("made.parquet")
    frame.write_parquet(path)
    return path.read_bytes()


@pytest.mark.slow
def test_a_file_is_fetched_once_and_again_when_it_changes(site: Site) -> None:
    site.files["a/flights.parquet"] = parquet()
    site.files["b.csv"] = b"x,y\n1,2\n"
    assert read(site.url("a/flights.parquet")).collect().equals(TABLE)
    assert read(site.url("a/flights.parquet"), columns=["id"]).collect().height == 20_000
    assert len(site.asked) == 1
    site.files["a/flights.parquet"] = parquet(TABLE.head(3))
    assert read(site.url("a/flights.parquet")).collect().height == 3
    assert read([site.url("b.csv"), site.url("b.csv?again")], format="csv").collect().rows() == [(1, 2), (1, 2)]


@pytest.mark.parametrize("heads", [True, False])
def test_an_interrupted_download_goes_on(site: Site, heads: bool) -> None:
    site.files["flights.parquet"] = content = parquet()
    site.heads = heads
    site.most = len(content) // 3
    site.failures = 1 if heads else 0
    assert read(site.url("flights.parquet")).collect().equals(TABLE)
    ranges = [asked for _, asked in site.asked if asked]
    assert len(ranges) == 3
    assert len(set(ranges)) == 3


def test_without_a_tag_a_download_starts_over(site: Site) -> None:
    site.files["flights.parquet"] = content = parquet()
    site.tags = False
    site.most = len(content) // 2
    with pytest.raises(SourceError, match="closed connection"):
        read(site.url("flights.parquet")).collect()
    site.most = None
    assert read(site.url("flights.parquet")).collect().equals(TABLE)


@pytest.mark.slow
def test_another_file_is_not_joined_to_a_part(site: Site) -> None:
    site.files["flights.parquet"] = content = parquet()
    site.most = len(content) // 20
    with pytest.raises(SourceError, match="the download resumes where it stopped"):
        read(site.url("flights.parquet")).collect()
    site.files["flights.parquet"] = parquet(TABLE.reverse())
    site.most = None
    assert read(site.url("flights.parquet")).collect().equals(TABLE.reverse())


def test_the_checksum_decides(site: Site) -> None:
    site.files["x.csv"] = b"a\n1\n"
    good = hashlib.sha256(b"a\n1\n").hexdigest()
    assert read(site.url("x.csv"), sha256=good).collect().rows() == [(1,)]
    with pytest.raises(SourceError, match=r"The SHA-256 of .* was expected"):
        read(site.url("x.csv"), sha256="00" * 32)


def test_what_is_wrong_is_named(site: Site) -> None:
    for url, message in (
        (site.url("none.csv"), "it does not exist"),
        ("http://127.0.0.1:9/x.csv", "cannot be read"),
        ("ftp://host/x.csv", "its URL scheme is not supported"),
    ):
        with pytest.raises(SourceError, match=message):
            read(url)
    site.files["odd"] = b"a"
    with pytest.raises(SourceError, match=r"The format of .* is unknown"):
        read(site.url("odd"))


def test_the_state_changes_with_the_file(site: Site) -> None:
    site.files["x.csv"] = b"a\n1\n"
    spec = {"urls": [site.url("x.csv")]}
    before = remote_state(spec)
    assert remote_state(spec) == before
    site.files["x.csv"] = b"a\n2\n"
    assert remote_change(before, remote_state(spec)) == "1 file changed"
    assert remote_change(before, before) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket(s3: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    client.create_bucket(Bucket="flights")
    for name, rows in (("2013/a.parquet", 5), ("2013/b.parquet", 7), ("2013/x/c.parquet", 1), ("2014/a.parquet", 2)):
        client.put_object(Bucket="flights", Key=name, Body=parquet(TABLE.head(rows)))
    assert read("s3://flights/2013/a.parquet").collect().equals(TABLE.head(5))
    assert read("s3://flights/2013/*.parquet").collect().height == 12
    assert read("s3://flights/**/*.parquet").collect().height == 15
    before = remote_state({"urls": ["s3://flights/2013/*.parquet"]})
    client.put_object(Bucket="flights", Key="2013/d.parquet", Body=parquet(TABLE.head(1)))
    client.put_object(Bucket="flights", Key="2013/a.parquet", Body=parquet(TABLE.head(6)))
    after = remote_state({"urls": ["s3://flights/2013/*.parquet"]})
    assert remote_change(before, after) == "1 new file, 1 file changed"
    assert read("s3://flights/2013/*.parquet").collect().height == 14
    with pytest.raises(SourceError, match="cannot be read"):
        read("s3://flights/none.parquet")
    with pytest.raises(SourceError, match="No file in 's3://flights' matches"):
        find_remote("s3://flights/none/*.parquet")
    client.close()
