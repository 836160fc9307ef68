"""Contracts are inferred, written, read back, and checked against data."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from polars.testing.parametric import dataframes

from everloop.data import (
    check_contract,
    contract_from_toml,
    contract_to_toml,
    find_contract,
    infer_contract,
    load_snapshot,
    quarantine,
    save_contract,
)
from everloop.data.contracts.bounds import is_known
from everloop.errors import ContractError, DataError, UsageError
from everloop.records import Contract, Json
from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 2, 1, tzinfo=UTC)


def flights(rows: int = 200) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": range(rows),
            "departs_at": [datetime(2026, 1, 1) + timedelta(hours=n) for n in range(rows)],
            "carrier": [("AA", "UA", "9E", None)[n % 4] for n in range(rows)],
            "distance": [100 + n * 10 % 777 for n in range(rows)],
            "wind": [n / 10 if n % 5 else None for n in range(rows)],
            "late": [n % 3 == 0 for n in range(rows)],
        },
        schema_overrides={
            "departs_at": pl.Datetime("us"),
            "carrier": pl.String,
            "wind": pl.Float64,
            "late": pl.Boolean,
        },
    ).cast({"distance": pl.Int64, "id": pl.Int64})


@pytest.fixture
def contract(store: Store) -> Contract:
    return infer_contract(flights(), "delays", store, target="late", time="departs_at", key="id")


def column(contract: Contract, name: str, **changes: Json) -> Contract:
    columns = tuple({**each, **changes} if each["name"] == name else each for each in contract.columns)
    return replace(contract, columns=columns)


def broken(frame: pl.DataFrame, contract: Contract, **options: Any) -> dict[tuple[str | None, str], tuple[str, int]]:
    report = check_contract(frame, contract, **options)
    return {(found.column, found.rule): (found.severity, found.rows) for found in report.violations}


def test_a_contract_says_what_was_seen(contract: Contract) -> None:
    by_name = {each["name"]: each for each in contract.columns}
    assert list(by_name) == flights().columns
    assert by_name["id"] == {
        "name": "id", "type": "int64", "role": "key",
        "nullable": False, "nulls": 0.0, "max_nulls": 0.05, "distinct": 200, "unique": True,
    }  # fmt: skip
    assert by_name["departs_at"]["ordered"] is True
    assert by_name["carrier"]["categories"] == {"9E": 50, "AA": 50, "UA": 50}
    assert by_name["carrier"]["nulls"] == 0.25
    assert 0.25 < by_name["carrier"]["max_nulls"] < 0.5
    assert by_name["late"]["categories"] == {"false": 133, "true": 67}
    low, high = flights()["distance"].min(), flights()["distance"].max()
    assert (by_name["distance"]["min"], by_name["distance"]["max"]) == (low, high)
    assert by_name["distance"]["quantiles"][3] == flights()["distance"].quantile(0.5, "nearest")


def test_data_like_that_seen_breaks_nothing(contract: Contract) -> None:
    report = check_contract(flights(), contract)
    assert report.violations == ()
    assert report.passed
    assert report.good.collect().equals(flights())
    assert report.bad.collect().is_empty()
    assert report.rows == 200


@pytest.mark.slow
@given(
    dataframes(min_cols=1, max_cols=5, min_size=1, max_size=30, allow_null=True),
    st.sampled_from(["target", "time", "key"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_contract_accepts_the_data_it_was_inferred_from(tmp_path: Path, frame: pl.DataFrame, role: str) -> None:
    with open_store(tmp_path / "accepts") as store:
        contract = infer_contract(frame, "any", store, now=NOW, tables={"itself": frame}, **{role: frame.columns[0]})
        report = check_contract(frame, contract, now=NOW, tables={"itself": frame})
        assert report.violations == ()
        assert report.good.collect().height == frame.height
        assert contract_from_toml(contract_to_toml(contract)) == contract
        read_again = contract_from_toml(contract_to_toml(contract))
        assert check_contract(frame, read_again, now=NOW, tables={"itself": frame}).passed


def test_the_largest_integers_fulfil_their_own_contract(store: Store) -> None:
    largest = 2**128 - 1  # the upper half of UInt128 does not fit into Int128
    frame = pl.DataFrame({"a": pl.Series([0, 2**127, largest], dtype=pl.UInt128)})
    context: dict[str, Any] = {"now": NOW, "tables": {"itself": frame}}
    inferred = infer_contract(frame, "any", store, **context)
    report = check_contract(frame, inferred, **context)
    assert report.violations == ()
    assert report.good.collect().equals(frame)
    assert broken(frame, column(inferred, "a", most=2**127), **context) == {("a", "most"): ("error", 1)}
    assert broken(frame, column(inferred, "a", least=1, most=largest), **context) == {("a", "least"): ("error", 1)}


texts = st.text(st.characters(codec="utf-8"), max_size=10)


@given(texts, texts, texts, st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1), st.booleans())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_toml_keeps_every_text_and_number(
    name: str, kind: str, value: str, number: float, whole: int, nullable: bool
) -> None:
    # A known type restricts its bounds. The bounds of an unknown one are not checked.
    assume(not is_known(kind))
    contract = Contract(
        id="i", project="p", created_at=NOW, dataset=kind, version=3,
        columns=({"name": name, "type": kind, "nullable": nullable, "least": number, "min": whole, "max": value,
                  "quantiles": [number, whole], "categories": {value: 1, name: whole}},),
        rules=({"rule": "where", "sql": value}, {"rule": "rows", "least": whole}),
    )  # fmt: skip
    assert contract_from_toml(contract_to_toml(contract)) == contract


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dataset = ", "not valid TOML"),
        ("dataset = 'd'", r"at least one \[\[columns\]\]"),
        ("dataset = 'd'\nother = 1\n[[columns]]\nname = 'a'\ntype = 'int64'", "unknown key 'other'"),
        ("dataset = 'd'\n[[columns]]\ntype = 'int64'", "needs a name"),
        ("dataset = 'd'\n[[columns]]\nname = 'a'", "has no type"),
        (
            "dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'\nmost = 'x'",
            "most = 'x', which is not a bound for its type int64. Write an int or float",
        ),
        ("dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'\nmost = true", "most = True"),
        (
            "dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'\nmosst = 3",
            "unknown key 'mosst'. Did you mean 'most'",
        ),
        ("dataset = 'd'\n" + "[[columns]]\nname = 'a'\ntype = 'int64'\n" * 2, "'a' twice"),
        ("dataset = 'd'\n[[rules]]\nrule = 'x'\n[[columns]]\nname = 'a'\ntype = 'int64'", "no rule 'x'"),
        ("dataset = 'd'\n[[rules]]\nrule = 'rows'\n[[columns]]\nname = 'a'\ntype = 'int64'", "needs 'least'"),
        (
            "dataset = 'd'\n[[rules]]\nrule = 'fresh'\ncolumn = 'b'\nwithin = '1d'\n"
            "[[columns]]\nname = 'a'\ntype = 'date'",
            "names the column 'b'",
        ),
        ("dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'", "has no id"),
    ],
)
def test_a_contract_with_a_mistake_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        contract_from_toml(text)


def test_a_contract_written_by_hand(store: Store) -> None:
    written = contract_from_toml("dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'\nmost = 3", store)
    assert (written.version, written.project) == (1, store.project)
    assert broken(pl.DataFrame({"a": [1, 4]}), written) == {("a", "most"): ("error", 1)}


def test_contracts_are_versioned_by_what_they_say(store: Store, contract: Contract) -> None:
    assert find_contract("delays", store) is None
    first = save_contract(contract, store)
    assert first == contract
    assert (
        save_contract(infer_contract(flights(), "delays", store, target="late", time="departs_at", key="id"), store)
        == first
    )
    second = save_contract(column(contract, "distance", most=5000), store)
    assert (second.key, second.id == first.id) == ("delays@2", False)
    assert find_contract("delays", store) == second
    assert save_contract(contract, store).key == "delays@3"


def test_another_schema_is_refused_whole(contract: Contract) -> None:
    with pytest.raises(ContractError, match=r"column 'carrier' is missing.*Did you mean 'carier'"):
        check_contract(flights().rename({"carrier": "carier"}), contract)
    wrong = flights().with_columns(pl.col("distance").cast(pl.String), late=pl.lit(1.5))
    with pytest.raises(ContractError, match="'distance' is string, not int64; column 'late' is float64, not bool"):
        check_contract(wrong, contract)
    optional = column(contract, "wind", required=False)
    assert check_contract(flights().drop("wind"), optional).passed


def test_types_of_one_family_are_judged_alike(contract: Contract) -> None:
    frame = flights().with_columns(
        pl.col("distance").cast(pl.Int16),
        pl.col("wind").cast(pl.Float64),
        pl.col("carrier").cast(pl.Categorical),
        pl.col("departs_at").dt.cast_time_unit("ms").dt.replace_time_zone("UTC"),
    )
    assert check_contract(frame, contract).violations == ()
    assert broken(flights().with_columns(carrier=None), contract) == {("carrier", "max_nulls"): ("warning", 200)}


def test_bad_rows_are_separated_from_good_ones(store: Store, contract: Contract) -> None:
    frame = flights(20).with_columns(
        id=pl.when(pl.col("id") == 3).then(2).when(pl.col("id") == 4).then(None).otherwise("id"),
        wind=pl.when(pl.col("id") == 5).then(-9999.0).when(pl.col("id") == 6).then(float("inf")).otherwise("wind"),
        carrier=pl.when(pl.col("id") == 7).then(pl.lit("ZZ")).otherwise("carrier"),
    )
    report = check_contract(frame, contract)
    assert {(found.column, found.rule): found.rows for found in report.errors} == {
        ("id", "nullable"): 1,
        ("id", "unique"): 1,
        ("wind", "least"): 1,
        ("wind", "infinite"): 1,
    }
    assert {(found.column, found.rule) for found in report.warnings} == {("wind", "min"), ("carrier", "categories")}
    assert not report.passed
    assert report.bad_rows == 4
    assert report.good.collect().equals(frame.filter(~pl.int_range(20).is_in([3, 4, 5, 6])))
    assert report.bad.collect()["_broken"].to_list() == [
        ["id: unique"],
        ["id: nullable"],
        ["wind: least"],
        ["wind: infinite"],
    ]
    samples = {(found.column, found.rule): found.samples for found in report.violations}
    assert samples[("id", "unique")] == (2,)
    assert samples[("wind", "least")] == (-9999.0,)
    assert samples[("carrier", "categories")] == ("ZZ",)

    kept = quarantine(report, "delays", store, run="r1")
    assert kept is not None
    assert (kept.key, kept.rows, kept.contract) == ("quarantine/delays@1", 4, "delays@1")
    assert load_snapshot(kept, store).collect().equals(report.bad.collect())
    assert quarantine(report, "delays", store) == kept
    assert quarantine(check_contract(flights(), contract), "delays", store) is None


def test_of_repeated_rows_the_first_good_one_stays(contract: Contract) -> None:
    frame = pl.concat([flights(2), flights(2), flights(2)])
    frame = frame.with_columns(wind=pl.Series([float("inf"), 1.0, 1.0, 1.0, 1.0, float("inf")]))
    report = check_contract(frame, contract)
    assert report.good.with_row_index().collect()["id"].to_list() == [1, 0]
    assert report.bad_rows == 4


@pytest.mark.parametrize(
    ("name", "changes", "values", "expected"),
    [
        ("late", {}, [True, False], {}),
        ("carrier", {"role": "target"}, ["AA", "ZZ"], {("carrier", "categories"): ("error", 1)}),
        ("distance", {"nullable": False, "max_nulls": 0.5}, [100, None], {("distance", "nullable"): ("error", 1)}),
        ("distance", {"max_nulls": 0.0}, [100, None], {("distance", "max_nulls"): ("warning", 1)}),
        ("distance", {"least": 500}, [499, 500], {("distance", "least"): ("error", 1)}),
        ("distance", {"most": 500}, [500, 501], {("distance", "most"): ("error", 1)}),
        ("distance", {"min": 500}, [499, 500], {("distance", "min"): ("warning", 1)}),
        ("wind", {"infinite": True}, [float("inf"), float("nan")], {}),
    ],
)  # fmt: skip
def test_each_rule_of_a_column(
    contract: Contract, name: str, changes: dict[str, Json], values: list[Any], expected: dict[Any, Any]
) -> None:
    frame = flights(2).with_columns(pl.Series(name, values))
    assert broken(frame, column(contract, name, **changes)) == expected


def test_rows_out_of_order_and_columns_unheard_of(contract: Contract) -> None:
    frame = flights().reverse().with_columns(extra=1)
    assert broken(frame, contract) == {
        ("departs_at", "ordered"): ("warning", 0),
        ("extra", "unexpected"): ("warning", 0),
    }


def test_rules_about_the_table(contract: Contract) -> None:
    least = replace(contract, rules=({"rule": "rows", "least": 201},))
    assert broken(flights(), least) == {(None, "rows"): ("error", 0)}
    fresh = replace(contract, rules=({"rule": "fresh", "column": "departs_at", "within": "1w"},))
    newest = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=199)
    assert broken(flights(), fresh, now=newest + timedelta(weeks=1)) == {}
    assert broken(flights(), fresh, now=newest + timedelta(weeks=1, seconds=1)) == {
        ("departs_at", "fresh"): ("error", 0)
    }
    assert broken(flights(0), fresh, now=NOW) == {("departs_at", "fresh"): ("error", 0)}
    with pytest.raises(UsageError, match=r"now=store\.now"):
        check_contract(flights(), fresh)
    where = replace(contract, rules=({"rule": "where", "sql": "distance < 800 OR carrier = 'AA'"},))
    report = check_contract(flights(), where)
    far = flights().filter((pl.col("distance") >= 800) & (pl.col("carrier") != "AA"))
    assert report.bad_rows == far.height > 0
    for sql, said in (
        ("distance +", "cannot be used"),
        ("nothing > 1", "cannot be used"),
        ("distance + 1", "returns int64"),
    ):
        with pytest.raises(UsageError, match=said):
            check_contract(flights(), replace(contract, rules=({"rule": "where", "sql": sql},)))


def test_lazy_frames_and_empty_ones(contract: Contract) -> None:
    assert check_contract(flights().lazy(), contract).rows == 200
    empty = check_contract(flights(0), contract)
    assert (empty.rows, empty.violations, empty.good.collect().height) == (0, (), 0)


def test_nothing_is_inferred_from_nothing(store: Store) -> None:
    with pytest.raises(DataError, match="without rows"):
        infer_contract(flights(0), "delays", store)
    with pytest.raises(DataError, match="no column 'lat' to use as the target"):
        infer_contract(flights(), "delays", store, target="lat")


def test_dates_move_on(store: Store) -> None:
    seen = pl.DataFrame({"day": [date(2026, 1, 1), date(2026, 1, 2)]})
    contract = infer_contract(seen, "days", store)
    assert contract.columns[0]["max"] == "2026-01-02"
    later = pl.DataFrame({"day": [date(2030, 1, 1)]})
    assert [(one.rule, one.severity) for one in check_contract(later, contract).violations] == [("max", "warning")]
    moving = infer_contract(seen, "days", store, time="day").columns[0]
    assert (moving["min"], "max" in moving) == ("2026-01-01", False), "the time column moves on"
    days = [date(2026, 1, day) for day in range(1, 29)]
    born = [date(1990, 1, day) for day in range(1, 29)]
    both = infer_contract(pl.DataFrame({"day": days, "paid": days, "born": born}), "d", store, time="day").columns
    assert [("max" in column) for column in both] == [False, False, True], "and so does what moves along"
