"""The store in which one policy is replayed: empty, private to the replay, and on a clock that the replay sets."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.stores import scratch_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.stores import Store
    from everloop.stores.clock import Clock

_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory; the folder in it is private
_LEAST_FREE_BYTES = 2 << 30


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder for a replay, in memory if there is room, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="everloop-replay-", dir=_place()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replay_store(folder: Path, project: str, clock: Clock, objects: Path | None = None) -> Iterator[Store]:
    """Open an empty store for one policy. Its tables are in memory, its other parts below `folder`.

    Args:
        folder: folder of the store; created if missing.
        project: project of its records.
        clock: the time of the replay.
        objects: a folder for its objects that other stores use as well. Default: a folder of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_store(project, clock, actor="everloop:replay", folder=folder, objects=objects) as store:
        yield store


def _place() -> str | None:
    try:
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _LEAST_FREE_BYTES:
            return str(_MEMORY)
    except OSError:
        pass
    return None
