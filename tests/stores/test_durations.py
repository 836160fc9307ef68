"""Parsing and formatting durations."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from everloop.errors import UsageError
from everloop.stores.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("14d", 1_209_600), ("1w", 604_800), ("2d12h", 216_000), ("0s", 0)],
)
def test_durations_are_parsed(text, seconds):
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "d", "14", "14 days", "-1d", "1y", "1d x", "1e3s"])
def test_invalid_durations_are_refused(text):
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**9))
def test_round_trip(seconds):
    span = timedelta(seconds=seconds)
    assert parse_duration(format_duration(span)) == span
