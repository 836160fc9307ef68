"""Converting tables of pandas, pyarrow, DuckDB and other Arrow libraries to Polars frames."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError

if TYPE_CHECKING:
    import polars as pl


def read_frame(frame: Any) -> pl.DataFrame | None:
    """Convert a table of any library to a Polars frame. Returns None if it is not a table.

    Raises:
        DataError: a column has no Arrow type, or a name or an index would be lost. The message says which one.
    """
    import polars as pl

    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        from everloop.stores.tables.pandas_frames import read_pandas

        return read_pandas(frame)
    if not hasattr(frame, "__arrow_c_stream__") or (pandas is not None and isinstance(frame, pandas.Series)):
        return None
    if type(frame).__module__.partition(".")[0] == "pyarrow":
        from everloop.stores.tables.arrow_types import readable

        frame = readable(frame)
    try:
        return pl.DataFrame(frame)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"Cannot convert the {type(frame).__name__} to a table: {error}.") from error
