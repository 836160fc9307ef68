from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data.sketches.time_blocks import TimeGrid, aligned_grid, choose_grid, microseconds, moments_of
from everloop.errors import UsageError

START = datetime(2024, 3, 4, 7, 30, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def rows(span: timedelta, number: int, start: datetime = START) -> pl.DataFrame:
    first = start.replace(tzinfo=None)
    return pl.DataFrame({"at": [first + span * index / number for index in range(number)]})


@pytest.mark.parametrize(
    ("span", "number", "expected"),
    [
        (30 * DAY, 30 * 24 * 25, HOUR),
        (30 * DAY, 30 * 24 * 5, DAY),
        (300 * DAY, 300 * 24 * 25, DAY),  # too many hours
        (3 * HOUR, 1000, None),  # too few hours
        (30 * DAY, 100, None),  # too few rows a day
    ],
)
def test_blocks_are_hours_or_days_of_the_calendar_or_equal_parts(
    span: timedelta, number: int, expected: timedelta | None
) -> None:
    frame = rows(span, number)
    grid = choose_grid(frame, "at", 5)
    assert grid is not None
    block = grid.number_of(moments_of(frame, "at"))
    assert (np.bincount(block).sum(), block.min(), block.max()) == (number, 0, grid.number - 1)
    if expected is not None:
        assert grid.span == expected
        assert (microseconds(grid.start) / 1e6) % expected.total_seconds() == 0
        assert grid.start <= START < grid.start + expected
    else:
        assert 6 <= grid.number <= 24
        assert grid.start == START


def test_many_features_make_days_of_hours() -> None:
    frame = rows(30 * DAY, 30 * 24 * 25)
    few, many = (choose_grid(frame, "at", features) for features in (5, 500))
    assert few is not None
    assert many is not None
    assert (few.span, many.span) == (HOUR, DAY)


def test_one_time_or_none_has_no_blocks() -> None:
    frame = rows(DAY, 10)
    assert choose_grid(frame.head(1), "at", 1) is None
    assert choose_grid(frame.clear(), "at", 1) is None
    assert choose_grid(frame.with_columns(at=pl.lit(None, pl.Datetime)), "at", 1) is None
    assert choose_grid(frame.head(2), "at", 1) is not None


def test_a_few_wrong_clocks_do_not_decide_the_blocks() -> None:
    frame = rows(60 * DAY, 60 * 100)
    wrong = pl.DataFrame({"at": [datetime(1970, 1, 1), datetime(9999, 12, 31)]})
    grid, plain = (choose_grid(one, "at", 5) for one in (pl.concat([frame, wrong]), frame))
    assert grid is not None
    assert plain is not None
    assert grid.span == plain.span == DAY
    assert grid.number >= 59
    block = grid.number_of(moments_of(wrong, "at"))
    assert block.tolist() == [-1, -1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), min_size=2, max_size=30),
    st.integers(1, 10**12),
)
def test_each_moment_is_in_the_block_that_holds_it(moments: list[datetime], span_us: int) -> None:
    span = max(timedelta(microseconds=span_us), timedelta(hours=1))
    frame = pl.DataFrame({"at": moments})
    first, last = (moment.replace(tzinfo=UTC) for moment in (min(moments), max(moments)))
    grid = aligned_grid(first, last, span)
    assert grid.start <= first
    assert grid.start + grid.number * span > last
    numbers = grid.number_of(moments_of(frame, "at"))
    for moment, number in zip(moments, numbers, strict=True):
        start = grid.start + int(number) * span
        assert start <= moment.replace(tzinfo=UTC) < start + span
    chosen = choose_grid(frame, "at", 3)
    if min(moments) < max(moments):
        assert chosen is not None
        assert (chosen.number_of(moments_of(frame, "at")) >= 0).all()


def test_nulls_and_moments_outside_have_no_block() -> None:
    grid = TimeGrid(START, HOUR, 2)
    frame = pl.DataFrame({"at": [START - HOUR / 2, START, None, START + 1.5 * HOUR, START + 2 * HOUR]})
    assert grid.number_of(moments_of(frame, "at")).tolist() == [-1, 0, -1, 1, -1]
    assert grid.starts() == [START, START + HOUR]


def test_moments_are_utc() -> None:
    berlin = pl.DataFrame({"at": [datetime(2024, 7, 1, 2)]}).with_columns(
        pl.col("at").dt.replace_time_zone("Europe/Berlin")
    )
    assert moments_of(berlin, "at").item() == microseconds(datetime(2024, 7, 1, tzinfo=UTC))
    day = pl.DataFrame({"at": [date(2024, 7, 1)]})
    assert moments_of(day, "at").item() == microseconds(datetime(2024, 7, 1, tzinfo=UTC))
    for unit in ("ms", "ns"):
        other = day.select(pl.col("at").cast(pl.Datetime(unit)))
        assert moments_of(other, "at").item() == microseconds(datetime(2024, 7, 1, tzinfo=UTC))


def test_columns_that_are_not_times_are_errors() -> None:
    frame = pl.DataFrame({"at": ["2024-01-01"], "n": [1]})
    with pytest.raises(UsageError, match="'at' is String, not a date or a time"):
        moments_of(frame, "at")
    with pytest.raises(UsageError, match="no column 'when'"):
        moments_of(frame, "when")
