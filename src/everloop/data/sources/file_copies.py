"""Plain copies of files that cannot be read as they are: recoded, unpacked, without comments.

They lie in the store's cache, each made once for what the file holds, as a stream of pieces.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from everloop.data.sources.file_states import content_hash, is_settled
from everloop.errors import SourceError
from everloop.stores.clock import SystemClock, micros
from everloop.stores.home import find_store_urls
from everloop.stores.permissions import make_folder, private_opener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


_KEPT_NS = 24 * 3600 * 1_000_000_000


def copied(path: Path, how: str, suffix: str, pieces: Callable[[], Iterable[bytes]]) -> Path:
    """A copy of `path` that consists of the pieces.

    Args:
        how: what is done to the file; a copy is used again where this and the file's stamps are the same.

    Raises:
        SourceError: the disk is full.
    """
    now_ns = micros(SystemClock().now()) * 1000
    seen = path.stat()
    stamps = f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}"
    if not is_settled(max(seen.st_mtime_ns, seen.st_ctime_ns), now_ns):
        # It may be written again within the same tick of the file system's clock.
        stamps = content_hash(path)
    what, state = (hashlib.sha256(text.encode()).hexdigest()[:32] for text in (f"{path.resolve()} {how}", stamps))
    copy = find_store_urls(None)[0].home / "cache" / "copies" / f"{what}-{state}{suffix}"
    if copy.exists():
        return copy
    make_folder(copy.parent)
    part = copy.with_name(f"{copy.name}.{os.getpid()}-{threading.get_ident()}.part")
    made = False
    try:
        with open(part, "wb", opener=private_opener) as target:
            for piece in pieces():
                try:
                    target.write(piece)
                except OSError as error:
                    raise SourceError(
                        f"The copy of '{path}' that is read could not be written: {error.strerror}.",
                        help=f"Make room in '{copy.parent}'.",
                    ) from error
        part.replace(copy)
        made = True
    finally:
        if not made:
            part.unlink(missing_ok=True)
    _sweep(copy, what, now_ns)
    return copy


def _sweep(copy: Path, what: str, now_ns: int) -> None:
    """Remove copies of what the file held before; queries that were made today may still read theirs."""
    for old in copy.parent.glob(f"{what}-*"):
        if old != copy and now_ns - old.stat().st_mtime_ns > _KEPT_NS:
            old.unlink(missing_ok=True)
