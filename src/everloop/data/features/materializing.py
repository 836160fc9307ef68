"""Keeping the rows of a feature view: in its growing table, and the latest of each entity where serving asks.

The table takes every row once, however often and in whatever pieces it is offered, and every row keeps when it happened
and when it became known. The online store can be rebuilt from it at any time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from everloop.data.features.entity_keys import refuse_entity
from everloop.data.features.feature_types import (
    from_stored,
    read_type,
    refuse_type,
    refuse_values,
    to_stored,
    write_type,
)
from everloop.data.features.feature_views import FeatureView, Window
from everloop.data.features.internal_columns import KNOWN_AT, PREFIX, held, held_names, refuse_alike, said
from everloop.data.features.new_rows import fresh_rows
from everloop.data.features.timelines import timeline
from everloop.data.table_inputs import Frame, as_eager, as_lazy, as_utc
from everloop.errors import DataError, NotFoundError
from everloop.records import FeatureViewRecord as FeatureViewRecord
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.data.features.online_store import OnlineStore
    from everloop.stores import Store


_TIME, _ARRIVAL = f"{PREFIX}time", f"{PREFIX}arrival"


@dataclass(frozen=True, slots=True)
class Materialized:
    """What one call has done."""

    view: FeatureViewRecord
    added: int
    """Rows that the table did not have."""
    online: int
    """Entities whose row in the online store is now another."""
    rows: int = 0
    """Rows that the table has now."""

    @property
    def state(self) -> str:
        """Changes with every row that comes: what a step that materializes returns, so that those after it run."""
        return f"{self.view.key} with {self.rows} rows"


def materialize(
    store: Store,
    view: FeatureView,
    *,
    rows: Frame | None = None,
    online: OnlineStore | None = None,
    code: str | None = None,
) -> Materialized:
    """Add the rows that are new to the view's table, and bring the online store up to date.

    A declaration or code other than that of the newest version makes a new version, with a table of its own: what
    means something else is not mixed. Rows that arrive late, and corrections of older ones, are rows like any other.
    Where the view does not say when rows arrive, a row is known when it happens, and another value for an event that
    the table has already is a correction that arrives now.

    Args:
        rows: what the view's source gives; without them it is called.
        code: fingerprint of the code behind the source.

    Raises:
        DataError: a type or value that serving could not give back as the join does, a time or entity that is null,
            or other values for an entity, event and arrival that the table has already.
    """
    return _kept(store, view, rows, None, None, online, code, past=False)


def backfill(
    store: Store,
    view: FeatureView,
    *,
    rows: Frame | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    online: OnlineStore | None = None,
    code: str | None = None,
) -> Materialized:
    """Add rows of the past that are known only now, of events with `start <= event < end`.

    A view that says when its rows arrived keeps those times. One that does not would pretend that each row had been
    known when it happened: here it arrives now, so a join at an earlier moment does not see it. A row that the table
    has already, as far as its newest version of that event goes, is not added again.

    Args:
        rows: what the view's source gives; without them it is called.
        code: fingerprint of the code behind the source.

    Raises:
        DataError: see `materialize`.
    """
    return _kept(store, view, rows, start, end, online, code, past=True)


def _kept(
    store: Store,
    view: FeatureView,
    rows: Frame | None,
    start: datetime | None,
    end: datetime | None,
    online: OnlineStore | None,
    code: str | None,
    *,
    past: bool,
) -> Materialized:
    given = as_lazy(view.rows() if rows is None else rows)
    with store.lock(f"features@{view.name}"):
        table = _prepared(view, given)
        stored = to_stored(table, view.name)
        record = _version(store, view, table, code)
        if start is not None:
            table = table.filter(pl.col(EVENT_AT) >= start)
        if end is not None:
            table = table.filter(pl.col(EVENT_AT) < end)
        name = table_name(record)
        fresh = fresh_rows(view, table, stored_rows(store, record), now=store.now(), past=past)
        if fresh.height:
            store.tables.append(name, fresh.cast(stored.schema))
        changed = 0 if online is None else publish(store, record, online)
        return Materialized(record, fresh.height, changed, _count(store, record))


def _count(store: Store, record: FeatureViewRecord) -> int:
    return int(stored_rows(store, record).select(pl.len()).collect().item())


def publish(store: Store, record: FeatureViewRecord, online: OnlineStore) -> int:
    """Write the row of each entity that is the latest now; return how many became another."""
    view = load_view(store, record.key)
    known = timeline(view, view.rows()).filter(pl.col(KNOWN_AT) <= store.now())
    entity = held_names(record.entity)
    if view.entity_as_text:
        known = known.with_columns(pl.col(entity).cast(pl.String))
    latest = known.unique(entity, keep="last", maintain_order=True)
    return online.put(record.key, latest, entity, held_names(view_features(record)))


def table_name(record: FeatureViewRecord) -> str:
    """Where a version's rows are."""
    place = "" if record.project == "default" else f"{record.project}/"
    return f"features@{place}{record.name}@{record.version}"


