"""A list whose elements are stored one by one: the result of a step that fans out."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError, load_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.stores import ContentStore


class ListFormat:
    """A manifest in JSON: type, digest, size, meta and signature of each element. `meta`: `length`."""

    name = "list"

    def accepts(self, value: object) -> bool:
        return False

    def keep(self, value: list[Any], objects: ContentStore) -> Stored:
        raise UnkeepableError("only the result of a step that fans out is stored as a list of elements")

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> list[Any]:
        inner = next(iter(get_args(wanted)), None)
        return [load_value(element, objects, inner) for element in load_elements(stored, objects)]


def keep_elements(elements: Sequence[Stored], objects: ContentStore) -> Stored:
    """Store a list of values that are already stored."""
    data = json.dumps([asdict(element) for element in elements], separators=(",", ":"), sort_keys=True).encode()
    size = sum(element.size_bytes for element in elements)
    return Stored(ListFormat.name, objects.add(data), size, {"length": len(elements)})


def load_elements(stored: Stored, objects: ContentStore) -> list[Stored]:
    """The elements of a stored list, without loading their values."""
    return [Stored(**element) for element in json.loads(objects.read(stored.digest))]
