"""Tables as bodies: reads Arrow IPC (streams and files) and Parquet, writes Arrow IPC streams.

They are for bulk requests, because numbers are not converted to text and back. A table is checked against the
endpoint's limits before anything is decoded (see `arrow_messages` and `parquet_pages`), then validated in full and
turned into rows like those of every other request. It may contain keys and event times beside the inputs; the query
names their columns: `POST /predict?key=flight_id&event_at=departs_at`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from everloop.errors import RequestError
from everloop.serving.protocols.arrow_messages import FILE_MARK, check_messages
from everloop.serving.protocols.parquet_pages import check_file
from everloop.serving.protocols.protocol_common import score_request_of
from everloop.serving.protocols.unpacked_limits import check_cells, check_rows, check_unpacked

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

    from everloop.serving.endpoint_settings import EndpointSettings
    from everloop.serving.loaded_endpoint import LoadedEndpoint
    from everloop.serving.protocols.protocol import Request
    from everloop.serving.score_request import ScoreRequest, ScoreResult

STREAM = b"application/vnd.apache.arrow.stream"
FILE = b"application/vnd.apache.arrow.file"
PARQUET = (b"application/vnd.apache.parquet", b"application/x-parquet", b"application/parquet")
_TEXT_BYTES_AT_ONCE = 4 << 20
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
"""The years 1 to 9999, as days since 1970."""
_LONGEST_DAYS = 100_000_000
_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def looks_like_arrow(body: bytes) -> bool:
    """Whether a body is Arrow IPC. JSON cannot begin like that."""
    return body[:4] == b"\xff\xff\xff\xff" or body[: len(FILE_MARK)] == FILE_MARK


def frame_request(loaded: LoadedEndpoint, request: Request, frame: pl.DataFrame) -> ScoreRequest:
    """The rows of a frame, with the keys and times in the columns that the query names.

    Raises:
        RequestError: a row does not fit the signature, or the query names a missing column.
    """
    named = parse_qs(request.query.decode("latin-1"))
    columns: dict[str, list[Any] | None] = {"key": None, "event_at": None}
    for what in columns:
        column = named.get(what, [None])[-1]
        if column is None:
            continue
        if column not in frame.columns:
            raise RequestError(f"{what}: the table has no column '{column[:100]}'.")
        columns[what] = frame[column].to_list()
        if column not in loaded.known_names:
            frame = frame.drop(column)
    score_request = score_request_of(loaded, rows_of_frame(frame), request, explain=False)
    score_request.keys, score_request.event_at = columns["key"], columns["event_at"]
    _check(score_request)
    return score_request


def read_frame(body: bytes, limits: EndpointSettings, kind: bytes = STREAM) -> pl.DataFrame:
    """Decode the table in a body, with values that the signature's decoder accepts.

    Raises:
        RequestError: the table is damaged or too long, or has values of a type that models do not accept.
        TooLargeError: it has too many values, or is too large when decompressed.
    """
    import pyarrow as pa

    try:
        table = _parquet(body, limits) if kind in PARQUET else _ipc(body, limits)
    except RequestError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        raise RequestError(f"Cannot read the table in the body: {str(error)[:300]}") from None
    if len(set(table.column_names)) != table.num_columns:
        raise RequestError("The table has two columns of the same name.")
    return _plain(table)


def result_table(result: ScoreResult, ids: list[str]) -> bytes:
    """A result as an Arrow IPC stream: id, version, prediction, and probability if there are classes."""
    import pyarrow as pa

    predictions: list[Any] = [None] * result.rows
    probabilities: list[Any] = [None] * result.rows
    versions = [""] * result.rows
    for part in result.parts:
        for at, position in enumerate(part.positions if part.positions is not None else range(result.rows)):
            predictions[position] = part.scores[at] if part.labels is None else part.labels[at]
            probabilities[position] = part.scores[at]
            versions[position] = part.scorer.version
    columns = {"id": ids, "version": versions, "prediction": predictions}
    if result.parts[0].labels is not None:
        columns["probability"] = probabilities
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _ipc(body: bytes, limits: EndpointSettings) -> Any:
    import pyarrow as pa

    check_messages(body, limits)
    if body[: len(FILE_MARK)] == FILE_MARK:
        file = pa.ipc.open_file(pa.BufferReader(body))
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
        return _joined(file.schema, batches, limits)
    stream = pa.ipc.open_stream(pa.BufferReader(body))
    return _joined(stream.schema, stream, limits)


def _parquet(body: bytes, limits: EndpointSettings) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = check_file(body, limits)
    file = pq.ParquetFile(pa.BufferReader(body), read_dictionary=list(layout.dictionaries))
    # Texts can be encoded as prefixes of one another, so a few bytes may decode to the length of a whole page.
    at_once = max(1, min(layout.rows, _TEXT_BYTES_AT_ONCE // layout.longest if layout.longest else layout.rows))
    return _joined(file.schema_arrow, file.iter_batches(batch_size=at_once, use_threads=False), limits)


def _joined(schema: Any, batches: Iterable[Any], limits: EndpointSettings) -> Any:
    """Join the batches into one table. Each is checked and counted before the next is decoded."""
    import pyarrow as pa

    found, rows, size = [], 0, 0
    for batch in batches:
        rows += batch.num_rows
        check_rows(rows, limits)
        check_cells(rows * batch.num_columns, limits)
        # A full validation reads each text, and many may share the same long bytes. So it comes after counting them.
        batch.validate()
        size += sum(_plain_bytes(column) for column in batch.columns)
        check_unpacked(size, limits)
        batch.validate(full=True)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            _check_times(name, column.dictionary if pa.types.is_dictionary(column.type) else column)
        found.append(batch)
    return pa.Table.from_batches(found, found[0].schema if found else schema)


def _plain_bytes(column: Any) -> int:
    """The size of a column of a batch if no values share bytes."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        values = column.dictionary
        if _is_text(values.type):
            lengths = _lengths(values)
            positions = column.indices.drop_null().to_numpy(zero_copy_only=False)
            if len(positions) and not 0 <= positions.min() <= positions.max() < len(lengths):
                raise RequestError("Cannot read the table in the body: an index is outside its dictionary.")
            # The dictionary itself counts as well, because its values may all share the same bytes.
            return int(lengths[positions].sum()) + int(lengths.sum())
    elif _is_text(kind):
        return int(_lengths(column).sum())
    # Other values become numbers of 8 bytes.
    return 8 * len(column)


