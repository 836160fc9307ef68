"""Download files from web servers and buckets into the store's cache.

An interrupted download continues where it stopped if the file is still the same. A downloaded file is not downloaded
again while the server reports it as unchanged. URLs come only from the project's code: no everloop server accepts one
from a client.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from everloop.data.sources.read_progress import report_progress
from everloop.errors import SourceError
from everloop.stores.home import find_store_urls
from everloop.stores.permissions import make_folder, private_opener
from everloop.stores.store_urls import mask_text, mask_url, recalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from everloop.records import Json

T = TypeVar("T")

SCHEMES = ("http", "https", "s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_ATTEMPTS = 5
_PAUSE_S = 0.2
_CHUNK = 8 << 20
_MAGIC = "*?"
_HEADER = "remote 1"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file, as its server describes it."""

    url: str
    size: int | None
    tag: str | None
    """The ETag, or else the time of the last change; None if the server sends neither."""


def is_remote(source: str) -> bool:
    return source.partition("://")[0] in SCHEMES and "://" in source


def fetch(urls: list[str], *, sha256: str | None = None) -> list[tuple[str, Path]]:
    """Download the files at the URLs; return the URL and the local copy of each, in order. Bucket URLs may be globs.

    Args:
        sha256: the expected hash of a single file, in hex.

    Raises:
        SourceError: a file does not exist, access is denied, a download fails, or the content does not match `sha256`.
    """
    files = [file for url in urls for file in find_remote(url)]
    if sha256 is not None and len(files) != 1:
        raise SourceError(
            f"sha256= needs a single file, but '{mask_url(urls[0])}' matches {len(files)}.",
            help="Read one file, or leave out sha256=.",
        )
    paths = [_fetch(file) for file in files]
    if sha256 is not None:
        found = _hash(paths[0])
        if found != sha256.lower():
            paths[0].unlink()
            raise SourceError(
                f"The SHA-256 of '{mask_url(files[0].url)}' is {found}, but {sha256} was expected.",
                help="The file is damaged or was replaced. If it was replaced on purpose, pass its new sha256=.",
            )
    return [(file.url, path) for file, path in zip(files, paths, strict=True)]


def find_remote(url: str) -> list[RemoteFile]:
    """The files at a URL, sorted. Nothing is downloaded.

    Raises:
        SourceError: there is no file, or the server does not respond.
    """
    return [_describe_url(url)] if urlsplit(url).scheme in ("http", "https") else _list(url)


def remote_state(spec: dict[str, Json], since: str | None = None) -> str:
    """The state of the files at `spec["urls"]`, as a text that changes when they do."""
    files = (file for url in spec["urls"] for file in find_remote(recalled(url)))
    lines = [json.dumps([mask_url(file.url), file.size, file.tag]) for file in files]
    return "\n".join([_HEADER, *lines])


def remote_change(before: str, after: str) -> str:
    """Describe the change between two states: `1 new file`, `2 files changed, 1 file gone`; empty if there is none."""
    old, new = ({json.loads(line)[0]: line for line in state.split("\n")[1:]} for state in (before, after))
    changed = sum(old[url] != new[url] for url in old.keys() & new.keys())
    counts = ((len(new.keys() - old.keys()), "new"), (changed, "changed"), (len(old.keys() - new.keys()), "gone"))
    parts = []
    for count, word in counts:
        noun = f"file{'s' if count > 1 else ''}"
        if count:
            parts.append(f"{count} new {noun}" if word == "new" else f"{count} {noun} {word}")
    return ", ".join(parts)


def _describe_url(url: str) -> RemoteFile:
    import httpx

    def describe() -> RemoteFile:
        response = httpx.head(url, follow_redirects=True, timeout=30)
        if response.status_code in (403, 405, 501):
            # Not every server supports HEAD. A GET response has the same headers.
            with httpx.stream("GET", url, follow_redirects=True, timeout=30) as response:
                _check_status(url, response.status_code)
                return _from_headers(url, response.headers)
        _check_status(url, response.status_code)
        return _from_headers(url, response.headers)

    return _with_retries(url, describe)


def _from_headers(url: str, headers: Any) -> RemoteFile:
    size = headers.get("content-length")
    # The length of a compressed response is not the length of the file.
    plain = headers.get("content-encoding", "identity") == "identity"
    return RemoteFile(url, int(size) if size and plain else None, headers.get("etag") or headers.get("last-modified"))


def _list(url: str) -> list[RemoteFile]:
    import obstore
    from obstore.store import from_url

    parts = urlsplit(url)
    root, path = f"{parts.scheme}://{parts.netloc}", unquote(parts.path.lstrip("/"))
    magic = next((index for index, letter in enumerate(path) if letter in _MAGIC), None)

    def find() -> list[RemoteFile]:
        store: Any = from_url(root)
        if magic is None:
            return [_object(root, obstore.head(store, path))]
        matches = re.compile(_translated(path)).fullmatch
        prefix = path[:magic].rpartition("/")[0]
        entries: list[Any] = [entry for page in obstore.list(store, prefix or None) for entry in page]
        matching = [entry for entry in entries if matches(entry["path"])]
        return [_object(root, entry) for entry in sorted(matching, key=lambda entry: str(entry["path"]))]

    found = _with_retries(url, find)
    if not found:
        raise SourceError(f"No file in '{root}' matches '{path}'.")
    return found


