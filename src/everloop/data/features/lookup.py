"""What serving asks, and whether it got what training would have seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.features.joining import look_up
from everloop.data.features.materializing import find_version, load_view, stored_rows, table_name, view_features
from everloop.data.features.timelines import timeline
from everloop.data.frames import Frame, as_eager, as_utc, require_column
from everloop.errors import UsageError
from everloop.stores.durations import parse_duration
from everloop.stores.tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from everloop.data.features.online import OnlineStore
    from everloop.stores import Store

_SAMPLES = 5


class OnlineLookup:
    """The features of some views for one entity at a time; the views are looked up once, when it is made."""

    def __init__(self, store: Store, online: OnlineStore, names: Sequence[str]) -> None:
        self._store = store
        self._online = online
        self._views = [find_version(store, name) for name in names]

    def get(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """Every feature by name; null where nothing was published or the row is older than the view's ttl.

        Raises:
            UsageError: `entity` lacks a column that a view needs.
        """
        made: dict[str, Any] = {}
        now = self._store.now()
        for view in self._views:
            missing = [name for name in view.entity if name not in entity]
            if missing:
                raise UsageError(f"The feature view '{view.name}' needs '{missing[0]}' to name an entity.")
            row = self._online.get(view.key, {name: entity[name] for name in view.entity})
            fresh = row is not None and (view.ttl is None or row.event_at >= now - parse_duration(view.ttl))
            made |= {name: row.values.get(name) if row is not None and fresh else None for name in view_features(view)}
        return made


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
    offline = look_up(rows, asked, view, timeline(view, stored_rows(store, record)))
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


def _differs(online: pl.Series, offline: pl.Series, tolerance: float) -> pl.Series:
    one_null = online.is_null() != offline.is_null()
    if online.dtype.is_numeric() and offline.dtype.is_numeric():
        left, right = online.cast(pl.Float64), offline.cast(pl.Float64)
        allowed = tolerance * pl.DataFrame({"online": left.abs(), "offline": right.abs()}).max_horizontal().clip(1e-300)
        nan = left.is_nan().fill_null(False) & right.is_nan().fill_null(False)
        far = ((left - right).abs() > allowed).fill_null(False) & ~nan
        return one_null | far
    return one_null | (online.cast(pl.String) != offline.cast(pl.String)).fill_null(False)
