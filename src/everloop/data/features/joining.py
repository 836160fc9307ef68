"""Point-in-time joins: add to each row the features as they were known at the time of the row.

A feature row counts if its event had happened **and** the row had arrived by then. Of these rows, the one with the
latest event is used; among rows of the same event, the one that arrived last. Nothing leaks from the future, not even
values that were backfilled later for a time long past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.features.entity_keys import common_type, incompatible_entity
from everloop.data.features.internal_columns import KNOWN_AT, PREFIX, stored_name, stored_names, user_name
from everloop.data.features.on_demand import OnDemand, split_views
from everloop.data.features.timelines import timeline
from everloop.data.table_inputs import Frame, as_eager, as_utc, nearest, require_column
from everloop.errors import DataError, UsageError
from everloop.stores.durations import parse_duration
from everloop.stores.tables.delta_tables import EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.data.features.feature_views import FeatureView

_AT, _ENTITY = f"{PREFIX}at", f"{PREFIX}entity"


def join_features(
    rows: Frame,
    views: Sequence[FeatureView | OnDemand],
    *,
    time: str,
    sources: Mapping[str, Frame] | None = None,
    delay: str | None = None,
) -> pl.DataFrame:
    """Add the features of every view to the rows, in the order of the rows.

    Args:
        rows: a table with the entity columns of each view.
        views: the views to join. `OnDemand` features are computed after all others, from the rows and their features.
        time: the column with the time of each row. Times without a time zone are taken as UTC.
        sources: rows by the name of a view, to use instead of calling the view's source.
        delay: a duration such as `1h`. Features must have been known this long before `time`.

    Raises:
        DataError: a column is missing, a time is null, an entity's type differs, or two features have the same name.
        UsageError: the arguments do not fit together.
    """
    table = as_eager(rows)
    require_column(time, table.columns, "time of the rows")
    if not views:
        raise UsageError("There is no feature view to join.", help="Pass at least one in views=.")
    if nulls := table[time].null_count():
        raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    at = as_utc(time, table.schema[time])
    moments = table.select((at - parse_duration(delay)) if delay is not None else at).to_series().rename(_AT)
    result = table
    looked_up, computed = split_views(views)
    lookup = _PointInTimeLookup(table, moments)
    for view in looked_up:
        source = (sources or {}).get(view.name)
        features = lookup.features(view, timeline(view, view.rows() if source is None else source))
        for name in features.columns:
            if name in result.columns:
                raise DataError(
                    f"The rows already have a column '{name}', which '{view.name}' adds.",
                    help="Rename one of them, or choose other features with features=.",
                )
        result = result.hstack(features)
    for group in computed:
        features = group.compute(result)
        for name in features.columns:
            if name in result.columns:
                raise DataError(
                    f"The rows already have a column '{name}', which '{group.name}' computes.",
                    help="Rename one of them.",
                )
        result = result.hstack(features)
    return result


def look_up(table: pl.DataFrame, moments: pl.Series, view: FeatureView, known: pl.DataFrame) -> pl.DataFrame:
    """The features of a timeline at the moment of each row, in the table's order, without the entity columns."""
    return _PointInTimeLookup(table, moments).features(view, known)


class _PointInTimeLookup:
    """Looks up rows at their moments. The rows are sorted by moment once, for any number of views."""

    def __init__(self, table: pl.DataFrame, moments: pl.Series) -> None:
        order = moments.arg_sort()
        self._positions = order.arg_sort()
        self._table = table
        self._order = order
        self._moments = moments.gather(order).rename(_AT)
        self._numbered: dict[tuple[tuple[str, pl.DataType], ...], tuple[pl.DataFrame, pl.Series]] = {}

    def features(self, view: FeatureView, known: pl.DataFrame) -> pl.DataFrame:
        """The features of a timeline, in the order of the table."""
        keys = stored_names(view.keys)
        features = [name for name in known.columns if name not in (*keys, KNOWN_AT, EVENT_AT)]
        kinds = self._common_types(view, known)
        entities, numbers = self._entities(kinds)
        known = known.cast({stored_name(name): kind for name, kind in kinds.items()})
        # Join by a number, because joining by several columns or by text takes far longer. The inner join drops
        # entities that are not in the rows.
        right = known.join(entities, on=keys, how="inner", maintain_order="left").drop(*keys)
        left = pl.DataFrame([self._moments, numbers])
        joined = left.join_asof(
            right, left_on=_AT, right_on=KNOWN_AT, by=_ENTITY, strategy="backward", check_sortedness=False
        )
        if view.ttl is not None:
            fresh = pl.col(EVENT_AT) >= pl.col(_AT) - parse_duration(view.ttl)
            joined = joined.with_columns(pl.when(fresh).then(pl.col(name)).alias(name) for name in features)
        return joined.select(pl.col(name).gather(self._positions).alias(user_name(name)) for name in features)

    def _common_types(self, view: FeatureView, known: pl.DataFrame) -> dict[str, pl.DataType]:
        """The type in which each entity column is compared."""
        kinds: dict[str, pl.DataType] = {}
        for name in view.keys:
            if name not in self._table.columns:
                raise DataError(
                    f"The rows have no column '{name}', which is an entity column of '{view.name}'.",
                    help=nearest(name, self._table.columns),
                )
            kind, other = self._table.schema[name], known.schema[stored_name(name)]
            common = common_type(kind, other, as_text=view.entity_as_text)
            if common is None and known.height:
                raise incompatible_entity(name, kind, view, other)
            kinds[name] = common if common is not None else kind
        return kinds

    def _entities(self, kinds: dict[str, pl.DataType]) -> tuple[pl.DataFrame, pl.Series]:
        """The entities of the rows with a number for each, and the number of each row."""
        columns = tuple(kinds.items())
        if columns not in self._numbered:
            keys = self._table.select(pl.col(name).cast(kind).alias(stored_name(name)) for name, kind in columns)
            entities = keys.unique().with_row_index(_ENTITY)
            numbered = keys.join(entities, on=keys.columns, how="left", maintain_order="left", nulls_equal=True)
            self._numbered[columns] = entities, numbered[_ENTITY].gather(self._order)
        return self._numbered[columns]
