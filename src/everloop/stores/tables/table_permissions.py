"""Restricting the files of a local Delta table to their owner, because deltalake creates them by the umask."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from everloop.stores.permissions import close_to_others, is_shared, make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = "_delta_log"


def make_table_folder(uri: str) -> None:
    """Create a table's folder before deltalake writes to it, so that other users cannot read the files."""
    if "://" not in uri:
        make_folder(Path(uri))


def close_new_files(uri: str) -> None:
    """Give the files of a table's last commit the same mode as everloop's own files.

    The table's folder keeps other users out already. The mode matters if the folder is opened later, and if a group
    shares it: the members must be able to write to folders that deltalake has created.
    """
    if "://" in uri:
        return
    with suppress(OSError, ValueError, KeyError):
        close_to_others(_last_files(Path(uri)))


def _last_files(folder: Path) -> Iterator[Path]:
    log = folder / _LOG
    # Commits are named by numbers of equal length. A checkpoint with the same number is written after its commit.
    names = sorted(entry.name for entry in os.scandir(log) if entry.name[:1].isdigit())
    commit = next((name for name in reversed(names) if name.endswith(".json")), None)
    if commit is None:
        return
    shared = is_shared(folder)
    yield log
    yield from (log / name for name in names if name >= commit[:20])
    yield log / "_last_checkpoint"
    for line in (log / commit).read_bytes().splitlines():
        added = json.loads(line).get("add")
        if added is None:
            continue
        file = folder / unquote(added["path"])
        # Folders of partitions that this commit may have created.
        between = [parent for parent in file.parents if folder in parent.parents]
        yield from reversed(between) if shared else between
        yield file
