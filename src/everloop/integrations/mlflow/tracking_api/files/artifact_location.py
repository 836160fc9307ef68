"""Protocol of an artifact location, and the checks of paths that clients give."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found

UPLOADS = ".uploads"
"""The folder of unfinished uploads. Clients cannot access it."""
LONGEST_PATH = 4000
LONGEST_NAME = 255
_REFUSED = re.compile(r"[\x00-\x1f\x7f\\#?;]")
_DRIVE = re.compile(r"[A-Za-z]:")
_DECODINGS = 10
_OLDER_IMAGE = re.compile(
    r"(?<![^/%])([^/%]*+)%step%\d+%timestamp%\d+%[0-9a-z]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:%compressed)?(?=\.\w+$)"
)
"""File names of images that older MLflow clients logged. They look percent-encoded, but are never decoded."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a folder."""

    name: str
    is_dir: bool
    size_bytes: int


class OpenFile(Protocol):
    """An open file. Thread-safe; the caller closes it."""

    size_bytes: int

    def read(self, at: int, length: int) -> bytes:
        """Read at most `length` bytes from the offset `at`; empty if the file has become shorter."""

    def close(self) -> None: ...


class ArtifactLocation(Protocol):
    """A folder or bucket with artifact files, which are addressed by relative paths. Thread-safe.

    - A path that leads out of it, however it is encoded, raises MlflowError. So does the path of a folder where a file
      is needed.
    - A file appears under its name only when it is complete.
    """

    @property
    def quick(self) -> bool:
        """Whether small files are read and written in microseconds, as on a local disk."""

    def check(self, path: str) -> None:
        """Raise MlflowError if no file can have this path."""

    def drafts(self) -> Path:
        """Return a local folder for incomplete files. It exists."""

    def keep(self, draft: Path, path: str) -> None:
        """Move a complete draft to its path, replacing an existing file."""

    def open(self, path: str) -> OpenFile:
        """Open a file; raises MlflowError if it does not exist."""

    def list(self, path: str) -> list[Listed]:
        """List a folder, sorted by name; empty if it does not exist."""

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with all its content; does nothing if it does not exist."""

    def on_disk(self, path: str) -> Path:
        """Return a local folder with the content below a path. It may not exist, and must not be written to."""

    def presigned_url(self, method: Literal["GET", "PUT"], path: str, seconds: int) -> str | None:
        """Return a URL for GET or PUT of a file without this server, valid for `seconds`; None if not supported."""


@lru_cache(maxsize=512)
def safe_parts(path: str) -> tuple[str, ...]:
    """Split a relative path, which was percent-decoded once, into names; an empty path has none.

    Raises:
        MlflowError: the path leads out of its root, or would do so if it were decoded again.
    """
    _refuse_unsafe(path)
    decoded = _OLDER_IMAGE.sub(r"\1image", path)
    for _ in range(_DECODINGS):
        _refuse_unsafe(decoded)
        further = unquote(decoded)
        if further == decoded:
            return tuple(part for part in path.split("/") if part not in ("", "."))
        decoded = further
    raise invalid_path()


def invalid_path() -> MlflowError:
    return MlflowError("Invalid path")


def no_artifact(path: str) -> MlflowError:
    return not_found(f"No such artifact: '{path}'")


def _refuse_unsafe(path: str) -> None:
    if len(path) > LONGEST_PATH or _REFUSED.search(path) or path.startswith("/") or _DRIVE.match(path):
        raise invalid_path()
    names = path.split("/")
    if any(name == ".." or _too_long(name) for name in names):
        raise invalid_path()
    if next((name for name in names if name not in ("", ".")), "") == UPLOADS:
        raise invalid_path()
    if path.lower().startswith("file:"):
        raise invalid_path()


def _too_long(name: str) -> bool:
    return len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME
