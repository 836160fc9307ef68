"""The records below those of a fork: the origin as of a moment, and the step results of its siblings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from everloop.stores.clock import FixedClock
from everloop.stores.records.sql_records import SqlRecords

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores.records.record_store import RecordStore
    from everloop.stores.records.sql_logs import Database

SHARED_KINDS = frozenset({"step", "artifact"})
"""Kinds of records that siblings share: all that the cache of step results reads."""


class RecordLayer(Protocol):
    """Records below those of a fork. They are only read."""

    @property
    def is_origin(self) -> bool:
        """Whether points, events and records of all kinds come from here."""

    def shows(self, kind: str) -> bool:
        """Whether records of a kind are visible through this layer."""

    def records(self, project: str, moment: datetime) -> RecordStore:
        """A view of the records that had been written by a moment."""

    def hidden(self, kind: str) -> set[str]:
        """The ids of records that are not visible through this layer."""


@dataclass(frozen=True)
class OriginLayer:
    """The store that was forked, as of the moment of the fork."""

    base: RecordStore
    hide: frozenset[str] = frozenset()
    is_origin: bool = True
    _views: dict[str, RecordStore] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=dict)

    def shows(self, kind: str) -> bool:
        return kind not in self.hide

    def records(self, project: str, moment: datetime) -> RecordStore:
        view = self._views.get(project)
        if view is None:
            view = self._views[project] = self.base.for_project(project)
        return view.as_of(moment)

    def hidden(self, kind: str) -> set[str]:
        return set()

    def last_event(self, project: str, moment: datetime) -> int:
        """The number of the last event at the moment of the fork, which no later write changes."""
        if project not in self._last:
            self._last[project] = self.records(project, moment).last_event()
        return self._last[project]


@dataclass(frozen=True)
class SiblingLayer:
    """The step results that another fork of the same family has written by now, on its own clock."""

    database: Database
    is_origin: bool = False

    def shows(self, kind: str) -> bool:
        return kind in SHARED_KINDS

    def records(self, project: str, moment: datetime) -> RecordStore:
        return SqlRecords(self.database, project=project, actor="", clock=FixedClock(moment)).as_of(moment)

    def hidden(self, kind: str) -> set[str]:
        """Records that the sibling has copied from its origin: its changes of them are not shared."""
        return copied_ids(self.database, kind)


def copied_ids(database: Database, kind: str) -> set[str]:
    """The ids of records that a fork has copied from a layer before changing them."""
    return {row[0] for row in database.read("SELECT id FROM copied_records WHERE kind = ?", (kind,))}
