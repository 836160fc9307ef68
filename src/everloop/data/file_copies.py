"""Plain copies of files that cannot be read as they are: recoded, unpacked, without comments.

They lie in the store's cache, each made once for what the file holds, as a stream of pieces.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from everloop.data.file_states import content_hash, is_settled
from everloop.errors import SourceError
from everloop.stores.clock import SystemClock, micros
from everloop.stores.home import find_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


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
    name = hashlib.sha256(f"{path.resolve()} {stamps} {how}".encode()).hexdigest()[:32]
    copy = find_places(None)[0].home / "cache" / "copies" / f"{name}{suffix}"
    if copy.exists():
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f"{copy.name}.{os.getpid()}-{threading.get_ident()}.part")
    made = False
    try:
        with part.open("wb") as target:
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
    return copy
