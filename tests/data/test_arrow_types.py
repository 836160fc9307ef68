"""Every Arrow type is read back unchanged from a snapshot, or is refused by name."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.data import load_snapshot, take_snapshot
from everloop.errors import DataError

if TYPE_CHECKING:
    from everloop.stores import Store

WHOLE = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
moments = st.datetimes(datetime(1700, 1, 1), datetime(2250, 1, 1))
seconds = moments.map(lambda moment: moment.replace(microsecond=0))
millis = moments.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))
lengths = st.integers(-(10**9), 10**9)
days = st.dates(date(1700, 1, 1), date(2250, 1, 1))
times = st.times()
texts = st.text(st.characters(codec="utf-8"), max_size=8)
decimals = st.decimals(-999, 999, places=2, allow_nan=False, allow_infinity=False)
numbers = st.integers(-100, 100)

# Arrow type to the values that it can hold, as Python has them.
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    *((getattr(pa, name)(), st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)) for name, bits in WHOLE.items()),
    *((getattr(pa, f"u{name}")(), st.integers(0, 2**bits - 1)) for name, bits in WHOLE.items()),
    (pa.float16(), st.floats(width=16, allow_nan=False)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.decimal32(5, 2), decimals),
    (pa.decimal64(10, 2), decimals),
    (pa.decimal128(38, 2), decimals),
    (pa.decimal256(50, 2), decimals),
    (pa.decimal128(5, -2), numbers.map(lambda number: Decimal(number * 100))),
    *((kind, texts) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((kind, st.binary(max_size=8)) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.date32(), days),
    (pa.date64(), days.map(lambda day: datetime(day.year, day.month, day.day))),
    (pa.time32("s"), times.map(lambda moment: moment.replace(microsecond=0))),
    (pa.time32("ms"), times.map(lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000))),
    (pa.time64("us"), times),
    (pa.time64("ns"), times),
    (pa.timestamp("s"), seconds),
    (pa.timestamp("ms"), millis),
    (pa.timestamp("us"), moments),
    (pa.timestamp("ns"), moments),
    (pa.timestamp("us", "UTC"), moments.map(lambda moment: moment.replace(tzinfo=UTC))),
    (pa.timestamp("ms", "Europe/Berlin"), millis.map(lambda moment: moment.replace(tzinfo=UTC))),
    (pa.duration("s"), lengths.map(lambda length: timedelta(seconds=length))),
    (pa.duration("ms"), lengths.map(lambda length: timedelta(milliseconds=length))),
    (pa.duration("us"), lengths.map(lambda length: timedelta(microseconds=length))),
    (pa.duration("ns"), lengths.map(lambda length: timedelta(microseconds=length))),
    *(
        (kind, st.lists(st.none() | numbers, max_size=3))
        for kind in (
            pa.list_(pa.int64()),
            pa.large_list(pa.int64()),
            pa.list_view(pa.int64()),
            pa.large_list_view(pa.int64()),
        )
    ),
    (pa.list_(pa.list_view(pa.string_view())), st.lists(st.none() | st.lists(texts, max_size=2), max_size=2)),
    (pa.list_(pa.int64(), 2), st.lists(numbers, min_size=2, max_size=2)),
    (
        pa.struct([("x", pa.int8()), ("y", pa.list_(pa.date32()))]),
        st.fixed_dictionaries({"x": numbers, "y": st.lists(days, max_size=2)}),
    ),
    (pa.map_(pa.string(), pa.int64()), st.dictionaries(texts, numbers, max_size=3).map(lambda one: list(one.items()))),
    (pa.dictionary(pa.int32(), pa.string()), texts),
    (pa.dictionary(pa.int8(), pa.int64()), numbers),
    (pa.uuid(), st.binary(min_size=16, max_size=16)),
]


def plain(value: Any) -> Any:
    """As Python values, so that two Arrow types with equal values are equal."""
    import polars as pl

    if isinstance(value, pl.Series):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


@pytest.mark.parametrize(("kind", "values"), TYPES, ids=[str(kind) for kind, _ in TYPES])
def test_what_comes_out_is_what_went_in(store: Store, kind: pa.DataType, values: st.SearchStrategy[Any]) -> None:
    @given(st.lists(st.none() | values, min_size=1, max_size=8))
    @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(items: list[Any]) -> None:
        table = pa.table({"column": _array(items, kind)})
        snapshot = take_snapshot(table, "any", store)
        found = load_snapshot(snapshot, store).collect()
        expected = [list(map(list, item)) if isinstance(kind, pa.MapType) and item else item for item in items]
        assert plain(found.to_arrow().column("column").to_pylist()) == plain(expected)
        assert take_snapshot(found, "any", store) == snapshot

    check()


def _array(items: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(items, kind.storage_type))
    return pa.array(items, kind)


def test_nulls_runs_and_nan(store: Store) -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", None]))
    table = pa.table({"null": pa.nulls(3), "runs": runs, "nan": [float("nan"), None, math.inf], "flag": _flags()})
    found = load_snapshot(take_snapshot(table, "special", store), store).collect()
    assert found["null"].to_list() == [None] * 3
    assert found["runs"].to_list() == ["a", "a", None]
    assert math.isnan(found["nan"][0])
    assert found["nan"].to_list()[1:] == [None, math.inf]
    assert found["flag"].to_list() == [1, 0, None]


def _flags() -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, None], pa.int8()))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), "'column' has the type month_day_nano_interval"),
        (
            pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])]),
            "'column' has the type sparse_union",
        ),
        (
            pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]),
            "'column' has the type dense_union",
        ),
        (pa.array([Decimal(10) ** 45], pa.decimal256(50, 0)), "has values that do not fit"),
        (pa.array([[Decimal(100)]], pa.list_(pa.decimal128(38, -2))), "at most 38 digits"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(store: Store, array: pa.Array, said: str) -> None:
    with pytest.raises(DataError, match=said):
        take_snapshot(pa.table({"column": array}), "any", store)


def test_time_of_day_is_kept_to_the_nanosecond(store: Store) -> None:
    table = pa.table({"t": pa.array([time(23, 59, 59, 999_999)], pa.time64("ns"))})
    assert load_snapshot(take_snapshot(table, "t", store), store).collect()["t"].to_list() == [time(23, 59, 59, 999999)]
