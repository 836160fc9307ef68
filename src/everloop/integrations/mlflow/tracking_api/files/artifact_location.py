"""What a place of clients' files does, and every check of a path that a client names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found

UPLOADS = ".uploads"
"""Where files are written before they get their names. No client can name it."""
LONGEST_PATH = 4000
LONGEST_NAME = 255
_REFUSED = re.compile(r"[\x00-\x1f\x7f\\#?;]")
_DRIVE = re.compile(r"[A-Za-z]:")
_DECODINGS = 10
_OLDER_IMAGE = re.compile(
    r"(?<![^/%])([^/%]*+)%step%\d+%timestamp%\d+%[0-9a-z]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:%compressed)?(?=\.\w+$)"
)
"""How older clients of MLflow name logged images. Decoded once more it could be anything, but nobody decodes it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a folder."""

    name: str
    is_dir: bool
    size_bytes: int


class OpenFile(Protocol):
    """A file that is being read, from any thread. Whoever opened it closes it."""

    size_bytes: int

    def read(self, at: int, length: int) -> bytes:
        """At most so many bytes from there on; none where the file has become shorter."""

    def close(self) -> None: ...


class ArtifactLocation(Protocol):
    """A place below which clients' files are, by relative paths. Safe from any thread.

    - A path that leads elsewhere, however it is spelled, is refused with MlflowError, and so is one that names a
      folder where a file belongs.
    - A file has its name once all of it is there: nobody sees half of one.
    """

    @property
    def quick(self) -> bool:
        """Whether small files are read and written in microseconds, as on a disk of this machine."""

    def check(self, path: str) -> None:
        """Refuse a path that no file here can have."""

    def drafts(self) -> Path:
        """A folder of this machine for what is not whole yet. It is there."""

    def keep(self, draft: Path, path: str) -> None:
        """Give a finished draft its name, in place of what had it. The draft is gone."""

    def open(self, path: str) -> OpenFile:
        """Raises MlflowError where there is no such file."""

    def list(self, path: str) -> list[Listed]:
        """What is in a folder, by name; empty where there is none."""

    def delete(self, path: str) -> None:
        """Remove a file or a folder with everything in it; nothing where there is none."""

    def on_disk(self, path: str) -> Path:
        """A folder of this machine with all that is below a path; it need not exist. Not to be written to."""

    def address(self, method: Literal["GET", "PUT"], path: str, seconds: int) -> str | None:
        """Where a client may GET or PUT a file for so many seconds without this server; None where it may not."""


@lru_cache(maxsize=512)
def safe_parts(path: str) -> tuple[str, ...]:
    """The names of a relative path that HTTP has decoded once; of an empty one, none.

    Raises:
        MlflowError: it leads elsewhere, or could be read so by somebody who decodes it again.
    """
    _refuse_unsafe(path)
    spelled = _OLDER_IMAGE.sub(r"\1image", path)
    for _ in range(_DECODINGS):
        _refuse_unsafe(spelled)
        further = unquote(spelled)
        if further == spelled:
            return tuple(part for part in path.split("/") if part not in ("", "."))
        spelled = further
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
