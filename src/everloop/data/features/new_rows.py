"""Which of the rows that a source gives are new: none twice, and no correction lost.

A row is named by its entity, its event and its arrival. Where a view does not say when rows arrive, a source that gives
another value for an event has corrected it, and the correction arrives when it is seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from everloop.data.features.feature_codec import encode_rows
from everloop.data.features.internal_columns import PREFIX, held_names
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
    """The rows to add to what is known, with the time at which each arrives.

    Args:
        offered: with `event_at` and `arrived_at`.
        past: rows of a view without `arrival=` arrive now, since they are filled in.

    Raises:
        DataError: a row has the entity, event and arrival of one that is known, and other values.
    """
    named = [*held_names(view.keys), EVENT_AT]
    if view.arrival is not None:
        named.append(ARRIVED_AT)
    # The latest row of a moment is one row; a window counts all of them.
    rows = offered if view.windows else offered.unique(named, keep="last", maintain_order=True)
    arrives = pl.lit(now) if past and view.arrival is None else pl.col(ARRIVED_AT)
    if not rows.height:
        return rows.with_columns(arrives.alias(ARRIVED_AT))
    held = as_eager(known.filter(pl.col(EVENT_AT).is_between(rows[EVENT_AT].min(), rows[EVENT_AT].max())))
    if view.arrival is None:
        held = held.filter(pl.col(ARRIVED_AT) == pl.col(ARRIVED_AT).max().over(named))
    values = [name for name in rows.columns if name != ARRIVED_AT]
    unlike = _unlike(rows, held.select(rows.columns), list(dict.fromkeys([*values, *named])))
    groups = held.group_by(named).agg(pl.col(ARRIVED_AT).max().alias(_LAST))
    found = unlike.select(named).unique().join(groups, on=named, how="left", nulls_equal=True)
    changed = found.filter(pl.col(_LAST).is_not_null())
    if changed.height and view.arrival is not None:
        entity = ", ".join(repr(value) for value in changed.row(0)[: len(view.keys)])
        raise DataError(
            f"{changed.height} rows of '{view.name}' have the entity, event and arrival of rows that are kept already, "
            f"and other values; the first is of {entity} at {changed[EVENT_AT][0].isoformat()}.",
            help=f"Give a correction its own time of arrival in '{view.arrival}'.",
        )
    # A moment is added as a whole: what is corrected is all that is known of it.
    added = rows.join(found, on=named, how="inner", nulls_equal=True, maintain_order="left")
    corrected = pl.max_horizontal(pl.lit(now), pl.col(_LAST) + _JUST_AFTER)
    arrival = pl.when(pl.col(_LAST).is_not_null()).then(corrected).otherwise(arrives)
    return added.with_columns(arrival.alias(ARRIVED_AT)).drop(_LAST)


def _unlike(rows: pl.DataFrame, held: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """The rows without an equal among those held; of equal rows, as many as are held are known."""
    mine, theirs = (_comparable(table, names) for table in (rows, held))
    known = mine.join(theirs.with_columns(pl.lit(value=True).alias(_KNOWN)), on=mine.columns, how="left",
                      nulls_equal=True, maintain_order="left")  # fmt: skip
    return rows.filter(known[_KNOWN].is_null())


def _comparable(table: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    made = []
    for name in names:
        column = table[name]
        if column.dtype.is_nested():
            column = pl.Series(name, list(encode_rows(column.to_frame())), dtype=pl.Binary)
        made.append(column)
    compared = pl.DataFrame(made)
    return compared.with_columns(pl.int_range(pl.len()).over(names).alias(_TWIN))
