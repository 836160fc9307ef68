"""Sealed segments of a log: the unit in which an instance passes its answers to a store that others read.

A segment is a complete journal file that no longer changes. Its name contains the instance, the segment's number within
the instance, and a digest of its content:

    segments/<stream>/<instance>/<number, twelve digits>-<first half of its sha256>

An instance puts its segments in order, so a reader that finds number 7 also finds 0 to 6, or they have already been
folded. Putting the same segment twice leaves one.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from everloop.errors import CorruptionError, EverloopError, InsufficientStorageError, UnavailableError
from everloop.stores.journals import HEADER, split_frames
from everloop.stores.objects.byte_stores import LocalBytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from everloop.stores.objects.byte_stores import ByteStore

FOLDER = "segments"
SPOOL = "spool"
"""The folder, in a store that is a folder, for journals that are not sealed and put yet."""
WRITABLE = "writable"
"""A key below the folder, written to test whether segments can be put."""
PUT_TIMEOUT_S = 10.0
"""How long one request to a bucket may take, and how long failed ones are retried."""

BUCKETS = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss")
PLACES_HELP = (
    "Use the absolute path of a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or "
    "postgresql://USER@HOST/NAME."
)

_NAME = re.compile(r"(?P<number>[0-9]{12})-(?P<digest>[0-9a-f]{32})")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """The name of one segment. Sorts by instance, then in the order of writing."""

    stream: str
    instance: str
    number: int
    digest: str

    @property
    def key(self) -> str:
        return f"{FOLDER}/{self.stream}/{self.instance}/{self.number:012d}-{self.digest}"

    @classmethod
    def of(cls, stream: str, instance: str, number: int, data: bytes) -> Segment:
        """The name of a segment with this content."""
        return cls(stream, instance, number, digest_of(data))

    @classmethod
    def parse(cls, key: str) -> Segment | None:
        """The segment with this key; None if the key is not that of a segment."""
        parts = key.split("/")
        found = _NAME.fullmatch(parts[-1]) if len(parts) == 4 and parts[0] == FOLDER else None
        return None if found is None else cls(parts[1], parts[2], int(found["number"]), found["digest"])


class SegmentStore(Protocol):
    """Keeps sealed segments until a fold. Safe from any thread and process.

    - When `put` returns, every reader finds the complete segment, until `delete`.
    - Putting a segment that is there already changes nothing and succeeds.
    - `find` never shows half of a segment, and shows a segment only if it shows those that its instance put before
      it, except the deleted ones.

    All methods raise `UnavailableError` if the store does not answer, and `InsufficientStorageError` if it has no
    space.
    """

    def check(self) -> None:
        """Return if segments can be put.

        Raises:
            UnavailableError: the store does not answer, or denies writing.
        """

    def put(self, segment: Segment, data: bytes) -> None:
        """Store a segment."""

    def find(self, stream: str) -> Sequence[Segment]:
        """The segments of a stream, sorted."""

    def streams(self) -> Sequence[str]:
        """The streams that have segments, sorted."""

    def get(self, segment: Segment) -> bytes:
        """The bytes of a segment.

        Raises:
            NotFoundError: the segment does not exist, or no longer.
            CorruptionError: its content differs from the digest in its name.
        """

    def put_at(self, segment: Segment) -> datetime | None:
        """When a segment was put; None if it does not exist."""

    def delete(self, segment: Segment) -> None:
        """Remove a segment, if it exists."""


class ObjectSegments:
    """A `SegmentStore` in a folder or a bucket."""

    def __init__(self, store: ByteStore) -> None:
        self._store = store

    def check(self) -> None:
        try:
            # A conditional put, as for segments, because not every store with an S3 API supports that.
            self._store.put(f"{FOLDER}/{WRITABLE}", b"everloop\n")
        except InsufficientStorageError:
            raise
        except (EverloopError, OSError) as error:
            raise UnavailableError(f"Cannot write to the log's store: {first_line(error)}") from error

    def put(self, segment: Segment, data: bytes) -> None:
        store, key = self._store, segment.key
        if not store.put(key, data) and store.size(key) != len(data):
            # A power cut can leave a file without its content. The name says which content belongs there.
            store.put(key, data, if_absent=False)
        if isinstance(store, LocalBytes):
            # The journal is removed once this returns, so this copy must survive a power cut.
            path = store.path(key)
            for synced in (path, path.parent):
                _sync(synced)

    def find(self, stream: str) -> Sequence[Segment]:
        return sorted(self._below(f"{FOLDER}/{stream}"))

    def streams(self) -> Sequence[str]:
        return sorted({segment.stream for segment in self._below(FOLDER)})

    def get(self, segment: Segment) -> bytes:
        return checked(segment, self._store.get(segment.key))

    def put_at(self, segment: Segment) -> datetime | None:
        return self._store.written_at(segment.key)

    def delete(self, segment: Segment) -> None:
        self._store.delete(segment.key)

    def _below(self, folder: str) -> list[Segment]:
        try:
            found = [Segment.parse(key) for key, _ in self._store.list(folder)]
        except (EverloopError, OSError):
            raise
        except Exception as error:
            # Each provider has its own errors.
            raise UnavailableError(f"The log's store does not answer: {first_line(error)}") from error
        return [segment for segment in found if segment is not None]

    def __repr__(self) -> str:
        return f"ObjectSegments({self._store!r})"


def is_url(where: str) -> bool:
    """Whether a location is a URL, not a path."""
    return bool(_URL.match(where))


def is_folder(where: str) -> bool:
    """Whether a log's location is a local or mounted folder."""
    return not _URL.match(where)


def shown(where: str) -> str:
    """A log's location for messages, without user, password and query."""
    if is_folder(where):
        return where
    from urllib.parse import urlsplit

    scheme, _, rest = where.partition("://")
    try:
        parts = urlsplit(where)
        host = parts.hostname or ""
    except ValueError:
        return f"{scheme}://…"
    return f"{scheme}://{host}{parts.path}" if "@" in rest or "?" in rest else where


def first_line(error: Exception) -> str:
    """The first line of a store's error. A query string is cut off, because it may contain a signature."""
    return re.sub(r"\?\S+", "?…", str(error).partition("\n")[0])[:300]


def digest_of(data: bytes) -> str:
    """Half of a sha256, which is enough to distinguish contents."""
    return hashlib.sha256(data).hexdigest()[:32]


def checked(segment: Segment, data: bytes) -> bytes:
    """The same bytes, checked against the segment's name.

    Raises:
        CorruptionError: they differ from the digest in the name.
    """
    if digest_of(data) != segment.digest:
        raise CorruptionError(
            f"The segment '{segment.key}' differs from the digest in its name.",
            help="Restore it from a copy, or delete it. The segments after it wait for it.",
        )
    return data


def frames_of(segment: Segment, data: bytes) -> list[bytes]:
    """The payloads in a segment.

    Raises:
        CorruptionError: the bytes are not the frames of a journal.
    """
    if data[: len(HEADER)] != HEADER:
        raise CorruptionError(f"The segment '{segment.key}' is not a journal of this format.")
    return [payload for payload, _ in split_frames(data[len(HEADER) :])]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["ObjectSegments", "Segment", "SegmentStore", "frames_of", "shown"]
