"""Contracts are adapted to data that changed on purpose, and keep what people wrote."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data import adapt_contract, check_contract, infer_contract
from everloop.stores import Store, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    with open_store(tmp_path_factory.mktemp("home"), project="p") as opened:
        yield opened


def people(**changes: pl.Series | list) -> pl.DataFrame:
    columns = {"id": [f"p{i}" for i in range(40)], "age": [20 + i for i in range(40)], "city": ["Ulm", "Bonn"] * 20}
    return pl.DataFrame({**columns, "left": [True, False] * 20, **changes})


def told(store: Store, contract, frame, **roles) -> dict[tuple[str, str | None], str]:
    adapted, changes = adapt_contract(contract, frame, store, **roles)
    # The adapted contract is fulfilled, and adapting it again changes nothing.
    broken = {change.column for change in changes if change.kind == "still broken"}
    assert {one.column for one in check_contract(frame, adapted).violations} <= broken
    assert {change.kind for change in adapt_contract(adapted, frame, store, **roles)[1]} <= {"still broken"}
    return {(change.kind, change.column): change.message for change in changes}


def test_the_same_data_change_nothing(store):
    contract = infer_contract(people(), "people", store, target="left", key="id")
    adapted, changes = adapt_contract(contract, people(), store, target="left", key="id")
    assert changes == ()
    assert adapted == contract


def test_each_difference_is_listed(store):
    contract = infer_contract(people(), "people", store, target="left", key="id")
    now = people(age=[f"{i} years" for i in range(40)], salary=[float(i) for i in range(40)]).drop("city")
    found = told(store, contract, now, target="left", key="id")
    assert found == {
        ("dropped", "city"): "was string",
        ("retyped", "age"): "int64 → string",
        ("added", "salary"): "float64",
    }


def test_only_what_broke_is_widened(store):
    contract = infer_contract(people(), "people", store, target="left", key="id")
    written = [dict(column) for column in contract.columns]
    age = next(column for column in written if column["name"] == "age")
    age |= {"least": 18, "severities": {"least": "error"}}
    contract = replace(contract, columns=tuple(written), rules=({"rule": "rows", "least": 10},))
    older = people(age=[25] * 39 + [150], city=["Ulm", "Trier"] * 20)
    adapted, changes = adapt_contract(contract, older, store, target="left", key="id")
    assert {(change.kind, change.column) for change in changes} == {("widened", "age"), ("widened", "city")}
    kept = {column["name"]: column for column in adapted.columns}
    assert (kept["age"]["least"], kept["age"]["min"], kept["age"]["max"]) == (18, 20, 150)
    assert kept["age"]["severities"] == {"least": "error"}
    assert set(kept["city"]["categories"]) == {"Ulm", "Bonn", "Trier"}
    assert adapted.rules == contract.rules


def test_rules_of_people_are_never_bent(store):
    contract = infer_contract(people(), "people", store, target="left", key="id")
    rules = (
        {"rule": "where", "sql": "age < 100"},
        {"rule": "where", "sql": "city <> 'Rome'"},
        {"rule": "unique", "columns": ["age", "city"]},
        {"rule": "rows", "least": 41},
    )
    contract = replace(contract, rules=rules)
    found = told(store, contract, people(age=[120] * 40).drop("city"), target="left", key="id")
    assert found["rule dropped", None] == "city <> 'Rome': one of its columns no longer exists"
    assert found["rule dropped", "city"] == "the rule 'unique' used this column"
    assert "fewer than 41" in found["still broken", None] or "age < 100" in found["still broken", None]
    # The rule of a repeated key is never widened.
    doubled = told(store, replace(contract, rules=()), people(id=["p0"] * 40), target="left", key="id")
    assert list(doubled) == [("still broken", "id")]


def test_another_target_is_listed(store):
    contract = infer_contract(people(), "people", store, target="left")
    found = told(store, contract, people(), target="city")
    assert found == {("role", "left"): "target → feature", ("role", "city"): "feature → target"}


VALUES = {
    "int": st.integers(-(10**6), 10**6),
    "float": st.floats(allow_nan=True, allow_infinity=True, width=32),
    "text": st.text(alphabet="abc01", max_size=4),
    "flag": st.booleans(),
}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(1, 12))
    kinds = draw(st.dictionaries(st.sampled_from("abcd"), st.sampled_from(sorted(VALUES)), min_size=1))
    types = {"int": pl.Int64, "float": pl.Float64, "text": pl.String, "flag": pl.Boolean}
    return pl.DataFrame(
        {
            name: pl.Series(draw(st.lists(st.none() | VALUES[kind], min_size=rows, max_size=rows)), dtype=types[kind])
            for name, kind in kinds.items()
        }
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(frames(), frames())
def test_an_accepted_table_keeps_its_contract(store, before, after):
    contract = infer_contract(before, "any", store)
    adapted, changes = adapt_contract(contract, after, store)
    assert check_contract(after, adapted).violations == ()
    assert {change.column for change in changes if change.kind == "added"} == set(after.columns) - set(before.columns)
    assert {change.column for change in changes if change.kind == "dropped"} == set(before.columns) - set(after.columns)
    assert adapt_contract(adapted, after, store)[1] == ()
