"""Store the rows of a feature view in its growing table, and publish the latest row of each entity for serving.

The table stores every row once, however often and in whatever batches it is offered, with the time of its event and the
time when it became known. The online store can be rebuilt from the table at any time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
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
from everloop.data.features.internal_columns import (
    KNOWN_AT,
    PREFIX,
    refuse_alike,
    stored_name,
    stored_names,
    user_name,
)
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
    """The result of `materialize` or `backfill`."""

    view: FeatureViewRecord
    added: int
    """The number of rows that were added to the table."""
    online: int
    """The number of entities whose row in the online store changed."""
    rows: int = 0
    """The number of rows in the table now."""

    @property
    def state(self) -> str:
        """A text that changes with every new row. A step that materializes returns it, so that later steps run."""
        return f"{self.view.key} with {self.rows} rows"


def materialize(
    store: Store,
    view: FeatureView,
    *,
    rows: Frame | None = None,
    online: OnlineStore | None = None,
    code: str | None = None,
) -> Materialized:
    """Add new rows to the view's table, and update the online store.

    If the declaration or the code differs from the newest version, a new version with its own table is created, so that
    rows with different meanings are not mixed. Late rows and corrections are added like any other row. If the view has
    no arrival column, a row is known when its event happens, and another value for a stored event is a correction that
    arrives now.

    Args:
        rows: the rows of the view's source; by default the source is called.
        code: a fingerprint of the source's code.

    Raises:
        DataError: serving cannot return a type or value as the join does, a time or entity is null, or a row has the
            entity, event and arrival of a stored row but other values.
    """
    return _store_rows(store, view, rows, None, None, online, code, past=False)


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
    """Add past rows that become known only now, for events with `start <= event < end`.

    If the view has an arrival column, its times are kept. Otherwise the rows arrive now, so that a join at an earlier
    time does not see them; it would be wrong to treat them as known when their events happened. A row that equals the
    newest stored version of its event is not added again.

    Args:
        rows: the rows of the view's source; by default the source is called.
        code: a fingerprint of the source's code.

    Raises:
        DataError: see `materialize`.
    """
    return _store_rows(store, view, rows, start, end, online, code, past=True)


def _store_rows(
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
    """Write the latest row of each entity to the online store; return how many rows changed."""
    view = load_view(store, record.key)
    known = timeline(view, view.rows()).filter(pl.col(KNOWN_AT) <= store.now())
    entity = stored_names(record.entity)
    if view.entity_as_text:
        known = known.with_columns(pl.col(entity).cast(pl.String))
    latest = known.unique(entity, keep="last", maintain_order=True)
    return online.put(record.key, latest, entity, stored_names(view_features(record)))


def table_name(record: FeatureViewRecord) -> str:
    """The name of the table with a version's rows."""
    project = "" if record.project == "default" else f"{record.project}/"
    return f"features@{project}{record.name}@{record.version}"


def find_version(store: Store, name: str) -> FeatureViewRecord:
    """The version `name@2`, or the newest version for `name`.

    Raises:
        NotFoundError: it does not exist.
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
    """The rows of a version that are visible in the store, with `event_at` and `arrived_at`.

    The columns have their original types and their stored names.
    """
    types = {name: read_type(text) for name, text in record.columns.items()}
    if not store.tables.exists(table_name(record)):
        # The table is created with the first row.
        return pl.LazyFrame(schema={name: dtype or pl.Null() for name, dtype in types.items()})
    return from_stored(store.tables.scan(table_name(record)), types)


def load_view(store: Store, name: str) -> FeatureView:
    """A view over the stored rows. It can be joined like the declared view, without calling the source."""
    record = find_version(store, name)

    def rows() -> pl.LazyFrame:
        table = stored_rows(store, record).rename({EVENT_AT: _TIME, ARRIVED_AT: _ARRIVAL})
        originals = {stored_name(name): name for name in map(user_name, record.columns) if stored_name(name) != name}
        return table.rename(originals, strict=False)

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
    """The rows under their stored names, with `event_at` and `arrived_at`.

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
    chosen = [pl.col(name).alias(stored_name(name)) for name in dict.fromkeys((*view.keys, *used))]
    table = as_eager(given.select(*chosen, event.alias(EVENT_AT), arrived.alias(ARRIVED_AT)))
    original_names = {stored_name(name): name for name in view.keys}
    original_names |= {EVENT_AT: view.time, ARRIVED_AT: view.arrival or view.time}
    for name, column in original_names.items():
        if nulls := table[name].null_count():
            raise DataError(f"'{column}' is null in {nulls} rows of '{view.name}'.", help="Drop those rows.")
    for name in table.columns:
        refuse_values(view.name, table[name].alias(original_names.get(name, user_name(name))))
    return table


def _version(store: Store, view: FeatureView, table: pl.DataFrame, code: str | None) -> FeatureViewRecord:
    columns = {name: write_type(dtype) for name, dtype in table.schema.items()}
    windows = tuple({"length": window.length, "aggregates": dict(window.aggregates)} for window in view.windows)
    internal = (*stored_names(view.keys), EVENT_AT, ARRIVED_AT)
    features = tuple(user_name(name) for name in table.columns if name not in internal)
    definition = [view.name, view.keys, view.time, view.arrival, view.ttl, features, columns, windows, code]
    if view.entity_as_text:
        definition.append("entity as text")
    # Not `sha256:`, which would name an object in the store.
    fingerprint = "code:" + hashlib.sha256(msgspec.json.encode(definition)).hexdigest()
    known = store.records.find(FeatureViewRecord, ("name", "=", view.name), order="-version", limit=1)
    if known and known[0].code == fingerprint:
        return known[0]
    if known and known[0].code == fingerprint.replace("code:", "sha256:"):
        # Stored by an earlier version.
        return store.records.update(replace(known[0], code=fingerprint))[0]
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


def _window(record: Any) -> Window:
    return Window(record["length"], **{name: tuple(pair) for name, pair in record["aggregates"].items()})
