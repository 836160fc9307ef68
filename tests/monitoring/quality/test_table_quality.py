"""Quality of a table against a reference, without a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from everloop.data.contracts.contract import describe_columns
from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.monitoring import quality_of_table
from everloop.records import Contract

START = datetime(2024, 1, 1, tzinfo=UTC)


def table(rows, seed=0, start=START):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "amount": rng.normal(100, 10, rows).clip(70, 130),
            "shop": rng.choice(["north", "south"], rows),
            "pieces": rng.integers(1, 6, rows),
            "at": [start + timedelta(minutes=number) for number in range(rows)],
        }
    )


def loud(reference, current, *args, **options):
    found = quality_of_table(reference, current, *args, **options)
    return {result.key: result.verdict for result in found if result.verdict != "quiet"}


@pytest.mark.parametrize("seed", range(5))
def test_two_tables_of_one_kind_are_quiet(seed):
    reference, current = table(20_000, seed), table(1000, seed + 100, START + timedelta(days=30))
    assert loud(reference, current, time="at") == {}
    assert loud(reference.drop("at"), current.drop("at")) == {}


def test_every_sort_of_change_is_found():
    current = table(1000, 1, START + timedelta(days=30)).with_columns(
        pl.when(pl.int_range(pl.len()) % 5 > 0).then("amount").alias("amount"),
        shop=pl.when(pl.col("pieces") == 1).then(pl.lit("east")).otherwise("shop"),
        pieces=pl.lit(3),
        added=pl.lit("new"),
    )
    assert loud(table(20_000), current, time="at") == {
        "pieces: constant": "alarm",
        "added: new column": "warning",
        "amount: nulls": "warning",
        "shop: categories": "warning",
        "rows: repeated inputs": "warning",
    }
    assert loud(table(2000), current.drop("pieces").with_columns(amount=pl.lit("x")))["pieces: vanished"] == "alarm"
    assert loud(table(2000), current.with_columns(amount=pl.lit("x")))["amount: type"] == "alarm"


def test_a_table_with_fewer_rows_in_the_same_time_is_found():
    current = table(1000, 1, START + timedelta(days=30)).gather_every(3)
    assert loud(table(20_000), current, time="at")["rows: volume"] == "warning"


def test_blocks_of_the_reference_show_what_is_usual():
    """Every second block of 500 rows lacks the amount. That is usual here, but not for independent rows."""
    holes = (pl.int_range(pl.len()) // 500) % 2 == 0
    reference = table(10_000).with_columns(amount=pl.when(~holes).then("amount"))
    current = table(500, 2, START + timedelta(days=30)).with_columns(amount=pl.lit(None, dtype=pl.Float64))
    assert "amount: nulls" in loud(reference, current)
    assert "amount: nulls" not in loud(reference, current, time="at")


def test_a_contract_replaces_the_ranges_of_the_reference():
    columns = tuple(
        {**column, "max": 101} if column["name"] == "amount" else column for column in describe_columns(table(50))
    )
    contract = Contract(id="", project="", created_at=START, dataset="sales", version=1, columns=columns)
    found = {result.key: result for result in quality_of_table(table(500, 1), table(500, 2), contract)}
    assert found["amount: max"].verdict == "quiet", "the reference broke the rule as often"
    assert found["amount: max"].counts[0] > 100
    assert loud(table(500, 1).filter(pl.col("amount") < 101), table(500, 2), contract)["amount: max"] == "warning"


@pytest.mark.parametrize(
    "current",
    [
        table(1).clear(),
        table(1),
        pl.DataFrame(),
        pl.DataFrame({"other": [1]}),
        table(50).select(pl.lit(None).alias(name) for name in ("amount", "shop", "pieces", "at")),
        table(50).with_columns(amount=pl.lit(float("inf"))),
        table(50).with_columns(amount=pl.lit(float("nan"))),
        table(50).reverse(),
        table(50).with_columns(at=pl.lit(START)),
        table(50).with_columns(at=pl.lit("now")),
        table(50).select(pl.all().cast(pl.String)),
        table(50).lazy(),
    ],
)
@pytest.mark.parametrize("time", ["at", None])
def test_any_table_can_be_checked(current, time):
    for reference in (table(400), table(1), table(50).with_columns(shop=pl.lit(None), amount=pl.lit(float("inf")))):
        for result in quality_of_table(reference, current, time=time):
            assert result.message
            assert result.verdict in ("quiet", "warning", "alarm")


def test_a_reference_without_rows_is_refused():
    with pytest.raises(EmptySampleError, match="reference has no rows"):
        quality_of_table(table(1).clear(), table(5))


def test_a_time_that_is_not_a_column_is_refused():
    with pytest.raises(DataError, match="when"):
        quality_of_table(table(5), table(5), time="when")


def test_something_else_is_not_a_table():
    with pytest.raises(UsageError, match="table"):
        quality_of_table(table(5), "rows.csv")
