"""Write the rows of a snapshot to Parquet files in the store.

A query is streamed, so that memory holds the rows of one file at most. The number of rows per file depends only on the
number of columns, so equal content gives equal files.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from everloop.data.sources.read_progress import report_progress
from everloop.errors import DataError
from everloop.stores.full_disk import insufficient, is_full
from everloop.stores.objects.byte_stores import TEMPORARY
from everloop.stores.permissions import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Json
    from everloop.stores import Store

_FILE_ROWS = 1_000_000
_FILE_VALUES = 4_000_000
_LEAST_ROWS = 50_000
_GROUP_ROWS = 250_000


def write_parts(rows: pl.DataFrame | pl.LazyFrame, store: Store) -> list[dict[str, Json]]:
    """Write the rows to files in the store. Return digest, rows and size_bytes of each file, in the order of the rows.

    Raises:
        DataError: the query fails.
        InsufficientStorageError: no space is left.
    """
    files: list[dict[str, Json]] = []
    done = 0
    with scratch(store) as folder:
        total, parts = (rows.height, _sliced(rows)) if isinstance(rows, pl.DataFrame) else _streamed(rows, folder)
        for part in parts:
            files.append(_write_part(part, store, folder))
            done += part.height
            report_progress("snapshot", done, total, "rows")
    return files


def scan_parts(files: list[dict[str, Json]] | tuple[dict[str, Json], ...], store: Store) -> pl.LazyFrame:
    """The rows of files from `write_parts`."""
    return pl.scan_parquet([store.objects.path(file["digest"]) for file in files], glob=False, hive_partitioning=False)


def file_rows(width: int) -> int:
    """The number of rows per file for a table with `width` columns."""
    return min(_FILE_ROWS, max(_LEAST_ROWS, _FILE_VALUES // max(1, width)))


@contextmanager
def scratch(store: Store) -> Iterator[Path]:
    """A temporary folder on the store's disk. If the process is killed, `gc` removes it."""
    folder = getattr(store.objects.bytes_store, "folder", None)
    parent = store.home if folder is None else Path(folder) / TEMPORARY
    make_folder(parent)
    temporary = Path(tempfile.mkdtemp(prefix=".everloop-", dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sliced(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    contiguous = rows.rechunk()
    size = file_rows(rows.width)
    for start in range(0, contiguous.height, size):
        yield contiguous.slice(start, size)


def _streamed(rows: pl.LazyFrame, folder: Path) -> tuple[int, Iterator[pl.DataFrame]]:
    """The number of rows of a query, and the rows themselves, one file's worth at a time.

    The query is streamed to one temporary file first. Of all outputs of a streaming query, only a file makes the query
    wait for the disk instead of buffering in memory.
    """
    path = folder / "rows.arrow"
    # Arrow needs no conversion. The slower the output, the more rows a query buffers.
    try:
        rows.sink_ipc(path, compression="uncompressed", maintain_order=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if is_full(error):
            raise insufficient(f"in '{folder.parent}'") from error
        raise DataError(
            f"The table could not be read to its end: {str(error).partition(chr(10))[0]}.",
            help="Check the step that returns the table, and whether its files are damaged.",
        ) from error
    scan = pl.scan_ipc(path)
    total = scan.select(pl.len()).collect().item()
    size = file_rows(len(scan.collect_schema()))
    parts = (scan.slice(start, size).collect(engine="streaming").rechunk() for start in range(0, total, size))
    return total, parts


def _write_part(part: pl.DataFrame, store: Store, folder: Path) -> dict[str, Json]:
    """Write one Parquet file to the store. The settings are fixed, because they affect the digest."""
    path = folder / "part.parquet"
    part.write_parquet(path, compression="zstd", compression_level=3, statistics=True, row_group_size=_GROUP_ROWS)
    size = path.stat().st_size
    return {"digest": store.objects.add_file(path), "rows": len(part), "size_bytes": size}
