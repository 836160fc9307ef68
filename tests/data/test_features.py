"""Point-in-time joins are compared with a reference that looks at every row, and never see the future."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from polars.testing import assert_frame_equal

from everloop.data.features import FeatureView, Window, join_features
from everloop.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

START = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = {"who": pl.String, "event": pl.Int64, "late": pl.Int64, "x": pl.Float64}


def hours(number: int) -> datetime:
    return START + timedelta(hours=number)


facts = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 30),
        st.integers(-3, 12),
        st.none() | st.integers(-50, 50).map(float),
    ),
    max_size=25,
)
questions = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 45)), min_size=1, max_size=15)


def fact_frame(rows: list[tuple[str, int, int, float | None]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    at = pl.lit(START) + pl.duration(hours="event")
    return frame.select("who", at.alias("event"), (at + pl.duration(hours="late")).alias("arrived"), "x")


def question_frame(rows: list[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame({"who": [who for who, _ in rows], "at": [hours(at) for _, at in rows]})


def known(frame: pl.DataFrame, who: str, at: datetime) -> list[dict[str, Any]]:
    return [row for row in frame.to_dicts() if row["who"] == who and row["event"] <= at and row["arrived"] <= at]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(facts, questions, st.sampled_from([None, 1, 5, 100]))
def test_the_join_is_the_naive_one(
    rows: list[tuple[str, int, int, float | None]], asked: list[tuple[str, int]], ttl: int | None
) -> None:
    # If two rows of one event arrive together, it is undefined which one is right.
    rows = list({(who, event, late): (who, event, late, x) for who, event, late, x in rows}.values())
    frame, table = fact_frame(rows), question_frame(asked)
    view = FeatureView("v", frame, entity="who", time="event", arrival="arrived", ttl=ttl and f"{ttl}h")
    expected = []
    for who, at in asked:
        candidates = known(frame, who, hours(at))
        best = max(candidates, key=lambda row: (row["event"], row["arrived"]), default=None)
        fresh = best is not None and (ttl is None or best["event"] >= hours(at) - timedelta(hours=ttl))
        expected.append(best["x"] if best is not None and fresh else None)
    assert join_features(table, [view], time="at")["x"].to_list() == expected


def is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def compare(got: dict[str, Any], inside: NDArray[np.float64]) -> None:
    """A window is compared with NumPy on the rows of this window alone."""
    size = len(inside)
    assert (got["n"] or 0) == size
    with np.errstate(all="ignore"):
        total, mean = inside.sum(), inside.mean() if size else None
        spread = inside.std(ddof=1) if size > 1 else None
    scale = float(np.abs(inside[np.isfinite(inside)]).sum()) if size else 0.0
    assert (got["total"] is None and not size) or got["total"] == pytest.approx(total, abs=1e-14 * scale, nan_ok=True)
    if mean is None:
        assert got["mean"] is None
    else:
        assert got["mean"] == pytest.approx(mean, abs=1e-14 * scale, nan_ok=True)
    if spread is None:
        assert got["spread"] is None
    else:
        assert got["spread"] == pytest.approx(spread, rel=1e-9, abs=1e-14 * scale, nan_ok=True)


wild = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.integers(0, 12),
        st.integers(0, 4),
        st.one_of(
            st.none(),
            st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e9, -1e15, 1e-9, -0.0]),
            st.floats(-1, 1).map(lambda x: 1e9 + x),
            st.floats(-1, 1),
        ),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(facts, questions, st.sampled_from([1, 6, 24]))
def test_windows_are_the_naive_ones(
    rows: list[tuple[str, int, int, float | None]], asked: list[tuple[str, int]], length: int
) -> None:
    check_windows(rows, asked, length)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(wild, st.integers(1, 8))
def test_a_window_knows_its_own_rows_only(rows: list[tuple[str, int, int, float | None]], length: int) -> None:
    check_windows(rows, [(who, at) for who in "ab" for at in range(0, 18, 2)], length)


def check_windows(rows: list[tuple[str, int, int, float | None]], asked: list[tuple[str, int]], length: int) -> None:
    frame, table = fact_frame(rows), question_frame(asked)
    window = Window(f"{length}h", n=("x", "count"), total=("x", "sum"), mean=("x", "mean"), spread=("x", "std"))
    view = FeatureView("v", frame, entity="who", time="event", arrival="arrived", windows=[window])
    made = join_features(table, [view], time="at")
    for (who, at), got in zip(asked, made.to_dicts(), strict=True):
        rows_inside = [
            row for row in known(frame, who, hours(at)) if row["event"] > hours(at) - timedelta(hours=length)
        ]
        newest: dict[datetime, datetime] = {}
        for row in rows_inside:
            newest[row["event"]] = max(row["arrived"], newest.get(row["event"], row["arrived"]))
        # Of an event only what arrived last: before it was corrected, it was wrong.
        inside = [row["x"] for row in rows_inside if row["arrived"] == newest[row["event"]] and is_number(row["x"])]
        compare(got, np.array(inside, dtype=float))


def test_a_window_forgets_what_has_left_it() -> None:
    values = [0.0, 0.1, 0.2, 1e9, 0.0, 0.1, 0.2, float("inf"), 0.0, 0.1, 0.2, 1e300, 0.0, 0.1, 0.2]
    frame = pl.DataFrame({"who": ["a"] * 15 + ["b"] * 15, "t": [hours(n) for n in range(15)] * 2,
                          "x": [*values, *([1e18] * 15)]})  # fmt: skip
    window = Window("3h", n=("x", "count"), total=("x", "sum"), mean=("x", "mean"), spread=("x", "std"))
    view = FeatureView("v", frame, entity="who", time="t", windows=[window])
    table = pl.DataFrame({"who": ["a"] * 4, "at": [hours(n) for n in (2, 6, 10, 14)]})
    made = join_features(table, [view], time="at")
    assert made["total"].to_list() == [pytest.approx(0.3, rel=1e-15)] * 4
    assert made["spread"].to_list() == [pytest.approx(0.1, rel=1e-14)] * 4


@pytest.mark.slow
@given(facts, questions)
@settings(max_examples=60, deadline=None)
def test_what_arrives_later_changes_nothing(
    rows: list[tuple[str, int, int, float | None]], asked: list[tuple[str, int]]
) -> None:
    frame, table = fact_frame(rows), question_frame(asked)
    last = table["at"].max()
    later = frame.with_columns(arrived=pl.lit(last) + pl.duration(seconds=1), x=pl.lit(1e9))

    def joined(facts: pl.DataFrame) -> pl.DataFrame:
        view = FeatureView("v", facts, entity="who", time="event", arrival="arrived")
        wide = FeatureView(
            "w", facts, entity="who", time="event", arrival="arrived", windows=[Window("9h", m=("x", "sum"))]
        )
        return join_features(table, [view, wide], time="at")

    seen = frame.filter(pl.col("arrived") <= last)
    assert_frame_equal(joined(seen), joined(pl.concat([seen, later])), abs_tol=1e-6)


def test_of_rows_that_arrive_at_once_the_last_counts() -> None:
    # One that arrives later stands between them: enough for a sort that is not stable to mix them.
    rows: list[tuple[str, int, int, float | None]] = [*[("a", 0, 0, float(n)) for n in range(9)], ("a", 0, 1, 99.0)]
    rows.append(("a", 0, 0, 10.0))
    table = question_frame([("a", 0), ("a", 1)])
    for facts in (fact_frame(rows), fact_frame([*rows, *[("a", 0, 2, 1e9)] * len(rows)])):
        view = FeatureView("v", facts, entity="who", time="event", arrival="arrived")
        assert join_features(table, [view], time="at")["x"].to_list() == [10.0, 99.0]


def test_several_keys_and_views_and_a_delay() -> None:
    table = pl.DataFrame({"a": [1, 1, 2], "b": ["x", "y", "x"], "at": [hours(5)] * 3})
    pairs = pl.DataFrame({"a": [1, 1, 1], "b": ["x", "y", "x"], "t": [hours(1), hours(2), hours(5)], "p": [1, 2, 3]})
    singles = pl.DataFrame({"a": [2], "t": [hours(0)], "q": ["two"]})
    views = [
        FeatureView("p", pairs, entity=["a", "b"], time="t"),
        FeatureView("q", lambda: singles, entity="a", time="t"),
    ]
    assert join_features(table, views, time="at").select("p", "q").rows() == [(3, None), (2, None), (None, "two")]
    assert join_features(table, views, time="at", delay="1h")["p"].to_list() == [1, 2, None]


def test_an_empty_view_gives_nulls() -> None:
    nothing = pl.DataFrame(schema={"who": pl.String, "t": pl.Datetime("us", "UTC"), "x": pl.Float64})
    view = FeatureView("v", nothing, entity="who", time="t")
    assert join_features(question_frame([("a", 1)]), [view], time="at")["x"].to_list() == [None]


def refused(**columns: Any) -> FeatureView:
    return FeatureView("v", pl.DataFrame(columns), entity="who", time="t")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (FeatureView("v", pl.DataFrame({"w": ["a"], "t": [hours(0)]}), entity="w", time="t"), "no column 'w'"),
        (refused(who=[1], t=[hours(0)], x=[1]), "is String in"),
        (refused(who=["a"], t=pl.Series([None], dtype=pl.Datetime), x=[1]), "'t' is null in 1"),
        (refused(who=["a"], t=[hours(0)], at=[1]), "already have a column 'at'"),
        (refused(who=["a"], t=["noon"], x=[1]), "is string, but must contain times"),
    ],
)
def test_bad_data_is_named(view: FeatureView, message: str) -> None:
    with pytest.raises(DataError, match=message):
        join_features(question_frame([("a", 1)]), [view], time="at")


@pytest.mark.parametrize(("x", "message"), [("1", "numbers and booleans"), (2**53 + 1, "9007199254740993")])
def test_windows_take_numbers_that_float64_holds(x: object, message: str) -> None:
    frame = pl.DataFrame({"who": ["a"], "t": [hours(0)], "x": [x]})
    view = FeatureView("v", frame, entity="who", time="t", windows=[Window("1d", m=("x", "mean"))])
    with pytest.raises(DataError, match=message):
        join_features(question_frame([("a", 1)]), [view], time="at")


def test_bad_declarations_are_named() -> None:
    with pytest.raises(UsageError, match="'x' has two roles"):
        FeatureView("v", None, entity="x", time="x")
    with pytest.raises(UsageError, match=r"cannot be called '\.\./v'"):
        FeatureView("../v", None, entity="x", time="t")
    with pytest.raises(UsageError, match="a window is"):
        Window("1d", m=("x", "median"))  # type: ignore[arg-type]
    misnamed = FeatureView("v", pl.DataFrame({"who": ["a"], "t": [hours(0)]}), entity="who", time="tt")
    with pytest.raises(UsageError, match="no column 'tt'"):
        join_features(question_frame([("a", 1)]), [misnamed], time="at")
