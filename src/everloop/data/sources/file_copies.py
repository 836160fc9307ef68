"""Cached copies of files that cannot be read directly: recoded, unpacked, or without comments.

The copies are in the store's cache. Each is written once per content of the file, as a stream of chunks.
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


_MAX_AGE_NS = 24 * 3600 * 1_000_000_000


def copied(path: Path, how: str, suffix: str, chunks: Callable[[], Iterable[bytes]]) -> Path:
    """The cached copy of `path`, written from `chunks` if it does not exist yet.

    Args:
        how: describes the conversion. A copy is reused if this and the file's stamps are the same.

    Raises:
        SourceError: the disk is full.
    """
    now_ns = micros(SystemClock().now()) * 1000
    seen = path.stat()
    stamps = f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}"
    if not is_settled(max(seen.st_mtime_ns, seen.st_ctime_ns), now_ns):
        # The file may be written again within the same tick of the file system's clock.
        stamps = content_hash(path)
    source, state = (hashlib.sha256(text.encode()).hexdigest()[:32] for text in (f"{path.resolve()} {how}", stamps))
    copy = find_store_urls(None)[0].home / "cache" / "copies" / f"{source}-{state}{suffix}"
    if copy.exists():
        return copy
    make_folder(copy.parent)
    part = copy.with_name(f"{copy.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(part, "wb", opener=private_opener) as target:
            for chunk in chunks():
                try:
                    target.write(chunk)
                except OSError as error:
                    raise SourceError(
                        f"'{path}' cannot be read directly, and writing a cached copy failed: {error.strerror}.",
                        help=f"Free some space in '{copy.parent}'.",
                    ) from error
        part.replace(copy)
    finally:
        part.unlink(missing_ok=True)
    _remove_old_copies(copy, source, now_ns)
    return copy


def _remove_old_copies(copy: Path, source: str, now_ns: int) -> None:
    """Remove copies of earlier contents of the file, unless they are so new that a query may still read them."""
    for old in copy.parent.glob(f"{source}-*"):
        if old != copy and now_ns - old.stat().st_mtime_ns > _MAX_AGE_NS:
            old.unlink(missing_ok=True)
