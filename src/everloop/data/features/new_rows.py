"""Find the rows of a source that its table does not have yet, without duplicates and without losing corrections.

A row is identified by its entity, its event and its arrival. If a view has no arrival column, another value for a known
event is a correction, which arrives when it is first seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.features.feature_codec import encode_rows
from everloop.data.features.internal_columns import PREFIX, stored_names
from everloop.data.table_inputs import as_eager
from everloop.errors import DataError
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from datetime import datetime

    from everloop.data.features.feature_views import FeatureView

_TWIN, _LAST, _KNOWN = f"{PREFIX}twin", f"{PREFIX}last", f"{PREFIX}known"
_JUST_AFTER = pl.duration(microseconds=1)


def fresh_rows(
    view: FeatureView, offered: pl.DataFrame, known: pl.LazyFrame, *, now: datetime, past: bool
) -> pl.DataFrame:
    """The rows to add to the known ones, with the time at which each arrives.

    Args:
        offered: the rows of the source, with `event_at` and `arrived_at`.
        past: the rows are a backfill; if the view has no `arrival=`, they arrive now.

    Raises:
        DataError: a row has the entity, event and arrival of a known row, but other values.
    """
    identity = [*stored_names(view.keys), EVENT_AT]
    if view.arrival is not None:
        identity.append(ARRIVED_AT)
    # A view of the latest row has one row per event. A window counts all of them.
    rows = offered if view.windows else offered.unique(identity, keep="last", maintain_order=True)
    arrives = pl.lit(now) if past and view.arrival is None else pl.col(ARRIVED_AT)
    if not rows.height:
        return rows.with_columns(arrives.alias(ARRIVED_AT))
    stored = as_eager(known.filter(pl.col(EVENT_AT).is_between(rows[EVENT_AT].min(), rows[EVENT_AT].max())))
    if view.arrival is None:
        stored = stored.filter(pl.col(ARRIVED_AT) == pl.col(ARRIVED_AT).max().over(identity))
    values = [name for name in rows.columns if name != ARRIVED_AT]
    new = _not_stored(rows, stored.select(rows.columns), list(dict.fromkeys([*values, *identity])))
    groups = stored.group_by(identity).agg(pl.col(ARRIVED_AT).max().alias(_LAST))
    found = new.select(identity).unique().join(groups, on=identity, how="left", nulls_equal=True)
    changed = found.filter(pl.col(_LAST).is_not_null())
    if changed.height and view.arrival is not None:
        entity = ", ".join(repr(value) for value in changed.row(0)[: len(view.keys)])
        subject = "1 row" if changed.height == 1 else f"{changed.height} rows"
        verb = "has" if changed.height == 1 else "have"
        raise DataError(
            f"{subject} of '{view.name}' {verb} the same entity, event and arrival as a stored row, but other values; "
            f"the first is of {entity} at {changed[EVENT_AT][0].isoformat()}.",
            help=f"Give a correction its own arrival time in '{view.arrival}'.",
        )
    # Add all rows of an event together, because a correction replaces everything that is known of the event.
    added = rows.join(found, on=identity, how="inner", nulls_equal=True, maintain_order="left")
    corrected = pl.max_horizontal(pl.lit(now), pl.col(_LAST) + _JUST_AFTER)
    arrival = pl.when(pl.col(_LAST).is_not_null()).then(corrected).otherwise(arrives)
    return added.with_columns(arrival.alias(ARRIVED_AT)).drop(_LAST)


def _not_stored(rows: pl.DataFrame, stored: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The rows that are not stored yet. Repeated rows are matched one to one."""
    offered, known = (_comparable(table, names) for table in (rows, stored))
    matched = offered.join(known.with_columns(pl.lit(value=True).alias(_KNOWN)), on=offered.columns, how="left",
                           nulls_equal=True, maintain_order="left")  # fmt: skip
    return rows.filter(matched[_KNOWN].is_null())


def _comparable(table: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    columns = []
    for name in names:
        column = table[name]
        if column.dtype.is_nested():
            column = pl.Series(name, list(encode_rows(column.to_frame())), dtype=pl.Binary)
        columns.append(column)
    return pl.DataFrame(columns).with_columns(pl.int_range(pl.len()).over(names).alias(_TWIN))