def _object(root: str, entry: Any) -> RemoteFile:
    return RemoteFile(f"{root}/{entry['path']}", entry["size"], entry["e_tag"] or str(entry["last_modified"]))


def _translated(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` match within a folder, `**/` matches any number of folders."""
    wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(wildcards.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*/|\*|\?)", pattern))


def _fetch(file: RemoteFile) -> Path:
    folder = find_store_urls(None)[0].home / "cache" / "remote" / hashlib.sha256(file.url.encode()).hexdigest()[:32]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(file.url).path.rpartition("/")[2]) or "file"
    path, part, note = folder / name, folder / f"{name}.part", folder / "note.json"
    description = {"url": mask_url(file.url), "size": file.size, "tag": file.tag}
    if path.exists() and file.tag is not None and _load_note(note) == description:
        return path
    make_folder(folder)
    if _load_note(note) != description or file.tag is None:
        # The cached part belongs to another version of the file.
        part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with open(note, "w", opener=private_opener) as stream:
            stream.write(json.dumps(description))
    _with_retries(file.url, lambda: _resume_download(file, part))
    part.replace(path)
    return path


def _resume_download(file: RemoteFile, part: Path) -> None:
    """Append the missing bytes to `part`, in one attempt.

    Raises:
        _IncompleteError: fewer bytes arrived than the server announced.
    """
    start = part.stat().st_size if part.exists() else 0
    if file.size is not None and start == file.size:
        return
    chunks = _http_chunks if urlsplit(file.url).scheme in ("http", "https") else _bucket_chunks
    done = start
    for restart, chunk in chunks(file, start):
        with open(part, "wb" if restart else "ab", opener=private_opener) as out:
            out.write(chunk)
        done = len(chunk) if restart else done + len(chunk)
        report_progress("download", done, file.size, "bytes", mask_url(file.url))
    got = part.stat().st_size if part.exists() else 0
    if file.size is not None and got != file.size:
        raise _IncompleteError(f"{got} of {file.size} bytes arrived")
    part.touch()


def _http_chunks(file: RemoteFile, start: int) -> Iterator[tuple[bool, bytes]]:
    """Chunks from `start`. True before a chunk means that the server started at the beginning of the file again."""
    import httpx

    headers = {"Accept-Encoding": "identity"}
    if start and file.tag is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": file.tag}
    with httpx.stream("GET", file.url, headers=headers, follow_redirects=True, timeout=30) as response:
        _check_status(file.url, response.status_code)
        restart = response.status_code != 206
        # Yield chunks as they arrive: one that waits to be full is lost if the connection breaks.
        for chunk in response.iter_raw():
            yield restart, chunk
            restart = False


def _bucket_chunks(file: RemoteFile, start: int) -> Iterator[tuple[bool, bytes]]:
    import obstore
    from obstore.store import from_url

    parts = urlsplit(file.url)
    store: Any = from_url(f"{parts.scheme}://{parts.netloc}")
    size = file.size or 0
    for first in range(start, size, _CHUNK):
        length = min(_CHUNK, size - first)
        yield first == 0, bytes(obstore.get_range(store, parts.path.lstrip("/"), start=first, length=length))
    if size == 0:
        yield True, b""


class _IncompleteError(Exception):
    """The connection ended before the file did, or the server failed."""


def _with_retries(url: str, action: Callable[[], T]) -> T:
    """The action's result. Failures of the network or the server are retried."""
    import httpx

    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (httpx.TransportError, _IncompleteError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise SourceError(
                    f"'{mask_url(url)}' cannot be read: {mask_text(str(error), url)}.",
                    help="Run it again: the download resumes where it stopped.",
                ) from None
            time.sleep(_PAUSE_S * 2**attempt)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"'{mask_url(url)}' cannot be read: {mask_text(str(error), url)}.") from None
        except SourceError:
            raise
        except Exception as error:
            # obstore retries by itself, and its exceptions have no common base class.
            raise SourceError(
                f"'{mask_url(url)}' cannot be read: "
                f"{mask_text(str(error).splitlines()[0], url) if str(error) else type(error).__name__}",
                help="Check the bucket's name and the credentials in the environment.",
            ) from None
    raise AssertionError("unreachable")


def _check_status(url: str, status: int) -> None:
    if status >= 500:
        raise _IncompleteError(f"the server responded with status {status}")
    if status >= 400:
        meanings = {401: "a login is needed", 403: "access is denied", 404: "it does not exist", 410: "it is gone"}
        reason = meanings.get(status, "the request failed")
        raise SourceError(f"'{mask_url(url)}' cannot be read: {reason} (status {status}).")


def _load_note(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
