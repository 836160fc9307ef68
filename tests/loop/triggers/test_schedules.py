"""Cron schedules in time zones, against a minute-by-minute walk through the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings, strategies as st

import everloop as el
from everloop.errors import UsageError
from everloop.loop.triggers.schedules import next_time, previous_time

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CHANGES = {
    "Europe/Berlin": [datetime(2024, 3, 31, 1), datetime(2024, 10, 27, 1)],
    "America/New_York": [datetime(2024, 3, 10, 7), datetime(2024, 11, 3, 6)],
    "America/Sao_Paulo": [datetime(2018, 11, 4, 3), datetime(2019, 2, 17, 2)],  # around midnight
    "Australia/Lord_Howe": [datetime(2024, 10, 5, 15, 30), datetime(2024, 4, 6, 15)],  # by half an hour
    "Africa/Casablanca": [datetime(2024, 3, 10, 2), datetime(2024, 4, 14, 2)],
    "Asia/Kathmandu": [datetime(2024, 3, 31, 1)],  # no change, +05:45
    "Pacific/Apia": [datetime(2011, 12, 30, 10)],  # a whole day is skipped
    "UTC": [datetime(2024, 3, 31, 1)],
}
NEARBY = [(zone, change.replace(tzinfo=UTC)) for zone, changes in CHANGES.items() for change in changes]


def brute_force(minute, hour, zone, since, until):
    """When the wall clock first reaches each day's `hour:minute` in (since, until], minute by minute."""
    place = ZoneInfo(zone)
    seen, due, before = set(), [], None
    moment = since - 3 * DAY
    while moment <= until:
        wall = moment.astimezone(place).replace(tzinfo=None)
        reached = wall.replace(hour=hour, minute=minute)
        passed = [reached + day * DAY for day in (-2, -1, 0)]
        for target in passed:
            if target <= wall and (before is None or target > before) and target not in seen:
                seen.add(target)
                if since < moment:
                    due.append(moment)
        before = wall if before is None else max(before, wall)
        moment += MINUTE
    return sorted(set(due))


@pytest.mark.parametrize(("zone", "change"), NEARBY)
@settings(max_examples=3, deadline=None)
@given(hour=st.integers(0, 23), minute=st.integers(0, 59), near=st.booleans())
def test_a_daily_schedule_comes_due_once_a_day_in_every_zone(zone, change, hour, minute, near):
    if near:
        # The wall times around the change are the interesting ones.
        local = (change - MINUTE).astimezone(ZoneInfo(zone))
        hour = (local.hour + hour % 3 - 1) % 24
    since, until = change - DAY, change + DAY
    expected = brute_force(minute, hour, zone, since, until)
    found, at = [], since
    while (at := next_time(f"{minute} {hour} * * *", zone, at)) <= until:
        found.append(at)
    assert found == expected
    latest = previous_time(f"{minute} {hour} * * *", zone, until)
    assert latest == (expected[-1] if expected else latest) <= until


@settings(max_examples=60, deadline=None)
@given(
    nearby=st.sampled_from(NEARBY),
    expression=st.sampled_from(
        ["*/15 * * * *", "0 * * * *", "30 2 * * *", "0 6 * * mon", "5 0 1 * *", "0 0 * * sun#1"]
    ),
    offset=st.integers(-3 * 86_400, 3 * 86_400),
)
def test_next_and_previous_agree(nearby, expression, offset):
    zone, change = nearby
    at = change + timedelta(seconds=offset)
    due = next_time(expression, zone, at)
    assert due > at
    assert previous_time(expression, zone, due) == due
    before = previous_time(expression, zone, at)
    assert before <= at
    assert next_time(expression, zone, before) == due
    assert next_time(expression, zone, due - timedelta(microseconds=1)) == due


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["*/15 * * * *", "7 3 * * *", "0 6 * * mon", "0 0 29 2 *", "15,45 8-17 * * mon-fri"]),
    st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
)
def test_in_utc_a_schedule_is_that_of_croniter(expression, at):
    from croniter import croniter

    assert next_time(expression, "UTC", at) == croniter(expression, at).get_next(datetime)


def test_a_skipped_time_comes_due_at_the_change_and_a_repeated_one_once():
    spring = next_time("30 2 * * *", "Europe/Berlin", datetime(2024, 3, 30, 12, tzinfo=UTC))
    assert spring == datetime(2024, 3, 31, 1, tzinfo=UTC)  # 2:30 does not exist; at 2:00 the clock shows 3:00
    autumn = next_time("30 2 * * *", "Europe/Berlin", datetime(2024, 10, 26, 12, tzinfo=UTC))
    assert autumn == datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert next_time("30 2 * * *", "Europe/Berlin", autumn) == datetime(2024, 10, 28, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (
            lambda: el.Every("0 6 * * *", zone="Europe/Berln"),
            r"'Europe/Berln', which is not a time zone.*Europe/Berlin",
        ),
        (lambda: el.Every("0 6 * * *", zone="../etc/passwd"), "is not a time zone"),
        (lambda: el.Every("0 6 * * *", zone=None), "None, which is not a time zone"),
        (lambda: el.Every("1w", zone="Europe/Berlin"), "is a duration, so zone='Europe/Berlin' has no effect"),
        (lambda: el.Every("1w", catch_up="five"), "catch_up.* is 'five'"),
        (lambda: el.Every("1w", grace="soon"), "grace"),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_reason(create, message):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        create()
