"""Patches of attributes that can be undone."""

from __future__ import annotations

from typing import Any

_MISSING = object()


class Patches:
    """Replaces attributes and remembers the originals; `restore` puts them back in reverse order."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, object, object]] = []

    def replace(self, owner: Any, name: str, new: object) -> None:
        """Replace an attribute of a class or module. `restore` deletes it again if it was inherited before."""
        self._done.append((owner, name, vars(owner).get(name, _MISSING), new))
        setattr(owner, name, new)

    def restore(self) -> None:
        while self._done:
            owner, name, old, new = self._done.pop()
            if vars(owner).get(name) is not new:
                continue  # other code has replaced it since
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
