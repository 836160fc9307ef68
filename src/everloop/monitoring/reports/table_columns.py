"""Prepare the columns of two plain tables for a comparison: numbers and times stored as text, and row identifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.data.disguised_columns import find_date, find_number, find_time
from everloop.data.sketches.derived_columns import is_free_text

if TYPE_CHECKING:
    from collections.abc import Collection

    import polars as pl

_LEAST_NUMBERED = 100
"""In fewer rows, values may be different by chance."""
_MOST_GAPS = 1.1
"""Numbers of rows have a range of about the number of rows, even if some rows have been left out."""
_SAMPLE = 2_000
"""Texts by which it is decided what a column holds."""


def read_times(frame: pl.LazyFrame, time: str) -> pl.LazyFrame:
    """Return the frame with its time column as dates or times, if it holds texts or numbers; see `find_time`."""
    if frame.collect_schema()[time].is_temporal():
        return frame
    found = find_time(frame.select(time).drop_nulls().head(_SAMPLE).collect()[time])
    return frame if found is None else frame.with_columns(found.expression)


def read_numbers(
    before: pl.DataFrame, now: pl.DataFrame, apart: Collection[str | None]
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """Convert the columns that hold numbers as text, such as `1,204.50`, in both tables.

    Args:
        before: the reference, which decides.
        now: the current table.
        apart: columns that stay as they are.

    Returns:
        Both tables, and a remark for each column with texts that are not numbers.
    """
    import polars as pl

    remarks = []
    for name in before.columns:
        if before.schema[name] != pl.String or name in apart:
            continue
        found = find_number(before[name].drop_nulls().head(_SAMPLE))
        if found is None:
            continue
        known = sum(len(table) - table[name].null_count() for table in (before, now) if name in table.columns)
        before = before.with_columns(found.expression)
        if name in now.columns:
            now = now.with_columns(found.expression)
        read = sum(len(table) - table[name].null_count() for table in (before, now) if name in table.columns)
        if read < known:
            remarks.append(
                f"'{name}' holds numbers as text; {known - read:,} texts are not numbers and count as missing."
            )
    return before, now, remarks


def uncomparable(before: pl.DataFrame, now: pl.DataFrame, apart: Collection[str | None]) -> dict[str, str]:
    """Return the columns that differ in any two tables, each with the reason."""
    import polars as pl

    reasons = {}
    for name in before.columns:
        if name not in now.columns or name in apart:
            continue
        pair = (before[name], now[name])
        if before.height >= _LEAST_NUMBERED and all(_numbers_rows(values) for values in pair):
            reasons[name] = "it numbers the rows, so it differs in every table"
        elif all(values.dtype == pl.String for values in pair):
            if find_date(before[name].drop_nulls().head(_SAMPLE)) is not None:
                reasons[name] = "dates and times are not compared; --time cuts the table into windows"
            elif before.height >= _LEAST_NUMBERED and all(_identifies_rows(values) for values in pair):
                reasons[name] = "each of its values stands in one row, so it differs in every table"
    return reasons


def _numbers_rows(values: pl.Series) -> bool:
    """Whether a column holds different whole numbers with hardly any gaps."""
    if not values.dtype.is_integer() or values.null_count():
        return False
    span = int(values.max()) - int(values.min())  # type: ignore[arg-type]
    return span < _MOST_GAPS * len(values) and values.n_unique() == len(values)


def _identifies_rows(texts: pl.Series) -> bool:
    """Whether a column holds texts that all differ and are not sentences."""
    known = texts.drop_nulls()
    return len(known) > 1 and known.n_unique() == len(known) and not is_free_text(known)
