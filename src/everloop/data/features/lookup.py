"""Look up online features for serving, and check that they match training and are fresh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.features.entity_keys import published_value
from everloop.data.features.feature_types import read_type
from everloop.data.features.internal_columns import stored_name
from everloop.data.features.joining import look_up
from everloop.data.features.materializing import find_version, load_view, stored_rows, table_name, view_features
from everloop.data.features.on_demand import OnDemand, split_views
from everloop.data.features.timelines import timeline
from everloop.data.table_inputs import Frame, as_eager, as_utc, require_column
from everloop.errors import DataError, UsageError
from everloop.records import FeatureViewRecord as FeatureViewRecord, Finding
from everloop.stores.durations import parse_duration
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from everloop.data.features.online_store import OnlineStore
    from everloop.stores import Store

VIEW_PREFIX = "features:"
"""Findings about a view have this and its name as their endpoint."""
_SAMPLES = 5


class OnlineLookup:
    """Looks up the features of some views, one entity at a time. The views themselves are loaded once, at creation.

    Args:
        names: views such as `weather` or `weather@2`, and `OnDemand` features, which are computed after all others.

    Raises:
        NotFoundError: a view does not exist.
        DataError: two views have a feature with the same name.
    """

    def __init__(self, store: Store, online: OnlineStore, names: Sequence[str | OnDemand]) -> None:
        self._store = store
        self._online = online
        looked_up, self._computed = split_views(names)
        self._views = [_ViewLookup.of(find_version(store, name)) for name in looked_up]
        self._types: dict[str, pl.DataType | None] = {}
        providers: dict[str, str] = {}
        for view in self._views:
            for feature in view.nulls:
                if feature in providers:
                    raise _duplicate_feature(feature, providers[feature], view.key)
                providers[feature] = view.key
            self._types |= view.types

    def get(self, entity: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every feature by name. It is None if no row was published, or if the row is older than the view's ttl.

        Args:
            request: inputs of on-demand features that are neither in the entity nor among the other features.

        Raises:
            UsageError: `entity` or `request` does not contain a needed value, the entity has another type than the
                view's, or `request` contains a feature of a view.
            DataError: an on-demand feature has the name of another feature.
        """
        features: dict[str, Any] = {}
        now = self._store.now()
        for view in self._views:
            missing = [name for name in view.entity if name not in entity]
            if missing:
                raise UsageError(
                    f"The feature view '{view.name}' needs '{missing[0]}' to identify an entity.",
                    help="Pass it in entity=.",
                )
            row = self._online.get(view.key, view.key_of(entity))
            if row is None or (view.ttl is not None and row.event_at < now - view.ttl):
                features |= view.nulls
            else:
                features |= {name: row.values.get(stored) for name, stored in view.stored}
        for name in request or ():
            if name in features:
                raise UsageError(f"The request contains '{name}', but this feature is looked up.", help="Leave it out.")
        if self._computed:
            known = {**entity, **(request or {}), **features}
            types = dict(self._types)
            for group in self._computed:
                computed = group.compute_row(known, types)
                for name in computed.columns:
                    if name in known:
                        raise _duplicate_feature(name, "the request or a view", group.name)
                values = computed.row(0, named=True)
                features |= values
                known |= values
                types |= computed.schema
        return features


