"""For every type, serving returns the value and type of the join, or the view is refused by name."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from polars.testing import assert_frame_equal
from polars.testing.parametric import dtypes, series

from everloop.data.features import (
    FeatureView,
    OnDemand,
    OnlineLookup,
    Window,
    join_features,
    load_view,
    materialize,
    open_online,
)
from everloop.data.features.entity_keys import as_series
from everloop.data.features.feature_types import read_type, write_type
from everloop.errors import DataError, UsageError
from everloop.stores import open_store

if TYPE_CHECKING:
    from everloop.stores import Store

START = datetime(2013, 1, 1, tzinfo=UTC)


def identical(left: Any, right: Any) -> bool:
    """Equal in value and type; NaN is NaN, and -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (
            left == right and math.copysign(1, left) == math.copysign(1, right)
        )
    if isinstance(left, list):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(identical(left[name], right[name]) for name in left)
    if isinstance(left, datetime):
        return bool(left == right and left.tzinfo == right.tzinfo and left.utcoffset() == right.utcoffset())
    return bool(left == right)


def answers(
    store: Store, path: Path, view: FeatureView, keys: list[Any]
) -> tuple[pl.DataFrame, pl.DataFrame, list[Any]]:
    """The results of the join with the source, of the join with the table, and of serving."""
    clock = store.simulate(START + timedelta(days=1))
    online = open_online(path)
    try:
        materialize(store, view, online=online)
        lookup = OnlineLookup(store, online, [view.name])
        asked = pl.DataFrame({"key": keys, "asked_at": [clock.now()] * len(keys)})
        joined = join_features(asked, [view], time="asked_at").drop("asked_at", "key")
        kept = join_features(asked, [load_view(store, view.name)], time="asked_at").drop("asked_at", "key")
        return joined, kept, [lookup.get({"key": key}) for key in keys]
    finally:
        online.close()


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """Rows of up to four features, each of any type that Polars has, nested or not."""
    size = draw(st.integers(1, 4))
    kinds = draw(st.lists(dtypes(excluded_dtypes=[pl.Object, pl.Unknown]), min_size=1, max_size=4))
    columns = [
        draw(series(name=f"f{place}", dtype=kind, min_size=size, max_size=size, allow_null=True))
        for place, kind in enumerate(kinds)
    ]
    return pl.DataFrame([pl.Series("key", range(size), dtype=pl.Int32), *columns]).with_columns(t=pl.lit(START))


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(tables())
def test_serving_answers_as_the_join_or_refuses_by_name(tmp_path: Path, table: pl.DataFrame) -> None:
    view = FeatureView("v", table, entity="key", time="t")
    with open_store(tmp_path / uuid4().hex) as store:
        try:
            joined, kept, online = answers(store, tmp_path / f"{uuid4().hex}.db", view, table["key"].to_list())
        except DataError as error:
            # The reason names the column, or this is a failure.
            if not any(f"'{name}' of 'v'" in str(error) for name in table.columns):
                raise
            return
    assert_frame_equal(joined, table.drop("key", "t"))
    assert_frame_equal(kept, joined, categorical_as_str=True)
    assert kept.schema == joined.schema
    for expected, answer in zip(joined.rows(named=True), online, strict=True):
        assert identical(answer, expected), (answer, expected)


def test_every_type_is_answered_as_it_is(store: Store, tmp_path: Path, every_type: dict[str, pl.Series]) -> None:
    table = pl.DataFrame([values.alias(name) for name, values in every_type.items()])
    view = FeatureView("v", table.with_columns(key=pl.Series([1, 2, 3]), t=pl.lit(START)), entity="key", time="t")
    joined, kept, online = answers(store, tmp_path / "online.db", view, [1, 2, 3])
    assert_frame_equal(joined, table)
    assert_frame_equal(kept, joined)
    for expected, answer in zip(joined.rows(named=True), online, strict=True):
        for name, value in expected.items():
            assert identical(answer[name], value), name
    assert materialize(store, view).added == 0, "each row is the same as it was kept"
    for dtype in table.dtypes:
        assert read_type(write_type(dtype)) == dtype
    assert read_type("enum") is None, "as it was written before its categories were"


