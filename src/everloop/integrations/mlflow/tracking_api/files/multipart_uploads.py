"""Uploads in parts: each part is stored as a separate file, and in the end they are joined in order.

The whole state of an upload is in its folder, so it survives a restart of the server. The presigned URLs of its parts
do not; a client then has to start again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import msgspec

from everloop.integrations.mlflow.tracking_api.codec import MlflowError, not_found
from everloop.stores import new_id
from everloop.stores.clock import SystemClock

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation

MOST_PARTS = 10_000
_ID = re.compile(r"[0-9a-f-]{36}")
_PLAN = "plan.json"
_JOINED = "whole"
_DONE = "done"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """The path and the number of parts of an upload."""

    path: str
    parts: int


class Uploads:
    """The unfinished uploads to one artifact location. Thread-safe."""

    def __init__(self, folder: ArtifactLocation) -> None:
        self._folder = folder
        self._completing = Lock()

    def begin(self, path: str, parts: int) -> str:
        """Start an upload to `path`, and return its id.

        Raises:
            MlflowError: the path is not valid, or there are too many parts.
        """
        if not 1 <= parts <= MOST_PARTS:
            raise MlflowError(f"An upload must have 1 to {MOST_PARTS} parts, not {parts}.")
        self._folder.check(path)
        upload_id = new_id(SystemClock().now())
        folder = self._folder.drafts() / upload_id
        folder.mkdir()
        (folder / _PLAN).write_bytes(msgspec.json.encode(UploadPlan(path, parts)))
        return upload_id

    def part(self, upload: str, number: int) -> Path:
        """Return the path of a part's file.

        Raises:
            MlflowError: there is no such upload or part.
        """
        folder, plan = self._find(upload)
        if not 1 <= number <= plan.parts:
            raise MlflowError(f"The upload has parts 1 to {plan.parts}, not {number}.")
        return folder / str(number)

    def complete(self, upload: str, path: str, parts: Sequence[tuple[int, str]]) -> None:
        """Join the parts in the order of their numbers, and move the file to its path.

        Args:
            parts: number and entity tag (ETag) of each part, as returned for its upload.

        Raises:
            MlflowError: the upload has another path, or a part is missing or differs from the one with this tag.
        """
        with self._completing:
            self._complete(upload, path, parts)

    def _complete(self, upload: str, path: str, parts: Sequence[tuple[int, str]]) -> None:
        folder, plan = self._find(upload, path)
        if (folder / _DONE).exists():
            # A client that got no response repeats its request.
            return
        tags = dict(parts)
        if sorted(tags) != list(range(1, plan.parts + 1)) or len(tags) != len(parts):
            raise MlflowError(f"'parts' must list the parts 1 to {plan.parts}, each once. It lists {sorted(tags)}.")
        for number, tag in parts:
            try:
                sent = entity_tag(folder / str(number))
            except FileNotFoundError:
                raise MlflowError(f"Part {number} has not been uploaded.") from None
            if tag and tag.strip('"') != sent.strip('"'):
                raise MlflowError(f"The uploaded part {number} does not have the ETag {tag[:80]}.")
        joined = folder / _JOINED
        with joined.open("wb") as file:
            for number in range(1, plan.parts + 1):
                with (folder / str(number)).open("rb") as part:
                    shutil.copyfileobj(part, file, _PIECE)
        self._folder.keep(joined, path)
        (folder / _DONE).touch()
        for number in range(1, plan.parts + 1):
            (folder / str(number)).unlink()

    def abort(self, upload: str, path: str) -> None:
        """Delete an upload and all its parts."""
        folder, _ = self._find(upload, path)
        shutil.rmtree(folder, ignore_errors=True)

    def _find(self, upload: str, path: str | None = None) -> tuple[Path, UploadPlan]:
        folder = self._folder.drafts() / upload
        if _ID.fullmatch(upload):
            try:
                plan = msgspec.json.decode((folder / _PLAN).read_bytes(), type=UploadPlan)
            except FileNotFoundError:
                pass
            else:
                if path in (None, plan.path):
                    return folder, plan
        raise not_found(f"There is no upload '{upload[:80]}'" + (f" of '{path}'." if path is not None else "."))


def entity_tag(file: Path) -> str:
    """Return the entity tag (ETag) of a part. It changes if the part is uploaded again."""
    found = file.stat()
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


def sweep(folder: Path, older_than_s: float) -> None:
    """Remove drafts that killed processes or disconnected clients have left behind."""
    now = SystemClock().now().timestamp()
    with os.scandir(folder) as entries:
        for entry in entries:
            if now - entry.stat(follow_symlinks=False).st_mtime <= older_than_s:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
