"""Reading from the records of a fork: each read merges what the layers below show with the own records."""

# ruff: noqa: S608 - only names that are defined in this package are put into SQL; every value is a parameter.

from __future__ import annotations

import heapq
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from everloop.errors import NotFoundError
from everloop.records import KINDS
from everloop.stores.forks.overlay_logs import LAST_MOMENT, OverlayLogs
from everloop.stores.forks.record_layers import SiblingLayer, copied_ids
from everloop.stores.forks.record_order import RecordOrder
from everloop.stores.records.expressions import And
from everloop.stores.records.record_codec import R, decode, kind_of
from everloop.stores.records.search_results import sort_value
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sql_search import stored_values

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime

    from everloop.records import Record
    from everloop.stores.forks.record_order import Place
    from everloop.stores.records.expressions import Expression
    from everloop.stores.records.record_store import Condition, RecordInterval, RecordStore, StoredRecord
    from everloop.stores.records.search_results import SearchHit

_LARGEST_PAGE = 4000


@dataclass(frozen=True)
class _View:
    """A layer's records of one kind, and which of them are not shown."""

    records: RecordStore
    hidden: set[str]


class OverlayReading(OverlayLogs):
    """The part of `OverlayRecords` that reads records."""

    def get(self, kind: type[R], ref: str) -> R:
        name = kind_of(kind)
        views = self._views(name)
        own = self._view(name)
        for column in ("id", "key"):
            rows = self.database.read(f"SELECT body FROM {own.text} WHERE {column} = ?", (*own.values, ref))
            if rows:
                return decode(kind, rows[0][0])
            for view in views:
                for found in view.records.find(kind, (column, "=", ref)):
                    if found.id not in view.hidden:
                        return found
        raise self._missing(kind, ref)

    def find(
        self, kind: type[R], *where: Condition, order: str = "id", limit: int | None = None, after: str | None = None
    ) -> list[R]:
        name = kind_of(kind)
        by = RecordOrder.parse(order, name)
        most = None if limit is None else max(limit, 0)
        begin = None if after is None else self._start(kind, after)
        for views in self._attempts(name):
            if not views and begin is None:
                # A scratch store has no layers below, so nothing is merged.
                found = super().find(kind, *where, order=order, limit=most)
                continue
            streams = [self._own_stream(kind, where, order, most, by, begin)]
            streams += [_stream(view, kind, where, order, most, by, begin) for view in views]
            merged = heapq.merge(*streams, key=lambda pair: pair[0], reverse=by.descending)
            found = [record for _, record in islice(merged, most)]
        return found

    def search(
        self,
        kind: type[Record],
        where: Expression,
        *,
        order: Sequence[tuple[tuple[str, ...], bool]] = (),
        limit: int | None = None,
        after: SearchHit | None = None,
    ) -> list[SearchHit]:
        name = self._searched(kind, where, order)
        directions = [down for _, down in order]
        for views in self._attempts(name):
            # Results of views of the past have comparable positions, in the present and in the layers below.
            hits = self._own().search(kind, where, order=order)
            for view in views:
                hits += [hit for hit in view.records.search(kind, where, order=order) if hit.id not in view.hidden]
        hits.sort(key=lambda hit: sort_value(hit, directions))
        if after is not None:
            hits = [hit for hit in hits if sort_value(hit, directions) > sort_value(after, directions)]
        return hits if limit is None else hits[: max(limit, 0)]

    def count(self, kind: type[Record], where: Expression) -> int:
        return len(self.search(kind, where))

    def get_many(self, kind: type[R], ids: Sequence[str]) -> list[R]:
        name = kind_of(kind)
        for views in self._attempts(name):
            found = {record.id: record for record in super().get_many(kind, ids)}
            for view in views:
                wanted = [one for one in ids if one not in found and one not in view.hidden]
                found |= {record.id: record for record in view.records.get_many(kind, wanted)}
        return [found[one] for one in ids if one in found]

    def values_at(
        self, kind: type[Record], ids: Sequence[str], paths: Sequence[tuple[str, ...]]
    ) -> list[dict[tuple[str, ...], Any]]:
        self._searched(kind, And(()), [(path, False) for path in paths])
        found = {record.id: record for record in self.get_many(kind, ids)}
        return [stored_values(found[one], paths) if one in found else {} for one in ids]

    def search_names(self, kind: type[Record], field: str, *, without: Collection[str] = ()) -> list[str]:
        names = set(super().search_names(kind, field, without=without))
        # The present remembers the names of records that have been moved or purged; the past forgets them.
        remembers = self._moment is None and not without
        for view in self._views(kind_of(kind)):
            left_out = () if remembers else {*without, *view.hidden}
            names.update(view.records.search_names(kind, field, without=left_out))
        return sorted(names)

    def history(self, kind: type[R], ref: str) -> list[tuple[datetime, R]]:
        identity = ref
        with suppress(NotFoundError):
            identity = self.get(kind, ref).id
        if super().intervals(kind, identity):
            return super().history(kind, identity)
        for view in self._views(kind_of(kind)):
            if identity not in view.hidden and view.records.intervals(kind, identity):
                return view.records.history(kind, identity)
        raise self._missing(kind, ref)

    def intervals(self, kind: type[Record], identity: str) -> list[RecordInterval]:
        found = super().intervals(kind, identity)
        for view in self._views(kind_of(kind)):
            if not found and identity not in view.hidden:
                found = view.records.intervals(kind, identity)
        return found

    def deleted_ids(self, kind: type[Record], ref: str) -> list[str]:
        found = set(super().deleted_ids(kind, ref))
        for view in self._views(kind_of(kind)):
            found.update(one for one in view.records.deleted_ids(kind, ref) if one not in view.hidden)
        return sorted(found)

    def stored(self) -> Iterator[StoredRecord]:
        yield from super().stored()
        base = self._origin()
        if base is None:
            return
        copied = {row[0] for row in self.database.read("SELECT id FROM copied_records")}
        hidden = {kind for kind in KINDS if not any(layer.is_origin and layer.shows(kind) for layer in self.layers)}
        yield from (one for one in base.stored() if one.id not in copied and one.kind not in hidden)

    def problems(self) -> list[str]:
        base = self._origin()
        return [] if base is None else base.problems()

    def _newest_keys(self, kind: type[Record]) -> list[str]:
        return [record.key for record in self.find(kind, order="-created_at", limit=500)]

    def _views(self, kind: str) -> list[_View]:
        """The layers that show records of a kind, without those that have been copied."""
        self._check_open()
        copied = copied_ids(self.database, kind)
        found = []
        siblings = [SiblingLayer(one) for one in list(self._family) if one is not self.database]
        for layer in (*self.layers, *siblings):
            if layer.shows(kind):
                moment = self.forked_at if layer.is_origin else self.clock.now()
                found.append(_View(layer.records(self.project, self._cut(moment)), copied | layer.hidden(kind)))
        return found

    def _attempts(self, kind: str) -> Iterator[list[_View]]:
        """Repeat a read that has several parts until no other thread has copied a record meanwhile."""
        while True:
            before = copied_ids(self.database, kind)
            yield self._views(kind)
            if copied_ids(self.database, kind) == before:
                return

    def _own(self) -> SqlRecords:
        """Only the own records, as a view of the past that shows all of them."""
        own = SqlRecords(self.database, project=self.project, actor=self.actor, clock=self.clock)
        return own.as_of(self._cut(LAST_MOMENT))

    def _start(self, kind: type[R], after: str) -> R:
        try:
            found = self.get(kind, after)
        except NotFoundError:
            found = None
        if found is None or found.id != after:
            raise NotFoundError(
                f"Cannot continue after the {kind_of(kind).replace('_', ' ')} '{after}', because it does not exist.",
                help="Begin again with the first page.",
            )
        return found

    def _own_stream(
        self,
        kind: type[R],
        where: tuple[Condition, ...],
        order: str,
        limit: int | None,
        by: RecordOrder,
        begin: R | None,
    ) -> Iterator[tuple[Place, R]]:
        if begin is None:
            return _placed(super().find(kind, *where, order=order, limit=limit), by, None)
        if super().get_many(kind, [begin.id]):
            with suppress(NotFoundError):
                return _placed(super().find(kind, *where, order=order, limit=limit, after=begin.id), by, begin)
        return _placed(super().find(kind, *where, *by.conditions_behind(begin), order=order), by, begin)


def _stream(
    view: _View,
    kind: type[R],
    where: tuple[Condition, ...],
    order: str,
    limit: int | None,
    by: RecordOrder,
    begin: R | None,
) -> Iterator[tuple[Place, R]]:
    """The visible records of a layer after a record, in an order, read page by page."""
    last: str | None = None
    if begin is not None:
        with suppress(NotFoundError):
            # The start is known to this layer, unless it has been changed since.
            if view.records.get(kind, begin.id) == begin:
                last = begin.id
        if last is None:
            where = (*where, *by.conditions_behind(begin))
    size = limit
    while size != 0:
        found = view.records.find(kind, *where, order=order, limit=size, after=last)
        yield from _placed([one for one in found if one.id not in view.hidden], by, begin)
        if size is None or len(found) < size:
            return
        last = found[-1].id
        size = min(2 * size, _LARGEST_PAGE)


def _placed(records: list[R], by: RecordOrder, begin: R | None) -> Iterator[tuple[Place, R]]:
    start = None if begin is None else by.place(begin)
    for record in records:
        place = by.place(record)
        if start is None or by.is_behind(place, start):
            yield place, record
