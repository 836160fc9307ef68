"""Bounds of every type of column: values outside are found exactly, and bounds of another type are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.data import check_contract, contract_from_toml, contract_to_toml, infer_contract
from everloop.errors import UsageError
from everloop.records import Contract, Json
from everloop.stores import Store

NAN = float("nan")
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def contract(**column: Json) -> Contract:
    return Contract(id="i", project="p", created_at=AT, dataset="d", version=1, columns=({"name": "x", **column},))


def outside(values: pl.Series, kind: str, **bounds: Json) -> list[bool]:
    """Whether each value breaks the contract, which is first written to TOML and read back."""
    held = contract_from_toml(contract_to_toml(contract(type=kind, infinite=True, **bounds)))
    report = check_contract(values.alias("x").to_frame().with_row_index("row"), held)
    bad = report.bad.collect()["row"].to_list()
    return [row in bad for row in range(len(values))]


MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(MOMENTS | st.none(), min_size=1, max_size=8), MOMENTS, st.sampled_from(["ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "Asia/Tokyo"]), st.sampled_from([None, "UTC", "America/New_York"]),
)  # fmt: skip
def test_times_are_compared_in_their_unit_and_zone(
    values: list[datetime | None], limit: datetime, unit: Any, zone: str | None, written_in: str | None
) -> None:
    column = pl.Series(values, dtype=pl.Datetime("us")).dt.cast_time_unit(unit)
    if zone is not None:
        column = column.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    written = limit if written_in is None else limit.replace(tzinfo=UTC).astimezone(ZoneInfo(written_in))
    kept = pl.Series(values, dtype=pl.Datetime("us")).dt.cast_time_unit(unit).dt.cast_time_unit("us").to_list()
    declared = "timestamp[us]" if zone is None else "timestamp[us, UTC]"
    for bound, beyond in (("least", lambda value: value < limit), ("most", lambda value: value > limit)):
        expected = [value is not None and beyond(value) for value in kept]
        assert outside(column, declared, **{bound: written.isoformat()}) == expected


def test_far_years_are_judged(store: Store) -> None:
    column = pl.Series([2**50, 0, None]).cast(pl.Datetime("ms"))
    assert outside(column, "timestamp[ms]", most="9999-12-31T23:59:59") == [True, False, False]
    frame = column.alias("x").to_frame()
    inferred = infer_contract(frame, "d", store)
    assert "min" not in inferred.columns[0]
    assert check_contract(frame, inferred).violations == ()


def test_a_nanosecond_is_outside() -> None:
    column = pl.Series([999, 1_000, 1_001, None]).cast(pl.Datetime("ns"))
    assert outside(column, "timestamp[ns]", most="1970-01-01T00:00:00.000001") == [False, False, True, False]
    assert outside(column, "timestamp[ns]", least="1970-01-01T00:00:00.000000999Z") == [False] * 4
    assert outside(column, "timestamp[ns]", least="1970-01-01T00:00:00.000001001") == [True, True, False, False]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dates() | st.none(), min_size=1, max_size=8), st.dates())
def test_dates(values: list[date | None], limit: date) -> None:
    column = pl.Series(values, dtype=pl.Date)
    assert outside(column, "date", most=limit.isoformat()) == [value is not None and value > limit for value in values]
    assert outside(column, "date", least=limit.isoformat()) == [value is not None and value < limit for value in values]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.times() | st.none(), min_size=1, max_size=8), st.times())
def test_times_of_day(values: list[time | None], limit: time) -> None:
    column = pl.Series(values, dtype=pl.Time)
    assert outside(column, "time", most=limit.isoformat()) == [value is not None and value > limit for value in values]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1, max_size=8), st.integers(-(2**64), 2**64))
def test_whole_numbers_are_compared_exactly(values: list[int | None], limit: int) -> None:
    column = pl.Series(values, dtype=pl.Int64)
    assert outside(column, "int64", most=limit) == [value is not None and value > limit for value in values]
    assert outside(column, "int64", least=limit) == [value is not None and value < limit for value in values]


def test_decimals_and_durations() -> None:
    money = pl.Series([Decimal("12345678901234567.89"), Decimal("0.10"), None], dtype=pl.Decimal(20, 2))
    assert outside(money, "decimal[20, 2]", most="12345678901234567.88") == [True, False, False]
    assert outside(money, "decimal[20, 2]", most=0.1) == [True, False, False]
    assert outside(money, "decimal[20, 2]", least=1) == [False, True, False]
    for unit in ("ms", "us", "ns"):
        waits = pl.Series(
            [timedelta(minutes=89), timedelta(minutes=90), timedelta(minutes=91)], dtype=pl.Duration(unit)
        )
        assert outside(waits, f"duration[{unit}]", most="90m") == [False, False, True]
        assert outside(waits, "duration[us]", least=5400) == [True, False, False]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pl.Series([0, 2**64, None], dtype=pl.Int128), "int128"),
        (pl.Series([0, 2**128 - 1, None], dtype=pl.UInt128), "uint128"),
        (pl.Series([0.0, 1e30, None]), "float64"),
        (pl.Series([timedelta(0), timedelta(days=9), None]), "duration[us]"),
        (pl.Series([Decimal("0.00"), Decimal("-7.25"), None], dtype=pl.Decimal(38, 2)), "decimal[38, 2]"),
    ],
)
def test_a_bound_may_be_larger_than_every_value(values: pl.Series, kind: str) -> None:
    for huge in (10**40, 10**400, *(["1e50", "1e400"] if kind.startswith("decimal") else [])):
        negative: Json = f"-{huge}" if isinstance(huge, str) else -huge
        assert outside(values, kind, most=huge, least=negative) == [False] * 3
        assert outside(values, kind, least=huge) == [True, True, False]
        assert outside(values, kind, most=negative) == [True, True, False]


def test_decimal_bounds_may_have_more_digits_than_their_column() -> None:
    money = pl.Series([Decimal("0.10"), Decimal("0.11"), None], dtype=pl.Decimal(20, 2))
    assert outside(money, "decimal[20, 2]", least="0.10" + "0" * 40 + "1") == [True, False, False]
    assert outside(money, "decimal[20, 2]", most="0.10" + "9" * 40) == [False, True, False]


def test_dates_of_toml_are_bounds() -> None:
    text = 'dataset = "d"\nid = "i"\nproject = "p"\ncreated_at = "2026-03-01T00:00:00+00:00"\n'
    for kind, value, said in (
        ("date", "2026-03-01", "2026-03-01"),
        ("timestamp[us, UTC]", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00+00:00"),
        ("timestamp[us]", "2026-03-01", "2026-03-01"),
        ("time", "07:32:00", "07:32:00"),
    ):
        held = contract_from_toml(f'{text}[[columns]]\nname = "x"\ntype = "{kind}"\nleast = {value}\n')
        assert held.columns[0]["least"] == said
        assert contract_from_toml(contract_to_toml(held)) == held


REFUSED: list[tuple[str, Json]] = [
    ("int64", "5"), ("float64", "5"), ("int64", True), ("int64", "2026-03-01"), ("decimal[5, 2]", "much"),
    ("date", 5), ("date", "2026-03-01T12:00:00"), ("date", "tomorrow"), ("date", "07:32:00"),
    ("timestamp[us]", 5), ("timestamp[us, UTC]", "07:32:00"), ("timestamp[us]", "noon"),
    ("time", "2026-03-01"), ("time", 5), ("time", "07:32:00+01:00"), ("duration[us]", "2026-03-01"),
    ("duration[us]", "x"), ("float64", NAN), ("decimal[5, 2]", "NaN"), ("decimal[5, 2]", "Infinity"),
    ("string", "a"), ("string", 5), ("bool", 1), ("categorical", 1), ("enum", 1), ("binary", 1), ("null", 1),
    ("list[int64]", 1), ("struct[a: int64]", 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), REFUSED)
@pytest.mark.parametrize("bound", ["least", "most", "min", "max"])
def test_a_bound_of_another_type_is_refused_when_it_is_read(kind: str, value: Json, bound: str) -> None:
    held = contract(type=kind, **{bound: value})
    with pytest.raises(UsageError, match=rf"'x' of the contract has {bound} = "):
        contract_from_toml(contract_to_toml(held))
    # A contract that was never TOML, such as one from pandera, is refused at its first check.
    dtype: Any = {"int64": pl.Int64, "date": pl.Date, "string": pl.String, "time": pl.Time}.get(kind)
    if dtype is not None and not isinstance(value, bool):
        with pytest.raises(UsageError, match=f"'x' of 'd@1' has {bound} = "):
            check_contract(pl.DataFrame(schema={"x": dtype}), held)


def test_bounds_that_nothing_can_meet_are_refused() -> None:
    for kind, low, high in (("int64", 5, 4), ("date", "2026-03-02", "2026-03-01"), ("decimal[5, 2]", "0.2", 0.1)):
        with pytest.raises(UsageError, match=r"least = .* above most = "):
            contract_from_toml(contract_to_toml(contract(type=kind, least=low, most=high)))


def test_nan_breaks_a_column_that_is_not_nullable(store: Store) -> None:
    column = pl.Series([1.0, NAN, None, float("inf")])
    held = contract(type="float64", nullable=False, infinite=True)
    report = check_contract(column.alias("x").to_frame(), held)
    assert [(one.rule, one.rows, one.first_rows) for one in report.errors] == [("nullable", 2, (2, 3))]
    single = check_contract(column.cast(pl.Float32).alias("x").to_frame(), held)
    assert single.bad_rows == 2
    shares = check_contract(pl.DataFrame({"x": [NAN] * 90 + [1.0] * 10}), contract(type="float64", max_nulls=0.1))
    assert [one.rule for one in shares.warnings] == ["max_nulls"]
    unique = check_contract(pl.DataFrame({"x": [NAN, NAN, 1.0]}), contract(type="float64", unique=True))
    assert unique.passed, "as nulls, they do not repeat"
    target = pl.DataFrame({"x": [1.0, NAN]})
    inferred = infer_contract(target, "d", store, target="x")
    assert (inferred.columns[0]["nullable"], inferred.columns[0]["nulls"]) == (True, 0.5)
    assert check_contract(target, inferred).violations == ()


texts = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1)
by_type: dict[str, st.SearchStrategy[Json]] = {
    "int64": numbers,
    "float64": numbers,
    "duration[us]": numbers,
    "decimal[9, 2]": st.floats(allow_nan=False) | st.decimals(-9, 9, places=2).map(str),
    "date": st.dates().map(date.isoformat),
    "time": st.times().map(time.isoformat),
    "timestamp[us, UTC]": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
}


@st.composite
def columns(draw: st.DrawFn) -> dict[str, Json]:
    kind = draw(st.sampled_from([*by_type, "string", "enum", "list[int64]"]))
    made: dict[str, Json] = {"name": draw(texts), "type": kind}
    flags = ("required", "nullable", "unique", "ordered", "infinite", "future")
    made |= draw(st.fixed_dictionaries({}, optional=dict.fromkeys(flags, st.booleans())))
    if kind in by_type:
        made |= draw(st.fixed_dictionaries({}, optional=dict.fromkeys(("min", "most"), by_type[kind])))
    tables = {
        "categories": st.dictionaries(texts, st.integers(0, 9)),
        "quantiles": st.lists(numbers | st.just(NAN), max_size=3),
    }
    tables["severities"] = st.dictionaries(st.sampled_from(["min", "unique"]), st.sampled_from(["error", "warning"]))
    made |= draw(st.fixed_dictionaries({}, optional={**tables, "nulls": st.floats(0, 1), "role": texts}))
    return made


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(columns(), min_size=1, max_size=4, unique_by=lambda column: column["name"]), texts, texts)
def test_a_contract_survives_its_toml(held: list[dict[str, Json]], dataset: str, sql: str) -> None:
    rules: tuple[dict[str, Json], ...] = (
        {"rule": "where", "sql": sql, "severity": "warning"},
        {"rule": "unique", "columns": [column["name"] for column in held]},
    )
    first = Contract(id="i", project="p", created_at=AT, dataset=dataset, version=2, columns=tuple(held), rules=rules)
    again = contract_from_toml(contract_to_toml(first))
    # Compare as text, because NaN does not equal itself, and 1 equals 1.0 and True. The order of a table is ignored.
    assert [sorted(map(repr, column.items())) for column in again.columns] == [
        sorted(map(repr, column.items())) for column in first.columns
    ]
    assert (again.dataset, again.rules, again.id) == (first.dataset, first.rules, first.id)
