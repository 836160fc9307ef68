"""Scores a large table in parts, with several processes, and resumes after a crash.

A table is split into parts of a fixed number of rows. A part is plain data (`BatchPart`), one function scores it
(`score_part`), and its result is a file that appears complete or not at all. So parts can be scored in any order, more
than once, and on any machine that sees the files and the store. After a crash, finished parts are found by the job's
digest, which covers the version, the state of the input files, and the size of a part. At the end the parts are joined
into the output, in order.

Neither the table nor its answers need to fit into memory. With `log`, every answer also becomes a row of the prediction
log exactly once, even if parts are repeated: the rows of a part are one batch of the table, under an id that the part
has from the start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, RequestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import polars as pl

    from everloop.packages.predictor import Predictor
    from everloop.stores import Store

PIECE_ROWS = 250_000
ENDINGS = (".parquet", ".csv", ".jsonl", ".ndjson")
_PARENT_POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class BatchPart:
    """Rows to score, and where the answers go. Plain data, so any process that sees the files can score it."""

    number: int
    path: str
    offset: int | None
    """Offset of the rows in a Parquet file; None: all rows of an Arrow file that was written for this part."""
    rows: int
    output: str
    home: str
    project: str
    version: str
    request: str
    """The request id under which its answers are logged."""
    log: str | None
    """The endpoint whose log receives the answers; None: they are not logged."""
    first: int = 0
    """The number of its first row in the file, from 0."""
    prefix: str = ""
    """Prefix for the names of the added columns."""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """The result of scoring a table."""

    version: str
    rows: int
    parts: int
    resumed: int
    """Parts that an earlier attempt had finished."""
    output: str
    log: str | None


def check_output(output: Path) -> None:
    """Raise UsageError unless the output has a known file ending, or is a folder that does not exist yet."""
    if not output.suffix:
        if output.exists():
            raise UsageError(f"'{output}' is there already.", help="Choose a folder that does not exist yet.")
        return
    if output.suffix not in ENDINGS:
        raise UsageError(f"Cannot write '{output.suffix}' files.", help=f"Use one of: {', '.join(ENDINGS)}")


def _check_types(table: pl.LazyFrame, output: Path) -> None:
    """Raise UsageError if a column cannot be written to the output, before the first row is scored and logged."""
    nested = [name for name, kind in table.collect_schema().items() if kind.is_nested()]
    if nested and output.suffix == ".csv":
        raise UsageError(
            f"A csv file cannot hold the lists and structs of {', '.join(map(repr, nested[:8]))}.",
            help=f"Write another format: -o {output.with_suffix('.parquet')}",
        )


def score_files(
    store: Store,
    version: str,
    table: pl.LazyFrame,
    inputs: list[Path],
    output: Path,
    *,
    piece_rows: int = PIECE_ROWS,
    workers: int = 1,
    log: str | None = None,
    prefix: str = "",
    progress: Callable[[int], object] | None = None,
    scorer: Callable[[Iterator[BatchPart]], Iterator[tuple[BatchPart, bool]]] | None = None,
) -> BatchResult:
    """Score a table with a version, and write its rows in order, with the answers as further columns.

    Args:
        output: a file whose ending sets the format; a name without an ending becomes a folder with one Parquet file
            per part.
        table: the content of the input files. If all are Parquet, they are read part by part instead.
        inputs: the files. An earlier attempt is resumed only if they are unchanged.
        workers: number of processes; 1: this one.
        log: an endpoint's name; every answer becomes a row of its log, with the role `batch`.
        prefix: prefix for the names of the added columns.
        progress: called with the number of finished rows after each part.
        scorer: scores the parts in another way than here: yields each once its answers are in its file, and whether it
            was scored now. `workers` then has no effect.

    Raises:
        UsageError: the output's ending is not that of a supported format.
        ConflictError: another process writes the same output.
        RequestError: an input's column is missing, or the model cannot score a row.
    """
    check_output(output)
    _check_types(table, output)
    folder = output.with_name(f".{output.name}.everloop")
    with store.lock(f"batch-{_digest(str(output.resolve()))}", block=False) as locked:
        if not locked:
            raise ConflictError(f"Another process is writing '{output}'.", help="Wait for it, or choose another name.")
        _prepare_folder(folder, _digest([version, log, piece_rows, prefix, [_state(path) for path in inputs]]), store)
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))

        def part(number: int, path: Path, offset: int | None, rows: int) -> BatchPart:
            return BatchPart(
                first=number * piece_rows if offset is None else offset,
                prefix=prefix,
                number=number,
                path=str(path),
                offset=offset,
                rows=rows,
                output=str(folder / f"part-{number:06}{'.arrow' if output.suffix else '.parquet'}"),
                home=str(store.home),
                project=store.project,
                version=version,
                request=_request(job["request"], number),
                log=log,
            )

        done = resumed = rows = 0
        parts = _parts(table, inputs, folder, piece_rows, part)
        for found, new in _scored(parts, workers) if scorer is None else scorer(parts):
            done, resumed, rows = done + 1, resumed + (not new), rows + found.rows
            if progress is not None:
                progress(rows)
        if output.suffix:
            _join(store, version, table, sorted(folder.glob("part-*.arrow")), output, prefix)
            shutil.rmtree(folder)
        else:
            if not done:
                score_piece(predictor_of(store, version), table.head(0).collect(), prefix).write_parquet(
                    folder / "part-000000.parquet"
                )
            (folder / "job.json").unlink()
            folder.rename(output)
    return BatchResult(version=version, rows=rows, parts=done, resumed=resumed, output=str(output), log=log)


def score_part(part: BatchPart) -> int:
    """Score a part, log its answers, write them to a file, and return the number of rows. May be repeated anywhere."""
    from everloop.stores import open_store

    piece = read_part(part)
    with open_store(part.home, project=part.project, create=False) as store:
        predictor = predictor_of(store, part.version)
        scored = score_piece(predictor, piece, part.prefix, part.first)
        if part.log is not None:
            log_answers(store, predictor, part, piece, scored)
    write_part(part, scored)
    return scored.height


def read_part(part: BatchPart) -> pl.DataFrame:
    """The rows of a part."""
    import polars as pl

    if part.offset is None:
        return pl.read_ipc(part.path)
    return pl.scan_parquet(part.path, glob=False).slice(part.offset, part.rows).collect()


def write_part(part: BatchPart, scored: pl.DataFrame) -> None:
    """Write the answers of a part to its file, which appears complete or not at all."""
    import polars as pl

    output = Path(part.output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    if output.suffix == ".parquet":
        scored.write_parquet(draft, compression="zstd", compression_level=1)
    else:
        scored.write_ipc(draft, compat_level=pl.CompatLevel.oldest())
    draft.replace(output)
    if part.offset is None:
        Path(part.path).unlink(missing_ok=True)


def added_columns(predictor: Predictor, prefix: str = "") -> list[str]:
    """The names of the columns that scoring adds."""
    names = ["score"]
    if predictor.task == "multiclass":
        names += [f"score_{name}" for name in predictor.classes]
    if predictor.task != "regression":
        names.append("label")
    return [f"{prefix}{name}" for name in names]


def check_columns(predictor: Predictor, columns: Sequence[str], prefix: str = "") -> None:
    """Raise unless a table with these columns has every input, and no column that an answer would overwrite.

    Raises:
        RequestError: an input is missing.
        UsageError: a column has the name of an added one.
    """
    missing = [name for name in predictor.input_names if name not in columns]
    if missing:
        near = get_close_matches(missing[0], columns, n=1)
        raise RequestError(
            f"The table lacks the inputs {', '.join(map(repr, missing))}.",
            help=f"{f'Did you mean {near[0]!r}? ' if near else ''}It has: {', '.join(columns)}",
        )
    taken = [name for name in added_columns(predictor, prefix) if name in columns]
    if taken:
        raise UsageError(
            f"The table already has a column '{taken[0]}', which the answers would overwrite.",
            help="Choose other names for the answers: --prefix predicted_",
        )


def score_piece(predictor: Predictor, piece: pl.DataFrame, prefix: str = "", first: int = 0) -> pl.DataFrame:
    """The rows with their answers as further columns.

    Adds `score` (multiclass: the highest), `score_<class>` for each class of a multiclass model, and `label` if there
    are classes.

    Args:
        prefix: prefix for the names of the added columns.
        first: the number of the first row in its file, from 0, for row numbers in errors.

    Raises:
        UsageError: a column has the name of an added one.
        RequestError: the model returns a score that is not finite; the message names such rows.
    """
    import numpy as np
    import polars as pl

    scores, class_indices = predictor.answer_frame(piece)
    check_columns(predictor, piece.columns, prefix)
    many = scores.ndim == 2
    wrong = np.flatnonzero(~np.isfinite(scores.sum(axis=1) if many else scores))
    if len(wrong):
        some = ", ".join(str(first + index + 1) for index in wrong[:10].tolist())
        raise RequestError(
            f"The model {predictor.display_name} returned scores that are not finite for {len(wrong)} rows: {some}"
            f"{', …' if len(wrong) > 10 else ''} (the first row of a file is 1)."
        )
    best = scores if not many else scores.max(axis=1) if len(scores) else scores[:, 0]
    columns = [pl.Series("score", best)]
    if many:
        columns += [pl.Series(f"score_{name}", scores[:, index]) for index, name in enumerate(predictor.classes)]
    if class_indices is not None:
        classes = pl.Series(list(predictor.classes))
        columns.append(classes.gather(pl.Series(class_indices.astype(np.uint32))).alias("label"))
    return piece.with_columns(column.alias(f"{prefix}{column.name}") for column in columns)


def _parts(
    table: pl.LazyFrame, inputs: list[Path], folder: Path, piece_rows: int, part: Callable[..., BatchPart]
) -> Iterator[BatchPart]:
    """The parts in order. In Parquet files a part is a range of rows; of other files, each part becomes a file."""
    if inputs and all(path.suffix == ".parquet" for path in inputs):
        import pyarrow.parquet as pq

        number = 0
        for path in inputs:
            rows = pq.ParquetFile(path).metadata.num_rows
            for offset in range(0, rows, piece_rows):
                yield part(number, path, offset, min(piece_rows, rows - offset))
                number += 1
        return
    for number, piece in enumerate(_pieces(table, piece_rows)):
        wanted = part(number, folder / f"input-{number:06}.arrow", None, piece.height)
        if not Path(wanted.output).exists():
            import polars as pl

            piece.write_ipc(wanted.path, compat_level=pl.CompatLevel.oldest())
        yield wanted


def _pieces(table: pl.LazyFrame, piece_rows: int) -> Iterator[pl.DataFrame]:
    """A table in pieces of exactly this number of rows, so the pieces are the same when it is repeated."""
    import polars as pl

    waiting: list[pl.DataFrame] = []
    for found in table.collect_batches(chunk_size=piece_rows, maintain_order=True):
        waiting.append(found)
        while sum(piece.height for piece in waiting) >= piece_rows:
            joined = pl.concat(waiting, rechunk=True)
            yield joined.head(piece_rows)
            waiting = [joined.slice(piece_rows)]
    rest = pl.concat(waiting, rechunk=True) if waiting else None
    if rest is not None and rest.height:
        yield rest


def _scored(parts: Iterator[BatchPart], workers: int) -> Iterator[tuple[BatchPart, bool]]:
    """Each part once it is scored, and whether it was scored now. Queues few more parts than there are workers."""
    if workers == 1:
        for part in parts:
            new = not Path(part.output).exists()
            if new:
                score_part(part)
            yield part, new
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(workers, os.getpid())
    ) as pool:
        running: dict[Future[int], BatchPart] = {}
        try:
            for part in parts:
                if Path(part.output).exists():
                    yield part, False
                    continue
                running[pool.submit(score_part, part)] = part
                if len(running) > workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _finished(running: dict[Future[int], BatchPart]) -> Iterator[tuple[BatchPart, bool]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        part = running.pop(future)
        future.result()
        yield part, True


def _begin_worker(workers: int, parent: int) -> None:
    """Set up a process of the pool, before it imports anything that starts threads."""
    threading.Thread(target=_end_with, args=(parent,), name="everloop-parent", daemon=True).start()
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    for name in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, threads)


def _end_with(parent: int) -> None:
    """End this process once its parent has ended. A killed job cannot stop its pool, which would wait for ever.

    The file that this process was writing is a draft, which the repeated command replaces.
    """
    while os.getppid() == parent:
        sleep(_PARENT_POLL_S)
    os._exit(1)


_loaded: dict[tuple[str, str, str], Predictor] = {}


def predictor_of(store: Store, version: str) -> Predictor:
    """The version, loaded once per process."""
    from everloop.registry.version_packages import load_model

    key = (str(store.home), store.project, version)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_model(store, version)
    return _loaded[key]


def log_answers(store: Store, predictor: Predictor, part: BatchPart, piece: pl.DataFrame, scored: pl.DataFrame) -> None:
    """Append the part's answers to the prediction log, once."""
    import polars as pl

    from everloop.packages.signature import polars_type
    from everloop.prediction_log.prediction_log import PREDICTIONS, input_column, table_name
    from everloop.prediction_log.redaction import redaction_for
    from everloop.records import EndpointRecord
    from everloop.serving.endpoint_settings import settings_of

    assert part.log is not None  # noqa: S101 - the caller has checked
    table = table_name(store, PREDICTIONS, part.log)
    now = store.now()
    many = predictor.task == "multiclass"
    numbers = pl.int_range(piece.height, dtype=pl.Int64).cast(pl.String)
    columns = [
        (pl.lit(f"{part.request}-") + numbers).alias("id"),
        pl.lit(part.request).alias("request"),
        pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("event_at"),
        pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("arrived_at"),
        pl.lit(part.version).alias("version"),
        pl.lit("batch").alias("role"),
        pl.lit(None, dtype=pl.String).alias("entity"),
        pl.lit(scored[f"{part.prefix}score"]).cast(pl.Float64).alias("score"),
        pl.lit(None, dtype=pl.Float64).alias("seconds"),
    ]
    if predictor.task != "regression":
        columns.insert(8, pl.lit(scored[f"{part.prefix}label"]).cast(pl.String).alias("label"))
    else:
        columns.insert(8, pl.lit(None, dtype=pl.String).alias("label"))
    if many:
        each = [pl.lit(scored[f"{part.prefix}score_{name}"]).cast(pl.Float64) for name in predictor.classes]
        columns.insert(9, pl.concat_list(each).alias("scores"))
    settings = settings_of(store.records.get(EndpointRecord, part.log).options)
    redaction = redaction_for(predictor.signature, settings)
    for item in predictor.signature.inputs:
        if redaction is not None and item.name not in redaction.inputs:
            continue
        if redaction is not None and item.name in settings.log_hash:
            hidden = [redaction.digest(value) for value in piece[item.name].to_list()]
            columns.append(pl.lit(pl.Series(hidden, dtype=pl.String)).alias(input_column(item.name)))
            continue
        value = pl.col(item.name).cast(polars_type(item.type), strict=False)
        if item.type == "time":
            value = value.cast(pl.Int64) // 1000
        elif item.type == "duration":
            value = value.cast(pl.Int64)
        columns.append(value.alias(input_column(item.name)))
    store.tables.append(table, piece.select(columns), batch=(f"batch-{part.request}", 1))