def find_version(store: Store, name: str) -> FeatureViewRecord:
    """A version by `name@2`, or the newest by `name`.

    Raises:
        NotFoundError: there is none.
    """
    if "@" in name:
        return store.records.get(FeatureViewRecord, name)
    found = store.records.find(FeatureViewRecord, ("name", "=", name), order="-version", limit=1)
    if not found:
        known = sorted({record.name for record in store.records.find(FeatureViewRecord)})
        raise NotFoundError(
            f"No feature view '{name}' has been materialized.",
            help=f"There are: {', '.join(known) or 'none'}. See: everloop features materialize",
        )
    return found[0]


def stored_rows(store: Store, record: FeatureViewRecord) -> pl.LazyFrame:
    """The rows that a version holds and that the store may know, with `event_at` and `arrived_at`.

    Each column has the type that it was given with, and the name under which it is held.
    """
    types = {name: read_type(text) for name, text in record.columns.items()}
    if not store.tables.exists(table_name(record)):
        # Without a row there is no table yet.
        return pl.LazyFrame(schema={name: dtype or pl.Null() for name, dtype in types.items()})
    return from_stored(store.tables.scan(table_name(record)), types)


def load_view(store: Store, name: str) -> FeatureView:
    """A view over what is kept: to be joined like the declared one, without asking its source."""
    record = find_version(store, name)

    def rows() -> pl.LazyFrame:
        kept = stored_rows(store, record).rename({EVENT_AT: _TIME, ARRIVED_AT: _ARRIVAL})
        return kept.rename({held(name): name for name in map(said, record.columns) if held(name) != name}, strict=False)

    return FeatureView(
        record.name,
        rows,
        entity=record.entity,
        time=_TIME,
        arrival=_ARRIVAL,
        ttl=record.ttl,
        features=None if record.windows else record.features,
        windows=[_window(window) for window in record.windows],
        entity_as_text=record.entity_as_text,
    )


def view_features(record: FeatureViewRecord) -> tuple[str, ...]:
    if not record.windows:
        return record.features
    return tuple(name for window in record.windows for name in _window(window).aggregates)


def _prepared(view: FeatureView, given: pl.LazyFrame) -> pl.DataFrame:
    """The rows under the names in which they are held, with `event_at` and `arrived_at`.

    Raises:
        DataError: see `materialize`.
    """
    schema = given.collect_schema()
    names = view.feature_names(schema.names())
    used = names if not view.windows else view.window_columns()
    refuse_alike(view.name, (*view.keys, *used))
    for name in view.keys:
        refuse_entity(view, name, schema[name])
    for name in used:
        refuse_type(view.name, name, schema[name])
    event = as_utc(view.time, schema[view.time])
    arrived = as_utc(view.arrival, schema[view.arrival]) if view.arrival is not None else event
    chosen = [pl.col(name).alias(held(name)) for name in dict.fromkeys((*view.keys, *used))]
    table = as_eager(given.select(*chosen, event.alias(EVENT_AT), arrived.alias(ARRIVED_AT)))
    called = {held(name): name for name in view.keys} | {EVENT_AT: view.time, ARRIVED_AT: view.arrival or view.time}
    for name, column in called.items():
        if nulls := table[name].null_count():
            raise DataError(f"'{column}' is null in {nulls} rows of '{view.name}'.", help="Drop those rows.")
    for name in table.columns:
        refuse_values(view.name, table[name].alias(called.get(name, said(name))))
    return table


def _version(store: Store, view: FeatureView, table: pl.DataFrame, code: str | None) -> FeatureViewRecord:
    columns = {name: write_type(dtype) for name, dtype in table.schema.items()}
    windows = tuple({"length": window.length, "aggregates": dict(window.aggregates)} for window in view.windows)
    features = tuple(said(name) for name in table.columns if name not in (*held_names(view.keys), EVENT_AT, ARRIVED_AT))
    told = [view.name, view.keys, view.time, view.arrival, view.ttl, features, columns, windows, code]
    if view.entity_as_text:
        told.append("entity as text")
    fingerprint = "sha256:" + hashlib.sha256(msgspec.json.encode(told)).hexdigest()
    known = store.records.find(FeatureViewRecord, ("name", "=", view.name), order="-version", limit=1)
    if known and known[0].code == fingerprint:
        return known[0]
    record = store.new(
        FeatureViewRecord,
        name=view.name,
        version=known[0].version + 1 if known else 1,
        entity=view.keys,
        time=view.time,
        arrival=view.arrival,
        ttl=view.ttl,
        features=features,
        columns=columns,
        windows=windows,
        entity_as_text=view.entity_as_text,
        code=fingerprint,
    )
    store.records.put(record)
    return record


def _window(told: Any) -> Window:
    return Window(told["length"], **{name: tuple(pair) for name, pair in told["aggregates"].items()})
