"""Rules of a contract beyond types and bounds: patterns, keys, relations, time, severities; and pandera's schemas."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.data import (
    check_contract,
    contract_from_pandera,
    contract_from_toml,
    contract_to_toml,
    infer_contract,
    record_findings,
)
from everloop.data.contracts.text_patterns import infer_pattern
from everloop.errors import UsageError
from everloop.records import Contract, Finding

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

NOW = datetime(2026, 2, 1, tzinfo=UTC)


def flights(rows: int = 200) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "flight": [f"{'AB'[n % 2]}A-{n * 37 % 9000}" for n in range(rows)],
            "tail": [f"N{n % 7}" for n in range(rows)],
            "at": [NOW - timedelta(hours=rows - n) for n in range(rows)],
            "seats": [100 + n % 9 for n in range(rows)],
        }
    )


def planes() -> pl.DataFrame:
    return pl.DataFrame({"tail": [f"N{n}" for n in range(9)], "built": [1990 + n % 2 for n in range(9)]})


def contract(store: Store, **options: Any) -> Contract:
    return infer_contract(flights(), "flights", store, time="at", now=NOW, **options)


def broken(frame: pl.DataFrame, by: Contract, **options: Any) -> dict[tuple[str | None, str], tuple[str, int]]:
    report = check_contract(frame, by, now=NOW, **options)
    return {(found.column, found.rule): (found.severity, found.rows) for found in report.violations}


def edited(by: Contract, name: str, **changes: Any) -> Contract:
    columns = tuple({**each, **changes} if each["name"] == name else each for each in by.columns)
    return contract_from_toml(contract_to_toml(replace(by, columns=columns)))


def test_what_is_inferred(store: Store) -> None:
    found = contract(store, tables={"planes": planes()})
    by_name = {column["name"]: column for column in found.columns}
    assert by_name["flight"]["pattern"] == "^[A-Z]{2}-[0-9]+$"
    assert by_name["flight"]["distinct"] == 200
    assert by_name["flight"]["unique"] is True
    assert by_name["flight"]["severities"] == {"unique": "warning"}
    assert by_name["at"]["ordered"] is True
    assert "future" not in by_name["at"]
    assert found.rules == (
        {"rule": "relation", "column": "tail", "table": "planes", "key": "tail", "severity": "warning"},
        {"rule": "fresh", "column": "at", "within": "10h", "severity": "warning"},
    )
    assert broken(flights(), found, tables={"planes": planes()}) == {}
    assert contract_from_toml(contract_to_toml(found)) == found


def test_each_rule_names_the_rows(store: Store, tmp_path: Path) -> None:
    planes().write_parquet(tmp_path / "planes.parquet")
    found = contract(store, tables={str(tmp_path / "planes.parquet"): planes()})
    frame = flights().with_columns(
        flight=pl.when(pl.int_range(200) == 3)
        .then(pl.lit("x"))
        .when(pl.int_range(200) == 9)
        .then(pl.first("flight"))
        .otherwise("flight"),
        tail=pl.when(pl.int_range(200) == 7).then(pl.lit("N99")).otherwise("tail"),
        at=pl.when(pl.int_range(200) == 199).then(pl.lit(NOW + timedelta(days=1))).otherwise("at"),
    )
    relation = f"relation to {tmp_path / 'planes.parquet'}"
    assert broken(frame, found) == {
        ("flight", "pattern"): ("warning", 1),
        ("flight", "unique"): ("warning", 1),
        ("tail", "categories"): ("warning", 1),
        ("tail", relation): ("warning", 1),
        ("at", "future"): ("warning", 1),
    }
    report = check_contract(frame, found, now=NOW)
    assert report.bad_rows == 0
    by_rule = {violation.rule: violation for violation in report.violations}
    assert by_rule["pattern"].first_rows == (4,)
    assert by_rule["unique"].first_rows == (10,)
    assert by_rule[relation].message.endswith(
        f"does not occur in 'tail' of {tmp_path / 'planes.parquet'}: N99 (first in row 8)"
    )
    findings = record_findings(report, "flights", store)
    assert store.records.find(Finding, ("endpoint", "=", "data:flights")) == findings
    assert {finding.severity for finding in findings} == {"warning"}
    assert findings[0].evidence == {
        "contract": "flights@1", "rule": "pattern", "rows": 1, "of": 200, "samples": ["x"], "first_rows": [4],
    }  # fmt: skip


def test_people_decide_how_severe_a_rule_is(store: Store) -> None:
    found = contract(store)
    frame = flights().with_columns(flight=pl.when(pl.int_range(200) < 2).then(pl.lit("x")).otherwise("flight"))
    strict = edited(found, "flight", severities={"pattern": "error", "unique": "error"})
    report = check_contract(frame, strict, now=NOW)
    assert report.bad_rows == 2
    assert report.bad.collect()["_broken"].to_list() == [["flight: pattern"]] * 2
    lenient = edited(found, "seats", least=105, severities={"least": "warning"})
    assert broken(flights(), lenient)[("seats", "least")][0] == "warning"
    late = replace(found, rules=({"rule": "fresh", "column": "at", "within": "1h", "severity": "warning"},))
    assert check_contract(flights(100).head(50), late, now=NOW).passed
    welcome = edited(found, "at", future=True)
    assert ("at", "future") not in broken(flights().with_columns(pl.col("at") + timedelta(days=1)), welcome)


def test_several_columns_name_a_row(store: Store) -> None:
    frame = pl.DataFrame({"a": [1, 1, 2, 1], "b": ["x", "y", "x", "x"], "n": [1, 2, 3, 4]})
    found = infer_contract(frame, "t", store)
    keyed = replace(found, rules=({"rule": "unique", "columns": ["a", "b"]},))
    report = check_contract(frame, contract_from_toml(contract_to_toml(keyed)))
    assert report.good.collect()["n"].to_list() == [1, 2, 3]
    assert report.violations[0].message == "1 row repeats an earlier row in a, b (first in row 4)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("severities = { patern = 'error' }", "there is no rule 'patern'.*Did you mean 'pattern'"),
        ("severities = { pattern = 'loud' }", "the severity 'loud'"),
        ("max_nulls = -0.1", "Column 'a' of the contract has max_nulls = -0.1, which is not a share.*from 0 to 1"),
        ("max_nulls = 1.01", "max_nulls = 1.01"),
        ("max_nulls = 2", "max_nulls = 2,"),
        ("max_nulls = nan", "max_nulls = nan"),
        ("max_nulls = inf", "max_nulls = inf"),
        ("max_nulls = true", "max_nulls = True"),
        ("nulls = -1", "nulls = -1"),
        ("pattern = '['", "a pattern that is not a valid regular expression"),
    ],
)
def test_mistakes_in_a_column_are_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        contract_from_toml(f"dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'string'\n{text}")


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), None])
def test_a_contract_made_in_python_with_a_bad_share_is_refused(store: Store, share: Any) -> None:
    held = contract_from_toml("dataset = 'd'\n[[columns]]\nname = 'a'\ntype = 'int64'", store)
    held = replace(held, columns=({**held.columns[0], "max_nulls": share},))
    with pytest.raises(UsageError, match=r"Column 'a' of 'd@1' has max_nulls = .*, which is not a share"):
        check_contract(pl.DataFrame({"a": [1, None]}), held)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("rule = 'unique'\ncolumns = ['a', 'z']", "names the column 'z'"),
        ("rule = 'rows'\nleast = 3\nseverity = 'loud'", "the severity 'loud'"),
        ("rule = 'relation'\ncolumn = 'a'\ntable = 't'", "needs 'key'"),
    ],
)
def test_mistakes_in_a_rule_are_named(rule: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        contract_from_toml(f"dataset = 'd'\n[[rules]]\n{rule}\n[[columns]]\nname = 'a'\ntype = 'string'")


def test_a_relation_to_what_does_not_fit(store: Store) -> None:
    found = infer_contract(flights(), "flights", store)
    for key, said in (("tial", "no column 'tial'"), ("built", "cannot be related")):
        rule = {"rule": "relation", "column": "tail", "table": "planes", "key": key}
        with pytest.raises(UsageError, match=said):
            check_contract(flights(), replace(found, rules=(rule,)), tables={"planes": planes()})


@pytest.mark.slow
@given(st.lists(st.from_regex(r"[A-Z]{2}[0-9]{1,4}(-[a-z]+)?", fullmatch=True), min_size=60, max_size=90, unique=True))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_pattern_holds_for_the_texts_that_it_came_from(texts: list[str]) -> None:
    pattern = infer_pattern(pl.Series(texts))
    assert pattern is not None
    assert pl.Series(texts).str.contains(pattern).all()
    assert not pl.Series(["12-AB", "AA", ""]).str.contains(pattern).any()


def test_texts_without_a_pattern() -> None:
    assert infer_pattern(pl.Series([f"{'ab ' * (n % 9)}{n}" for n in range(100)])) is None
    assert infer_pattern(pl.Series(["A1"] * 100)) is None
    assert infer_pattern(pl.Series([f"é.{n}" for n in range(60)])) == "^é\\.[0-9]+$"


def test_a_pandera_schema_becomes_a_contract(store: Store) -> None:
    pa = pytest.importorskip("pandera.pandas")
    schema = pa.DataFrameSchema(
        {
            "id": pa.Column(int, pa.Check.ge(0), unique=True),
            "carrier": pa.Column(str, pa.Check.isin(["AA", "UA"])),
            "tail": pa.Column(str, pa.Check.str_matches(r"N\d+"), nullable=True),
            "wind": pa.Column(float, pa.Check.in_range(0, 200, raise_warning=True), nullable=True, required=False),
            "at": pa.Column("datetime64[ns, UTC]"),
        },
        unique=["carrier", "tail"],
    )
    found = contract_from_toml(contract_to_toml(contract_from_pandera(schema, "delays", store, key="id", time="at")))
    assert {column["name"]: column["type"] for column in found.columns} == {
        "id": "int64", "carrier": "string", "tail": "string", "wind": "float64", "at": "timestamp[ns, UTC]",
    }  # fmt: skip
    frame = pl.DataFrame(
        {
            "id": [1, 1, -1, 4],
            "carrier": ["AA", "AA", "UA", "ZZ"],
            "tail": ["N1", "N2", "X", None],
            "wind": [1.0, 500.0, None, 2.0],
            "at": [NOW] * 4,
        }
    ).cast({"at": pl.Datetime("ns", "UTC")})
    report = check_contract(frame, found, now=NOW)
    assert {(each.column, each.rule): (each.severity, each.rows) for each in report.violations} == {
        ("id", "least"): ("error", 1),
        ("id", "unique"): ("error", 1),
        ("carrier", "categories"): ("error", 1),
        ("tail", "pattern"): ("error", 1),
        ("wind", "most"): ("warning", 1),
    }
    own = pa.DataFrameSchema({"id": pa.Column(int, pa.Check(lambda values: values > 0, name="own"))})
    with pytest.raises(UsageError, match="A contract cannot express the check 'own' of column 'id'"):
        contract_from_pandera(own, "delays", store)
    with pytest.raises(UsageError, match="is not a pandera schema"):
        contract_from_pandera({}, "delays", store)


def test_a_pandera_model_of_polars_becomes_a_contract(store: Store) -> None:
    pandera = pytest.importorskip("pandera.polars")

    class Flights(pandera.DataFrameModel):  # type: ignore[misc]
        id: int = pandera.Field(unique=True, gt=0)
        name: str = pandera.Field(str_startswith="N", nullable=True)

    found = contract_from_pandera(Flights, "flights", store)
    frame = pl.DataFrame({"id": [1, 0], "name": ["N1", "x"]})
    assert broken(frame, found) == {("id", "least"): ("error", 1), ("name", "pattern"): ("error", 1)}
