"""Tables as Parquet: Polars (eager and lazy), pandas and Arrow.

A lazy frame is streamed to its file and comes back as a scan of it, so it is never whole in memory. Who declares
another kind of table than was kept gets that kind.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everloop.pipeline.artifacts.formats import Stored, UnkeepableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from everloop.stores import ContentStore

Form = Literal["polars", "lazy", "pandas", "arrow"]

# Fixed, so that the same rows give the same bytes on machines with different numbers of cores.
_ROWS_PER_GROUP = 262_144
# Above this a frame is written to a file first instead of to memory.
_IN_MEMORY_BYTES = 64 * 1024 * 1024


class FrameFormat:
    """`meta`: `form`, `rows`, `columns` (name to type)."""

    name = "frame"

    def accepts(self, value: object) -> bool:
        return form_of(type(value)) is not None

    def keep(self, value: Any, objects: ContentStore) -> Stored:
        form = form_of(type(value))
        match form:
            case "polars":
                return self._keep_polars(value, objects)
            case "lazy":
                return self._keep_lazy(value, objects)
            case "pandas":
                return self._keep_arrow(_from_pandas(value), form, objects)
            case _:
                return self._keep_arrow(value, "arrow", objects)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        kept = stored.meta.get("form", "polars")
        form = form_of(wanted) or kept
        path = objects.path(stored.digest)
        if form in ("polars", "lazy"):
            import polars as pl

            scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
            return scan if form == "lazy" else scan.collect()
        import pyarrow.parquet as pq

        table = pq.ParquetFile(path).read()
        if form == "arrow":
            return table
        return table.to_pandas()

    def _keep_polars(self, frame: pl.DataFrame, objects: ContentStore) -> Stored:
        import polars as pl

        if any(kind.is_(pl.Object) for kind in frame.dtypes if hasattr(kind, "is_")) or pl.Object in frame.dtypes:
            raise UnkeepableError("Parquet cannot hold a column of Python objects")
        if not frame.columns and frame.height:
            raise UnkeepableError("Parquet cannot hold rows without columns")
        columns = {name: str(kind) for name, kind in frame.schema.items()}
        meta = {"form": "polars", "rows": frame.height, "columns": columns}
        # A frame that was glued together has several chunks: same rows, other bytes.
        whole = frame.rechunk()
        try:
            if whole.estimated_size() <= _IN_MEMORY_BYTES:
                buffer = io.BytesIO()
                whole.write_parquet(buffer, compression="zstd", row_group_size=_ROWS_PER_GROUP)
                data = buffer.getvalue()
                return Stored(self.name, objects.add(data), len(data), meta)
            with _scratch(objects) as path:
                whole.write_parquet(path, compression="zstd", row_group_size=_ROWS_PER_GROUP)
                return Stored(self.name, objects.add_file(path), path.stat().st_size, meta)
        except pl.exceptions.PolarsError as error:
            raise UnkeepableError(f"Parquet cannot hold this frame: {error}") from error

    def _keep_lazy(self, frame: pl.LazyFrame, objects: ContentStore) -> Stored:
        import polars as pl
        import pyarrow.parquet as pq

        with _scratch(objects) as path:
            frame.sink_parquet(path, compression="zstd", row_group_size=_ROWS_PER_GROUP, maintain_order=True)
            columns = {name: str(kind) for name, kind in pl.read_parquet_schema(path).items()}
            rows = int(pq.ParquetFile(path).metadata.num_rows)
            meta = {"form": "lazy", "rows": rows, "columns": columns}
            return Stored(self.name, objects.add_file(path), path.stat().st_size, meta)

    def _keep_arrow(self, table: pa.Table, form: Form, objects: ContentStore) -> Stored:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {field.name: str(field.type) for field in table.schema}
        meta = {"form": form, "rows": table.num_rows, "columns": columns}
        if not columns and table.num_rows:
            raise UnkeepableError("Parquet cannot hold rows without columns")
        with _scratch(objects) as path:
            try:
                pq.write_table(table, path, compression="zstd", row_group_size=_ROWS_PER_GROUP)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise UnkeepableError(f"Parquet cannot hold this table: {error}") from error
            return Stored(self.name, objects.add_file(path), path.stat().st_size, meta)


def form_of(cls: Any) -> Form | None:
    """Which kind of table a class is, without importing any of them."""
    module = str(getattr(cls, "__module__", "")).partition(".")[0]
    match module, getattr(cls, "__name__", ""):
        case "polars", "DataFrame":
            return "polars"
        case "polars", "LazyFrame":
            return "lazy"
        case "pandas", "DataFrame":
            return "pandas"
        case "pyarrow", "Table":
            return "arrow"
        case _:
            return None


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError) as error:
        raise UnkeepableError(f"Parquet cannot hold this frame: {error}") from error


@contextmanager
def _scratch(objects: ContentStore) -> Iterator[Path]:
    """A file to write to, on the store's own disk where it has one: temporary folders are often small."""
    near = getattr(objects.bytes_store, "folder", None)
    if near is not None:
        Path(near).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".everloop-", dir=near))
    try:
        yield folder / "frame.parquet"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
