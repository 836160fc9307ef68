"""The labels that come back: appended to a journal like predictions, or as a whole table at once.

The table `labels/<endpoint>` has the columns entity, value (a number, or null), text (the class as text),
event_at (when the truth came about) and arrived_at. A label is never overwritten: of several for one entity and
time the one that arrived last counts.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.errors import CorruptionError, DataError, RequestError
from everloop.models.signature import utc
from everloop.serving.journal_folding import Fold
from everloop.serving.prediction_log import LABELS, label_text, stream_name, table_name
from everloop.stores.clock import EPOCH, micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.stores import Store

_VERSION = 1
_MICROSECOND = timedelta(microseconds=1)

Value = bool | int | float | str


class GivenLabel(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """One label as a client sends it."""

    key: str | int
    value: Value
    event_at: datetime | None = None


class _Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    version: int
    arrived: int
    labels: list[tuple[str, Any, int]]
    """entity, value, event time in µs."""


class LabelLog:
    """The writing end. Safe to use from several threads."""

    def __init__(self, store: Store, endpoint: str) -> None:
        from everloop.stores import Journal

        self._clock = store.clock
        self._journal = Journal.create(store.journals, stream_name(store, LABELS, endpoint))

    def append(self, labels: Sequence[GivenLabel]) -> None:
        """Write labels; with the operating system on return.

        Raises:
            RequestError: a time that cannot be UTC, or a number that is too large to be kept.
            StoreFullError: no space is left; nothing was written.
        """
        if not labels:
            return
        arrived = micros(self._clock.now())
        rows = [
            (
                str(label.key),
                _checked(label.value, place),
                arrived
                if label.event_at is None
                else (utc(label.event_at, f"labels[{place}].event_at") - EPOCH) // _MICROSECOND,
            )
            for place, label in enumerate(labels)
        ]
        self._journal.append(msgspec.msgpack.encode((_VERSION, arrived, rows)))

    def close(self) -> None:
        self._journal.close()


def fold_labels(store: Store, endpoint: str) -> int:
    """Move the labels that the endpoint has taken into its table, once, and return how many moved."""
    fold = Fold(stream_name(store, LABELS, endpoint), table_name(store, LABELS, endpoint), _decode, _frame)
    return fold.run(store)


def add_labels(store: Store, endpoint: str, frame: Any) -> int:
    """Add a table of labels and return its number of rows.

    Args:
        frame: anything with the Arrow C stream interface; columns `entity` (text or number), `value` (boolean,
            number or text), `event_at`, and `arrived_at` where they arrived earlier than now.

    Raises:
        DataError: a column is missing, an entity is null, or the values are of a type that no label has.
    """
    import polars as pl

    rows = frame.collect() if isinstance(frame, pl.LazyFrame) else pl.DataFrame(frame)
    for name in ("entity", "value", "event_at"):
        if name not in rows.columns:
            raise DataError(f"The labels have no column '{name}'.", help=f"They have: {', '.join(rows.columns)}")
    if rows["entity"].null_count():
        raise DataError(f"{rows['entity'].null_count()} labels have no entity.")
    rows = rows.filter(pl.col("value").is_not_null())
    kind = rows.schema["value"]
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise DataError(f"Labels of type {kind} cannot be kept.", help="Make them booleans, numbers or texts.")
    if rows.is_empty():
        return 0
    value = pl.col("value")
    if kind == pl.Boolean or kind.is_numeric():
        number = value.cast(pl.Float64)
        text = value.cast(pl.String)
        if kind.is_float() or kind == pl.Decimal:
            whole = number == number.round()
            text = pl.when(whole & (number.abs() < 2**53)).then(number.cast(pl.Int64, strict=False).cast(pl.String))
            text = text.otherwise(value.cast(pl.String))
    else:
        number, text = pl.lit(None, dtype=pl.Float64), value.cast(pl.String)
    kept = ["event_at", *(name for name in ("arrived_at",) if name in rows.columns)]
    shaped = rows.select(
        pl.col("entity").cast(pl.String), number.alias("value"), text.alias("text"), *map(pl.col, kept)
    )
    store.tables.append(table_name(store, LABELS, endpoint), shaped)
    return shaped.height


def _checked(value: Value, place: int) -> Value:
    if isinstance(value, int) and abs(value) > 2**63 - 1:
        raise RequestError(f"labels[{place}].value: {value} is too large.")
    return value


def _decode(payload: bytes) -> _Entry:
    try:
        entry = _DECODER.decode(payload)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"A frame of the labels cannot be read: {error}.") from error
    if entry.version != _VERSION:
        raise CorruptionError(f"A frame of the labels has format {entry.version}.", help="Upgrade everloop.")
    return entry


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
