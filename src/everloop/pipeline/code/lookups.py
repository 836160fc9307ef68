"""Name look-ups that a traced function depends on, and whether they would still give the same object."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from everloop.pipeline.code.code_origin import origin_of
from everloop.pipeline.code.object_inspection import unwrapped
from everloop.pipeline.value_digests import UndigestibleError, digest_value, is_constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CODE_TYPES = (types.FunctionType, types.ModuleType, types.BuiltinFunctionType)
MISSING = object()

# Attributes that Python itself adds to a class.
_INTERNAL_ATTRIBUTES = frozenset(
    {"_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_", "_unhashable_values_"}
)


@dataclass(frozen=True, slots=True)
class NameLookup:
    """One name that was looked up in a namespace, and the object that was found."""

    namespace: Mapping[str, Any]
    name: str
    found: object
    content: str | None
    """Digest of the object's content in this process; None if it cannot be changed in place."""

    def is_current(self) -> bool:
        """Whether the name still leads to the same object with the same content."""
        now = self.namespace.get(self.name, MISSING)
        return now is self.found and (self.content is None or local_digest(now) == self.content)

    def refreshed(self) -> NameLookup | None:
        """The same look-up made again now; None if the name is gone."""
        now = self.namespace.get(self.name, MISSING)
        if now is MISSING:
            return None
        return self if self.content is None else replace(self, found=now, content=local_digest(now))


def local_digest(value: object) -> str | None:
    """A digest of mutable content, comparable within this process only. None if there is nothing to compare."""
    if is_constant(value) or isinstance(value, CODE_TYPES):
        return None
    try:
        if isinstance(value, type):
            if origin_of(str(value.__module__)) != "project":
                return None
            return digest_value(dict(class_data(value)), _refer_by_identity)
        return digest_value(value, _refer_by_identity)
    except UndigestibleError:
        return None


def _refer_by_identity(value: object) -> str | None:
    value = unwrapped(value)
    if isinstance(value, (*CODE_TYPES, type)):
        return f"{type(value).__name__} at {id(value)}"
    return None


def class_data(cls: type) -> Iterator[tuple[str, Any]]:
    """The data attributes of a class, without what already follows from its `class` statement."""
    for name, value in vars(cls).items():
        dunder = name.startswith("__") and name.endswith("__")
        if dunder or name in _INTERNAL_ATTRIBUTES:
            continue
        # Methods and descriptors of packages follow from the statement; a descriptor of the project may hold data.
        if not hasattr(type(value), "__get__") or origin_of(str(type(value).__module__)) == "project":
            yield name, value
