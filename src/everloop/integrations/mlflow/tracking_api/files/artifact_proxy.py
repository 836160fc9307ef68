"""The artifact proxy: uploads and downloads files in pieces, so memory use does not depend on their size.

An upload is written to a draft, which gets its name when it is complete. All files are served as downloads, and HTML
and SVG without their content type, so that no browser runs a file that a client uploaded.
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
"""A token, which needs no quotes in a header (RFC 9110, section 5.6.2); MLflow's server does not quote it either."""
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
    """Store a request's body as a file. An upload that breaks off leaves nothing behind."""
    folder.check(path)
    await receive_file(folder.drafts(), partial(folder.keep, path=path), receive, quick=folder.quick)


async def receive_file(drafts: Path, keep: Callable[[Path], None], receive: Receive, *, quick: bool) -> None:
    """Write a request's body to a draft, and pass the draft to `keep` when it is complete.

    Args:
        quick: write a small body in the event loop, which takes less time than switching to a thread.
    """
    draft = drafts / new_id(SystemClock().now())
    pieces: list[bytes] = []
    size = 0
    file: FileIO | None = None
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise MlflowError("The client disconnected before it had sent the whole file.", "BAD_REQUEST")
            if body := message.get("body", b""):
                pieces.append(body)
                size += len(body)
            more = message.get("more_body", False)
            if not more and file is None:
                if quick and size <= SMALL:
                    _keep_small(keep, draft, pieces)
                else:
                    # One switch to another thread instead of three.
                    await asyncio.to_thread(_keep_small, keep, draft, pieces)
                return
            if size >= PIECE or not more:
                file = await asyncio.to_thread(_write, file, draft, pieces)
                pieces, size = [], 0
            if not more and file is not None:
                await asyncio.to_thread(_close, keep, file, draft)
                file = None
                return
    finally:
        if file is not None:
            file.close()
        draft.unlink(missing_ok=True)


async def download(folder: ArtifactLocation, path: str, scope: Scope, send: Send) -> None:
    """Send a file, or the part of it that a `Range` header requests."""
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
                # The file has become shorter; the client notices that the length does not match.
                break
            at += len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        file.close()


def listing(folder: ArtifactLocation, path: str, *, below: str = "") -> dict[str, Any]:
    """List a folder; each path gets the prefix `below`."""
    files = []
    for entry in folder.list(path):
        name = f"{below}/{entry.name}" if below else entry.name
        shown: dict[str, Any] = {"path": name, "is_dir": entry.is_dir}
        if not entry.is_dir:
            shown["file_size"] = entry.size_bytes
        files.append(shown)
    return {"files": files} if files else {}


async def send_response(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    all_headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers, *GUARDS]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def send_file(send: Send, name: str, body: bytes) -> None:
    """Send a file from memory. Its name must be a safe constant."""
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(len(body)).encode()),
        (b"content-disposition", f"attachment; filename={name}".encode()),
        *GUARDS,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any) -> None:
    await send_response(send, 200, msgspec.json.encode(value))


def _keep_small(keep: Callable[[Path], None], draft: Path, pieces: list[bytes]) -> None:
    with draft.open("xb", buffering=0) as file:
        _write_all(file, pieces)
    keep(draft)


def _write(file: FileIO | None, draft: Path, pieces: list[bytes]) -> FileIO:
    if file is not None:
        _write_all(file, pieces)
        return file
    # Unbuffered, as a buffer would try to write once more when the file is closed on a full disk.
    opened = draft.open("xb", buffering=0)
    try:
        _write_all(opened, pieces)
    except BaseException:
        opened.close()
        raise
    return opened


def _write_all(file: FileIO, pieces: list[bytes]) -> None:
    left = memoryview(b"".join(pieces))
    while left:
        left = left[file.write(left) :]


def _close(keep: Callable[[Path], None], file: FileIO, draft: Path) -> None:
    file.close()
    keep(draft)


def _range(wanted: str, size: int) -> tuple[int, int, int]:
    """Return start, stop and status for a `Range` header; one that is not supported requests the whole file."""
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
    """Return a content type that no browser runs: text, images, media and PDF by the file's ending; else bytes."""
    ending = name.rpartition(".")[2].lower()
    return b"text/plain" if ending in _TEXTS else _SHOWN.get(ending, b"application/octet-stream")


def _disposition(name: str) -> bytes:
    if _TOKEN.fullmatch(name):
        return f"attachment; filename={name}".encode()
    plain = re.sub(r'[^ -~]|["\\]', "_", name)
    if plain == name:
        return f'attachment; filename="{plain}"'.encode()
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}".encode()
