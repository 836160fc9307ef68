"""What serving asks, and whether it got what training would have seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.features.entity_keys import asked_value
from everloop.data.features.feature_types import read_type
from everloop.data.features.internal_columns import held
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

_SAMPLES = 5


class OnlineLookup:
    """The features of some views for one entity at a time; the views are looked up once, when it is made.

    Args:
        names: of views, `weather` or `weather@2`, and `OnDemand` features, which are computed after all others.

    Raises:
        NotFoundError: there is no such view.
        DataError: two views have a feature of one name, as in the join.
    """

    def __init__(self, store: Store, online: OnlineStore, names: Sequence[str | OnDemand]) -> None:
        self._store = store
        self._online = online
        wanted, self._computed = split_views(names)
        self._views = [_Wanted.of(find_version(store, name)) for name in wanted]
        self._types: dict[str, pl.DataType | None] = {}
        givers: dict[str, str] = {}
        for view in self._views:
            for feature in view.nothing:
                if feature in givers:
                    raise _doubled(feature, givers[feature], view.key)
                givers[feature] = view.key
            self._types |= view.types

    def get(self, entity: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Every feature by name; null where nothing was published or the row is older than the view's ttl.

        Args:
            request: what on-demand features need besides the entity and the other features.

        Raises:
            UsageError: `entity` or `request` lacks what a view needs, the entity is of another type than the view's,
                or `request` gives what a view does.
            DataError: features on demand have the name of another feature.
        """
        made: dict[str, Any] = {}
        now = self._store.now()
        for view in self._views:
            missing = [name for name in view.entity if name not in entity]
            if missing:
                raise UsageError(f"The feature view '{view.name}' needs '{missing[0]}' to name an entity.")
            row = self._online.get(view.key, view.key_of(entity))
            if row is None or (view.ttl is not None and row.event_at < now - view.ttl):
                made |= view.nothing
            else:
                made |= {name: row.values.get(place) for name, place in view.held}
        for name in request or ():
            if name in made:
                raise UsageError(
                    f"The request gives '{name}', which is a feature that is looked up.", help="Leave it out."
                )
        if self._computed:
            known = {**entity, **(request or {}), **made}
            types = dict(self._types)
            for group in self._computed:
                fresh = group.compute_row(known, types)
                for name in fresh.columns:
                    if name in known:
                        raise _doubled(name, "the request or a view", group.name)
                values = fresh.row(0, named=True)
                made |= values
                known |= values
                types |= fresh.schema
        return made


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What of a view one look-up needs."""

    name: str
    key: str
    entity: tuple[str, ...]
    ttl: timedelta | None
    nothing: dict[str, None]
    held: tuple[tuple[str, str], ...]
    """Each feature with the name under which it is held."""
    types: dict[str, pl.DataType | None]
    """Of the features."""
    asked: tuple[tuple[str, pl.DataType | None], ...]
    """The entity's columns and their types."""
    as_text: bool

    def key_of(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """The entity as it is published."""
        return {
            held(name): asked_value(name, entity[name], dtype, as_text=self.as_text, view=self.name)
            for name, dtype in self.asked
        }

    @classmethod
    def of(cls, record: FeatureViewRecord) -> _Wanted:
        ttl = None if record.ttl is None else parse_duration(record.ttl)
        features = view_features(record)
        kept = {name: read_type(text) for name, text in record.columns.items()}
        types: dict[str, pl.DataType | None] = {name: kept.get(held(name)) for name in features}
        for window in record.windows:
            for name, (_, how) in window["aggregates"].items():
                types[name] = pl.Int64() if how == "count" else pl.Float64()
        return cls(
            name=record.name,
            key=record.key,
            entity=record.entity,
            ttl=ttl,
            nothing=dict.fromkeys(features),
            held=tuple((name, held(name)) for name in features),
            types=types,
            asked=tuple((name, kept.get(held(name))) for name in record.entity),
            as_text=record.entity_as_text,
        )


def _doubled(name: str, first: str, second: str) -> DataError:
    return DataError(
        f"'{first}' and '{second}' both have a feature '{name}'.", help="Rename one, or choose with features=."
    )


@dataclass(frozen=True, slots=True)
class Skew:
    """How far what was answered online is from what the table says for the same moments."""

    view: str
    rows: int
    different: dict[str, int]
    """Feature to the number of rows in which it differs."""
    samples: tuple[dict[str, Any], ...]
    """Some of these rows: entity, moment, feature, online, offline."""

    @property
    def ok(self) -> bool:
        return not any(self.different.values())


def check_skew(store: Store, name: str, logged: Frame, *, time: str, tolerance: float = 1e-9) -> Skew:
    """Replay logged online answers against the offline join at the same moments.

    Args:
        logged: the entity's columns, `time`, and the features as they were answered.
        tolerance: relative, between numbers.

    Raises:
        DataError: a column is missing.
    """
    record = find_version(store, name)
    view = load_view(store, record.key)
    rows = as_eager(logged)
    require_column(time, rows.columns, "time of the answers")
    features = view_features(record)
    for feature in features:
        require_column(feature, rows.columns, f"feature of '{record.name}'")
    asked = rows.select(as_utc(time, rows.schema[time])).to_series().rename("__at")
    offline = look_up(rows, asked, view, timeline(view, view.rows()))
    different: dict[str, int] = {}
    samples: list[dict[str, Any]] = []
    for feature in features:
        wrong = _differs(rows[feature], offline[feature], tolerance).arg_true().to_list()
        different[feature] = len(wrong)
        for place in wrong[: _SAMPLES - len(samples)]:
            entity = {key: rows[key][place] for key in record.entity}
            said = {"feature": feature, "online": rows[feature][place], "offline": offline[feature][place]}
            samples.append({**entity, "at": asked[place], **said})
    return Skew(record.key, rows.height, different, tuple(samples))


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the newest of a view is."""

    view: str
    rows: int
    event_at: datetime | None
    arrived_at: datetime | None
    age_s: float | None
    """Seconds since the newest event."""
    stale: bool
    """Whether even the newest row is older than the view's ttl, so that nothing counts any more."""


def check_freshness(store: Store, name: str) -> Freshness:
    """Look how far behind now the rows of a view are."""
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


def watch_freshness(store: Store) -> list[Finding]:
    """Keep a finding for each view whose newest version has gone stale: one a newest row, however often asked."""
    newest: dict[str, FeatureViewRecord] = {}
    for record in store.records.find(FeatureViewRecord, order="version"):
        newest[record.name] = record
    found = []
    for record in newest.values():
        fresh = check_freshness(store, record.key)
        if not fresh.stale or fresh.event_at is None or record.ttl is None:
            continue
        place = f"features:{record.name}"
        told = store.records.find(Finding, ("endpoint", "=", place), ("window_from", "=", fresh.event_at), limit=1)
        if told:
            continue
        now = store.now()
        found.append(
            store.new(
                Finding,
                endpoint=place,
                kind="freshness",
                severity="alarm",
                subject=record.key,
                window_from=fresh.event_at,
                window_to=now,
                value=fresh.age_s,
                threshold=parse_duration(record.ttl).total_seconds(),
                message=f"The newest row of '{record.key}' is of {fresh.event_at.isoformat()}, older than its ttl of "
                f"{record.ttl}: no feature of it counts any more",
                evidence={"rows": fresh.rows},
            )
        )
    if found:
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
        # As logged, times may have come in another zone. What cannot be read as the same type differs.
        same = online.cast(offline.dtype, strict=False)
    except pl.exceptions.PolarsError:
        same = online.cast(pl.String)
        offline = offline.cast(pl.String)
    return one_null | ~same.eq_missing(offline)
