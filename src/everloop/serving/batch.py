"""Scoring a whole table, piece by piece, so that neither it nor its answers need to fit into memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

    from everloop.models.predictor import Predictor

PIECE_ROWS = 100_000
ENDINGS = (".parquet", ".csv", ".jsonl", ".ndjson")


def check_output(output: Path) -> None:
    """Raise UsageError unless answers can be written in the form that the file's ending names."""
    if output.suffix not in ENDINGS:
        raise UsageError(f"Cannot write '{output.suffix}' files.", help=f"Use one of: {', '.join(ENDINGS)}")


def score_table(predictor: Predictor, table: pl.LazyFrame, output: Path, *, piece_rows: int = PIECE_ROWS) -> int:
    """Write the table's rows with their answers behind, in order, and return their number.

    The columns that are added: `score` (of several classes the best), `score_<class>` for each of several classes,
    and `label` where there are classes. The file appears whole or not at all.

    Raises:
        UsageError: the output's ending names no form that is written.
        RequestError: an input's column is missing, or the model cannot score a row.
    """
    check_output(output)
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    rows = 0
    try:
        with part.open("wb") as file:
            write, finish = _writer(output.suffix, file)
            for piece in table.collect_batches(chunk_size=piece_rows, maintain_order=True):
                if piece.height:
                    write(score_piece(predictor, piece))
                    rows += piece.height
            if not rows:
                # An empty table gets its columns all the same.
                write(score_piece(predictor, table.head(0).collect()))
            finish()
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return rows


def score_piece(predictor: Predictor, piece: pl.DataFrame) -> pl.DataFrame:
    """The rows with their answers behind."""
    import polars as pl

    scores = predictor.predict(piece)
    many = scores.ndim == 2
    best = scores if not many else scores.max(axis=1) if len(scores) else scores[:, 0]
    columns = [pl.Series("score", best)]
    if many:
        columns += [pl.Series(f"score_{name}", scores[:, place]) for place, name in enumerate(predictor.classes)]
    labels = predictor.labels(scores)
    if labels is not None:
        columns.append(pl.Series("label", labels, dtype=pl.Series(list(predictor.classes)).dtype))
    return piece.with_columns(columns)


def _writer(ending: str, file: BinaryIO) -> tuple[Callable[[pl.DataFrame], None], Callable[[], None]]:
    if ending == ".parquet":
        return _parquet_writer(file)
    if ending == ".csv":
        return lambda piece: piece.write_csv(file, include_header=file.tell() == 0), lambda: None
    return lambda piece: piece.write_ndjson(file), lambda: None


def _parquet_writer(file: BinaryIO) -> tuple[Callable[[pl.DataFrame], None], Callable[[], None]]:
    import pyarrow.parquet as pq

    writers: list[pq.ParquetWriter] = []

    def write(piece: pl.DataFrame) -> None:
        table = piece.to_arrow()
        if not writers:
            writers.append(pq.ParquetWriter(file, table.schema, compression="zstd"))
        writers[0].write_table(table)

    def finish() -> None:
        for writer in writers:
            writer.close()

    return write, finish
