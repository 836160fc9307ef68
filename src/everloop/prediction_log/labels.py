"""Labels: appended to a journal like predictions, or added as a table.

The table `labels/<endpoint>` has the columns entity, value (a number, or null), text (the class as text), event_at
(when the outcome happened, or when the label arrived if that is unknown) and arrived_at. A label is never overwritten.
If several labels match a prediction, the one that arrived last counts; see `label_matching`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import ConflictError, DataError, RequestError
from everloop.packages.signature import utc
from everloop.prediction_log.configured_sink import open_sink
from everloop.prediction_log.journal_folding import StreamFold
from everloop.prediction_log.label_matching import find_unmatched, label_horizon
from everloop.prediction_log.log_frames import decode_frame
from everloop.prediction_log.prediction_log import (
    LABELS,
    entity_text,
    fold_predictions,
    label_text,
    prediction_fold,
    stream_name,
    table_name,
)
from everloop.prediction_log.segment_folding import has_segments
from everloop.stores.clock import EPOCH, micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.stores import Store

_VERSION = 1
_MICROSECOND = timedelta(microseconds=1)
_MOST_WAITING_BYTES = 4 << 20
"""More bytes of answers than this are folded before labels are looked up; fewer are read from the journals."""

Value = bool | int | float | str


class GivenLabel(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """One label as a client sends it."""

    key: str | int | float
    value: Value
    event_at: datetime | None = None


class _Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    version: int
    arrived: int
    labels: list[tuple[str, Any, int]]
    """entity, value, event time in µs."""


class LabelLog:
    """Writes an endpoint's labels. Thread-safe."""

    def __init__(self, store: Store, endpoint: str, sink: LogSink | None = None) -> None:
        """Open the log.

        Args:
            sink: where it is written; default: by the environment, see `log_sinks`.
        """
        self._clock = store.clock
        self.sink = sink or open_sink(store, stream_name(store, LABELS, endpoint))

    def append(self, labels: Sequence[GivenLabel]) -> list[tuple[str, int]]:
        """Write labels and return their keys and times in µs. Returns after the `write` call.

        Raises:
            RequestError: a time cannot be converted to UTC, or a number is too large.
            InsufficientStorageError: no space is left; nothing was written.
            UnavailableError: the log's store does not answer, see `LogSink`.
            ConflictError: this process has no log, so it cannot store labels.
        """
        if self.sink.kind == "none":
            raise ConflictError(
                "This endpoint has no log (EVERLOOP_LOG=none), so it cannot store labels.",
                help="Send them to an endpoint with a log, or use: everloop labels add ENDPOINT FILE",
            )
        if not labels:
            return []
        arrived = micros(self._clock.now())
        by_key: dict[tuple[str, int], Value] = {}
        for index, label in enumerate(labels):
            moment = label.event_at
            event = arrived if moment is None else (utc(moment, f"labels[{index}].event_at") - EPOCH) // _MICROSECOND
            # If a request has two labels for one key and time, the second corrects the first.
            by_key[entity_text(label.key), event] = _checked(label.value, index)
        rows = [(entity, value, event) for (entity, event), value in by_key.items()]
        self.sink.append(msgspec.msgpack.encode((_VERSION, arrived, rows)))
        return list(by_key)

    def close(self, until: float | None = None) -> None:
        self.sink.close(until)


def fold_labels(store: Store, endpoint: str) -> int:
    """Move the appended labels into the endpoint's table, exactly once, and return their number."""
    fold = StreamFold(stream_name(store, LABELS, endpoint), table_name(store, LABELS, endpoint), _decode, _frame)
    return fold.run(store)


def add_labels(store: Store, endpoint: str, frame: Any) -> int:
    """Add a table of labels and return its number of rows.

    Args:
        frame: anything with the Arrow C stream interface; columns `entity` (text or number; may be called `key`),
            `value` (boolean, number or text), optionally `event_at` (default: the arrival), and `arrived_at` (default:
            now).

    Raises:
        DataError: a column is missing, an entity is null, or the values have a type that labels cannot have.
    """
    shaped = shape_labels(store, frame)
    if not shaped.is_empty():
        store.tables.append(table_name(store, LABELS, endpoint), shaped)
    return shaped.height


def shape_labels(store: Store, frame: Any) -> pl.DataFrame:
    """Labels in the form of the table `labels/<endpoint>`, without rows that have no value. Raises as `add_labels`."""
    import polars as pl

    rows = frame.collect() if isinstance(frame, pl.LazyFrame) else pl.DataFrame(frame)
    if "entity" not in rows.columns and "key" in rows.columns:
        rows = rows.rename({"key": "entity"})
    for name in ("entity", "value"):
        if name not in rows.columns:
            raise DataError(f"The labels have no column '{name}'.", help=f"They have: {', '.join(rows.columns)}")
    keys = rows.schema["entity"]
    if keys.is_float():
        rows = rows.with_columns(pl.col("entity").fill_nan(None))
    if rows["entity"].null_count():
        raise DataError(f"{rows['entity'].null_count()} labels have no entity.")
    arrival = pl.col("arrived_at") if "arrived_at" in rows.columns else pl.lit(store.now())
    if "event_at" not in rows.columns:
        rows = rows.with_columns(arrival.alias("event_at"))
    elif rows["event_at"].null_count() and isinstance(rows.schema["event_at"], pl.Datetime):
        zone = rows.schema["event_at"].time_zone
        arrival = arrival.cast(pl.Datetime("us", "UTC"))
        arrival = arrival.dt.replace_time_zone(None) if zone is None else arrival.dt.convert_time_zone(zone)
        rows = rows.with_columns(pl.col("event_at").dt.cast_time_unit("us").fill_null(arrival))
    elif rows["event_at"].dtype == pl.Null:
        rows = rows.with_columns(arrival.alias("event_at"))
    if rows.schema["value"].is_float():
        rows = rows.with_columns(pl.col("value").fill_nan(None))
    rows = rows.filter(pl.col("value").is_not_null())
    kind = rows.schema["value"]
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise DataError(f"Cannot store labels of type {kind}.", help="Convert them to booleans, numbers or texts.")
    value = pl.col("value")
    if kind == pl.Boolean or kind.is_numeric():
        number = value.cast(pl.Float64)
        text = _number_text("value", kind)
    else:
        number, text = pl.lit(None, dtype=pl.Float64), value.cast(pl.String)
    columns = ["event_at", *(name for name in ("arrived_at",) if name in rows.columns)]
    return rows.select(
        _number_text("entity", keys).alias("entity"), number.alias("value"), text.alias("text"), *map(pl.col, columns)
    )


