"""Tables of pandas, pyarrow, DuckDB and whatever speaks Arrow as Polars frames, wherever a frame is taken."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError

if TYPE_CHECKING:
    import polars as pl


def read_frame(frame: Any) -> pl.DataFrame | None:
    """A table of any library as a Polars frame; None for what is not a table.

    Raises:
        DataError: a column holds what Arrow has no type for, or a name or an index would be lost; it is named.
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
        raise DataError(f"The {type(frame).__name__} is not a table that can be kept: {error}.") from error
