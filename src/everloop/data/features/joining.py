"""Point-in-time joins: to each row, the features as they were known at its moment.

A feature row counts at a moment when its event had happened **and** the row had arrived by then. Of those, the one
of the latest event counts; of two of one event, the one that arrived last. Nothing leaks from the future, not even
values that were filled in later for a time long past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.features.entity_keys import common_type, differing
from everloop.data.features.internal_columns import KNOWN_AT, PREFIX, held, held_names, said
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
    """The rows in their order, with the features of every view added.

    Args:
        rows: has the entity columns of each view.
        views: `OnDemand` ones are computed after all others, from the rows and from the features.
        time: the column that says at which moment each row asks; what has no timezone is UTC.
        sources: the rows of a view, by its name, where they are at hand; the others' sources are called.
        delay: ask this much earlier, such as `1h`: features must have been known so long before `time`.

    Raises:
        DataError: a column is missing, a time is null, an entity's type differs, two features share a name.
        UsageError: arguments that do not fit together.
    """
    table = as_eager(rows)
    require_column(time, table.columns, "time of the rows")
    if not views:
        raise UsageError("There is no feature view to join.")
    if nulls := table[time].null_count():
        raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    at = as_utc(time, table.schema[time])
    asked = table.select((at - parse_duration(delay)) if delay is not None else at).to_series().rename(_AT)
    made = table
    stored, computed = split_views(views)
    questions = _Questions(table, asked)
    for view in stored:
        given = (sources or {}).get(view.name)
        features = questions.answer(view, timeline(view, view.rows() if given is None else given))
        for name in features.columns:
            if name in made.columns:
                raise DataError(
                    f"The rows have a column '{name}' already, and '{view.name}' adds one.",
                    help="Rename one, or choose with features=.",
                )
        made = made.hstack(features)
    for group in computed:
        fresh = group.compute(made)
        for name in fresh.columns:
            if name in made.columns:
                raise DataError(f"The rows have a column '{name}' already, and '{group.name}' computes one.")
        made = made.hstack(fresh)
    return made


def look_up(table: pl.DataFrame, asked: pl.Series, view: FeatureView, known: pl.DataFrame) -> pl.DataFrame:
    """The features of a timeline for each row, in the table's order, without the entity's columns."""
    return _Questions(table, asked).answer(view, known)


class _Questions:
    """Rows that ask, each at its moment: put in the order of the moments once, however many views are asked."""

    def __init__(self, table: pl.DataFrame, asked: pl.Series) -> None:
        order = asked.arg_sort()
        self._places = order.arg_sort()
        self._table = table
        self._order = order
        self._moments = asked.gather(order).rename(_AT)
        self._numbered: dict[tuple[tuple[str, pl.DataType], ...], tuple[pl.DataFrame, pl.Series]] = {}

    def answer(self, view: FeatureView, known: pl.DataFrame) -> pl.DataFrame:
        """The features of a timeline, in the order of the table."""
        keys = held_names(view.keys)
        features = [name for name in known.columns if name not in (*keys, KNOWN_AT, EVENT_AT)]
        kinds = self._kinds(view, known)
        entities, numbers = self._entities(kinds)
        known = known.cast({held(name): kind for name, kind in kinds.items()})
        # As a number: searching by several columns, or by text, takes far longer. Whom nobody asks about is left out.
        right = known.join(entities, on=keys, how="inner", maintain_order="left").drop(*keys)
        left = pl.DataFrame([self._moments, numbers])
        joined = left.join_asof(
            right, left_on=_AT, right_on=KNOWN_AT, by=_ENTITY, strategy="backward", check_sortedness=False
        )
        if view.ttl is not None:
            fresh = pl.col(EVENT_AT) >= pl.col(_AT) - parse_duration(view.ttl)
            joined = joined.with_columns(pl.when(fresh).then(pl.col(name)).alias(name) for name in features)
        return joined.select(pl.col(name).gather(self._places).alias(said(name)) for name in features)

    def _kinds(self, view: FeatureView, known: pl.DataFrame) -> dict[str, pl.DataType]:
        """The type in which each of the entity's columns is compared."""
        kinds: dict[str, pl.DataType] = {}
        for name in view.keys:
            if name not in self._table.columns:
                raise DataError(
                    f"The rows have no column '{name}', the entity of '{view.name}'.",
                    help=nearest(name, self._table.columns),
                )
            kind, other = self._table.schema[name], known.schema[held(name)]
            common = common_type(kind, other, as_text=view.entity_as_text)
            if common is None and known.height:
                raise differing(name, "rows", kind, view, other)
            kinds[name] = common if common is not None else kind
        return kinds

    def _entities(self, kinds: dict[str, pl.DataType]) -> tuple[pl.DataFrame, pl.Series]:
        """Each entity that is asked about with its number, and the numbers of the rows."""
        asked = tuple(kinds.items())
        if asked not in self._numbered:
            keys = self._table.select(pl.col(name).cast(kind).alias(held(name)) for name, kind in asked)
            entities = keys.unique().with_row_index(_ENTITY)
            numbered = keys.join(entities, on=keys.columns, how="left", maintain_order="left", nulls_equal=True)
            self._numbered[asked] = entities, numbered[_ENTITY].gather(self._order)
        return self._numbered[asked]
