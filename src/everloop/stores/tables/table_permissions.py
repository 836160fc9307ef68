"""The files of a local Delta table, which deltalake makes by the umask, given to their owner only."""

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
    """Make the folder of a table that is about to be written, so that nobody else reads what deltalake puts there."""
    if "://" not in uri:
        make_folder(Path(uri))


def close_new_files(uri: str) -> None:
    """Give the files of a table's last commit the mode that everloop's own files have.

    Others are kept out by the table's folder already. This matters where the folder is opened later, and where a
    group shares it: its members must be able to write beside what deltalake has made.
    """
    if "://" in uri:
        return
    with suppress(OSError, ValueError, KeyError):
        close_to_others(_last_files(Path(uri)))


def _last_files(folder: Path) -> Iterator[Path]:
    log = folder / _LOG
    # Names of commits are numbers of one length. A checkpoint of the same number is written after its commit.
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
        # Folders of partitions that this commit has brought.
        between = [parent for parent in file.parents if folder in parent.parents]
        yield from reversed(between) if shared else between
        yield file
