"""The store in which one policy is replayed: empty, private to the replay, and on a clock that the replay sets."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ConflictError
from everloop.stores import open_store
from everloop.stores.clock import micros

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory; the folder in it is private
_LEAST_FREE_BYTES = 2 << 30


class VirtualClock:
    """A clock of one process that shows the moment it was set to."""

    simulated = True

    def __init__(self, moment: datetime) -> None:
        micros(moment)
        self._moment = moment.astimezone(UTC)

    def now(self) -> datetime:
        return self._moment

    def set(self, moment: datetime) -> None:
        """Move the clock.

        Raises:
            ConflictError: `moment` is before the clock's present time.
        """
        if moment < self._moment:
            raise ConflictError(f"The replay's clock shows {self._moment} and cannot go back to {moment}.")
        self._moment = moment.astimezone(UTC)

    def __repr__(self) -> str:
        return f"VirtualClock({self._moment.isoformat()})"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder for a replay, in memory if there is room, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="everloop-replay-", dir=_place()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replay_store(folder: Path, project: str, clock: VirtualClock) -> Iterator[Store]:
    """Open an empty store in `folder` for one policy. All parts of it are below this folder."""
    with open_store(folder, project=project, actor="everloop:replay", clock=clock) as store:
        yield store


def _place() -> str | None:
    try:
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _LEAST_FREE_BYTES:
            return str(_MEMORY)
    except OSError:
        pass
    return None
