"""Columns of a window: shares of rows that break the contract, whatever the rows look like."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, strategies as st

from everloop.data.contracts.contract import describe_columns
from everloop.monitoring.quality.column_quality import (
    RowShare,
    compare_constants,
    compare_schema,
    compare_share,
    constant_columns,
    live_contract,
    measure_columns,
    measure_repeats,
)
from everloop.records import Contract

CREATED = datetime(2024, 1, 1, tzinfo=UTC)
TRAINING = pl.DataFrame(
    {
        "distance": [float(100 + number) for number in range(200)],
        "carrier": ["AA", "DL"] * 100,
        "seats": [100 + number % 50 for number in range(200)],
        "day": [CREATED.date() + timedelta(days=number) for number in range(200)],
    }
)


def contract(frame=TRAINING, **more):
    fields = {"columns": describe_columns(frame), **more}
    return Contract(id="", project="", created_at=CREATED, dataset="flights", version=1, **fields)


def measured(frame, known=None):
    shares = measure_columns(frame, known if known is not None else contract())
    return {share.key: share.count for share in shares if share.count}


def test_rows_that_keep_the_contract_break_nothing():
    assert measured(TRAINING.head(50)) == {}


def test_each_rule_has_its_rows_and_examples():
    rows = TRAINING.head(10).with_columns(
        distance=pl.Series([None, math.nan, math.inf, -math.inf, 1e9, 1.0, 2.0, 150.0, 150.0, 150.0]),
        carrier=pl.Series(["ZZ", "YY"] + ["AA"] * 8),
    )
    assert measured(rows) == {
        "distance: nulls": 2, "distance: infinite": 2, "distance: most": 1, "distance: max": 1, "distance: min": 2,
        "carrier: categories": 2,
    }  # fmt: skip
    share = next(share for share in measure_columns(rows, contract()) if share.rule == "categories")
    assert set(share.samples) == {"ZZ", "YY"}
    assert "2 values of 'carrier' are not among the contract's categories" in share.message


def test_without_a_contract_only_missing_values_are_measured():
    rows = pl.DataFrame({"x": [1.0, None], "y": ["a", "b"]})
    assert [(share.key, share.count, share.usual) for share in measure_columns(rows, None)] == [
        ("x: nulls", 1, None), ("y: nulls", 0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        pl.DataFrame(),
        TRAINING.clear(),
        TRAINING.head(1),
        TRAINING.select(pl.lit(None).alias(name) for name in TRAINING.columns),
        TRAINING.select(pl.all().cast(pl.String)),
        TRAINING.select("carrier"),
        TRAINING.with_columns(other=pl.lit([1, 2]), nested=pl.struct("seats")),
        TRAINING.with_columns(carrier=pl.col("carrier").cast(pl.Categorical), seats=pl.col("seats").cast(pl.Int16)),
        pl.DataFrame({"distance": [math.inf] * 40}),
    ],
)
def test_any_table_can_be_measured(rows):
    for known in (contract(), None):
        for share in measure_columns(rows, known):
            assert 0 <= share.count <= share.rows == rows.height
    constant_columns(rows)
    measure_repeats(rows, rows.columns, None)
    compare_schema(TRAINING.schema, rows.schema)


def test_rules_about_whole_tables_do_not_apply_to_a_window():
    known = contract(
        TRAINING.with_columns(id=pl.int_range(pl.len())),
        rules=(
            {"rule": "rows", "least": 1000},
            {"rule": "unique", "columns": ["carrier"]},
            {"rule": "fresh", "column": "day", "within": "1h"},
            {"rule": "where", "sql": "seats > 120"},
            {"rule": "where", "sql": "arrival > departure"},
            {"rule": "where", "sql": "((("},
        ),
    )
    applied = live_contract(known, TRAINING)
    assert [rule["sql"] for rule in applied.rules] == ["seats > 120"]
    assert {column["name"] for column in applied.columns} == set(TRAINING.columns)
    assert measured(TRAINING.head(50), known) == {"rows: seats > 120": 21}


# --- comparing ---------------------------------------------------------------------------------------------


def share(count, rows=1000, usual=None):
    return RowShare("x", "nulls", count, rows, f"{count} of {rows} values of 'x' are missing", usual)


def test_a_share_is_compared_with_earlier_windows_first():
    result = compare_share(share(200, usual=0.5), [(10, 1000), (12, 1000), (9, 1000)], 5000)
    assert (result.basis, result.value) == ("windows", 0.2)
    assert result.expected == pytest.approx(31 / 3000)
    assert result.p_value < 0.02
    assert "usually 1.0%" in result.message


def test_with_few_windows_a_share_is_compared_with_the_reference():
    result = compare_share(share(200, usual=0.01), [(0, 1000)], 5000)
    assert (result.basis, result.expected) == ("reference", 0.01)
    assert result.p_value < 1e-9


def test_without_anything_to_compare_with_there_is_no_p_value():
    for usual, rows in ((None, 5000), (0.1, 0)):
        result = compare_share(share(1000, usual=usual), [], rows)
        assert (result.basis, result.p_value) == ("none", None)


def test_a_share_that_does_not_matter_is_not_significant():
    assert compare_share(share(50, 10**6), [(0, 10**6)] * 5, 0).p_value == 1


@given(st.integers(0, 100), st.integers(0, 100), st.lists(st.integers(0, 100), max_size=5))
def test_any_share_can_be_compared(count, more, earlier):
    result = compare_share(share(count, count + more, 0.3), [(part, 100) for part in earlier], 50)
    assert result.p_value is None or 0 <= result.p_value <= 1


# --- constant columns --------------------------------------------------------------------------------------


def test_a_column_with_one_value_is_constant_and_one_without_values_is_not():
    rows = pl.DataFrame(
        {"one": [1] * 40, "two": [1, 2] * 20, "none": [None] * 40, "holes": [None, "a"] * 20, "inf": [math.inf] * 40}
    )
    assert constant_columns(rows) == {"one": "1", "inf": "inf"}
    assert constant_columns(rows.vstack(rows)) == {"one": "1", "holes": "a", "inf": "inf"}
    assert constant_columns(rows.head(29)) == {}


def test_a_column_that_is_constant_in_many_windows_is_usual():
    constant = {"weekday": "Monday", "wind": "0.0"}
    (found,) = compare_constants(constant, [["weekday"], ["weekday"], []])
    assert (found.key, found.basis) == ("wind: constant", "fact")
    assert compare_constants(constant, [[], []]) == [], "two windows do not show what is usual"
    assert [found.subject for found in compare_constants(constant, [], ["wind"])] == ["wind"]


# --- schemas and repeats -----------------------------------------------------------------------------------


def test_new_vanished_and_retyped_columns_are_found():
    after = TRAINING.select(pl.col("distance").cast(pl.Float32), pl.col("seats").cast(pl.String), "day", added=1)
    found = compare_schema(TRAINING.schema, after.schema)
    assert {(item.subject, item.rule, item.basis) for item in found} == {
        ("carrier", "vanished", "fact"), ("seats", "type", "fact"), ("added", "new column", "reference"),
    }  # fmt: skip


def test_a_column_of_nulls_has_no_wrong_type():
    empty = pl.Schema({"x": pl.Null()})
    assert compare_schema(pl.Schema({"x": pl.Int64()}), empty) == []
    assert compare_schema(empty, pl.Schema({"x": pl.Int64()})) == []


def test_repeated_keys_and_inputs_are_counted():
    rows = pl.DataFrame({"entity": ["a", "a", "b", None, None], "x": [1, 1, 1, 2, 3], "y": [1, 1, 2, 2, 2]})
    found = {share.rule: (share.count, share.rows) for share in measure_repeats(rows, ["x", "y"], "entity")}
    assert found == {"repeated keys": (1, 3), "repeated inputs": (1, 5)}
