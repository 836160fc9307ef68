"""Bytes, stored unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.pipeline.artifacts.artifact_formats import Stored

if TYPE_CHECKING:
    from everloop.stores import ContentStore


class BytesFormat:
    name = "bytes"

    def accepts(self, value: object) -> bool:
        return type(value) is bytes

    def keep(self, value: bytes, objects: ContentStore) -> Stored:
        return Stored(self.name, objects.add(value), len(value))

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> bytes:
        return objects.read(stored.digest)
