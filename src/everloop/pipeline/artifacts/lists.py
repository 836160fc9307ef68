"""A list whose elements are kept one by one: what a step that fans out returns."""

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
        raise UnkeepableError("a list is kept by its elements only where a step fans out")

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> list[Any]:
        inner = next(iter(get_args(wanted)), None)
        return [load_value(element, objects, inner) for element in load_elements(stored, objects)]


def keep_elements(elements: Sequence[Stored], objects: ContentStore) -> Stored:
    """Keep a list of values that are kept already."""
    data = json.dumps([asdict(element) for element in elements], separators=(",", ":"), sort_keys=True).encode()
    size = sum(element.size_bytes for element in elements)
    return Stored(ListFormat.name, objects.add(data), size, {"length": len(elements)})


def load_elements(stored: Stored, objects: ContentStore) -> list[Stored]:
    """The elements of a list, none of them read."""
    return [Stored(**element) for element in json.loads(objects.read(stored.digest))]
