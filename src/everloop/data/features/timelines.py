"""From rows as they happened to what was known at each moment.

A timeline has one row per entity and moment at which the answer changes: the entity's columns, `known_at` (when both
the event had happened and the row had arrived), `event_at`, and the features, all under the names in which they are
held (see `names`). Looking up a moment is then one backward
search on `known_at`, and can by construction not see what came later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from everloop.data.features.entity_keys import refuse_entity
from everloop.data.features.feature_types import refuse_type
from everloop.data.features.internal_columns import KNOWN_AT, PREFIX, held, held_names
from everloop.data.features.windows import window_totals
from everloop.data.table_inputs import Frame, as_eager, as_lazy, as_utc
from everloop.errors import DataError
from everloop.stores.durations import parse_duration
from everloop.stores.tables.delta_tables import EVENT_AT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everloop.data.features.feature_views import FeatureView, Window
    from everloop.data.features.windows import Integers, Totals

_ARRIVED, _UNTIL, _WHO = f"{PREFIX}arrived", f"{PREFIX}until", f"{PREFIX}who"
_START, _END = f"{PREFIX}start", f"{PREFIX}end"
_EXACT = 1 << 53


def timeline(view: FeatureView, rows: Frame) -> pl.DataFrame:
    """The timeline of a view, sorted by `known_at`.

    Raises:
        DataError: an entity or a time is null, or a column is of a type that a view cannot hold.
        UsageError: a declared column is missing.
    """
    frame = as_lazy(rows)
    schema = frame.collect_schema()
    features = view.feature_names(schema.names())
    event = as_utc(view.time, schema[view.time])
    arrival = as_utc(view.arrival, schema[view.arrival]) if view.arrival is not None else event
    used = features if not view.windows else view.window_columns()
    for name in view.keys:
        refuse_entity(view, name, schema[name])
    for name in used:
        refuse_type(view.name, name, schema[name])
    chosen = [pl.col(name).alias(held(name)) for name in dict.fromkeys((*view.keys, *used))]
    table = as_eager(frame.select(*chosen, event.alias(EVENT_AT), arrival.alias(_ARRIVED)))
    called = {held(name): name for name in view.keys} | {EVENT_AT: view.time, _ARRIVED: view.arrival}
    for name, said in called.items():
        if nulls := table[name].null_count():
            raise DataError(f"'{said}' is null in {nulls} rows of '{view.name}'.", help="Drop those rows.")
    table = table.with_columns(pl.max_horizontal(EVENT_AT, _ARRIVED).alias(KNOWN_AT))
    made = _windows(view, table) if view.windows else _latest(view, table)
    return made.select(*_keys(view), KNOWN_AT, EVENT_AT, *held_names(features)).sort(KNOWN_AT)


def _keys(view: FeatureView) -> list[str]:
    return held_names(view.keys)


def _latest(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """Without the rows that never were the latest: those that arrived after a later event was already known."""
    # Of rows of one event that arrived at once, the one that stands last counts.
    ordered = table.sort(KNOWN_AT, EVENT_AT, _ARRIVED, maintain_order=True)
    newest = pl.col(EVENT_AT).cum_max().over(_keys(view))
    kept = ordered.filter(pl.col(EVENT_AT) == newest)
    # Rows of an entity stand by the time at which they were known: one that the next replaces at once never counted.
    replaced = pl.col(KNOWN_AT) == pl.col(KNOWN_AT).shift(-1).over(_keys(view))
    return kept.filter(~replaced.fill_null(value=False))


def _windows(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """The aggregates at each moment at which a row of some window comes in or goes out."""
    entities = table.select(_keys(view)).unique(maintain_order=True).with_row_index(_WHO)
    table = table.join(entities, on=_keys(view), how="left", nulls_equal=True, maintain_order="left")
    table = _replaced(table)
    spans = [_spans(table, window) for window in view.windows]
    moments, places = _moments(spans)
    made = [moments.select(_WHO, KNOWN_AT)]
    for window, span, (starts, ends) in zip(view.windows, spans, places, strict=True):
        totals = {
            column: window_totals(starts, ends, _numbers(view, span[held(column)], column), moments.height)
            for column in dict.fromkeys(column for column, _ in window.aggregates.values())
        }
        made.append(
            pl.DataFrame(
                [_feature(totals[column], how).alias(held(name)) for name, (column, how) in window.aggregates.items()]
            )
        )
    whole = pl.concat(made, how="horizontal")
    return whole.join(entities, on=_WHO, how="left").with_columns(pl.col(KNOWN_AT).alias(EVENT_AT))


def _replaced(table: pl.DataFrame) -> pl.DataFrame:
    """With the moment at which a correction takes each row's place: rows of the same event that arrived later."""
    event = [_WHO, EVENT_AT]
    versions = table.select(*event, _ARRIVED).unique().sort(*event, _ARRIVED)
    following = pl.all_horizontal(pl.col(name) == pl.col(name).shift(-1) for name in event)
    versions = versions.select(
        *event, _ARRIVED, pl.when(following).then(pl.max_horizontal(pl.col(_ARRIVED).shift(-1), EVENT_AT)).alias(_UNTIL)
    ).drop_nulls()
    return table.join(versions, on=[*event, _ARRIVED], how="left", maintain_order="left")


