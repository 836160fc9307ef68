"""The files of the web page, as the build has left them in the package.

They are read once and served from memory by name: no part of a request ever becomes a path. A source install without
Node has no such files; then a small page says how to build them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

FOLDER = "page"
INDEX = "index.html"
UNBUILT_PAGE: Literal["unbuilt.html"] = "unbuilt.html"
UNBUILT_STYLE: Literal["unbuilt.css"] = "unbuilt.css"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".json": "application/json",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file: its bytes, gzip-compressed as well if that is smaller."""

    body: bytes
    gzipped: bytes | None
    media_type: str


@lru_cache(maxsize=1)
def read_page() -> dict[str, PageFile]:
    """Return the files of the page by name, `index.html` and `assets/…`; empty if the page has not been built."""
    folder = files("everloop.server") / FOLDER
    found: dict[str, PageFile] = {}
    if (folder / INDEX).is_file():
        _collect(folder, "", found)
    return found


def unbuilt_file(name: Literal["unbuilt.html", "unbuilt.css"]) -> bytes:
    """Return a file of the page that is shown if the web page has not been built."""
    return (files("everloop.server") / "static" / name).read_bytes()


def _collect(folder: Traversable, prefix: str, found: dict[str, PageFile]) -> None:
    import gzip

    for one in folder.iterdir():
        name = f"{prefix}{one.name}"
        if one.is_dir():
            _collect(one, f"{name}/", found)
            continue
        suffix = one.name[one.name.rfind(".") :]
        if suffix not in _TYPES:
            continue
        body = one.read_bytes()
        small = gzip.compress(body, mtime=0)
        found[name] = PageFile(body, small if len(small) < 0.9 * len(body) else None, _TYPES[suffix])