def _check_times(name: str, column: Any) -> None:
    """Refuse dates, times and durations outside the calendar, because converting them crashes.

    Raises:
        RequestError: there is such a value, or a decimal of 256 bits.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_decimal256(kind):
        raise RequestError(f"{name[:100]}: values of type {kind} cannot be inputs.")
    if pa.types.is_date32(kind):
        unit, width = 1, pa.int32()
    elif pa.types.is_date64(kind):
        unit, width = _A_DAY["ms"], pa.int64()
    elif pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        unit, width = _A_DAY[kind.unit], pa.int64()
    else:
        return
    ends = pc.min_max(column.view(width)).as_py()
    if ends["min"] is None:
        return
    lowest, highest = (-_LONGEST_DAYS, _LONGEST_DAYS) if pa.types.is_duration(kind) else (_FIRST_DAY, _LAST_DAY)
    # The last day of the year 9999 is excluded because of time zones.
    if not lowest * unit <= ends["min"] <= ends["max"] <= highest * unit:
        raise RequestError(f"{name[:100]}: a value is outside the years 1 to 9999, or a duration is too long.")


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _lengths(column: Any) -> Any:
    """The length of each text in bytes, as a NumPy array, without reading the texts.

    Raises:
        RequestError: one is negative.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        # A view has 16 bytes; the first four are its length.
        views = np.frombuffer(column.buffers()[1] or b"", dtype="<i4")
        found = views[4 * column.offset : 4 * (column.offset + len(column)) : 4].astype("int64")
    else:
        found = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype("int64")
    if len(found) and found.min() < 0:
        raise RequestError("Cannot read the table in the body: a text has a negative length.")
    return found


def rows_of_frame(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        RequestError: a value cannot be represented in Python.
    """
    from polars.exceptions import PanicException

    try:
        return frame.to_dicts()
    except (PanicException, OverflowError, ValueError) as error:
        raise RequestError(f"The table has a value that cannot be read: {str(error)[:300]}") from None


def _plain(table: Any) -> pl.DataFrame:
    import polars as pl
    import polars.selectors as cs
    from polars.exceptions import PanicException

    try:
        frame = pl.DataFrame(table)
    except (pl.exceptions.PolarsError, PanicException, TypeError, ValueError, NotImplementedError) as error:
        raise RequestError(f"The table has a type that models do not accept: {str(error)[:300]}") from None
    nested = [name for name, kind in frame.schema.items() if kind.is_nested() or kind == pl.Binary or kind == pl.Object]
    if nested:
        raise RequestError(f"{nested[0][:100]}: values of type {frame.schema[nested[0]]} cannot be inputs.")
    frame = frame.with_columns(
        cs.categorical().cast(pl.String), cs.enum().cast(pl.String), cs.decimal().cast(pl.Float64)
    ).with_columns(cs.float().cast(pl.Float64).fill_nan(None))
    for name in frame.select(cs.float()).columns:
        if frame[name].is_infinite().any():
            raise RequestError(f"{name[:100]}: infinity is not a valid input.")
    return frame


def _check(score_request: ScoreRequest) -> None:
    """Convert keys to texts or numbers, and check the types of event times: a column may have any type."""
    from datetime import datetime

    if score_request.keys is not None:
        score_request.keys = [
            key if key is None or isinstance(key, str | int | float) else str(key) for key in score_request.keys
        ]
    if score_request.event_at is not None:
        for position, moment in enumerate(score_request.event_at):
            if moment is not None and not isinstance(moment, datetime):
                raise RequestError(f"event_at[{position}]: {str(moment)[:50]!r} is not a time.")


__all__ = [
    "FILE",
    "PARQUET",
    "STREAM",
    "frame_request",
    "looks_like_arrow",
    "read_frame",
    "result_table",
    "rows_of_frame",
]
