"""Values that the traced code itself changes while it runs, such as a module's own cache.

A step that fills such a cache must not look like a step whose code was edited. So these values count with the content
that they had when they were first seen, before any step ran in this process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from everloop.pipeline.code.lookups import NameLookup

MUTABLE = (list, dict, set, bytearray)

_first_contents: dict[tuple[int, str], tuple[object, str]] = {}
"""Identity of a changed object, or of the module that binds the name, and the name -> the object or module itself and
the digest when it was first seen in this process."""


@dataclass
class MutatedValues:
    """What one traced function changes."""

    containers: dict[int, object] = field(default_factory=dict)
    """Containers that the code writes to, by their identity."""
    rebound: dict[tuple[int, str], str] = field(default_factory=dict)
    """Names that the code assigns by `global`: identity of the namespace and name -> label of the part."""

    def note_container(self, value: Any) -> None:
        # Containers only: a method called `add` or `update` of another object need not change that object.
        if isinstance(value, MUTABLE):
            self.containers[id(value)] = value

    def note_rebound(self, namespace: Mapping[str, Any], name: str, label: str) -> None:
        self.rebound[(id(namespace), name)] = label

    def is_container(self, value: object) -> bool:
        return id(value) in self.containers

    def is_rebound(self, label: str) -> bool:
        return label in self.rebound.values()

    def first_content(self, value: Any, module: str, name: str, digest: Callable[[], str]) -> str:
        """The content of a changed value when it was first seen in this process.

        For a name that is bound to one object after another, the content of the first object counts.
        """
        holder: object = value
        if not self.is_container(value) and module in sys.modules:
            holder = sys.modules[module]
        key = (id(holder), "" if holder is value else name)
        first = _first_contents.get(key)
        # Digested in any case: functions that were put in there since have to be traced as well.
        content = digest()
        if first is None or first[0] is not holder:
            first = _first_contents[key] = (holder, content)
        return first[1]

    def without_changes(self, lookups: Iterable[NameLookup]) -> list[NameLookup]:
        """The look-ups that must stay the same: rebound names are left out, and the content of written containers."""
        return [
            replace(one, content=None) if id(one.found) in self.containers else one
            for one in lookups
            if (id(one.namespace), one.name) not in self.rebound
        ]
