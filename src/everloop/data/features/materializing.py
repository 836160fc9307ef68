"""Keeping the rows of a feature view: in its growing table, and the latest of each entity where serving asks.

The table is the truth: it takes every row once, however often and in whatever pieces it is offered, and every row keeps
when it happened and when it became known. The online store can be made anew from it at any time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import polars as pl

from everloop.data.features.timelines import KNOWN_AT, timeline
from everloop.data.features.views import FeatureView, Window
from everloop.data.frames import Frame, as_lazy, as_utc, type_name
from everloop.errors import NotFoundError
from everloop.records import FeatureView as FeatureViewRecord
from everloop.stores.tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.data.features.online import OnlineStore
    from everloop.stores import Store


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

    Args:
        rows: what the view's source gives; without them it is called.
        code: fingerprint of the code behind the source.
    """
    given = as_lazy(view.rows() if rows is None else rows)
    with store.lock(f"features@{view.name}"):
        table = _prepared(view, given)
        record = _version(store, view, table, code)
        fresh = _unknown(store, record, table)
        if fresh.height:
            store.tables.append(table_name(record), fresh)
        changed = 0 if online is None else publish(store, record, online)
        return Materialized(record, fresh.height, changed, _count(store, record))


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
    """
    given = as_lazy(view.rows() if rows is None else rows)
    with store.lock(f"features@{view.name}"):
        table = _prepared(view, given, arrives=store.now() if view.arrival is None else None)
        record = _version(store, view, table, code)
        if start is not None:
            table = table.filter(pl.col(EVENT_AT) >= start)
        if end is not None:
            table = table.filter(pl.col(EVENT_AT) < end)
        fresh = _unknown(store, record, table) if view.arrival is not None else _unsaid(store, record, table)
        if fresh.height:
            store.tables.append(table_name(record), fresh)
        changed = 0 if online is None else publish(store, record, online)
        return Materialized(record, fresh.height, changed, _count(store, record))


def _count(store: Store, record: FeatureViewRecord) -> int:
    if not store.tables.exists(table_name(record)):
        return 0
    return int(stored_rows(store, record).select(pl.len()).collect().item())


def _unsaid(store: Store, record: FeatureViewRecord, table: pl.DataFrame) -> pl.DataFrame:
    """The rows whose event the table does not have, or has with other values."""
    names = [name for name in table.columns if name != ARRIVED_AT]
    table = table.unique([*record.entity, EVENT_AT], keep="last", maintain_order=True)
    if not table.height or not store.tables.exists(table_name(record)):
        return table
    event = [*record.entity, EVENT_AT]
    held = stored_rows(store, record).filter(pl.col(EVENT_AT) >= table[EVENT_AT].min()).collect()
    newest = held.sort(ARRIVED_AT).unique(event, keep="last").select(names)
    return table.join(newest, on=names, how="anti", nulls_equal=True, maintain_order="left")


def publish(store: Store, record: FeatureViewRecord, online: OnlineStore) -> int:
    """Write the row of each entity that is the latest now; return how many became another."""
    view = load_view(store, record.key)
    known = timeline(view, stored_rows(store, record)).filter(pl.col(KNOWN_AT) <= store.now())
    latest = known.unique(record.entity, keep="last", maintain_order=True)
    return online.put(record.key, latest, record.entity, view_features(record))


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
    """The rows that a version holds and that the store may know, with `event_at` and `arrived_at`."""
    return store.tables.scan(table_name(record))


def load_view(store: Store, name: str) -> FeatureView:
    """A view over what is kept: to be joined like the declared one, without asking its source."""
    record = find_version(store, name)
    return FeatureView(
        record.name,
        lambda: stored_rows(store, record),
        entity=record.entity,
        time=EVENT_AT,
        arrival=ARRIVED_AT,
        ttl=record.ttl,
        features=None if record.windows else record.features,
        windows=[_window(window) for window in record.windows],
    )


def view_features(record: FeatureViewRecord) -> tuple[str, ...]:
    if not record.windows:
        return record.features
    return tuple(name for window in record.windows for name in _window(window).aggregates)


def _prepared(view: FeatureView, given: pl.LazyFrame, arrives: datetime | None = None) -> pl.DataFrame:
    schema = given.collect_schema()
    names = view.feature_names(schema.names())
    used = names if not view.windows else view.window_columns()
    event = as_utc(view.time, schema[view.time])
    arrived = as_utc(view.arrival, schema[view.arrival]) if view.arrival is not None else event
    if arrives is not None:
        arrived = pl.lit(arrives)
    return given.select(*view.keys, *used, event.alias(EVENT_AT), arrived.alias(ARRIVED_AT)).collect()


def _version(store: Store, view: FeatureView, table: pl.DataFrame, code: str | None) -> FeatureViewRecord:
    columns = {name: type_name(dtype) for name, dtype in table.schema.items()}
    windows = tuple({"length": window.length, "aggregates": dict(window.aggregates)} for window in view.windows)
    features = tuple(name for name in table.columns if name not in (*view.keys, EVENT_AT, ARRIVED_AT))
    said = [view.name, view.keys, view.time, view.arrival, view.ttl, features, columns, windows, code]
    fingerprint = "sha256:" + hashlib.sha256(msgspec.json.encode(said)).hexdigest()
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
        code=fingerprint,
    )
    store.records.put(record)
    return record


def _unknown(store: Store, record: FeatureViewRecord, table: pl.DataFrame) -> pl.DataFrame:
    """The rows that the table does not have, told by entity, event and arrival."""
    names = [*record.entity, EVENT_AT, ARRIVED_AT]
    table = table.unique(names, keep="last", maintain_order=True)
    if not table.height or not store.tables.exists(table_name(record)):
        return table
    first = table[EVENT_AT].min()
    known = stored_rows(store, record).filter(pl.col(EVENT_AT) >= first).select(names).collect()
    return table.join(known, on=names, how="anti", maintain_order="left")


def _window(said: Any) -> Window:
    return Window(said["length"], **{name: tuple(pair) for name, pair in said["aggregates"].items()})
