"""Rows as Parquet files in the store: what a snapshot is made of, written piece by piece.

A query is taken as it streams, and never more of it is in memory than one file's rows. How many rows go into a file
depends on the number of columns alone, so equal content gives equal files.
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


def keep_parts(rows: pl.DataFrame | pl.LazyFrame, store: Store) -> list[dict[str, Json]]:
    """Write the rows as files into the store; digest, rows and size_bytes of each, in the order of the rows.

    Raises:
        DataError: the query fails on its way.
        InsufficientStorageError: no space is left.
    """
    kept: list[dict[str, Json]] = []
    done = 0
    with scratch(store) as folder:
        total, parts = (rows.height, _sliced(rows)) if isinstance(rows, pl.DataFrame) else _streamed(rows, folder)
        for part in parts:
            kept.append(_keep(part, store, folder))
            done += part.height
            report_progress("snapshot", done, total, "rows")
    return kept


def scan_parts(files: list[dict[str, Json]] | tuple[dict[str, Json], ...], store: Store) -> pl.LazyFrame:
    """The rows of such files."""
    return pl.scan_parquet([store.objects.path(file["digest"]) for file in files], glob=False, hive_partitioning=False)


def file_rows(width: int) -> int:
    """How many rows go into a file of so many columns."""
    return min(_FILE_ROWS, max(_LEAST_ROWS, _FILE_VALUES // max(1, width)))


@contextmanager
def scratch(store: Store) -> Iterator[Path]:
    """A folder on the store's own disk; should the process be killed, `gc` clears it away."""
    folder = getattr(store.objects.bytes_store, "folder", None)
    near = store.home if folder is None else Path(folder) / TEMPORARY
    make_folder(near)
    made = Path(tempfile.mkdtemp(prefix=".everloop-", dir=near))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sliced(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    whole = rows.rechunk()
    size = file_rows(rows.width)
    for start in range(0, whole.height, size):
        yield whole.slice(start, size)


def _streamed(rows: pl.LazyFrame, folder: Path) -> tuple[int, Iterator[pl.DataFrame]]:
    """How many rows a query gives, and they themselves, a file's worth at a time.

    It streams into one file first: of all ways out of a streaming query only this one waits for the disk instead of
    heaping up what it has read.
    """
    path = folder / "rows.arrow"
    # Arrow, as it is in memory: the slower its way out, the more a query heaps up before it.
    try:
        rows.sink_ipc(path, compression="uncompressed", maintain_order=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if is_full(error):
            raise insufficient(f"in '{folder.parent}'") from error
        raise DataError(
            f"The table cannot be read to its end: {str(error).partition(chr(10))[0]}.",
            help="See the step that returns the table, and whether its files are damaged.",
        ) from error
    kept = pl.scan_ipc(path)
    total = kept.select(pl.len()).collect().item()
    size = file_rows(len(kept.collect_schema()))
    parts = (kept.slice(start, size).collect(engine="streaming").rechunk() for start in range(0, total, size))
    return total, parts


def _keep(part: pl.DataFrame, store: Store, folder: Path) -> dict[str, Json]:
    """Write one Parquet file into the store; settings are fixed, since they decide the digest."""
    path = folder / "part.parquet"
    part.write_parquet(path, compression="zstd", compression_level=3, statistics=True, row_group_size=_GROUP_ROWS)
    size = path.stat().st_size
    return {"digest": store.objects.add_file(path), "rows": len(part), "size_bytes": size}
