"""Attributes that were replaced, and what they had been."""

from __future__ import annotations

from typing import Any

_MISSING = object()


class Patches:
    """Remembers the originals; `restore` puts them back, the last first."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, object, object]] = []

    def replace(self, owner: Any, name: str, new: object) -> None:
        """Set the attribute of a class or module. One that was inherited is removed again later."""
        self._done.append((owner, name, vars(owner).get(name, _MISSING), new))
        setattr(owner, name, new)

    def restore(self) -> None:
        while self._done:
            owner, name, old, new = self._done.pop()
            if vars(owner).get(name) is not new:
                continue  # somebody else has replaced it since
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