def _spans(table: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The rows that ever count, from when to when: one that arrives after its window has passed never does."""
    gone = pl.col(EVENT_AT) + parse_duration(window.length)
    spans = table.with_columns(pl.col(KNOWN_AT).alias(_START), pl.min_horizontal(gone, _UNTIL).alias(_END))
    return spans.filter(pl.col(_START) < pl.col(_END))


def _moments(spans: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[tuple[Integers, Integers]]]:
    """Every moment at which a span begins or ends, by entity and time, and where those of each frame stand."""
    sides = [span.select(_WHO, pl.col(side).alias(KNOWN_AT)) for span in spans for side in (_START, _END)]
    whole = pl.concat(sides)
    who, when = whole[_WHO].to_numpy(), whole[KNOWN_AT].cast(pl.Int64).to_numpy()
    order = np.lexsort((when, who))
    who, when = who[order], when[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(who) != 0) | (np.diff(when) != 0)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(fresh) - 1
    cuts = np.split(place, np.cumsum([side.height for side in sides])[:-1])
    return whole[order[fresh]], list(zip(cuts[::2], cuts[1::2], strict=True))


def _numbers(view: FeatureView, values: pl.Series, name: str) -> NDArray[np.float64]:
    """As float64, with NaN for what is missing.

    Raises:
        DataError: the column holds something else than numbers and booleans, or whole numbers beyond 2^53.
    """
    dtype = values.dtype
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null)):
        raise DataError(f"'{name}' of '{view.name}' holds {dtype}; windows aggregate numbers and booleans.")
    if dtype.is_integer() and values.len() > values.null_count():
        for extreme in (values.min(), values.max()):
            if isinstance(extreme, int) and abs(extreme) > _EXACT:
                raise DataError(
                    f"'{name}' of '{view.name}' holds {extreme}, and windows compute with float64, which holds "
                    f"whole numbers up to 2^53.",
                    help="Cast the column to Float64 if rounding is acceptable.",
                )
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _feature(totals: Totals, how: str) -> pl.Series:
    if how == "count":
        return pl.Series(totals.count, dtype=pl.Int64)
    if how == "sum":
        return pl.Series(totals.sum())
    # NaN stands for "no such number" unless infinities made it: then it is the answer, as in NumPy.
    found, least = (totals.average(), 1) if how == "mean" else (totals.spread(), 2)
    table = pl.DataFrame({"found": found, "known": totals.count >= least})
    return table.select(pl.when("known").then("found").alias("found")).to_series()
