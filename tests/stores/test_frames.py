"""pandas frames in all functions that accept frames: the index is kept, and unsupported columns are named."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

import everloop as el
from everloop.data import load_snapshot, take_snapshot
from everloop.errors import DataError, EverloopError, UsageError
from everloop.stores.tables.foreign_frames import read_frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from everloop.stores import Store


def named(index: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": [1.5, 2.5]}, index=index)


INDEXES = {
    "range": (named(None), ["x"]),
    "the same numbers": (named([0, 1]), ["x"]),
    "a name": (named(pd.Index(["a", "b"], name="who")), ["who", "x"]),
    "a named range": (named(pd.RangeIndex(2, name="row")), ["row", "x"]),
    "times": (named(pd.date_range("2020-01-01", periods=2)), ["index", "x"]),
    "text": (named(["mean", "std"]), ["index", "x"]),
    "levels": (named(pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["who", None])), ["who", "level_1", "x"]),
    "filtered and named": (named(pd.Index([7, 3], name="row")), ["row", "x"]),
    "empty": (pd.DataFrame(columns=["x"]), ["x"]),
    "filtered away": (named(None)[lambda frame: frame["x"] > 9], ["x"]),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_becomes_columns_unless_it_only_counts_rows(name: str) -> None:
    given_, expected = INDEXES[name]
    made = read_frame(given_)
    assert made is not None
    assert made.columns == expected
    assert made.rows() == list(given_.reset_index(drop=expected == ["x"]).itertuples(index=False, name=None))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (named([7, 3]), r"index \(7, 3.*reset_index\(drop=True\)"),
        (named(pd.Index([1, 2], name="x")), "index and a column are both called 'x'"),
        (named(pd.Index(["a", "b"], name=3)), "index is called 3, which is not text"),
        (named(pd.MultiIndex.from_tuples([(1, 1), (2, 2)], names=["a", "a"])), "Two levels.*'a'"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "Two columns are called 'a'"),
        (pd.DataFrame([[1, 2]], columns=[0, "0"]), "Two columns are called '0'"),
        (pd.DataFrame([[1]], columns=[np.nan]), "called nan, which is not text"),
        (pd.DataFrame([[1]], columns=[True]), "called True, which is not text"),
        (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), r"called \('a', 'b'\).*several names"),
        (pd.DataFrame({"x": [1, "a"]}), "'x' has values of several types: int, str"),
        (pd.DataFrame({"x": [b"a", "b"]}), "'x' has values of several types: bytes, str"),
        (pd.DataFrame({"x": pd.Series([True, 2], dtype=object)}), "'x' has values of several types: bool, int"),
        (pd.DataFrame({"x": [date(2020, 1, 1), "a"]}), "'x' has values of several types: date, str"),
        (pd.DataFrame({"x": pd.period_range("2020", periods=2, freq="M")}), r"'x' has period.*to_timestamp"),
        (pd.DataFrame({"x": pd.interval_range(0, 2)}), r"'x' has interval.*left"),
        (pd.DataFrame({"x": pd.cut([1, 5], [0, 2, 9])}), r"'x' has interval.*astype\(str\)"),
        (pd.DataFrame({"x": [1 + 2j]}), r"'x' has complex.*real"),
        (pd.DataFrame({"x": pd.Series([1 + 2j, None], dtype=object)}), r"'x' has complex.*real"),
        (pd.DataFrame({"x": np.array([1.5], dtype="longdouble")}), "'x' has .*float64"),
        (pd.DataFrame({"x": [2**70]}), "'x' has the value 1180591620717411303424, which does not fit into 64 bits"),
        (
            pd.DataFrame({"x": pd.Series([-(2**63) - 1, 3], dtype=object)}),
            "the value -9223372036854775809, which does not",
        ),
        (pd.DataFrame({"x": pd.Series([2**53 + 1, 0.5], dtype=object)}), "'x' cannot be stored.*9007199254740993"),
        (pd.DataFrame({"x": [object()]}), "'x' cannot be stored"),
        (pd.DataFrame({"x": [(1, "a")]}), "'x' cannot be stored"),
        (
            pd.DataFrame({"x": pd.Series([pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020")], dtype=object)}),
            "'x' has times with and without a time zone",
        ),
    ],
)
def test_frames_that_cannot_be_converted_are_refused(frame: pd.DataFrame, message: str, store: Store) -> None:
    takers: list[Callable[[], object]] = [lambda: read_frame(frame), lambda: el.read(frame)]
    takers.append(lambda: take_snapshot(frame, "d", store))
    for take in takers:
        with pytest.raises(DataError, match=message):
            take()


def test_all_functions_that_accept_frames_keep_the_index(store: Store, tmp_path: Path) -> None:
    frame = named(pd.Index(["a", "b"], name="who"))
    expected = [("a", 1.5), ("b", 2.5)]
    assert el.read(frame).collect().rows() == expected
    assert load_snapshot(take_snapshot(frame, "d", store), store).collect().rows() == expected
    store.tables.append("t", frame.assign(event_at=pd.Timestamp("2020", tz="UTC")))
    assert store.tables.scan("t").select("who", "x").collect().sort("who").rows() == expected
    with el.start_run("e", store=store) as run:
        kept = run.log_table("t", frame)
        with pytest.raises(UsageError, match=r"index \(7, 3"):
            run.log_table("u", named([7, 3]))
    assert pl.read_parquet(store.objects.path(kept.digest)).rows() == expected


def test_supported_values_are_unchanged() -> None:
    frame = pd.DataFrame(
        {
            "sparse": pd.arrays.SparseArray([0, 7]),
            "wide": pd.Series([2**64 - 1, None], dtype=object),
            "mixed": pd.Series([1, 2.5], dtype=object),
            "hole": pd.array([1, None], dtype="Int64"),
            "nan": [1.0, np.nan],
            "cat": pd.Categorical(["a", None]),
            "money": [Decimal("1.50"), None],
            "day": [date(2020, 1, 1), None],
            "at": pd.to_datetime(["2020-01-01", None]).tz_localize("Europe/Paris"),
            "lists": [[1], None],
            3: [True, False],
        }
    )
    made = read_frame(frame)
    assert made is not None
    paris = made["at"][0]
    assert (paris.replace(tzinfo=None), str(paris.tzinfo)) == (datetime(2020, 1, 1), "Europe/Paris")
    assert made.drop("at").rows() == [
        (0, 2**64 - 1, 1.0, 1, 1.0, "a", Decimal("1.50"), date(2020, 1, 1), [1], True),
        (7, None, 2.5, None, None, None, None, None, None, False),
    ]
    assert (made["wide"].dtype, made["sparse"].dtype, made["cat"].dtype) == (pl.UInt64, pl.Int64, pl.Categorical)
    assert made.columns[-1] == "3"


def test_a_series_is_not_a_table() -> None:
    assert read_frame(pd.Series([1, 2], name="x")) is None
    with pytest.raises(UsageError, match="not a Series"):
        el.read(pd.Series([1, 2], name="x"))


@pytest.mark.parametrize(
    "values",
    [
        [date(2020, 1, 1), datetime(2020, 1, 1, 5)],
        [datetime(2020, 1, 1, 5), date(2020, 1, 1)],
        [None, date(2020, 1, 1), datetime(2020, 1, 1)],
        [date(2020, 1, 1), pd.Timestamp("2020-01-01 05:00")],
    ],
)
def test_dates_and_times_in_one_column_are_refused(values: list[Any]) -> None:
    with pytest.raises(DataError, match="'x'"):
        read_frame(pd.DataFrame({"x": pd.Series(values, dtype=object)}))


plain = st.one_of(
    st.integers(), st.floats(), st.text(max_size=3), st.booleans(), st.none(), st.binary(max_size=3), st.dates(),
    st.datetimes(), st.timedeltas(), st.complex_numbers(), st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.lists(st.integers(0, 9), max_size=2), st.uuids(),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(plain, min_size=1, max_size=3))
def test_objects_are_converted_or_refused_by_name(values: list[Any]) -> None:
    frame = pd.DataFrame({"x": pd.Series(values, dtype=object)})
    try:
        made = read_frame(frame)
    except EverloopError as error:
        assert "'x'" in str(error) or "\"'x'\"" in str(error), error  # noqa: PT017 - both outcomes are right
        return
    assert made is not None
    for kept, value in zip(made["x"], values, strict=True):
        missing = value is None or (isinstance(value, float) and np.isnan(value))
        if missing:
            assert kept is None or np.isnan(kept)
        elif type(value).__name__ == "UUID":
            assert kept == value.bytes
        else:
            assert (list(kept) if isinstance(value, list) else kept) == value
