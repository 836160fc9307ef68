"""Uploads in parts: each part is a file of its own until all are there, and then they become one, in order.

What lies here says all that there is to know about an upload, so it outlives a restart; the addresses that its parts
are sent to do not, and a client that loses them begins again.
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
_WHOLE = "whole"
_DONE = "done"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload will become."""

    path: str
    parts: int


class Uploads:
    """The unfinished uploads to one folder. Safe from any thread."""

    def __init__(self, folder: ArtifactLocation) -> None:
        self._folder = folder
        self._completing = Lock()

    def begin(self, path: str, parts: int) -> str:
        """The id of a new upload of so many parts, which will get the name `path`.

        Raises:
            MlflowError: no such file can be, or there are too many parts.
        """
        if not 1 <= parts <= MOST_PARTS:
            raise MlflowError(f"An upload has 1 to {MOST_PARTS} parts, not {parts}.")
        self._folder.check(path)
        identity = new_id(SystemClock().now())
        folder = self._folder.drafts() / identity
        folder.mkdir()
        (folder / _PLAN).write_bytes(msgspec.json.encode(Plan(path, parts)))
        return identity

    def part(self, upload: str, number: int) -> Path:
        """Where a part goes once it is whole.

        Raises:
            MlflowError: there is no such upload or part.
        """
        folder, plan = self._find(upload)
        if not 1 <= number <= plan.parts:
            raise MlflowError(f"The upload has parts 1 to {plan.parts}, not {number}.")
        return folder / str(number)

    def complete(self, upload: str, path: str, parts: Sequence[tuple[int, str]]) -> None:
        """Make one file of the parts, in the order of their numbers, and give it its name.

        Args:
            parts: number and entity tag of each, as they were answered.

        Raises:
            MlflowError: the upload is of another path, or a part is missing or another than was sent.
        """
        with self._completing:
            self._complete(upload, path, parts)

    def _complete(self, upload: str, path: str, parts: Sequence[tuple[int, str]]) -> None:
        folder, plan = self._find(upload, path)
        if (folder / _DONE).exists():
            # A client that got no answer asks again.
            return
        named = dict(parts)
        if sorted(named) != list(range(1, plan.parts + 1)) or len(named) != len(parts):
            raise MlflowError(f"The upload has parts 1 to {plan.parts}, each once; these were named: {sorted(named)}.")
        for number, tag in parts:
            try:
                sent = entity_tag(folder / str(number))
            except FileNotFoundError:
                raise MlflowError(f"Part {number} has not been sent.") from None
            if tag and tag.strip('"') != sent.strip('"'):
                raise MlflowError(f"Part {number} is not the one with the ETag {tag[:80]}.")
        whole = folder / _WHOLE
        with whole.open("wb") as file:
            for number in range(1, plan.parts + 1):
                with (folder / str(number)).open("rb") as part:
                    shutil.copyfileobj(part, file, _PIECE)
        self._folder.keep(whole, path)
        (folder / _DONE).touch()
        for number in range(1, plan.parts + 1):
            (folder / str(number)).unlink()

    def abort(self, upload: str, path: str) -> None:
        """Forget an upload and all its parts."""
        folder, _ = self._find(upload, path)
        shutil.rmtree(folder, ignore_errors=True)

    def _find(self, upload: str, path: str | None = None) -> tuple[Path, Plan]:
        folder = self._folder.drafts() / upload
        if _ID.fullmatch(upload):
            try:
                plan = msgspec.json.decode((folder / _PLAN).read_bytes(), type=Plan)
            except FileNotFoundError:
                pass
            else:
                if path in (None, plan.path):
                    return folder, plan
        raise not_found(f"There is no upload '{upload[:80]}'" + (f" of '{path}'." if path is not None else "."))


def entity_tag(file: Path) -> str:
    """Names one writing of a part: it tells a part that was sent again from the one before."""
    found = file.stat()
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


def sweep(folder: Path, older_than_s: float) -> None:
    """Remove what killed processes and clients that went away have left among the drafts."""
    now = SystemClock().now().timestamp()
    with os.scandir(folder) as entries:
        for entry in entries:
            if now - entry.stat(follow_symlinks=False).st_mtime <= older_than_s:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
