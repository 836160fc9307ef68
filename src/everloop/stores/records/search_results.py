"""Search results: the records that were found, and their positions in the requested order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = float | str | None
Position = tuple[int, Value]
"""The sort value at one path: 0 and a number, 1 and the beginning of a text, or 2 and None if there is no value."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A record that was found. Its position allows a later search in the same order to continue after it."""

    id: str
    number: int | str
    """Increases in the order in which records were added. Records that are equal in all keys are sorted by it, in the
    direction of the first key."""
    position: tuple[Position, ...]
    """The sort value of each key of the order."""


def sort_value(hit: SearchHit, descending: Sequence[bool]) -> tuple[Any, ...]:
    """A sort key that orders results as the database does: numbers, texts, then no value; each key in its direction."""
    found: list[Any] = []
    for (rank, value), down in zip(hit.position, descending, strict=True):
        found += [rank, _reversed(value) if down and rank < 2 else value]
    return (*found, _reversed(hit.number) if descending and descending[0] else hit.number)


def _reversed(value: Any) -> Any:
    # Negating a number is faster than a Python call for each comparison.
    return _Reversed(value) if isinstance(value, str) else -value


@total_ordering
class _Reversed:
    """A value that sorts in reverse order."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)
