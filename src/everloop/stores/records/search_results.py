"""What a search finds: which records, and where each stands in the order that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = float | str | None
Place = tuple[int, Value]
"""0 and a number, 1 and the beginning of a text, or 2 and None: what there is to sort by at one path."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A record that was found. Its place serves to go on behind it, in the same order of the same store."""

    id: str
    number: int | str
    """Grows in the order in which the records came; what is equal in every key is sorted by it, in the first
    key's direction."""
    position: tuple[Place, ...]
    """One place per key of the order."""


def sort_value(hit: SearchHit, descending: Sequence[bool]) -> tuple[Any, ...]:
    """Sorts hits as the database does: numbers before texts before nothing, each key in its own direction."""
    found: list[Any] = []
    for (rank, value), down in zip(hit.position, descending, strict=True):
        found += [rank, _reversed(value) if down and rank < 2 else value]
    return (*found, _reversed(hit.number) if descending and descending[0] else hit.number)


def _reversed(value: Any) -> Any:
    # A number's negative sorts without a call of ours for each comparison.
    return _Reversed(value) if isinstance(value, str) else -value


@total_ordering
class _Reversed:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)
