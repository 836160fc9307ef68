"""The artifact proxy: clients' files go to disk and come back in pieces, so memory stays flat at any size.

An upload is written beside the files that clients see and gets its name when all of it has come. Everything is
served as a download, and pages and drawings as bytes of no type, so that no browser runs what a client has uploaded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.stores import new_id
from everloop.stores.clock import SystemClock

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Scope = MutableMapping[str, Any]

PIECE = 1 << 20
SMALL = 1 << 16
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""What stands in a header without quotes, as RFC 9110, 5.6.2, has it; MLflow's server leaves them out there, too."""
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
# fmt: off
_TEXTS = frozenset({
    "txt", "log", "err", "cfg", "conf", "cnf", "cf", "ini", "properties", "prop", "hocon", "toml", "yaml", "yml", "xml",
    "json", "js", "py", "py3", "csv", "tsv", "md", "rst", "ipynb", "mlmodel", "mlproject",
})
# fmt: on
_SHOWN = {
    "png": b"image/png",
    "jpg": b"image/jpeg",
    "jpeg": b"image/jpeg",
    "gif": b"image/gif",
    "webp": b"image/webp",
    "bmp": b"image/bmp",
    "pdf": b"application/pdf",
    "mp4": b"video/mp4",
    "wav": b"audio/x-wav",
}
GUARDS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
    (b"cache-control", b"no-store"),
]


async def upload(folder: ArtifactLocation, path: str, receive: Receive) -> None:
    """Keep a request's body as a file; of an upload that breaks off nothing is left."""
    folder.check(path)
    await take(folder.drafts(), partial(folder.keep, path=path), receive, quick=folder.quick)


async def take(drafts: Path, keep: Callable[[Path], None], receive: Receive, *, quick: bool) -> None:
    """Write a request's body to a draft and hand it on when it is whole.

    Args:
        quick: a small body is written and handed on at once, which takes less time than the way to a thread and back.
    """
    place = drafts / new_id(SystemClock().now())
    held: list[bytes] = []
    size = 0
    file: FileIO | None = None
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise MlflowError("The upload broke off.", "BAD_REQUEST")
            if body := message.get("body", b""):
                held.append(body)
                size += len(body)
            more = message.get("more_body", False)
            if not more and file is None:
                if quick and size <= SMALL:
                    _keep_small(keep, place, held)
                else:
                    # One way to another thread instead of three.
                    await asyncio.to_thread(_keep_small, keep, place, held)
                return
            if size >= PIECE or not more:
                file = await asyncio.to_thread(_write, file, place, held)
                held, size = [], 0
            if not more and file is not None:
                await asyncio.to_thread(_close, keep, file, place)
                file = None
                return
    finally:
        if file is not None:
            file.close()
        place.unlink(missing_ok=True)


async def download(folder: ArtifactLocation, path: str, scope: Scope, send: Send) -> None:
    """Answer with a file, or with the part of it that a `Range` header asks for."""
    file = folder.open(path) if folder.quick else await asyncio.to_thread(folder.open, path)
    size = file.size_bytes
    quick = folder.quick and size <= SMALL
    try:
        wanted = dict(scope["headers"]).get(b"range", b"").decode("latin-1")
        start, stop, status = _range(wanted, size)
        headers = [
            (b"content-type", content_type(path.rsplit("/", 1)[-1])),
            (b"content-disposition", _disposition(path.rsplit("/", 1)[-1])),
            (b"accept-ranges", b"bytes"),
            *GUARDS,
        ]
        if status == 416:
            headers += [(b"content-range", f"bytes */{size}".encode()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 416, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        headers.append((b"content-length", str(stop - start).encode()))
        if status == 206:
            headers.append((b"content-range", f"bytes {start}-{stop - 1}/{size}".encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        at = start
        while at < stop:
            length = min(PIECE, stop - at)
            piece = file.read(at, length) if quick else await asyncio.to_thread(file.read, at, length)
            if not piece:
                # The file has become shorter; the client sees that the length does not fit.
                break
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        file.close()


def listing(folder: ArtifactLocation, path: str, *, below: str = "") -> dict[str, Any]:
    """What is in a folder, each name with `below` in front."""
    files = []
    for entry in folder.list(path):
        name = f"{below}/{entry.name}" if below else entry.name
        shown: dict[str, Any] = {"path": name, "is_dir": entry.is_dir}
        if not entry.is_dir:
            shown["file_size"] = entry.size_bytes
        files.append(shown)
    return {"files": files} if files else {}


async def answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    said = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers, *GUARDS]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body})


async def answer_file(send: Send, name: str, body: bytes) -> None:
    """Answer with a file that is in memory; its name is our own word."""
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(body)).encode()),
        (b"content-disposition", f"attachment; filename={name}".encode()),
        *GUARDS,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_json(send: Send, value: Any) -> None:
    await answer(send, 200, msgspec.json.encode(value))


def _keep_small(keep: Callable[[Path], None], place: Path, held: list[bytes]) -> None:
    with place.open("xb", buffering=0) as file:
        _write_all(file, held)
    keep(place)


def _write(file: FileIO | None, place: Path, held: list[bytes]) -> FileIO:
    if file is not None:
        _write_all(file, held)
        return file
    # Without a buffer, which would try to write once more when the file is closed on a full disk.
    opened = place.open("xb", buffering=0)
    try:
        _write_all(opened, held)
    except BaseException:
        opened.close()
        raise
    return opened


def _write_all(file: FileIO, held: list[bytes]) -> None:
    left = memoryview(b"".join(held))
    while left:
        left = left[file.write(left) :]


def _close(keep: Callable[[Path], None], file: FileIO, place: Path) -> None:
    file.close()
    keep(place)


def _range(wanted: str, size: int) -> tuple[int, int, int]:
    """Start, stop and status for a `Range` header; one that is not understood asks for everything."""
    found = _RANGE.fullmatch(wanted.strip())
    if found is None or not (found[1] or found[2]) or len(wanted) > 60:
        return 0, size, 200
    if not found[1]:
        length = int(found[2])
        return (max(size - length, 0), size, 206) if length and size else (0, 0, 416)
    start = int(found[1])
    stop = min(int(found[2]) + 1, size) if found[2] else size
    if start >= size or stop <= start:
        return 0, 0, 416
    return start, stop, 206


def content_type(name: str) -> bytes:
    """What a file is by its name, as far as no browser runs it: texts, pictures and documents; else bytes."""
    ending = name.rpartition(".")[2].lower()
    return b"text/plain" if ending in _TEXTS else _SHOWN.get(ending, b"application/octet-stream")


def _disposition(name: str) -> bytes:
    if _TOKEN.fullmatch(name):
        return f"attachment; filename={name}".encode()
    plain = re.sub(r'[^ -~]|["\\]', "_", name)
    if plain == name:
        return f'attachment; filename="{plain}"'.encode()
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
