"""Point-in-time joins: to each row, the features as they were known at its moment.

A feature row counts at a moment when its event had happened **and** the row had arrived by then. Of those, the one
of the latest event counts; of two of one event, the one that arrived last. Nothing leaks from the future, not even
values that were filled in later for a time long past.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.features.requests import OnDemand, split_views
from everloop.data.features.timelines import KNOWN_AT, timeline
from everloop.data.frames import Frame, as_eager, as_utc, nearest, require_column
from everloop.errors import DataError, UsageError
from everloop.stores.durations import parse_duration
from everloop.stores.tables import EVENT_AT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from everloop.data.features.views import FeatureView

_AT, _ROW = "__at", "__row"


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
    for view in stored:
        given = (sources or {}).get(view.name)
        features = look_up(table, asked, view, timeline(view, view.rows() if given is None else given))
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
    for name in view.keys:
        if name not in table.columns:
            raise DataError(
                f"The rows have no column '{name}', the entity of '{view.name}'.", help=nearest(name, table.columns)
            )
    features = [name for name in known.columns if name not in (*view.keys, KNOWN_AT, EVENT_AT)]
    left = table.select(*view.keys).with_columns(asked).with_row_index(_ROW)
    left, right = _numbered(view, left, known)
    joined = left.sort(_AT).join_asof(
        right, left_on=_AT, right_on=KNOWN_AT, by="__entity", strategy="backward", check_sortedness=False
    )
    if view.ttl is not None:
        fresh = pl.col(EVENT_AT) >= pl.col(_AT) - parse_duration(view.ttl)
        joined = joined.with_columns(pl.when(fresh).then(pl.col(name)).alias(name) for name in features)
    return joined.sort(_ROW).select(features)


def _numbered(view: FeatureView, left: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both sides with the entity as one number: searching by several columns, or by text, takes far longer."""
    keys = list(view.keys)
    for name in keys:
        if left.schema[name] != known.schema[name] and known.height:
            raise DataError(
                f"The entity '{name}' is {left.schema[name]} in the rows and {known.schema[name]} in '{view.name}'.",
                help="Cast one of them.",
            )
    if known.schema[keys[0]] == pl.Null:
        known = known.cast({name: left.schema[name] for name in keys})
    numbers = known.select(keys).unique().with_row_index("__entity")
    right = known.join(numbers, on=keys, how="left", maintain_order="left").drop(keys)
    return left.join(numbers, on=keys, how="left").drop(keys), right
