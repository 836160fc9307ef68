"""The prediction log: every answer is on disk before it is sent, and later becomes a row of a table.

An endpoint appends one frame per request, with all its rows, to a `LogSink`, and only then answers. The frame survives
the process. `fold_predictions` moves frames into the table `predictions/<endpoint>`, whose columns are

    id, request       the prediction's id, `<request>-<position in the request>` (a shadow's: `…~<version>`), and the
                      request's id, a UUIDv7
    event_at          when the predicted event happened, if the client sent that, else the arrival
    arrived_at        when the request arrived
    version, role     the key of the version that answered; champion, canary or shadow
    package           the digest of the package that answered
    instance          the process that answered, `<host>.<32 digits>`
    entity            the key that the client sent, or null
    score, label      binary: probability of the positive class; multiclass: of the label; regression: the value
    scores            multiclass only: a probability per class, in the version's order
    seconds           from the complete request to its score
    unasked           the versions whose inputs the row does not fit, comma-separated; null if all versions have the
                      same inputs. The table has this column once there was such a row
    input_<name>      the input, typed by the signature; a time as µs of the day, a duration as µs

An input whose type differs between versions gets a separate column, `input_<name>@<type>`, because the type of a
table's column cannot change.
"""

from __future__ import annotations

from datetime import date, time, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.packages.signature import polars_type
from everloop.prediction_log.configured_sink import open_sink
from everloop.prediction_log.journal_folding import StreamFold
from everloop.prediction_log.log_frames import decode_frame
from everloop.prediction_log.retention import forget_old

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.records import Json
    from everloop.stores import Store

PREDICTIONS = "predictions"
LABELS = "labels"

_VERSION = 1
_PLAIN: dict[str, Any] = {"date": date, "time": time, "duration": timedelta}