def _prepare_folder(folder: Path, digest: str, store: Store) -> None:
    """Prepare the job's folder. Finished parts of an equal job stay, everything else is removed."""
    from everloop.stores.clock import new_id

    job_file = folder / "job.json"
    try:
        if json.loads(job_file.read_text(encoding="utf-8"))["digest"] == digest:
            for path in (*folder.glob(".*"), *folder.glob("input-*")):
                path.unlink()
            return
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draft = folder / "job.draft"
    draft.write_text(json.dumps({"digest": digest, "request": new_id(store.now())}), encoding="utf-8")
    draft.replace(job_file)


def _request(first: str, number: int) -> str:
    """A part's id: the job's id plus the part's number, so it is the same when the part is repeated."""
    last = (int(first[-12:], 16) + number) % 16**12
    return f"{first[:-12]}{last:012x}"


def _state(path: Path) -> list[Any]:
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:32]


def _join(store: Store, version: str, table: pl.LazyFrame, parts: list[Path], output: Path, prefix: str) -> None:
    """Join the parts into one file, which appears complete or not at all."""
    import polars as pl

    if parts:
        frame = pl.scan_ipc(parts)
    else:
        # An empty table gets the added columns, too.
        frame = score_piece(predictor_of(store, version), table.head(0).collect(), prefix).lazy()
    draft = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        if output.suffix == ".parquet":
            frame.sink_parquet(draft, compression="zstd", compression_level=1)
        elif output.suffix == ".csv":
            frame.sink_csv(draft)
        else:
            frame.sink_ndjson(draft)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)


def describe(part: BatchPart) -> dict[str, Any]:
    """A part as JSON, to send to another process: `BatchPart(**described)`."""
    return asdict(part)


__all__ = [
    "BatchPart",
    "BatchResult",
    "check_output",
    "describe",
    "log_answers",
    "predictor_of",
    "read_part",
    "score_files",
    "score_part",
    "score_piece",
    "write_part",
]
