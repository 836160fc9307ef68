"""Cut time into blocks of equal length: hours or days of the calendar (UTC) where there are enough rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from everloop.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_BLOCKS = 4000
_MOST_COUNTS = 200_000
"""Blocks times features; above that, hours become days."""
_LEAST_ROWS = 20
_LEAST_BLOCKS = 6
_PARTS = 24
_WRONG_CLOCKS = 0.001
"""Share of rows at either end that are left out of the blocks if the others span less than half of the time."""


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """`number` blocks of length `span`, the first one from `start`."""

    start: datetime
    span: timedelta
    number: int

    def number_of(self, moments: pl.Series) -> npt.NDArray[np.int64]:
        """Return the block of each moment, -1 if it is null or outside.

        Args:
            moments: microseconds since 1970, as `moments_of` gives them.
        """
        import polars as pl

        start, span = microseconds(self.start), self.span // _MICROSECOND
        number = ((moments - start) // span).fill_null(-1).cast(pl.Int64).to_numpy()
        return np.where((number >= 0) & (number < self.number), number, -1)

    def starts(self) -> list[datetime]:
        return [self.start + index * self.span for index in range(self.number)]


def microseconds(moment: datetime) -> int:
    """Return the microseconds since 1970 (UTC)."""
    return (moment - _EPOCH) // _MICROSECOND


def moments_of(frame: pl.DataFrame, time: str) -> pl.Series:
    """Return a column of dates or times as microseconds since 1970 (UTC).

    Raises:
        UsageError: the frame has no such column, or it does not hold dates or times.
    """
    import polars as pl

    if time not in frame.columns:
        raise UsageError(f"The table has no column '{time}'.", help=f"Columns: {', '.join(frame.columns)}")
    dtype = frame.schema[time]
    if dtype not in (pl.Datetime, pl.Date):
        raise UsageError(f"'{time}' is {dtype}, not a date or a time.", help="Name a column of type Date or Datetime.")
    return frame[time].cast(pl.Datetime("us")).cast(pl.Int64)


def choose_grid(frame: pl.DataFrame, time: str, features: int) -> TimeGrid | None:
    """Choose blocks for a reference: hours or days, or equal parts if it is short. None if its rows have one time.

    Args:
        features: how many features are counted in each block.

    Raises:
        UsageError: `time` is not a column of dates or times.
    """
    moments = moments_of(frame, time)
    low, high = moments.min(), moments.max()
    if not isinstance(low, int) or not isinstance(high, int) or low == high:
        return None
    # A few rows with a wrong clock do not decide how long the reference is. They are in no block.
    inner = [int(moments.quantile(share, "nearest") or 0) for share in (_WRONG_CLOCKS, 1 - _WRONG_CLOCKS)]
    if 0 < 2 * (inner[1] - inner[0]) < high - low:
        low, high = inner
    first, last = (_EPOCH + timedelta(microseconds=moment) for moment in (low, high))
    dated = len(moments) - moments.null_count()
    for span in (HOUR, DAY):
        grid = aligned_grid(first, last, span)
        affordable = grid.number <= _MOST_BLOCKS and (span > HOUR or grid.number * features <= _MOST_COUNTS)
        if affordable and grid.number >= _LEAST_BLOCKS and dated >= _LEAST_ROWS * grid.number:
            return grid
    # The last moment must be inside, so the parts are a little longer.
    parts = min(_PARTS, max(_LEAST_BLOCKS, dated // _LEAST_ROWS))
    return TimeGrid(first, (last - first) / parts + _MICROSECOND, parts)


def aligned_grid(first: datetime, last: datetime, span: timedelta) -> TimeGrid:
    """Return blocks from multiples of `span` since 1970 (UTC) that hold both moments."""
    start = _EPOCH + (first - _EPOCH) // span * span
    return TimeGrid(start, span, (last - start) // span + 1)