class Group(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The rows of one request that one version answered. Times are µs since 1970; lists have one item per row."""

    request: str
    arrived: int
    seconds: float
    version: str
    role: str
    inputs: msgspec.Raw
    """Input name to type, encoded: the same bytes in every frame of a version."""
    positions: list[int] | None
    """The rows' positions in the request; None: all rows, in order."""
    entities: list[str | None] | None
    events: list[int | None] | None
    scores: list[Any]
    """A number per row, or for multiclass a list per row."""
    labels: list[str] | None
    rows: list[Any]
    """The inputs' values per row, in the order of `inputs`."""
    unasked: list[str] | None = None
    """A text per row: the versions that it does not fit, comma-separated; None: all have the same inputs."""
    package: str | None = None
    """The digest of the package that answered."""


class LogEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One journal frame."""

    version: int
    groups: list[Group]
    instance: str | None = None
    """The process that answered."""


class PredictionLog:
    """Writes an endpoint's log. Thread-safe."""

    def __init__(self, store: Store | None, endpoint: str, sink: LogSink | None = None) -> None:
        """Open the log.

        Args:
            store: None only with a `sink`.
            sink: where it is written; default: by the environment, see `log_sinks`.
        """
        if sink is None:
            assert store is not None  # noqa: S101 - see above
            sink = open_sink(store, stream_name(store, PREDICTIONS, endpoint))
        self.sink = sink
        self._append = self.sink.append
        self._instance = self.sink.instance
        self._encode = msgspec.msgpack.encode

    def append(self, groups: Sequence[Group], *, wait: bool = True) -> None:
        """Write the answers to one request. On return they are as durable as the sink promises.

        Args:
            wait: False if no client waits for these answers, so the local disk is enough.

        Raises:
            InsufficientStorageError: no space is left; nothing was written.
            UnavailableError: the log's store does not answer, see `LogSink`.
        """
        self._append(self._encode((_VERSION, groups, self._instance)), wait=wait)

    def close(self, until: float | None = None) -> None:
        self.sink.close(until)


def fold_predictions(store: Store, endpoint: str) -> int:
    """Move the appended frames into the endpoint's table, exactly once, and return the number of rows.

    Raises:
        CorruptionError: a journal is damaged in its middle; everything else has been moved.
    """
    rows = prediction_fold(store, endpoint).run(store)
    forget_old(store, endpoint, table_name(store, PREDICTIONS, endpoint))
    return rows


def prediction_fold(store: Store, endpoint: str) -> StreamFold[LogEntry]:
    """How an endpoint's journals of answers become rows of its table."""
    stream, table = stream_name(store, PREDICTIONS, endpoint), table_name(store, PREDICTIONS, endpoint)
    return StreamFold(stream, table, decode_entry, _frame)


def stream_name(store: Store, what: str, endpoint: str) -> str:
    """The journal stream of an endpoint. Its name includes the project, because projects share a home."""
    return stream_of(store.project, what, endpoint)


def stream_of(project: str, what: str, endpoint: str) -> str:
    """The same without a store."""
    return f"{what}@{project}@{endpoint}"


def table_name(store: Store, what: str, endpoint: str) -> str:
    """The table of an endpoint: `predictions/delays`, or `predictions@<project>/delays` outside the default project.

    The projects of one home share its tables.
    """
    return f"{what}/{endpoint}" if store.project == "default" else f"{what}@{store.project}/{endpoint}"


def label_text(value: Json) -> str:
    """A class as text in the logs: true, false, 3, late."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def entity_text(key: str | float) -> str:
    """A key as text in the logs: 7, 7.0 and "7" are one key. Text is unchanged, so "007" and "7" differ."""
    if type(key) is str:
        return key
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def input_column(name: str) -> str:
    """The column of an input in the prediction log."""
    return f"input_{name}"


def answer_id(group: Group, position: int) -> str:
    """The id of the prediction at a position of the request. A shadow's id has its version appended."""
    return f"{group.request}-{position}~{group.version}" if group.role == "shadow" else f"{group.request}-{position}"


def decode_entry(payload: bytes) -> LogEntry:
    """Decode a frame.

    Raises:
        CorruptionError: the payload is not a frame, or a newer everloop wrote it.
    """
    return decode_frame(_DECODER, payload, _VERSION, "the prediction log")


_DECODER = msgspec.msgpack.Decoder(LogEntry)


def _frame(store: Store, table: str, entries: list[LogEntry]) -> pl.DataFrame:
    """The rows of many entries. Groups with the same signature are laid out together, column by column."""
    import polars as pl

    shapes: dict[tuple[bytes, bool], list[tuple[Group, str | None]]] = {}
    for entry in entries:
        for group in entry.groups:
            many = bool(group.scores) and isinstance(group.scores[0], list)
            shapes.setdefault((bytes(group.inputs), many), []).append((group, entry.instance))
    known: dict[str, pl.DataType] = {}
    if store.tables.exists(table):
        known = dict(store.tables.scan(table).collect_schema())
    frames = []
    for (inputs, many), groups in shapes.items():
        frame = _columns(groups, msgspec.msgpack.decode(inputs, type=dict[str, str]), many, known)
        known.update(frame.schema)
        frames.append(frame)
    return pl.concat(frames, how="diagonal")


def _columns(
    groups: list[tuple[Group, str | None]], inputs: dict[str, str], many: bool, known: dict[str, pl.DataType]
) -> pl.DataFrame:
    import polars as pl

    ids: list[str] = []
    of_request: dict[str, list[Any]] = {
        name: [] for name in ("request", "arrived_at", "version", "role", "seconds", "package", "instance")
    }
    events: list[int | None] = []
    entities: list[str | None] = []
    labels: list[str | None] = []
    scores: list[Any] = []
    rows: list[Any] = []
    unasked: list[str | None] = []
    for group, instance in groups:
        size = len(group.rows)
        ids += [
            answer_id(group, position) for position in (range(size) if group.positions is None else group.positions)
        ]
        for name, value in (
            ("request", group.request),
            ("arrived_at", group.arrived),
            ("version", group.version),
            ("role", group.role),
            ("seconds", group.seconds),
            ("package", group.package),
            ("instance", instance),
        ):
            of_request[name] += [value] * size
        events += (
            [group.arrived if at is None else at for at in group.events] if group.events else [group.arrived] * size
        )
        entities += group.entities or [None] * size
        labels += group.labels or [None] * size
        scores += group.scores
        rows += group.rows
        unasked += group.unasked or [None] * size
    moment = pl.Datetime("us", "UTC")
    columns = [
        pl.Series("id", ids, dtype=pl.String),
        pl.Series("request", of_request["request"], dtype=pl.String),
        pl.Series("event_at", events, dtype=pl.Int64).cast(moment),
        pl.Series("arrived_at", of_request["arrived_at"], dtype=pl.Int64).cast(moment),
        pl.Series("version", of_request["version"], dtype=pl.String),
        pl.Series("role", of_request["role"], dtype=pl.String),
        pl.Series("entity", entities, dtype=pl.String),
        pl.Series("score", [max(row) for row in scores] if many else scores, dtype=pl.Float64),
        pl.Series("label", labels, dtype=pl.String),
        pl.Series("seconds", of_request["seconds"], dtype=pl.Float64),
        pl.Series("package", of_request["package"], dtype=pl.String),
        pl.Series("instance", of_request["instance"], dtype=pl.String),
    ]
    if many:
        columns.insert(9, pl.Series("scores", scores, dtype=pl.List(pl.Float64)))
    if any(text is not None for text in unasked):
        columns.append(pl.Series("unasked", unasked, dtype=pl.String))
    for position, (name, kind) in enumerate(inputs.items()):
        columns.append(_input_series(name, kind, [row[position] for row in rows], known))
    return pl.DataFrame(columns)


def _input_series(name: str, kind: str, values: list[Any], known: dict[str, pl.DataType]) -> pl.Series:
    import polars as pl

    plain = _PLAIN.get(kind)
    if plain is not None:
        # msgpack has no such types, so they are texts in it.
        values = msgspec.convert(values, list[plain | None])  # type: ignore[valid-type]
    column = input_column(name)
    series = pl.Series(column, values, dtype=polars_type(kind))
    if kind == "time":
        series = series.cast(pl.Int64) // 1000
    elif kind == "duration":
        series = series.cast(pl.Int64)
    stored = known.get(column)
    if stored is None or stored == series.dtype:
        return series
    if stored == pl.Float64 and kind == "int":
        return series.cast(pl.Float64)
    return series.rename(f"{column}@{kind}")
