"""Tables as Parquet: Polars (eager and lazy), pandas and Arrow.

A lazy frame is streamed to its file and loaded as a scan of that file, so it is never in memory as a whole. A step that
declares another kind of table than the one stored gets the kind that it declares. A table that Parquet would not give
back exactly (with another type, index or column label) is refused here, and stored as a pickle instead.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everloop.pipeline.artifacts.artifact_formats import Stored, UnkeepableError
from everloop.stores.permissions import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from everloop.stores import ContentStore

Form = Literal["polars", "lazy", "pandas", "arrow"]

# Fixed, so that the same rows give the same bytes on machines with different numbers of cores.
_ROWS_PER_GROUP = 262_144
# A larger frame is written to a temporary file instead of to memory.
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
                _check_pandas(value)
                return self._keep_arrow(_from_pandas(value), form, objects)
            case _:
                _check_arrow(value)
                return self._keep_arrow(value, "arrow", objects)

    def load(self, stored: Stored, objects: ContentStore, wanted: Any = None) -> Any:
        form = form_of(wanted) or stored.meta.get("form", "polars")
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

        if not frame.columns and frame.height:
            raise UnkeepableError("Parquet cannot hold rows without columns")
        _check_polars(frame)
        columns = {name: str(kind) for name, kind in frame.schema.items()}
        meta = {"form": "polars", "rows": frame.height, "columns": columns}
        # A frame that was concatenated has several chunks, which would give other bytes for the same rows.
        rechunked = frame.rechunk()
        try:
            if rechunked.estimated_size() <= _IN_MEMORY_BYTES:
                buffer = io.BytesIO()
                rechunked.write_parquet(buffer, compression="zstd", row_group_size=_ROWS_PER_GROUP)
                data = buffer.getvalue()
                return Stored(self.name, objects.add(data), len(data), meta)
            with _scratch(objects) as path:
                rechunked.write_parquet(path, compression="zstd", row_group_size=_ROWS_PER_GROUP)
                return Stored(self.name, objects.add_file(path), path.stat().st_size, meta)
        except pl.exceptions.PolarsError as error:
            raise UnkeepableError(f"Parquet cannot hold this frame: {error}") from error

    def _keep_lazy(self, frame: pl.LazyFrame, objects: ContentStore) -> Stored:
        import polars as pl
        import pyarrow.parquet as pq

        schema = frame.collect_schema()
        if _needs_check(schema):
            _check_polars(frame.collect())
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
    """The kind of table of a class, found without importing its package. None for other classes."""
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


def as_form(value: Any, wanted: Any) -> Any:
    """A table converted to the kind that its reader declares; other values unchanged.

    Raises:
        UnkeepableError: the table cannot be converted to that kind.
    """
    form, current = form_of(wanted), form_of(type(value))
    if form is None or current is None or form == current:
        return value
    try:
        if current == "lazy":
            value, current = value.collect(), "polars"
        if form in ("polars", "lazy"):
            import polars as pl

            frame: Any = value
            if current != "polars":
                frame = pl.from_pandas(value) if current == "pandas" else pl.from_arrow(value)
            return frame.lazy() if form == "lazy" else frame
        import pyarrow as pa

        if current == "arrow":
            table = value
        else:
            table = value.to_arrow() if current == "polars" else pa.Table.from_pandas(value)
        return table if form == "arrow" else table.to_pandas()
    except Exception as error:
        # Any error of the library means that this table cannot be converted.
        raise UnkeepableError(f"it cannot become a {wanted.__module__}.{wanted.__name__}: {error}") from error


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame)
    except Exception as error:
        # Arrow, pandas and extension types of other packages each raise errors of their own.
        raise UnkeepableError(f"Parquet cannot hold this frame: {error}") from error


def _through_parquet(table: pa.Table) -> pa.Table:
    """The table as it would be loaded again."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer)
        # Read in this thread only: pyarrow's threads could still hold Python's bytes when Python exits.
        return pq.ParquetFile(buffer, pre_buffer=False).read(use_threads=False)
    except Exception as error:
        # Unsupported types (unions, intervals, run-end encoding) raise various errors.
        raise UnkeepableError(f"Parquet cannot hold this table: {error}") from error