def find_unmatched_labels(store: Store, endpoint: str, labels: pl.DataFrame) -> list[str]:
    """The keys of the labels that match no answer so far; see `label_matching`.

    Args:
        labels: columns `entity` (text) and `event_at`.
    """
    import polars as pl

    if labels.is_empty():
        return []
    horizon = label_horizon(store, endpoint)
    wanted = labels["entity"].unique()
    fold = prediction_fold(store, endpoint)
    if not store.read_only and (fold.waiting_bytes(store) > _MOST_WAITING_BYTES or has_segments(store, fold.stream)):
        fold_predictions(store, endpoint)
    # Journals first: an answer that is moved between the two reads is then seen twice instead of missed.
    known = set(wanted.to_list())
    waiting = [
        (entity, event, group.role)
        for entry in fold.waiting(store)
        for group in entry.groups
        if group.entities is not None
        for entity, event in zip(group.entities, group.events or [None] * len(group.rows), strict=True)
        if entity in known
        for event in (group.arrived if event is None else event,)
    ]
    moment = pl.Datetime("us", "UTC")
    made = pl.DataFrame(
        waiting, schema={"entity": pl.String, "event_at": pl.Int64, "role": pl.String}, orient="row"
    ).with_columns(pl.col("event_at").cast(moment))
    if store.tables.exists(fold.table):
        first: Any = labels["event_at"].min()
        last: Any = labels["event_at"].max()
        since = None if horizon is None or first.year < 1000 else first - horizon
        rows = store.tables.scan(fold.table, since=since).filter(
            pl.col("event_at") <= last, pl.col("entity").is_in(wanted.implode())
        )
        made = pl.concat([made, rows.select("entity", "event_at", "role").collect()])
    return find_unmatched(made, labels.select("entity", pl.col("event_at").cast(moment)), horizon)


def unmatched_of(store: Store, endpoint: str, labels: Sequence[tuple[str, int]]) -> list[str]:
    """The same for labels as `LabelLog.append` returns them."""
    import polars as pl

    frame = pl.DataFrame(labels, schema={"entity": pl.String, "event_at": pl.Int64}, orient="row")
    return find_unmatched_labels(store, endpoint, frame.with_columns(pl.col("event_at").cast(pl.Datetime("us", "UTC"))))


def unmatched_notice(keys: Sequence[str]) -> str:
    """The message about labels that found no prediction."""
    several = len(keys) != 1
    some = ", ".join(repr(key[:50]) for key in list(dict.fromkeys(keys))[:5])
    return (
        f"{len(keys)} label{'s' if several else ''} found no prediction with {'their' if several else 'its'} key from "
        f"before {'them' if several else 'it'}: {some}{', …' if len(set(keys)) > 5 else ''}. "
        f"{'They are' if several else 'It is'} stored. Send the key of the request, as in "
        '/predict {"inputs": {…}, "key": "…"}.'
    )


def _number_text(name: str, kind: pl.DataType) -> pl.Expr:
    """A column of keys or values as text; integers have no fraction, whatever their type."""
    import polars as pl

    value = pl.col(name)
    if not (kind.is_float() or kind == pl.Decimal):
        return value.cast(pl.String)
    number = value.cast(pl.Float64)
    is_integer = (number == number.round()) & (number.abs() < 2**63)
    return (
        pl.when(is_integer).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(value.cast(pl.String))
    )


def _checked(value: Value, index: int) -> Value:
    if isinstance(value, int) and abs(value) > 2**63 - 1:
        raise RequestError(f"labels[{index}].value: {value} does not fit into 64 bits.")
    return value


def _decode(payload: bytes) -> _Entry:
    return decode_frame(_DECODER, payload, _VERSION, "the labels")


_DECODER = msgspec.msgpack.Decoder(_Entry)


def _frame(store: Store, table: str, entries: list[_Entry]) -> pl.DataFrame:
    import polars as pl

    rows = [(entry.arrived, *label) for entry in entries for label in entry.labels]
    moment = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        [
            pl.Series("entity", [row[1] for row in rows], dtype=pl.String),
            pl.Series("value", [None if isinstance(row[2], str) else float(row[2]) for row in rows], dtype=pl.Float64),
            pl.Series("text", [label_text(row[2]) for row in rows], dtype=pl.String),
            pl.Series("event_at", [row[3] for row in rows], dtype=pl.Int64).cast(moment),
            pl.Series("arrived_at", [row[0] for row in rows], dtype=pl.Int64).cast(moment),
        ]
    )