@dataclass(frozen=True, slots=True)
class _ViewLookup:
    """What a lookup needs to know about a view."""

    name: str
    key: str
    entity: tuple[str, ...]
    ttl: timedelta | None
    nulls: dict[str, None]
    """The result if there is no row: None for each feature."""
    stored: tuple[tuple[str, str], ...]
    """Each feature, with the name under which it is stored."""
    types: dict[str, pl.DataType | None]
    """The types of the features."""
    entity_types: tuple[tuple[str, pl.DataType | None], ...]
    """The entity columns and their types."""
    as_text: bool

    def key_of(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """The entity in the form in which it is published."""
        return {
            stored_name(name): published_value(name, entity[name], dtype, as_text=self.as_text, view=self.name)
            for name, dtype in self.entity_types
        }

    @classmethod
    def of(cls, record: FeatureViewRecord) -> _ViewLookup:
        ttl = None if record.ttl is None else parse_duration(record.ttl)
        features = view_features(record)
        column_types = {name: read_type(text) for name, text in record.columns.items()}
        types: dict[str, pl.DataType | None] = {name: column_types.get(stored_name(name)) for name in features}
        for window in record.windows:
            for name, (_, how) in window["aggregates"].items():
                types[name] = pl.Int64() if how == "count" else pl.Float64()
        return cls(
            name=record.name,
            key=record.key,
            entity=record.entity,
            ttl=ttl,
            nulls=dict.fromkeys(features),
            stored=tuple((name, stored_name(name)) for name in features),
            types=types,
            entity_types=tuple((name, column_types.get(stored_name(name))) for name in record.entity),
            as_text=record.entity_as_text,
        )


def _duplicate_feature(name: str, first: str, second: str) -> DataError:
    return DataError(
        f"'{first}' and '{second}' both have a feature '{name}'.",
        help="Rename one of them, or choose other features with features=.",
    )


@dataclass(frozen=True, slots=True)
class Skew:
    """The differences between logged online features and the offline join at the same times."""

    view: str
    rows: int
    different: dict[str, int]
    """The number of rows with a difference, by feature."""
    samples: tuple[dict[str, Any], ...]
    """Some of these rows: entity, time (`at`), feature, online and offline value."""

    @property
    def ok(self) -> bool:
        return not any(self.different.values())


def check_skew(
    store: Store,
    name: str,
    logged: Frame,
    *,
    time: str,
    tolerance: float = 1e-9,
    features: Sequence[str] | None = None,
) -> Skew:
    """Compare logged online features with the offline join at the same times.

    Args:
        logged: a table with the entity columns, `time`, and the features that serving returned.
        features: the features to compare. Default: all of the view.
        tolerance: the relative difference of numbers that is allowed.

    Raises:
        DataError: a column is missing.
    """
    record = find_version(store, name)
    view = load_view(store, record.key)
    rows = as_eager(logged)
    require_column(time, rows.columns, "time of the logged features")
    features = view_features(record) if features is None else features
    for feature in features:
        require_column(feature, rows.columns, f"feature of '{record.name}'")
    moments = rows.select(as_utc(time, rows.schema[time])).to_series().rename("__at")
    offline = look_up(rows, moments, view, timeline(view, view.rows()))
    different: dict[str, int] = {}
    samples: list[dict[str, Any]] = []
    for feature in features:
        wrong = _differs(rows[feature], offline[feature], tolerance).arg_true().to_list()
        different[feature] = len(wrong)
        for row in wrong[: _SAMPLES - len(samples)]:
            entity = {key: rows[key][row] for key in record.entity}
            values = {"feature": feature, "online": rows[feature][row], "offline": offline[feature][row]}
            samples.append({**entity, "at": moments[row], **values})
    return Skew(record.key, rows.height, different, tuple(samples))


@dataclass(frozen=True, slots=True)
class Freshness:
    """The age of the newest row of a view."""

    view: str
    rows: int
    event_at: datetime | None
    arrived_at: datetime | None
    age_s: float | None
    """Seconds since the newest event."""
    stale: bool
    """Whether even the newest row is older than the view's ttl, so that no row is valid any more."""


def check_freshness(store: Store, name: str) -> Freshness:
    """Check how old the newest row of a view is."""
    record = find_version(store, name)
    if not store.tables.exists(table_name(record)):
        return Freshness(record.key, 0, None, None, None, stale=True)
    now = store.now()
    known = stored_rows(store, record).filter((pl.col(EVENT_AT) <= now) & (pl.col(ARRIVED_AT) <= now))
    found = known.select(pl.len().alias("n"), pl.col(EVENT_AT).max(), pl.col(ARRIVED_AT).max()).collect()
    count, event_at, arrived_at = found.row(0)
    age = None if event_at is None else (now - event_at).total_seconds()
    limit = None if record.ttl is None else parse_duration(record.ttl).total_seconds()
    stale = age is None or (limit is not None and age > limit)
    return Freshness(record.key, count, event_at, arrived_at, age, stale)


def watch_freshness(store: Store, *, keep: bool = True) -> list[Finding]:
    """Store a finding for each view whose newest version is stale. Repeated calls store one finding per newest row.

    Args:
        keep: False returns the new findings without storing them.
    """
    newest: dict[str, FeatureViewRecord] = {}
    for record in store.records.find(FeatureViewRecord, order="version"):
        newest[record.name] = record
    found = []
    for record in newest.values():
        fresh = check_freshness(store, record.key)
        if not fresh.stale or fresh.event_at is None or record.ttl is None:
            continue
        endpoint = f"{VIEW_PREFIX}{record.name}"
        stored = store.records.find(Finding, ("endpoint", "=", endpoint), ("window_from", "=", fresh.event_at), limit=1)
        if stored:
            continue
        now = store.now()
        found.append(
            store.new(
                Finding,
                endpoint=endpoint,
                kind="freshness",
                severity="alarm",
                subject=record.key,
                window_from=fresh.event_at,
                window_to=now,
                value=fresh.age_s,
                threshold=parse_duration(record.ttl).total_seconds(),
                message=f"The newest row of '{record.key}' is from {fresh.event_at.isoformat()}, older than the ttl of "
                f"{record.ttl}: all features of the view are now null",
                evidence={"rows": fresh.rows},
            )
        )
    if found and keep:
        store.records.put(*found, verb="found")
    return found


def _differs(online: pl.Series, offline: pl.Series, tolerance: float) -> pl.Series:
    one_null = online.is_null() != offline.is_null()
    if online.dtype.is_numeric() and offline.dtype.is_numeric():
        left, right = online.cast(pl.Float64), offline.cast(pl.Float64)
        allowed = tolerance * pl.DataFrame({"online": left.abs(), "offline": right.abs()}).max_horizontal().clip(1e-300)
        nan = left.is_nan().fill_null(False) & right.is_nan().fill_null(False)
        far = ((left - right).abs() > allowed).fill_null(False) & ~nan
        return one_null | far
    try:
        # Logged times may be in another time zone. A value that cannot be cast to the offline type differs.
        same = online.cast(offline.dtype, strict=False)
    except pl.exceptions.PolarsError:
        same = online.cast(pl.String)
        offline = offline.cast(pl.String)
    return one_null | ~same.eq_missing(offline)
