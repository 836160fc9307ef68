"""Convert the rows of a view to a timeline: what was known about each entity at each moment.

A timeline has one row per entity and moment at which a feature changes. Its columns are the entity columns, `known_at`
(when the event had happened and the row had arrived), `event_at` and the features, all under their stored names (see
`internal_columns`). Looking up a moment is then one backward search on `known_at`, and by construction cannot see later
rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from everloop.data.features.entity_keys import refuse_entity
from everloop.data.features.feature_types import refuse_type
from everloop.data.features.internal_columns import KNOWN_AT, PREFIX, stored_name, stored_names
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
        DataError: an entity or a time is null, or a view does not support the type of a column.
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
    chosen = [pl.col(name).alias(stored_name(name)) for name in dict.fromkeys((*view.keys, *used))]
    table = as_eager(frame.select(*chosen, event.alias(EVENT_AT), arrival.alias(_ARRIVED)))
    original_names = {stored_name(name): name for name in view.keys} | {EVENT_AT: view.time, _ARRIVED: view.arrival}
    for name, original in original_names.items():
        if nulls := table[name].null_count():
            raise DataError(f"'{original}' is null in {nulls} rows of '{view.name}'.", help="Drop those rows.")
    table = table.with_columns(pl.max_horizontal(EVENT_AT, _ARRIVED).alias(KNOWN_AT))
    rows_over_time = _windows(view, table) if view.windows else _latest(view, table)
    return rows_over_time.select(*_keys(view), KNOWN_AT, EVENT_AT, *stored_names(features)).sort(KNOWN_AT)


def _keys(view: FeatureView) -> list[str]:
    return stored_names(view.keys)


def _latest(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """Drop the rows that were never the latest, because they arrived after a later event was known."""
    # Among rows of one event that arrived together, the last one counts.
    ordered = table.sort(KNOWN_AT, EVENT_AT, _ARRIVED, maintain_order=True)
    newest = pl.col(EVENT_AT).cum_max().over(_keys(view))
    latest = ordered.filter(pl.col(EVENT_AT) == newest)
    # The rows of an entity are sorted by `known_at`. A row that the next one replaces at the same moment never counted.
    replaced = pl.col(KNOWN_AT) == pl.col(KNOWN_AT).shift(-1).over(_keys(view))
    return latest.filter(~replaced.fill_null(value=False))


def _windows(view: FeatureView, table: pl.DataFrame) -> pl.DataFrame:
    """The aggregates at each moment at which a row enters or leaves a window."""
    entities = table.select(_keys(view)).unique(maintain_order=True).with_row_index(_WHO)
    table = table.join(entities, on=_keys(view), how="left", nulls_equal=True, maintain_order="left")
    table = _with_corrections(table)
    spans = [_spans(table, window) for window in view.windows]
    moments, indexes = _moments(spans)
    frames = [moments.select(_WHO, KNOWN_AT)]
    for window, span, (starts, ends) in zip(view.windows, spans, indexes, strict=True):
        totals = {
            column: window_totals(starts, ends, _numbers(view, span[stored_name(column)], column), moments.height)
            for column in dict.fromkeys(column for column, _ in window.aggregates.values())
        }
        features = [
            _feature(totals[column], how).alias(stored_name(name)) for name, (column, how) in window.aggregates.items()
        ]
        frames.append(pl.DataFrame(features))
    joined = pl.concat(frames, how="horizontal")
    return joined.join(entities, on=_WHO, how="left").with_columns(pl.col(KNOWN_AT).alias(EVENT_AT))


def _with_corrections(table: pl.DataFrame) -> pl.DataFrame:
    """Add the moment at which each row is replaced by a correction: a row of the same event that arrived later."""
    event = [_WHO, EVENT_AT]
    versions = table.select(*event, _ARRIVED).unique().sort(*event, _ARRIVED)
    following = pl.all_horizontal(pl.col(name) == pl.col(name).shift(-1) for name in event)
    versions = versions.select(
        *event, _ARRIVED, pl.when(following).then(pl.max_horizontal(pl.col(_ARRIVED).shift(-1), EVENT_AT)).alias(_UNTIL)
    ).drop_nulls()
    return table.join(versions, on=[*event, _ARRIVED], how="left", maintain_order="left")


def _spans(table: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The start and end of the time in which each row counts. Rows that arrive after their window never count."""
    window_end = pl.col(EVENT_AT) + parse_duration(window.length)
    spans = table.with_columns(pl.col(KNOWN_AT).alias(_START), pl.min_horizontal(window_end, _UNTIL).alias(_END))
    return spans.filter(pl.col(_START) < pl.col(_END))


def _moments(spans: list[pl.DataFrame]) -> tuple[pl.DataFrame, list[tuple[Integers, Integers]]]:
    """Every moment at which a span begins or ends, by entity and time; and their indexes for each frame's spans."""
    sides = [span.select(_WHO, pl.col(side).alias(KNOWN_AT)) for span in spans for side in (_START, _END)]
    combined = pl.concat(sides)
    who, when = combined[_WHO].to_numpy(), combined[KNOWN_AT].cast(pl.Int64).to_numpy()
    order = np.lexsort((when, who))
    who, when = who[order], when[order]
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = (np.diff(who) != 0) | (np.diff(when) != 0)
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.cumsum(fresh) - 1
    parts = np.split(index, np.cumsum([side.height for side in sides])[:-1])
    return combined[order[fresh]], list(zip(parts[::2], parts[1::2], strict=True))


def _numbers(view: FeatureView, values: pl.Series, name: str) -> NDArray[np.float64]:
    """The values as float64, with NaN for missing ones.

    Raises:
        DataError: the column is neither numeric nor boolean, or contains integers beyond 2^53.
    """
    dtype = values.dtype
    if not (dtype.is_numeric() or isinstance(dtype, pl.Boolean | pl.Null)):
        raise DataError(
            f"'{name}' of '{view.name}' is {dtype}, but windows can only aggregate numbers and booleans.",
            help="Cast the column, or leave it out of the windows.",
        )
    if dtype.is_integer() and values.len() > values.null_count():
        for extreme in (values.min(), values.max()):
            if isinstance(extreme, int) and abs(extreme) > _EXACT:
                raise DataError(
                    f"'{name}' of '{view.name}' contains {extreme}, but windows compute with float64, which is exact "
                    f"only up to 2^53.",
                    help="Cast the column to Float64 if rounding is acceptable.",
                )
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _feature(totals: Totals, how: str) -> pl.Series:
    if how == "count":
        return pl.Series(totals.count, dtype=pl.Int64)
    if how == "sum":
        return pl.Series(totals.sum())
    # NaN usually means a missing result, which becomes null. But NaN from infinities is the result, as in NumPy.
    found, least = (totals.average(), 1) if how == "mean" else (totals.spread(), 2)
    table = pl.DataFrame({"found": found, "known": totals.count >= least})
    return table.select(pl.when("known").then("found").alias("found")).to_series()