def _check_pandas(frame: pd.DataFrame) -> None:
    """Refuse a frame that would not be loaded as it was. Tried on its first rows; all of its types must be exact."""
    import pandas as pd

    labels = list(frame.columns)
    if frame.attrs or not frame.flags.allows_duplicate_labels:
        raise UnkeepableError("Parquet cannot hold the attributes of a pandas frame")
    if type(frame.columns) is not pd.Index or not all(type(label) is str for label in labels):
        raise UnkeepableError("Parquet cannot hold column labels that are not plain strings")
    if len(set(labels)) < len(labels):
        raise UnkeepableError("Parquet cannot hold two columns with the same name")
    levels = [frame.index.get_level_values(number) for number in range(frame.index.nlevels)]
    names = [name for name in frame.index.names if name is not None]
    if not all(type(name) is str for name in names) or len({*names, *labels}) < len(names) + len(labels):
        raise UnkeepableError("Parquet cannot hold the names of this index")
    for dtype in [*frame.dtypes, *(level.dtype for level in levels)]:
        if not _is_exact(dtype):
            raise UnkeepableError(f"Parquet cannot hold a pandas column of type {dtype}")
    sample = frame.iloc[:5]
    loaded = _through_parquet(_from_pandas(sample)).to_pandas()
    try:
        pd.testing.assert_frame_equal(sample, loaded, check_exact=True, check_freq=True, check_index_type="exact")
        pd.testing.assert_index_equal(sample.index, loaded.index, exact=True)
    except (AssertionError, TypeError, ValueError) as error:
        raise UnkeepableError(f"Parquet would change this frame: {error}") from error
    if isinstance(frame.index, pd.DatetimeIndex | pd.TimedeltaIndex) and frame.index.freq is not None:
        raise UnkeepableError("Parquet cannot hold the frequency of an index")
    if isinstance(frame.index, pd.MultiIndex) and not frame.index.equals(frame.index.remove_unused_levels()):
        raise UnkeepableError("Parquet cannot hold the levels of this index")


def _is_exact(dtype: Any) -> bool:
    """Whether Parquet preserves a pandas type and every value of it."""
    import pandas as pd

    if isinstance(dtype, pd.CategoricalDtype):
        # Only categories of strings: categories of numbers would be loaded as plain numbers.
        categories = dtype.categories
        return isinstance(categories.dtype, pd.StringDtype) and categories.name is None
    if isinstance(dtype, pd.StringDtype):
        return True
    if isinstance(dtype, pd.DatetimeTZDtype):
        return dtype.unit in ("ms", "us", "ns") and type(dtype.tz).__module__ in ("zoneinfo", "datetime")
    name = str(dtype)
    plain = getattr(dtype, "isnative", True) and getattr(dtype, "metadata", None) is None
    return plain and name in _EXACT


_EXACT = frozenset(
    {
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
        *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
        *("bool", "boolean", "float32", "float64", "Float32", "Float64"),
        *(f"{kind}64[{unit}]" for kind in ("datetime", "timedelta") for unit in ("ms", "us", "ns")),
    }
)


def _check_arrow(table: pa.Table) -> None:
    """Refuse a table that would be loaded with other types. For types that may be inexact, compare each value."""
    import pyarrow as pa

    if len(set(table.column_names)) < len(table.column_names):
        raise UnkeepableError("Parquet cannot hold two columns with the same name")
    if not _through_parquet(table.slice(0, 0)).schema.equals(table.schema, check_metadata=True):
        raise UnkeepableError("Parquet would change the types of this table")
    if all(
        pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind)
        for kind in table.schema.types
    ):
        return
    loaded = _through_parquet(table)
    if not loaded.schema.equals(table.schema, check_metadata=True):
        raise UnkeepableError("Parquet would change the types of this table")
    for name in dict.fromkeys(table.column_names):
        if repr(loaded[name].to_pylist()) != repr(table[name].to_pylist()):
            raise UnkeepableError(f"Parquet would change values in the column '{name}'")


def _needs_check(schema: Any) -> bool:
    """Whether a Polars frame has types that Parquet may not preserve."""
    import polars as pl

    def is_inexact(kind: Any) -> bool:
        if isinstance(kind, pl.List):
            return is_inexact(kind.inner)
        if isinstance(kind, pl.Struct):
            return not kind.fields or any(is_inexact(field.dtype) for field in kind.fields)
        exact = (pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Datetime, pl.Duration, pl.Float32, pl.Float64)
        integers = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
        return not isinstance(kind, exact + integers)

    return any(is_inexact(kind) for kind in schema.dtypes())


def _check_polars(frame: pl.DataFrame) -> None:
    """Refuse a frame that would not be loaded as it was."""
    import polars as pl

    if not _needs_check(frame.schema):
        return
    buffer = io.BytesIO()
    try:
        frame.write_parquet(buffer)
        buffer.seek(0)
        loaded = pl.read_parquet(buffer)
        same = loaded.schema == frame.schema and loaded.equals(frame)
    except BaseException as error:
        # For some types Polars raises a PanicException, which is not a subclass of Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnkeepableError(f"Parquet cannot hold this frame: {error}") from error
    if not same:
        raise UnkeepableError("Parquet would change this frame")


@contextmanager
def _scratch(objects: ContentStore) -> Iterator[Path]:
    """A temporary file, on the same disk as a local store: the system's temporary folder is often small."""
    local = getattr(objects.bytes_store, "folder", None)
    if local is not None:
        make_folder(Path(local))
    folder = Path(tempfile.mkdtemp(prefix=".everloop-", dir=local))
    try:
        yield folder / "frame.parquet"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
