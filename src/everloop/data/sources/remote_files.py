"""Files on web servers and in buckets, fetched once into the store's cache and read from there.

An interrupted download goes on where it stopped, as long as the file is still the same one; what was fetched before is
not fetched again while the server says that it is unchanged. Addresses are the project's own code: no server of
everloop takes one from a client.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from everloop.data.sources.read_progress import tell
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
    """One file as its server describes it."""

    url: str
    size: int | None
    tag: str | None
    """ETag, or else the time of the last change; None where the server gives neither."""


def is_remote(source: str) -> bool:
    return source.partition("://")[0] in SCHEMES and "://" in source


def fetch(urls: list[str], *, sha256: str | None = None) -> list[tuple[str, Path]]:
    """The address and the local copy of every file that the addresses mean, in order; a bucket's address may be a glob.

    Args:
        sha256: what the content of a single file must hash to, in hex.

    Raises:
        SourceError: nothing there, no access, a download that cannot be finished, or other content than `sha256`.
    """
    files = [file for url in urls for file in find_remote(url)]
    if sha256 is not None and len(files) != 1:
        raise SourceError(f"sha256= is of one file, and '{mask_url(urls[0])}' means {len(files)}.")
    paths = [_fetch(file) for file in files]
    if sha256 is not None:
        found = _hash(paths[0])
        if found != sha256.lower():
            paths[0].unlink()
            raise SourceError(
                f"'{mask_url(files[0].url)}' hashes to {found}, not to {sha256}.",
                help="The file is damaged or another one; if it was replaced on purpose, give its new sha256.",
            )
    return [(file.url, path) for file, path in zip(files, paths, strict=True)]


def find_remote(url: str) -> list[RemoteFile]:
    """What an address means now, sorted; nothing is downloaded.

    Raises:
        SourceError: nothing there, or the server does not answer.
    """
    return [_ask(url)] if urlsplit(url).scheme in ("http", "https") else _list(url)


def remote_state(spec: dict[str, Json], since: str | None = None) -> str:
    """What lies behind the addresses of `spec["urls"]`, as text that changes when it does."""
    files = (file for url in spec["urls"] for file in find_remote(recalled(url)))
    lines = [json.dumps([mask_url(file.url), file.size, file.tag]) for file in files]
    return "\n".join([_HEADER, *lines])


def remote_change(before: str, after: str) -> str:
    """`1 new file`, `2 files changed, 1 file gone`, or nothing: ``."""
    old, new = ({json.loads(line)[0]: line for line in state.split("\n")[1:]} for state in (before, after))
    changed = sum(old[url] != new[url] for url in old.keys() & new.keys())
    counts = ((len(new.keys() - old.keys()), "new"), (changed, "changed"), (len(old.keys() - new.keys()), "gone"))
    said = []
    for count, word in counts:
        noun = f"file{'s' if count > 1 else ''}"
        if count:
            said.append(f"{count} new {noun}" if word == "new" else f"{count} {noun} {word}")
    return ", ".join(said)


def _ask(url: str) -> RemoteFile:
    import httpx

    def ask() -> RemoteFile:
        answer = httpx.head(url, follow_redirects=True, timeout=30)
        if answer.status_code in (403, 405, 501):
            # Not every server answers HEAD; the headers of a GET say the same.
            with httpx.stream("GET", url, follow_redirects=True, timeout=30) as answer:
                _expect(url, answer.status_code)
                return _described(url, answer.headers)
        _expect(url, answer.status_code)
        return _described(url, answer.headers)

    return _tried(url, ask)


def _described(url: str, headers: Any) -> RemoteFile:
    size = headers.get("content-length")
    # A compressed answer has another length than the file.
    plain = headers.get("content-encoding", "identity") == "identity"
    return RemoteFile(url, int(size) if size and plain else None, headers.get("etag") or headers.get("last-modified"))


def _list(url: str) -> list[RemoteFile]:
    import obstore
    from obstore.store import from_url

    parts = urlsplit(url)
    root, path = f"{parts.scheme}://{parts.netloc}", unquote(parts.path.lstrip("/"))
    magic = next((place for place, letter in enumerate(path) if letter in _MAGIC), None)

    def look() -> list[RemoteFile]:
        store: Any = from_url(root)
        if magic is None:
            return [_object(root, obstore.head(store, path))]
        matches = re.compile(_translated(path)).fullmatch
        prefix = path[:magic].rpartition("/")[0]
        entries: list[Any] = [entry for page in obstore.list(store, prefix or None) for entry in page]
        kept = [entry for entry in entries if matches(entry["path"])]
        return [_object(root, entry) for entry in sorted(kept, key=lambda entry: str(entry["path"]))]

    found = _tried(url, look)
    if not found:
        raise SourceError(f"Nothing in '{root}' matches '{path}'.")
    return found


def _object(root: str, entry: Any) -> RemoteFile:
    return RemoteFile(f"{root}/{entry['path']}", entry["size"], entry["e_tag"] or str(entry["last_modified"]))


def _translated(pattern: str) -> str:
    """A glob whose `*` and `?` stay within a folder and whose `**/` goes through any, as a regular expression."""
    said = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(said.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*/|\*|\?)", pattern))


def _fetch(file: RemoteFile) -> Path:
    folder = find_store_urls(None)[0].home / "cache" / "remote" / hashlib.sha256(file.url.encode()).hexdigest()[:32]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(file.url).path.rpartition("/")[2]) or "file"
    path, part, note = folder / name, folder / f"{name}.part", folder / "note.json"
    described = {"url": mask_url(file.url), "size": file.size, "tag": file.tag}
    if path.exists() and file.tag is not None and _noted(note) == described:
        return path
    make_folder(folder)
    if _noted(note) != described or file.tag is None:
        # Another file than the one that the part is of.
        part.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with open(note, "w", opener=private_opener) as file_of_note:
            file_of_note.write(json.dumps(described))
    _tried(file.url, lambda: _go_on(file, part))
    part.replace(path)
    return path


def _go_on(file: RemoteFile, part: Path) -> None:
    """Append what is missing to the part, once.

    Raises:
        _CutShortError: less came than was announced.
    """
    start = part.stat().st_size if part.exists() else 0
    if file.size is not None and start == file.size:
        return
    pieces = _pieces_http if urlsplit(file.url).scheme in ("http", "https") else _pieces_object
    done = start
    for fresh, piece in pieces(file, start):
        with open(part, "wb" if fresh else "ab", opener=private_opener) as out:
            out.write(piece)
        done = len(piece) if fresh else done + len(piece)
        tell("download", done, file.size, "bytes", mask_url(file.url))
    got = part.stat().st_size if part.exists() else 0
    if file.size is not None and got != file.size:
        raise _CutShortError(f"{got} of {file.size} bytes came")
    part.touch()


def _pieces_http(file: RemoteFile, start: int) -> Iterator[tuple[bool, bytes]]:
    import httpx

    headers = {"Accept-Encoding": "identity"}
    if start and file.tag is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": file.tag}
    with httpx.stream("GET", file.url, headers=headers, follow_redirects=True, timeout=30) as answer:
        _expect(file.url, answer.status_code)
        fresh = answer.status_code != 206
        # Pieces as they come: one that waits to be full is lost when the connection is.
        for piece in answer.iter_raw():
            yield fresh, piece
            fresh = False


def _pieces_object(file: RemoteFile, start: int) -> Iterator[tuple[bool, bytes]]:
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


class _CutShortError(Exception):
    """The connection ended before the file did."""


def _tried(url: str, action: Callable[[], T]) -> T:
    """The action's result, tried again while the network and not the answer is at fault."""
    import httpx

    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (httpx.TransportError, _CutShortError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise SourceError(
                    f"'{mask_url(url)}' cannot be read: {mask_text(str(error), url)}.",
                    help="What has come is kept; the same call goes on from there.",
                ) from None
            time.sleep(_PAUSE_S * 2**attempt)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"'{mask_url(url)}' cannot be read: {mask_text(str(error), url)}.") from None
        except SourceError:
            raise
        except Exception as error:
            # obstore has tried again by itself, and raises its errors under a dozen names.
            raise SourceError(
                f"'{mask_url(url)}' cannot be read: "
                f"{mask_text(str(error).splitlines()[0], url) if str(error) else type(error).__name__}",
                help="Are the bucket's name and the credentials in the environment right?",
            ) from None
    raise AssertionError("unreachable")


def _expect(url: str, status: int) -> None:
    if status >= 500:
        raise _CutShortError(f"the server answers {status}")
    if status >= 400:
        said = {401: "needs a login", 403: "is forbidden", 404: "is not there", 410: "is gone"}.get(status, f"{status}")
        raise SourceError(f"'{mask_url(url)}' cannot be read: it {said}.")


def _noted(note: Path) -> Any:
    try:
        return json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
