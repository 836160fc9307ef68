"""Objects of a fork: its own, and below them those of its origin, which are only read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import NotFoundError
from everloop.stores.objects.byte_stores import LocalBytes
from everloop.stores.objects.content_addressing import ContentStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path
    from typing import Self

    from everloop.stores.objects.byte_stores import ByteStore


class OverlayBytes:
    """A `ByteStore` in a local folder over another one, which is never written to.

    Keys below can be read, but `list` does not show them and `delete` does not remove them. So garbage collection in a
    fork touches only what the fork itself has added.
    """

    def __init__(self, own: LocalBytes, below: ByteStore) -> None:
        self.own = own
        self.below = below

    def put(self, key: str, data: bytes | Path, *, if_absent: bool = True) -> bool:
        if if_absent and self.own.size(key) is None and self.below.size(key) is not None:
            return False
        return self.own.put(key, data, if_absent=if_absent)

    def get(self, key: str, start: int | None = None, length: int | None = None) -> bytes:
        with suppress(NotFoundError):
            return self.own.get(key, start, length)
        return self.below.get(key, start, length)

    def size(self, key: str) -> int | None:
        size = self.own.size(key)
        return self.below.size(key) if size is None else size

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        return self.own.list(prefix)

    def written_at(self, key: str) -> datetime | None:
        return self.own.written_at(key) or self.below.written_at(key)

    def delete(self, key: str, *, unless_since: datetime | None = None) -> bool:
        return self.own.delete(key, unless_since=unless_since)


class OverlayObjects(ContentStore):
    """A `ContentStore` over the objects of another one. `digests` shows only those that were added to it."""

    def __init__(self, own: Path, below: ContentStore, *, read_only: bool = False) -> None:
        self._folder = own
        self._below = below.read_only()
        self._added = ContentStore(LocalBytes(own))
        super().__init__(OverlayBytes(LocalBytes(own), below.bytes_store), read_only=read_only)

    def read_only(self) -> Self:
        return type(self)(self._folder, self._below, read_only=True)

    def path(self, digest: str) -> Path:
        # Both remember which files they have verified.
        return (self._added if self._added.has(digest) else self._below).path(digest)
