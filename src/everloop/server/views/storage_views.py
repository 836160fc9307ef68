"""The part of the settings that is about this server: where the data is, how large it is, and what is trusted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.stores.trust import Keyring, Trusted

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_FILES = 200_000
"""Files that are looked at to measure a folder; of a larger one, the size is a lower bound."""


@dataclass(frozen=True, slots=True)
class StoragePart:
    """One part of the store. `size_bytes` is None for a database server or a bucket."""

    name: str
    """`records`, `objects`, `tables` or `journals`."""
    url: str
    """Path or URL, without passwords."""
    size_bytes: int | None
    files: int | None
    complete: bool
    """False if there are more files than were looked at."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a project's data is, and whose code this machine runs."""

    home: str
    project: str
    parts: list[StoragePart]
    trusted: list[Trusted]
    trust_folder: str
    trust_problem: str | None
    """Why the keys could not be read; None if they could."""


def read_storage(store: Store) -> Storage:
    """Return where the data of a project is. It looks at every file of local folders, up to a limit."""
    from everloop.stores.store_urls import mask_url

    urls = {
        "records": store.urls.records,
        "objects": store.urls.objects,
        "tables": store.urls.tables,
        "journals": str(store.journals),
    }
    ring = Keyring()
    trusted: list[Trusted] = []
    problem = None
    try:
        trusted = ring.listing()
    except EverloopError as error:
        problem = error.message
    return Storage(
        home=str(store.home),
        project=store.project,
        parts=[_part(name, url, mask_url(url)) for name, url in urls.items()],
        trusted=trusted,
        trust_folder=str(ring.folder),
        trust_problem=problem,
    )


def _part(name: str, url: str, shown: str) -> StoragePart:
    if "://" in url:
        return StoragePart(name, shown, None, None, True)
    path = Path(url)
    if path.is_dir():
        size, files, complete = _measure(path)
        return StoragePart(name, shown, size, files, complete)
    # SQLite keeps what was written last beside its file.
    found = [one for end in ("", "-wal") if (one := Path(f"{url}{end}")).is_file()]
    return StoragePart(name, shown, sum(one.stat().st_size for one in found), len(found), True)


def _measure(folder: Path) -> tuple[int, int, bool]:
    size = files = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                size += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue  # removed since it was listed
            files += 1
            if files >= MOST_FILES:
                return size, files, False
    return size, files, True
