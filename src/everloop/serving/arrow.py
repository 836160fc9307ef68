"""Tables as bodies: Arrow IPC (streams and files) and Parquet in, an Arrow IPC stream out.

For bulk: no text is made of numbers and back. What comes is checked in full before anything reads it, becomes rows of
the signature's types, and then goes the way of every request. A table may bear the keys and the event times beside the
inputs; the query names their columns: `POST /predict?key=flight_id&event_at=departs_at`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from everloop.errors import RequestError
from everloop.serving.answering import MAX_ROWS
from everloop.serving.foreign import asked

if TYPE_CHECKING:
    import polars as pl

    from everloop.serving.answering import Answer, Ask
    from everloop.serving.exchange import Request
    from everloop.serving.live import Live

STREAM = b"application/vnd.apache.arrow.stream"
FILE = b"application/vnd.apache.arrow.file"
PARQUET = (b"application/vnd.apache.parquet", b"application/x-parquet", b"application/parquet")
MOST_EXPANSION = 64
"""How many times larger than its body a Parquet file may say that it becomes."""


def looks_like_arrow(body: bytes) -> bool:
    """Whether a body is Arrow IPC; no JSON begins so."""
    return body[:4] == b"\xff\xff\xff\xff" or body[:6] == b"ARROW1"


def ask_of(live: Live, request: Request, frame: pl.DataFrame) -> Ask:
    """The rows of a frame, with the keys and times in the columns that the query names.

    Raises:
        RequestError: a row breaks the signature, or the query names a column that is not there.
    """
    named = parse_qs(request.query.decode("latin-1"))
    apart: dict[str, list[Any] | None] = {"key": None, "event_at": None}
    for what in apart:
        column = named.get(what, [None])[-1]
        if column is None:
            continue
        if column not in frame.columns:
            raise RequestError(f"{what}: the table has no column '{column[:100]}'.")
        apart[what] = frame[column].to_list()
        if column not in live.known_names:
            frame = frame.drop(column)
    ask = asked(live, frame.to_dicts(), request, explain=False)
    ask.keys, ask.event_at = apart["key"], apart["event_at"]
    _check(ask)
    return ask


def read_frame(body: bytes, kind: bytes = STREAM) -> pl.DataFrame:
    """The table in a body, its values as the signature's decoder takes them.

    Raises:
        RequestError: it is damaged, too long, or holds what no model takes.
    """
    import pyarrow as pa

    try:
        table = _parquet(body) if kind in PARQUET else _ipc(body)
        table.validate(full=True)
    except RequestError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        raise RequestError(f"The body is no table that can be read: {str(error)[:300]}") from None
    if len(set(table.column_names)) != table.num_columns:
        raise RequestError("The table names a column twice.")
    return _plain(table)


def answer_table(answer: Answer, ids: list[str]) -> bytes:
    """An answer as an Arrow IPC stream: id, version, prediction, and probability where there are classes."""
    import pyarrow as pa

    predictions: list[Any] = [None] * answer.rows
    probabilities: list[Any] = [None] * answer.rows
    versions = [""] * answer.rows
    for part in answer.parts:
        for at, place in enumerate(part.places if part.places is not None else range(answer.rows)):
            predictions[place] = part.scores[at] if part.labels is None else part.labels[at]
            probabilities[place] = part.scores[at]
            versions[place] = part.scorer.version
    columns = {"id": ids, "version": versions, "prediction": predictions}
    if answer.parts[0].labels is not None:
        columns["probability"] = probabilities
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _ipc(body: bytes) -> Any:
    import pyarrow as pa

    if body[:6] == b"ARROW1":
        file = pa.ipc.open_file(pa.BufferReader(body))
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
        schema = file.schema
    else:
        stream = pa.ipc.open_stream(pa.BufferReader(body))
        batches, schema = iter(stream), stream.schema
    found, rows = [], 0
    for batch in batches:
        rows += batch.num_rows
        _check_length(rows)
        batch.validate(full=True)
        found.append(batch)
    return pa.Table.from_batches(found, schema)


def _parquet(body: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body))
    told = file.metadata
    _check_length(told.num_rows)
    size = sum(told.row_group(number).total_byte_size for number in range(told.num_row_groups))
    if size > MOST_EXPANSION * len(body) + (1 << 20):
        raise RequestError(f"The table becomes {size} bytes, which is too much of a body of {len(body)}.")
    return file.read()


def _check_length(rows: int) -> None:
    if rows > MAX_ROWS:
        raise RequestError(f"rows: {rows} rows are too many for one request.", help=f"Send at most {MAX_ROWS}.")


def _plain(table: Any) -> pl.DataFrame:
    import polars as pl
    import polars.selectors as cs

    try:
        frame = pl.DataFrame(table)
    except (pl.exceptions.PolarsError, TypeError, ValueError, NotImplementedError) as error:
        raise RequestError(f"The table holds a type that no model takes: {str(error)[:300]}") from None
    nested = [name for name, kind in frame.schema.items() if kind.is_nested() or kind == pl.Binary or kind == pl.Object]
    if nested:
        raise RequestError(f"{nested[0][:100]}: values of type {frame.schema[nested[0]]} are no inputs.")
    frame = frame.with_columns(
        cs.categorical().cast(pl.String), cs.enum().cast(pl.String), cs.decimal().cast(pl.Float64)
    ).with_columns(cs.float().cast(pl.Float64).fill_nan(None))
    for name in frame.select(cs.float()).columns:
        if frame[name].is_infinite().any():
            raise RequestError(f"{name[:100]}: an infinity is no number that a model takes.")
    return frame


def _check(ask: Ask) -> None:
    """Keys and times of a column may be of any type."""
    from datetime import datetime

    if ask.keys is not None:
        ask.keys = [key if key is None or isinstance(key, str | int | float) else str(key) for key in ask.keys]
    if ask.event_at is not None:
        for place, moment in enumerate(ask.event_at):
            if moment is not None and not isinstance(moment, datetime):
                raise RequestError(f"event_at[{place}]: {str(moment)[:50]!r} is no time.")


__all__ = ["FILE", "PARQUET", "STREAM", "answer_table", "ask_of", "looks_like_arrow", "read_frame"]
