"""What holds for the rows and the names of all tables: two times in every row, and names in parts joined by `/`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from everloop.errors import DataError, UsageError
from everloop.stores.tables.foreign_frames import read_frame

if TYPE_CHECKING:
    import polars as pl

    from everloop.stores.clock import Clock

EVENT_AT = "event_at"
ARRIVED_AT = "arrived_at"
_NAME = re.compile(r"[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]*(?:/[A-Za-z0-9_@=+-][A-Za-z0-9_.@=+-]*)*")


def checked_name(name: str) -> str:
    """
    Raises:
        UsageError: this is not a name for a table.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is not a valid name for a table.",
            help="Use letters, digits and -_.@=+ in names joined by '/', such as 'predictions/delays'.",
        )
    return name


def stamped_rows(name: str, frame: Any, clock: Clock) -> pl.DataFrame:
    """The rows of any frame with both times in UTC.

    Raises:
        DataError: there is no column `event_at`, or a time is null or not a time.
    """
    import polars as pl

    rows = read_frame(frame)
    if rows is None:
        raise DataError(f"A {type(frame).__name__} is not a table of rows.", help="Use a frame or Arrow data.")
    if EVENT_AT not in rows.columns:
        raise DataError(
            f"The rows for the table '{name}' have no column '{EVENT_AT}'.",
            help="Add it with the time of each row's event.",
        )
    if ARRIVED_AT not in rows.columns:
        rows = rows.with_columns(pl.lit(clock.now()).alias(ARRIVED_AT))
    return rows.with_columns(_as_time(rows, name, column) for column in (EVENT_AT, ARRIVED_AT))


def _as_time(rows: pl.DataFrame, name: str, column: str) -> pl.Expr:
    import polars as pl

    kind = rows.schema[column]
    if rows[column].null_count():
        count = rows[column].null_count()
        raise DataError(
            f"'{column}' is null in {count} {'row' if count == 1 else 'rows'} for the table '{name}'.",
            help="Fill in the time or remove the rows.",
        )
    match kind:
        case pl.Datetime(time_zone=None):
            return pl.col(column).dt.cast_time_unit("us").dt.replace_time_zone("UTC")
        case pl.Datetime():
            return pl.col(column).dt.cast_time_unit("us").dt.convert_time_zone("UTC")
        case pl.Date:
            return pl.col(column).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    raise DataError(
        f"The column '{column}' for the table '{name}' has the type {kind}, which is not a time.",
        help="Cast it to a datetime in UTC.",
    )
