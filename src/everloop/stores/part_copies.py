"""Copying all files of one byte store to another, and comparing them one by one.

A copy that was interrupted continues: a file that is complete in the target is not written again.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, CorruptionError, NotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from everloop.stores.objects.byte_stores import ByteStore

_CHUNK = 8 << 20
_CONTENT = "sha256/"


@dataclass(frozen=True, slots=True)
class CopiedFiles:
    files: int
    size_bytes: int
    digest: str
    """The SHA-256 of the names and digests of all files."""


def listed(store: ByteStore, leave_out: frozenset[str] = frozenset()) -> dict[str, int]:
    """All files with their sizes."""
    return {key: size for key, size in store.list() if key not in leave_out}


def copy_files(
    source: ByteStore,
    target: ByteStore,
    progress: Callable[[int], None],
    *,
    leave_out: frozenset[str] = frozenset(),
) -> CopiedFiles:
    """Copy the files that the target does not have, and compare the digests of all of them.

    Args:
        progress: called with the number of files that are complete.
        leave_out: names that are neither copied nor compared.

    Raises:
        CorruptionError: an object differs from the digest in its name.
        ConflictError: another process changed the files meanwhile.
        StoreError: a copy differs from its original.
    """
    before, there = listed(source, leave_out), listed(target, leave_out)
    total, size = hashlib.sha256(), 0
    for number, key in enumerate(sorted(before), 1):
        digest = _digest(source, key, before[key])
        name = key.removeprefix(_CONTENT).replace("/", "")
        if key.startswith(_CONTENT) and len(name) == 62 + 2 and name != digest:
            raise CorruptionError(
                f"The object '{key}' differs from its digest.", help="Repair the store first: everloop verify --repair"
            )
        if there.get(key) != before[key] or _digest(target, key, before[key]) != digest:
            _copy(source, target, key, before[key])
            if _digest(target, key, before[key]) != digest:
                raise StoreError(f"The copy of '{key}' differs from its original.", help="Move the store again.")
        total.update(f"{key}\0{digest}\n".encode())
        size += before[key]
        progress(number)
    if listed(source, leave_out) != before:
        raise ConflictError(
            "Another process wrote to the store while it was moved, so nothing was switched.",
            help="Stop all processes that use the store, and move it again.",
        )
    return CopiedFiles(len(before), size, f"sha256:{total.hexdigest()}")


def _chunks(store: ByteStore, key: str, size: int) -> Iterator[bytes]:
    if size <= _CHUNK:
        yield store.get(key)
        return
    for start in range(0, size, _CHUNK):
        yield store.get(key, start, min(_CHUNK, size - start))


def _digest(store: ByteStore, key: str, size: int) -> str:
    found = hashlib.sha256()
    try:
        for chunk in _chunks(store, key, size):
            found.update(chunk)
    except NotFoundError as error:
        raise ConflictError(
            f"The file '{key}' was removed while the store was moved.", help="Move the store again."
        ) from error
    return found.hexdigest()


def _copy(source: ByteStore, target: ByteStore, key: str, size: int) -> None:
    if size <= _CHUNK:
        target.put(key, source.get(key), if_absent=False)
        return
    with tempfile.TemporaryDirectory(prefix="everloop-move-") as folder:
        draft = Path(folder) / "file"
        with draft.open("wb") as file:
            for chunk in _chunks(source, key, size):
                file.write(chunk)
        target.put(key, draft, if_absent=False)
