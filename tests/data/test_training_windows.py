"""Sliding windows and weights by age: which rows a model learns from, and how much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

import everloop as el
from everloop.data import split
from everloop.data.splits import row_weights
from everloop.errors import DataError, UsageError

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@el.step
def rows() -> list[int]:
    return []


def table(days):
    return pl.DataFrame({"at": [START + day * DAY for day in days], "x": list(range(len(days)))})


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(days=st.lists(st.integers(0, 400), min_size=10, max_size=80, unique=True), window=st.integers(1, 200))
def test_a_window_only_removes_training_rows_that_are_too_old(days, window):
    whole = split(table(days), time="at")
    recent = split(table(days), time="at", window=f"{window}d")
    assert recent.valid.equals(whole.valid)
    assert recent.test.equals(whole.test)
    newest = whole.train["at"].max()
    assert recent.train.equals(whole.train.filter(pl.col("at") > newest - window * DAY))
    assert recent.old.equals(whole.train.filter(pl.col("at") <= newest - window * DAY))
    assert whole.old.is_empty()
    assert sum(len(part) for part in (recent.train, recent.valid, recent.test, recent.gap, recent.old)) == len(days)


@settings(max_examples=100, deadline=None)
@given(days=st.lists(st.integers(0, 5000), min_size=1, max_size=50), half_life=st.integers(1, 400))
def test_a_weight_halves_with_each_half_life(days, half_life):
    weights = row_weights(table(days)["at"], f"{half_life}d").to_list()
    for day, weight in zip(days, weights, strict=True):
        assert weight == pytest.approx(max(0.5 ** ((max(days) - day) / half_life), 1e-12), rel=1e-9)
        assert 0 < weight <= 1


def test_weights_need_no_time_zone_and_accept_dates():
    dates = pl.Series([datetime(2024, 1, 1), datetime(2024, 1, 11)]).cast(pl.Date)
    assert row_weights(dates, "10d").to_list() == [0.5, 1.0]


@pytest.mark.parametrize("role", ["window", "half_life"])
@pytest.mark.parametrize(("span", "says"), [("0d", "too short"), ("soon", "not a duration"), (90, "not a duration")])
def test_a_span_must_be_a_duration(role, span, says):
    with pytest.raises(UsageError, match=says):
        el.Dataset(rows, target="y", time="at", **{role: span})


@pytest.mark.parametrize("role", ["window", "half_life"])
def test_a_span_needs_a_time_column(role):
    with pytest.raises(UsageError, match=rf"{role}='90d' needs a time column"):
        el.Dataset(rows, target="y", **{role: "90d"})


def test_a_window_without_a_time_column_is_refused_by_the_split_too():
    with pytest.raises(UsageError, match="window='90d' needs a time column"):
        split(table(range(10)), window="90d")


def test_a_window_that_leaves_one_class_says_so():
    frame = table(range(100)).with_columns(y=pl.col("x") % 2 == 0)
    split(frame, time="at", target="y")
    with pytest.raises(DataError, match="window='1d' leaves train with a single class"):
        split(frame, time="at", target="y", window="1d")
