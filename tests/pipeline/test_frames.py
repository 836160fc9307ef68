"""A frame that a step returns is loaded equal, with its types, index and labels, or is refused with a reason."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes

from everloop.errors import StepOutputError
from everloop.pipeline import Graph, keep_value, load_value, run_graph, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.stores import Store

MOMENTS = ["2026-01-01", "2026-01-02", "2026-01-03"]
PANDAS: dict[str, Callable[[], Any]] = {
    "categories of numbers": lambda: pd.DataFrame({"a": pd.Categorical([1, 2, 1])}),
    "categories of texts": lambda: pd.DataFrame({"a": pd.Categorical(["x", "y", "x"], ["y", "x", "z"], ordered=True)}),
    "categories of dates": lambda: pd.DataFrame({"a": pd.Categorical(pd.to_datetime(MOMENTS))}),
    "categories of ranges": lambda: pd.DataFrame({"a": pd.cut([1, 2, 3], 2)}),
    "sparse": lambda: pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])}),
    "long integers": lambda: pd.DataFrame({"a": [2**70, 1, 2]}),
    "several types": lambda: pd.DataFrame({"a": [1, "x", None]}),
    "objects of one type": lambda: pd.DataFrame({"a": pd.Series(["x", "y", None], dtype=object)}),
    "objects of numbers": lambda: pd.DataFrame({"a": pd.Series([1, 2, 3], dtype=object)}),
    "lists": lambda: pd.DataFrame({"a": [[1], [], None]}),
    "arrays": lambda: pd.DataFrame({"a": [np.array([1]), np.array([2]), np.array([3])]}),
    "dicts": lambda: pd.DataFrame({"a": [{"x": 1}, {"y": 2}, {}]}),
    "dates": lambda: pd.DataFrame({"a": [dt.date(2026, 1, day) for day in (1, 2, 3)]}),
    "decimals": lambda: pd.DataFrame({"a": [decimal.Decimal("1.10"), decimal.Decimal("2"), None]}),
    "bytes": lambda: pd.DataFrame({"a": [b"x", b"y", b"z"]}),
    "complex": lambda: pd.DataFrame({"a": [1j, 2j, 3j]}),
    "half": lambda: pd.DataFrame({"a": np.array([1, 2, 3], dtype="float16")}),
    "other byte order": lambda: pd.DataFrame({"a": np.array([1, 2, 3], dtype=">i4")}),
    "whole": lambda: pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int32"), "b": np.array([1, 2, 3], "uint8")}),
    "truth": lambda: pd.DataFrame({"a": pd.array([True, None, False], dtype="boolean"), "b": [True, False, True]}),
    "texts": lambda: pd.DataFrame({"a": ["x", None, "z"]}),
    "texts of Python": lambda: pd.DataFrame({"a": pd.array(["x", None, "z"], dtype="string[python]")}),
    "texts of Arrow": lambda: pd.DataFrame({"a": pd.array(["x", None, "z"], dtype="string[pyarrow]")}),
    "types of Arrow": lambda: pd.DataFrame({"a": pd.array([1, None, 3], dtype=pd.ArrowDtype(pa.int64()))}),
    "moments in seconds": lambda: pd.DataFrame({"a": np.array(MOMENTS, "datetime64[s]")}),
    "moments": lambda: pd.DataFrame(
        {"a": np.array(MOMENTS, "datetime64[ns]"), "b": np.array(MOMENTS, "datetime64[us]")}
    ),
    "moments with a zone": lambda: pd.DataFrame({"a": pd.to_datetime(MOMENTS).tz_localize("Europe/Paris")}),
    "moments in UTC": lambda: pd.DataFrame({"a": pd.to_datetime(MOMENTS, utc=True)}),
    "moments with an offset": lambda: pd.DataFrame({"a": pd.to_datetime([f"{day}T00:00+02:00" for day in MOMENTS])}),
    "durations": lambda: pd.DataFrame({"a": pd.to_timedelta([1, 2, 3], unit="s")}),
    "periods": lambda: pd.DataFrame({"a": pd.period_range("2026", periods=3, freq="M")}),
    "ranges": lambda: pd.DataFrame({"a": pd.interval_range(0, 3)}),
    "labels of numbers": lambda: pd.DataFrame({0: [1, 2, 3], 1: [4, 5, 6]}),
    "labels of several types": lambda: pd.DataFrame({0: [1, 2, 3], "a": [4, 5, 6]}),
    "labels of dates": lambda: pd.DataFrame([[1, 2, 3]], columns=pd.to_datetime(MOMENTS)),
    "labels in levels": lambda: pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
    "a name of the labels": lambda: pd.DataFrame([[1, 2]], columns=pd.Index(["a", "b"], name="kind")),
    "a label twice": lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "no labels": lambda: pd.DataFrame(index=[1, 2, 3]),
    "nothing": lambda: pd.DataFrame(),
    "an index of texts": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="key")),
    "an index of one name with a column": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "y"], name="a")),
    "an index with a number as name": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.Index([3, 4], name=0)),
    "an index of floats": lambda: pd.DataFrame({"a": [1, 2]}, index=[0.5, 1.5]),
    "an index that steps": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(4, 8, 2, name="n")),
    "an index of days": lambda: pd.DataFrame({"a": [1, 2, 3]}, index=pd.date_range("2026", periods=3)),
    "an index of categories": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.CategoricalIndex(["x", "y"])),
    "an index in levels": lambda: pd.DataFrame(
        {"a": [1, 2]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["p", None])
    ),
    "levels that are not used": lambda: pd.DataFrame(
        {"a": [1, 2, 3]}, index=pd.MultiIndex.from_product([["x", "y", "z"], [1]])
    ).iloc[:2],
    "an index of periods": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.period_range("2026", periods=2, freq="D")),
    "an index of several types": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", 1], dtype=object)),
    "attributes": lambda: with_attributes(pd.DataFrame({"a": [1]})),
}
ARROW: dict[str, Callable[[], Any]] = {
    "numbers": lambda: pa.table({"a": pa.array([1, None], pa.uint16()), "b": pa.array([1.5, None], pa.float32())}),
    "half": lambda: pa.table({"a": pa.array(np.array([1, 2], "float16"))}),
    "dictionary of texts": lambda: pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()}),
    "dictionary of numbers": lambda: pa.table({"a": pa.array([1, 2, 1]).dictionary_encode()}),
    "small dictionary": lambda: pa.table({"a": pa.array(["x"]).cast(pa.dictionary(pa.int8(), pa.string()))}),
    "moments in seconds": lambda: pa.table({"a": pa.array([1, 2], pa.timestamp("s"))}),
    "moments in a zone": lambda: pa.table({"a": pa.array([1, 2], pa.timestamp("us", "+02:00"))}),
    "times": lambda: pa.table({"a": pa.array([1, 2], pa.time32("s")), "b": pa.array([1, 2], pa.time64("ns"))}),
    "dates": lambda: pa.table({"a": pa.array([1, 2], pa.date32()), "b": pa.array([86400000, 0], pa.date64())}),
    "durations": lambda: pa.table({"a": pa.array([1, 2], pa.duration("s"))}),
    "months": lambda: pa.table({"a": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}),
    "decimals": lambda: pa.table({"a": pa.array([decimal.Decimal("1.5")], pa.decimal256(50, 3))}),
    "small decimals": lambda: pa.table({"a": pa.array([decimal.Decimal("1.5")], pa.decimal32(5, 2))}),
    "null": lambda: pa.table({"a": pa.nulls(2)}),
    "views": lambda: pa.table({"a": pa.array(["x"], pa.string_view()), "b": pa.array([b"x"], pa.binary_view())}),
    "large": lambda: pa.table(
        {"a": pa.array(["x"], pa.large_string()), "b": pa.array([[1]], pa.large_list(pa.int8()))}
    ),
    "fixed": lambda: pa.table({"a": pa.array([b"xy"], pa.binary(2)), "b": pa.array([[1, 2]], pa.list_(pa.int8(), 2))}),
    "fixed with nulls": lambda: pa.table({"a": pa.array([[1, 2], None], pa.list_(pa.int8(), 2))}),
    "map": lambda: pa.table({"a": pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int8()))}),
    "struct": lambda: pa.table({"a": pa.array([{"x": 1}, None], pa.struct([("x", pa.int8())]))}),
    "empty struct": lambda: pa.table({"a": pa.array([{}, {}], pa.struct([]))}),
    "union": lambda: pa.table({"a": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}),
    "runs": lambda: pa.table({"a": pa.RunEndEncodedArray.from_arrays([2], [1])}),
    "metadata": lambda: pa.table({"a": [1]}).replace_schema_metadata({"who": "me"}),
    "metadata of a field": lambda: pa.table([[1]], pa.schema([pa.field("a", pa.int64(), metadata={"unit": "m"})])),
    "never null": lambda: pa.table([[1]], pa.schema([pa.field("a", pa.int64(), nullable=False)])),
    "a name twice": lambda: pa.table([[1], [2]], names=["a", "a"]),
    "no columns": lambda: pa.table({}),
    "uuid": lambda: pa.table({"a": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16)))}),
}
POLARS: dict[str, Callable[[], Any]] = {
    "objects": lambda: pl.DataFrame({"a": pl.Series([object], dtype=pl.Object)}),
    "categories": lambda: pl.DataFrame({"a": pl.Series(["x", "y", None], dtype=pl.Categorical)}),
    "enum": lambda: pl.DataFrame({"a": pl.Series(["x", None], dtype=pl.Enum(["y", "x"]))}),
    "long integers": lambda: pl.DataFrame({"a": pl.Series([2**100, None], dtype=pl.Int128)}),
    "decimals": lambda: pl.DataFrame({"a": pl.Series([decimal.Decimal("1.5")], dtype=pl.Decimal(20, 3))}),
    "null": lambda: pl.DataFrame({"a": [None, None]}),
    "array": lambda: pl.DataFrame({"a": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int8, 2))}),
    "empty array": lambda: pl.DataFrame({"a": pl.Series([[], []], dtype=pl.Array(pl.Int8, 0))}),
    "empty struct": lambda: pl.DataFrame({"a": pl.Series([{}, {}], dtype=pl.Struct([]))}),
    "struct": lambda: pl.DataFrame({"a": [{"x": [1], "y": None}]}),
    "moments": lambda: pl.DataFrame({"a": pl.Series([1], dtype=pl.Datetime("ns", "Europe/Paris"))}),
    "durations": lambda: pl.DataFrame({"a": pl.Series([1], dtype=pl.Duration("ms"))}),
    "an empty name": lambda: pl.DataFrame({"": [1]}),
    "nothing": lambda: pl.DataFrame(),
    "no rows": lambda: pl.DataFrame(schema={"a": pl.Categorical, "b": pl.List(pl.Enum(["x"]))}),
}


def with_attributes(frame: pd.DataFrame) -> pd.DataFrame:
    frame.attrs["unit"] = "m"
    return frame


def returned(value: Any, store: Store) -> Any:
    """What comes back of a value, as another step gets it."""

    @step(cache=False)
    def returns() -> Any:
        return value

    return run_graph(Graph.wire([returns]), store).value("returns")


def check(value: Any, back: Any) -> None:
    assert type(back) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(
            value, back, check_exact=True, check_index_type="exact", check_column_type="exact"
        )
        assert back.attrs == value.attrs
        assert [type(label) for label in back.columns] == [type(label) for label in value.columns]
        for name in (name for name in value.columns if value.columns.is_unique and value[name].dtype == object):
            assert list(map(type, back[name])) == list(map(type, value[name]))
    elif isinstance(value, pa.Table):
        assert back.schema.equals(value.schema, check_metadata=True)
        assert repr([one.to_pylist() for one in back.columns]) == repr([one.to_pylist() for one in value.columns])
    else:
        assert_frame_equal(value, back, check_exact=True, categorical_as_str=False)
        assert back.schema == value.schema


@pytest.mark.parametrize("case", PANDAS)
def test_a_pandas_frame_comes_back_equal(store: Store, case: str) -> None:
    value = PANDAS[case]()
    check(value, returned(value, store))


@pytest.mark.parametrize("case", ARROW)
def test_an_arrow_table_comes_back_equal(store: Store, case: str) -> None:
    value = ARROW[case]()
    check(value, returned(value, store))


@pytest.mark.parametrize("case", POLARS)
def test_a_polars_frame_comes_back_equal(store: Store, case: str) -> None:
    value = POLARS[case]()
    try:
        back = returned(value, store)
    except StepOutputError as error:
        assert "'returns' returned a DataFrame that cannot be stored" in str(error)  # noqa: PT017 - one or the other
        return
    if case == "objects":
        assert back["a"].to_list() == value["a"].to_list()
        return
    check(value, back)


def test_simple_frames_are_parquet(store: Store) -> None:
    for case in ("texts", "whole", "truth", "moments", "categories of texts", "an index of texts", "durations"):
        assert keep_value(PANDAS[case](), store.objects).type == "frame", case
    for case in ("enum", "moments", "struct"):
        assert keep_value(POLARS[case](), store.objects).type == "frame", case
    assert keep_value(ARROW["struct"](), store.objects).type == "frame"


def test_a_pickled_frame_is_handed_over_in_the_form_that_is_declared(store: Store) -> None:
    stored = keep_value(pd.DataFrame({"a": pd.Categorical([1, 2])}), store.objects)
    assert stored.type == "pickle"
    assert stored.meta["rows"] == 2
    assert isinstance(load_value(stored, store.objects, pl.DataFrame), pl.DataFrame)
    assert isinstance(load_value(stored, store.objects, pl.LazyFrame), pl.LazyFrame)
    assert isinstance(load_value(stored, store.objects, pa.Table), pa.Table)
    mixed = keep_value(pd.DataFrame({"a": [1, "x"]}), store.objects)
    with pytest.raises(StepOutputError, match=r"cannot become a polars"):
        load_value(mixed, store.objects, pl.DataFrame)


def test_a_lazy_frame_of_odd_types_comes_back_lazy(store: Store) -> None:
    frame = POLARS["array"]().lazy()
    back = returned(frame, store)
    assert isinstance(back, pl.LazyFrame)
    check(frame.collect(), back.collect())


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(frame=dataframes(max_cols=3, max_size=4, allow_null=True, excluded_dtypes=[pl.Object]))
def test_any_polars_frame_comes_back_equal(store: Store, frame: pl.DataFrame) -> None:
    stored = keep_value(frame, store.objects)
    check(frame, load_value(stored, store.objects))


COLUMNS = st.lists(st.sampled_from([*PANDAS]), min_size=1, max_size=3)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases=COLUMNS, label=st.sampled_from(["a", 1, None, ("x", 1), 2.5]), index=st.sampled_from([*PANDAS]))
def test_any_pandas_frame_comes_back_equal(store: Store, cases: list[str], label: Any, index: str) -> None:
    columns = [PANDAS[case]() for case in cases]
    parts = [one.iloc[:, 0].reset_index(drop=True).iloc[:2] for one in columns if one.shape[1] and len(one) > 1]
    frame = pd.concat(parts, axis=1) if parts else pd.DataFrame({"a": [1, 2]})
    frame.columns = pd.Index([f"c{number}" for number in range(frame.shape[1] - 1)] + [label], tupleize_cols=False)
    other = PANDAS[index]().index
    if len(other) == len(frame):
        frame.index = other
    check(frame, load_value(keep_value(frame, store.objects), store.objects))
