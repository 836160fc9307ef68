"""The order of `RecordStore.find`, computed in Python to merge records of several stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.stores.clock import micros
from everloop.stores.records.condition_sql import COLUMNS, parse_path
from everloop.stores.records.record_codec import encode, families, time_fields

if TYPE_CHECKING:
    from everloop.records import Record
    from everloop.stores.records.record_store import Condition

_NUMBER, _TEXT, _NONE = range(3)
_WHOLE_SECONDS = len("2024-01-01T00:00:00Z")

Place = tuple[int, Any, str]


@dataclass(frozen=True, slots=True)
class RecordOrder:
    """One order of the records of a kind.

    The positions of records sort as the records do. If the order is descending, the greatest position comes first.
    """

    kind: str
    path: tuple[str, ...]
    descending: bool

    @classmethod
    def parse(cls, order: str, kind: str) -> RecordOrder:
        """
        Raises:
            UsageError: records of this kind have no such field.
        """
        return cls(kind, parse_path(order.removeprefix("-"), kind), order.startswith("-"))

    def place(self, record: Record) -> Place:
        """Where a record stands: numbers before texts before records without a value, equal ones by id."""
        rank, value = self._value(record)
        # Records without a value come last in both directions.
        return (-rank if self.descending else rank), value, record.id

    def is_behind(self, place: Place, other: Place) -> bool:
        """Whether one position comes after another one."""
        return place < other if self.descending else place > other

    def conditions_behind(self, record: Record) -> tuple[Condition, ...]:
        """Conditions that all records after this one meet, to read fewer. Some others may meet them too."""
        if self.path == ("id",):
            return (("id", "<" if self.descending else ">", record.id),)
        if self.path == ("created_at",):
            return (("created_at", "<=" if self.descending else ">=", record.created_at),)
        return ()

    def _value(self, record: Record) -> tuple[int, Any]:
        head = self.path[0]
        if head in COLUMNS:
            column = None if len(self.path) > 1 else getattr(record, head, None)
            if COLUMNS[head] == "time" and column is not None:
                column = micros(column)
            return _ranked(column, {"number", "text"})
        # As it is stored, where an infinity is not a number.
        value: Any = msgspec.json.decode(encode(record))
        for name in self.path:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and len(value) == _WHOLE_SECONDS and self._is_time():
            value = f"{value[:-1]}.000000Z"
        return _ranked(value, families(self.kind, self.path))

    def _is_time(self) -> bool:
        return len(self.path) == 1 and self.path[0] in time_fields(self.kind)


def _ranked(value: Any, possible: frozenset[str] | set[str]) -> tuple[int, Any]:
    if isinstance(value, str) and "text" in possible:
        return _TEXT, value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and "number" in possible:
        return _NUMBER, value
    return _NONE, ""
