import itertools
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import DataError, UsageError
from everloop.replay.replay_history import EVENT, KNOWN, build_history, thin

START = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def table(rows=200):
    return pl.DataFrame(
        {
            "at": [START + index * HOUR for index in range(rows)],
            "x": [float(index % 7) for index in range(rows)],
            "y": [index % 2 for index in range(rows)],
        }
    )


def of(frame, **options):
    return build_history(frame, target="y", time="at", **options)


@given(hours=st.integers(-10, 300), delay=st.integers(0, 100), window=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_nothing_is_known_before_its_event_and_label(hours, delay, window):
    history = of(table(), labels_after=delay * HOUR)
    now = START + hours * HOUR
    known = history.known_at(now, window=window * HOUR)
    # A row of this very moment is still to be answered, so its label is not known, even without a delay.
    labelled = range(min(200, hours if delay == 0 else hours - delay + 1))
    expected = [index for index in labelled if START + index * HOUR > now - window * HOUR]
    assert known["at"].to_list() == [START + index * HOUR for index in expected]


@given(hours=st.integers(0, 220), delay=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_a_poisoned_future_changes_nothing_that_is_known(hours, delay):
    now = START + hours * HOUR
    frame = table()
    # Every value that lies after the present changes; whether a label has arrived follows from its time.
    poisoned = frame.with_columns(
        pl.when(pl.col("at") > now).then(-99.0).otherwise(pl.col("x")).alias("x"),
        pl.when(pl.col("at") + pl.duration(hours=delay) > now).then(77).otherwise(pl.col("y")).alias("y"),
    )
    options = {"labels_after": delay * HOUR}
    before, after = of(frame, **options), of(poisoned, **options)
    for choice in ({}, {"window": 30 * HOUR}, {"most": 20}):
        assert before.known_at(now, **choice).equals(after.known_at(now, **choice))


@given(cuts=st.lists(st.integers(0, 320), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_every_label_is_delivered_exactly_once(cuts):
    history = of(table(), labels_after=100 * HOUR)
    moments = [START - HOUR, *(START + cut * HOUR for cut in sorted(cuts)), START + 400 * HOUR]
    parts = [history.labels_between(since, until) for since, until in itertools.pairwise(moments)]
    delivered = pl.concat(parts)
    assert delivered.height == 200
    assert delivered.n_unique() == 200


def test_an_arrival_column_decides_when_a_label_is_known():
    frame = table().with_columns((pl.col("at") + pl.duration(hours=5)).alias("seen"))
    history = of(frame, arrival="seen")
    assert (history.table[KNOWN] - history.table[EVENT]).unique().to_list() == [5 * 3600 * 1_000_000]


def test_a_row_without_a_label_is_a_request_whose_label_never_comes():
    frame = table().with_columns(pl.when(pl.col("x") == 3).then(None).otherwise(pl.col("y")).alias("y"))
    history = of(frame)
    assert history.known_at(START + 1000 * HOUR).height == 200 - frame["y"].null_count()
    assert history.between(START, START + 1000 * HOUR) == (0, 200)


def test_a_limit_keeps_a_random_sample_of_the_same_rows():
    history = of(table(5_000))
    now = START + 5_000 * HOUR
    kept = history.known_at(now, most=500)
    assert kept.height == 500
    assert kept.equals(history.known_at(now, most=500))
    middle = kept.filter(pl.col("at") < START + 2_500 * HOUR).height
    assert 180 < middle < 320


def test_thinning_keeps_the_same_rows_of_each_period():
    thinned = thin(of(table(240)), 10, 24 * HOUR)
    days = thinned.table.group_by(pl.col("at").dt.date()).len()
    assert set(days["len"]) == {10}
    assert thinned.table.equals(thin(of(table(240)), 10, 24 * HOUR).table)


def test_dates_count_as_their_midnight():
    frame = table(120).with_columns(pl.Series("at", [date(2020, 1, 1) + timedelta(days=i) for i in range(120)]))
    assert of(frame).between(START, START + timedelta(days=2)) == (0, 2)


@pytest.mark.parametrize(
    ("change", "options", "error", "named"),
    [
        (lambda f: f.rename({"at": "then"}), {}, DataError, "'at'"),
        (lambda f: f.with_columns(pl.lit(1).alias("at")), {}, DataError, "not dates or times"),
        (lambda f: f.head(5), {}, DataError, "5 rows"),
        (lambda f: f.with_columns(pl.lit(None, dtype=pl.Datetime("us", "UTC")).alias("at")), {}, DataError, "no time"),
        (lambda f: f, {"labels_after": -HOUR}, UsageError, "before their events"),
        (lambda f: f, {"key": "nope"}, DataError, "'nope'"),
    ],
)
def test_bad_tables_are_refused_by_name(change, options, error, named):
    with pytest.raises(error, match=named):
        of(change(table()), **options)
