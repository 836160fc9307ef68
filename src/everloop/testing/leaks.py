"""A probe that asks a store for anything that was written after a moment, by every way to read it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.records import KINDS, Run
from everloop.stores.records.expressions import And

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.stores import Store


def leaks(store: Store, moment: datetime, *, origin: Store | None = None) -> list[str]:
    """Return what a store shows from after a moment, each in a few words. Empty if there is nothing.

    Args:
        moment: the present time of a fork, or the moment of a view.
        origin: the store that was forked. What was written there after the moment is requested by its ids and keys,
            because it may be readable although no list contains it.
    """
    return [*_records(store, moment), *_logs(store, moment), *_tables(store, moment), *_by_name(store, moment, origin)]


def _records(store: Store, moment: datetime) -> list[str]:
    found = []
    for name, kind in KINDS.items():
        for order in ("id", "-created_at"):
            for record in store.records.find(kind, order=order):
                if record.created_at > moment:
                    found.append(f"find {name} by {order}: '{record.key}' of {record.created_at.isoformat()}")
        for record in store.records.find(kind):
            times = [at for at, _ in store.records.history(kind, record.id)]
            times += [one.since for one in store.records.intervals(kind, record.id)]
            found += [f"history of {name} '{record.key}': {at.isoformat()}" for at in times if at > moment]
        if kind.searchable:
            shown = {record.id for record in store.records.find(kind)}
            hits = store.records.search(kind, And(()))
            found += [f"search {name}: {hit.id}" for hit in hits if hit.id not in shown]
    known = {(name, record.id) for name, kind in KINDS.items() for record in store.records.find(kind)}
    for stored in store.records.stored():
        if stored.project == store.project and stored.current and stored.deleted_at is None:
            if (stored.kind, stored.id) not in known and stored.kind in KINDS:
                found.append(f"stored {stored.kind}: {stored.id}")
        elif stored.deleted_at is not None and stored.deleted_at > moment:
            found.append(f"stored {stored.kind}: deletion of {stored.id} at {stored.deleted_at.isoformat()}")
    return found


def _logs(store: Store, moment: datetime) -> list[str]:
    found = []
    after = 0
    while events := store.records.events_since(after):
        found += [f"event {one.seq}: {one.verb} at {one.at.isoformat()}" for one in events if one.at > moment]
        after = events[-1].seq
    if store.records.last_event() > after:
        found.append(f"last_event: {store.records.last_event()}, but the last visible one is {after}")
    return found


def _tables(store: Store, moment: datetime) -> list[str]:
    import polars as pl

    found = []
    for name in store.tables.names():
        frames = {"scan": store.tables.scan(name)}
        snapshot = store.tables.snapshot(name)
        # The versions of a Delta table have no time, so only forks, which hold their tables themselves, have none of
        # later rows.
        if snapshot is not None and store.fork_parts is not None:
            frames["rows"] = snapshot.rows()
            frames |= {part: snapshot.scan(part) for part in snapshot.files}
        for way, frame in frames.items():
            later = frame.filter(pl.col("arrived_at") > moment).select(pl.len()).collect().item()
            if later:
                found.append(f"table {name}, {way}: {later} rows")
    return found


def _by_name(store: Store, moment: datetime, origin: Store | None) -> list[str]:
    if origin is None:
        return []
    found = []
    then = origin.as_of(moment)
    for name, kind in KINDS.items():
        before = {record.id for record in then.records.find(kind)}
        for record in origin.records.find(kind):
            if record.id in before:
                continue
            if store.records.get_many(kind, [record.id]) and record.created_at > moment:
                found.append(f"get_many {name}: {record.id}")
            with suppress(EverloopError):
                if store.records.get(kind, record.id).created_at > moment:
                    found.append(f"get {name}: {record.id}")
            with suppress(EverloopError):
                if any(at > moment for at, _ in store.records.history(kind, record.key)):
                    found.append(f"history {name}: {record.key}")
    for run in origin.records.find(Run):
        visible = len(then.records.read_points(run.id))
        if store.fork_parts is None and len(store.records.read_points(run.id)) > visible:
            found.append(f"points of {run.id}")
    for field in ("metrics", "params", "tags"):
        later = set(origin.records.search_names(Run, field)) - set(then.records.search_names(Run, field))
        own = {name for run in store.records.find(Run) for name in getattr(run, field)}
        found += [
            f"search_names {field}: {name}" for name in store.records.search_names(Run, field) if name in later - own
        ]
    return found