REFUSED = {
    "nanoseconds": (pl.Series([1]).cast(pl.Datetime("ns")), "finer than a microsecond"),
    "a time of day in nanoseconds": (pl.Series([1]).cast(pl.Time), "finer than a microsecond"),
    "nanoseconds in lists": (pl.Series([[1]]).cast(pl.List(pl.Duration("ns"))), "finer than a microsecond"),
    "a far year": (pl.Series([2**50]).cast(pl.Datetime("ms")), "years 1 to 9999"),
    "a long time": (pl.Series([2**62]).cast(pl.Duration("ms")), "999999999 days"),
    "objects": (pl.Series([object()], dtype=pl.Object), "feature views do not support"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_serving_could_not_give_back_is_refused_by_name(store: Store, name: str) -> None:
    values, message = REFUSED[name]
    rows = pl.DataFrame([pl.Series("key", [1]), pl.Series("t", [START]), values.alias("odd")])
    with pytest.raises(DataError, match=rf"'odd' of 'v'.*{message}"):
        materialize(store, FeatureView("v", rows, entity="key", time="t"))
    assert not store.tables.names("features@v"), "nothing was kept"
    if name == "objects":
        with pytest.raises(DataError, match="'odd' of 'v'"):
            join_features(
                pl.DataFrame({"key": [1], "at": [START]}), [FeatureView("v", rows, entity="key", time="t")], time="at"
            )


ENTITIES: dict[str, tuple[pl.Series, list[Any]]] = {
    "int8": (pl.Series([7], dtype=pl.Int8), [7, np.int64(7), np.uint8(7), np.int16(7)]),
    "uint64": (pl.Series([2**64 - 1], dtype=pl.UInt64), [2**64 - 1, np.uint64(2**64 - 1)]),
    "int64": (pl.Series([-7]), [-7, np.int8(-7)]),
    "text": (pl.Series(["a"]), ["a", np.str_("a")]),
    "categorical": (pl.Series(["a"], dtype=pl.Categorical), ["a"]),
    "enum": (pl.Series(["a"], dtype=pl.Enum(["a", "b"])), ["a"]),
    "bool": (pl.Series([True]), [True, np.bool_(True)]),
    "date": (pl.Series([date(2013, 1, 2)]), [date(2013, 1, 2), np.datetime64("2013-01-02", "D")]),
    "naive": (
        pl.Series([datetime(2013, 1, 2)], dtype=pl.Datetime("ms")),
        [datetime(2013, 1, 2), np.datetime64("2013-01-02", "ns")],
    ),
    "zone": (
        pl.Series([START]).dt.convert_time_zone("Asia/Tokyo"),
        [START, START.astimezone(ZoneInfo("Europe/Paris"))],
    ),
    "decimal": (pl.Series([Decimal("1.50")]), [Decimal("1.50"), Decimal("1.5"), Decimal("1.500")]),
    "duration": (
        pl.Series([timedelta(hours=1)], dtype=pl.Duration("ms")),
        [timedelta(hours=1), np.timedelta64(1, "h")],
    ),
    "float": (pl.Series([-0.0]), [0.0, -0.0, np.float64(0.0)]),
    "bytes": (pl.Series([b"a"]), [b"a", np.bytes_(b"a")]),
}


@pytest.mark.parametrize("name", ENTITIES)
def test_an_entity_is_found_however_it_is_held(store: Store, tmp_path: Path, name: str) -> None:
    key, asked = ENTITIES[name]
    view = FeatureView("v", pl.DataFrame({"key": key, "t": [START], "x": [1]}), entity="key", time="t")
    online = open_online(tmp_path / "online.db")
    materialize(store, view, online=online)
    lookup = OnlineLookup(store, online, ["v"])
    for value in asked:
        assert lookup.get({"key": value}) == {"x": 1}, value
        rows = pl.DataFrame({"key": as_series(value), "at": [START]})
        for each in (view, load_view(store, "v")):
            assert join_features(rows, [each], time="at")["x"].to_list() == [1], value
    assert lookup.get({"key": None}) == {"x": None}
    online.close()


@pytest.mark.parametrize("left", [pl.Int8, pl.Int32, pl.Int64, pl.UInt8, pl.UInt32, pl.UInt64, pl.Int128])
@pytest.mark.parametrize("right", [pl.Int16, pl.UInt16, pl.UInt64, pl.Int64])
def test_entities_match_across_widths(left: Any, right: Any) -> None:
    facts = pl.DataFrame({"key": pl.Series([1, 100], dtype=right), "t": [START] * 2, "x": ["a", "b"]})
    rows = pl.DataFrame({"key": pl.Series([100, 2, None], dtype=left), "at": [START] * 3})
    made = join_features(rows, [FeatureView("v", facts, entity="key", time="t")], time="at")
    assert made["x"].to_list() == ["b", None, None]
    assert made["key"].dtype == left, "the rows stay as they are"


def test_numbers_and_text_match_where_the_view_says_so(store: Store, tmp_path: Path) -> None:
    facts = pl.DataFrame({"key": [7, 8], "t": [START] * 2, "x": ["a", "b"]})
    strict = FeatureView("strict", facts, entity="key", time="t")
    lax = FeatureView("lax", facts.rename({"x": "y"}), entity="key", time="t", entity_as_text=True)
    online = open_online(tmp_path / "online.db")
    for view in (strict, lax):
        materialize(store, view, online=online)
    rows = pl.DataFrame({"key": ["8", "08"], "at": [START] * 2})
    for each in (lax, load_view(store, "lax")):
        assert join_features(rows, [each], time="at")["y"].to_list() == ["b", None]
    lookup = OnlineLookup(store, online, ["lax"])
    assert [lookup.get({"key": key})["y"] for key in ("7", 7, np.int8(7), "007")] == ["a", "a", "a", None]
    with pytest.raises(DataError, match="entity_as_text"):
        join_features(rows, [strict], time="at")
    for wrong in ("7", 7.0, True, b"7"):
        with pytest.raises(UsageError, match=r"'key' is .* but the entity of the feature view 'strict' is int64"):
            OnlineLookup(store, online, ["strict"]).get({"key": wrong})
    floats = FeatureView(
        "f", pl.DataFrame({"key": [7.0], "t": [START], "x": [1]}), entity="key", time="t", entity_as_text=True
    )
    with pytest.raises(DataError, match="compared as text"):
        materialize(store, floats)
    online.close()


def test_our_names_are_not_a_users(store: Store, tmp_path: Path) -> None:
    store.simulate(START)
    facts = pl.DataFrame(
        {"known_at": ["a"], "t": [START], "event_at": [1], "arrived_at": [2], "__at": [3], "__entity": [4]}
    )
    latest = FeatureView("latest", facts, entity="known_at", time="t")
    window = Window("1d", Event_At=("event_at", "sum"), __count=("arrived_at", "count"))
    windowed = FeatureView("windowed", facts, entity="known_at", time="t", windows=[window])
    online = open_online(tmp_path / "online.db")
    for view in (latest, windowed):
        materialize(store, view, online=online)
    expected = {"event_at": 1, "arrived_at": 2, "__at": 3, "__entity": 4, "Event_At": 1.0, "__count": 1}
    assert OnlineLookup(store, online, ["latest", "windowed"]).get({"known_at": "a"}) == expected
    rows = pl.DataFrame({"known_at": ["a"], "when": [START]})
    for views in ([latest, windowed], [load_view(store, "latest"), load_view(store, "windowed")]):
        assert join_features(rows, views, time="when").drop("known_at", "when").row(0, named=True) == expected
    online.close()
    with pytest.raises(UsageError, match=r"'__everloop_x'.*reserved"):
        FeatureView("v", None, entity="__everloop_x", time="t")
    with pytest.raises(UsageError, match=r"'__everloop_x'.*reserved"):
        join_features(
            rows, [FeatureView("v", facts.rename({"__at": "__everloop_x"}), entity="known_at", time="t")], time="when"
        )
    with pytest.raises(UsageError, match=r"'x' and 'X' .*differ only by case"):
        materialize(store, FeatureView("v", facts.select("t", k="__at", x="__at", X="__at"), entity="k", time="t"))


def test_one_name_twice_is_refused_online_as_in_the_join(store: Store, tmp_path: Path) -> None:
    facts = pl.DataFrame({"key": [1], "t": [START], "x": [1]})
    views = [FeatureView(name, facts, entity="key", time="t") for name in ("one", "two")]
    online = open_online(tmp_path / "online.db")
    for view in views:
        materialize(store, view, online=online)
    with pytest.raises(DataError, match="'x'"):
        join_features(pl.DataFrame({"key": [1], "at": [START]}), views, time="at")
    with pytest.raises(DataError, match="'one@1' and 'two@1' both have a feature 'x'"):
        OnlineLookup(store, online, ["one", "two"])
    again = OnDemand("again", lambda rows: pl.col("x").alias("x"), inputs={"x": pl.Int64})
    with pytest.raises(DataError, match="'x'"):
        OnlineLookup(store, online, ["one", again]).get({"key": 1})
    with pytest.raises(UsageError, match="The request contains 'x'"):
        OnlineLookup(store, online, ["one"]).get({"key": 1}, {"x": 3})
    twice = OnDemand("twice", lambda rows: (pl.col("x") * 2).alias("y"), inputs={"x": pl.Float64})
    thrice = OnDemand(
        "thrice", lambda rows: (pl.col("y") + pl.col("x")).alias("z"), inputs={"x": pl.Int8, "y": pl.Int64}
    )
    joined = join_features(pl.DataFrame({"key": [1], "at": [START]}), [views[0], twice, thrice], time="at")
    assert OnlineLookup(store, online, ["one", twice, thrice]).get({"key": 1}) == joined.drop("key", "at").row(
        0, named=True
    )
    online.close()
