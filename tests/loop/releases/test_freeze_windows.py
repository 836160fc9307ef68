"""Freeze windows: their forms, zones and daylight saving time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from everloop.errors import UsageError
from everloop.loop.releases.freeze_windows import frozen_by, parse_window

WEEKEND = "fri 16:00 - mon 08:00 Europe/Berlin"


@pytest.mark.parametrize(
    ("moment", "frozen"),
    [
        ("2026-07-03T13:59Z", False),  # Friday, 15:59 in Berlin in summer
        ("2026-07-03T14:00Z", True),
        ("2026-07-06T05:59Z", True),
        ("2026-07-06T06:00Z", False),
        ("2026-12-04T14:59Z", False),  # an hour later in winter
        ("2026-12-04T15:00Z", True),
        ("2026-10-25T00:30Z", True),  # the hour that happens twice
        ("2026-10-25T01:30Z", True),
    ],
)
def test_a_window_is_kept_by_the_wall_clock_of_its_zone(moment, frozen):
    assert (frozen_by([WEEKEND], datetime.fromisoformat(moment)) == WEEKEND) == frozen


def test_dates_include_both_ends_and_nights_cross_midnight():
    holidays = parse_window("2026-12-20 - 2027-01-03 Europe/Berlin")
    assert holidays.contains(datetime(2026, 12, 19, 23, 30, tzinfo=UTC))
    assert not holidays.contains(datetime(2027, 1, 3, 23, 30, tzinfo=UTC))
    night = parse_window("22:00-06:00")
    assert [night.contains(datetime(2026, 1, 1, hour, tzinfo=UTC)) for hour in (21, 22, 3, 6)] == [
        False, True, True, False,
    ]  # fmt: skip


@given(st.integers(0, 7 * 24 * 60 - 1), st.integers(1, 7 * 24 * 60 - 1), st.integers(0, 7 * 24 * 60 - 1))
def test_a_weekly_window_has_its_length(begin, length, after):
    names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

    def written(minute):
        return f"{names[minute // 1440 % 7]} {minute % 1440 // 60:02}:{minute % 60:02}"

    window = parse_window(f"{written(begin)} - {written(begin + length)}")
    monday = datetime(2024, 1, 1, tzinfo=UTC)
    assert window.contains(monday + timedelta(minutes=begin + after)) == (after < length)


@pytest.mark.parametrize(
    "text",
    ["weekend", "fri 16:00 - mon 08:00 Mars/Base", "fri 16:00 - 08:00", "foo 16:00 - mon 08:00",
     "fri 16:61 - mon 08:00", "mon 08:00 - mon 08:00", "2026-02-30", "2027-01-03 - 2026-12-20",
     5, "fri 25:00 - mon 08:00"],
)  # fmt: skip
def test_what_is_not_a_window_is_named(text):
    with pytest.raises(UsageError) as raised:
        parse_window(text)
    assert repr(text) in raised.value.message
    assert "Europe/Berlin" in raised.value.help
