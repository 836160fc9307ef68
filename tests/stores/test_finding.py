"""`find` compared with a simple implementation of its contract in Python."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.errors import UsageError
from everloop.records import Run
from everloop.stores import Condition, RecordStore, Store, new_id
from everloop.stores.records import sql_records
from everloop.stores.records.condition_sql import parse_order
from everloop.stores.records.expressions import Compare
from everloop.stores.records.sql_records import SqlRecords
from everloop.stores.records.sqlite import SqliteRecords
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = object()

texts = st.sampled_from(["", "a", "ab", "b", "A", "é", "\U0001f600", "\uffff", "1", "true", "a.b", "%", "null"])
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, -0.5, 1.0, float("inf"), float("nan"), 2**53 + 1, 2**63, 1e300])
)
values = st.one_of(st.none(), st.booleans(), numbers, texts, st.just([1]), st.just({"x": 1}))
moments = st.builds(
    lambda seconds, rest: START.replace(microsecond=0) + timedelta(seconds=seconds, microseconds=rest),
    st.integers(0, 2),
    st.sampled_from([0, 1, 500_000]),
)
runs = st.builds(
    lambda name, started, ended, params, metrics: Run(
        id=new_id(START),
        project="p",
        created_at=started,
        name=name,
        started_at=started,
        ended_at=ended,
        params=params,
        metrics=metrics,
    ),
    texts,
    moments,
    st.none() | moments,
    st.dictionaries(st.sampled_from(["a", "b", 'q"', ""]), values, max_size=3),
    st.dictionaries(st.sampled_from(["auc", "val/auc.1"]), st.floats(-2, 2) | st.just(float("nan")), max_size=2),
)
comparable = st.one_of(st.booleans(), numbers.filter(lambda number: number == number), texts)
paths = st.sampled_from(
    [
        "name",
        "key",
        "state",
        "error",
        "params.a",
        "params.b",
        ("params", 'q"'),
        ("params", ""),
        "params.b.x",
        "metrics.auc",
        ("metrics", "val/auc.1"),
        "revision",
    ]
)
conditions = st.one_of(
    st.tuples(paths, st.sampled_from(["=", "!="]), st.none() | comparable),
    st.tuples(paths, st.just("is"), st.none()),
    st.tuples(paths, st.just("prefix"), texts),
    st.tuples(paths, st.sampled_from(["<", "<=", ">", ">="]), comparable.filter(lambda it: not isinstance(it, bool))),
    st.tuples(paths, st.just("in"), st.lists(comparable, max_size=3)),
    st.tuples(
        st.sampled_from(["started_at", "ended_at", "created_at"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        moments,
    ),
)
orders = st.builds(
    lambda sign, field: sign + field,
    st.sampled_from(["", "-"]),
    st.sampled_from(["id", "created_at", "ended_at", "name", "params.a", "params.b.x", "metrics.auc", "state", "key"]),
)


def value_at(run: Run, field: str | tuple[str, ...]) -> Any:
    first, *rest = field.split(".") if isinstance(field, str) else field
    value = getattr(run, first)
    for name in rest:
        value = value.get(name, ABSENT) if isinstance(value, dict) else ABSENT
    return value


def family(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            # Numbers without a JSON form are stored, but no comparison with them is true.
            return "number" if value == value and abs(value) != float("inf") else "odd"
        case str():
            return "text"
        case datetime():
            return "time"
    return "absent" if value is None or value is ABSENT else "other"


def meets(run: Run, condition: Condition) -> bool:
    field, op, asked = condition
    value = value_at(run, field)
    if asked is None:
        return (family(value) == "absent") == (op != "!=")
    if op == "in":
        assert isinstance(asked, list)
        return any(meets(run, (field, "=", one)) for one in asked)
    alike = family(value) == family(asked) != "odd"
    match op:
        case "=":
            return alike and bool(value == asked)
        case "!=":
            return not (alike and value == asked)
        case "prefix":
            return alike and value.startswith(asked)
    if family(asked) == "odd":
        # Infinities can be used in conditions, and are beyond all other numbers.
        return family(value) == "number" and compare(float(value), asked, op)
    return alike and compare(value, asked, op)


def compare(one: Any, other: Any, op: str) -> bool:
    return {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}[op]


def sort_runs(found: list[Run], order: str) -> list[Run]:
    field = order.removeprefix("-")
    back = order.startswith("-")
    groups = {"number": 0, "text": 1, "time": 1}

    def before(one: Run, other: Run) -> int:
        left, right = value_at(one, field), value_at(other, field)
        group_left, group_right = groups.get(family(left), 2), groups.get(family(right), 2)
        if group_left != group_right:
            return group_left - group_right
        pair = [(left, one.id), (right, other.id)] if group_left < 2 else [(0, one.id), (0, other.id)]
        way = (pair[0] > pair[1]) - (pair[0] < pair[1])
        return -way if back else way

    return sorted(found, key=functools.cmp_to_key(before))


def check_find(store: RecordStore, kept: list[Run], where: list[Condition], order: str) -> None:
    expected = [run.id for run in sort_runs([run for run in kept if all(meets(run, one) for one in where)], order)]
    assert [run.id for run in store.find(Run, *where, order=order)] == expected
    paged: list[str] = []
    while page := store.find(Run, *where, order=order, limit=2, after=paged[-1] if paged else None):
        paged += [run.id for run in page]
    assert paged == expected


lists = st.lists(runs, max_size=6, unique_by=lambda run: run.id)


@pytest.fixture(scope="module")
def sqlite_records(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    path: Path = tmp_path_factory.mktemp("finding") / "everloop.db"
    return SqliteRecords(path, project="p", actor="a", clock=ManualClock(datetime(2020, 1, 1, tzinfo=UTC)))


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=lists, where=st.lists(conditions, max_size=2), order=orders)
def test_find_follows_its_contract_in_sqlite(
    sqlite_records: RecordStore, kept: list[Run], where: list[Condition], order: str
) -> None:
    _check_in_project(sqlite_records, kept, where, order)


@pytest.fixture
def postgres_records(postgres_url: str) -> Iterator[RecordStore]:
    from everloop.stores.records.postgres import PostgresRecords

    clock = ManualClock(datetime(2020, 1, 1, tzinfo=UTC))
    opened = PostgresRecords(postgres_url, project="p", actor="a", clock=clock)
    yield opened
    opened.close()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=lists, where=st.lists(conditions, max_size=2), order=orders)
def test_find_follows_its_contract_in_postgresql(
    postgres_records: RecordStore, kept: list[Run], where: list[Condition], order: str
) -> None:
    _check_in_project(postgres_records, kept, where, order)


class UndoError(Exception):
    """Rolls back an example, so that all examples can share one store."""


def _check_in_project(store: RecordStore, kept: list[Run], where: list[Condition], order: str) -> None:
    def check() -> None:
        with store.transaction():
            store.put(*kept)
            check_find(store, kept, where, order)
            raise UndoError

    with pytest.raises(UndoError):
        check()


@pytest.fixture(params=["sqlite", "postgresql"])
def indexed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlRecords]:
    """A store that treats every page as slow."""
    monkeypatch.setattr(sql_records, "SLOW_S", -1.0)
    store: SqlRecords
    if request.param == "sqlite":
        store = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    else:
        from everloop.stores.records.postgres import PostgresRecords

        url = request.getfixturevalue("postgres_url")
        store = PostgresRecords(url, project="p", actor="a", clock=ManualClock())
    yield store
    store.close()


def indexes(store: SqlRecords) -> int:
    if isinstance(store, SqliteRecords):
        return len(store.database.read("SELECT 1 FROM sqlite_master WHERE name GLOB 'search_*'"))
    return len(
        store.database.read(
            "SELECT 1 FROM pg_indexes WHERE schemaname = current_schema() AND starts_with(indexname, 'search_')"
        )
    )


def make_runs(count: int) -> list[Run]:
    return [
        Run(
            id=new_id(START),
            project="p",
            created_at=START,
            name=f"r{number}",
            started_at=START,
            params={"p": number % 7 if number % 2 else f"t{number % 5}"},
            metrics={"val/auc.1": (number * 37 % 50) / 50} if number % 3 else {},
        )
        for number in range(count)
    ]


@pytest.mark.slow
def test_a_slow_order_gets_an_index_that_changes_no_result(indexed: SqlRecords) -> None:
    kept = make_runs(200)
    indexed.put(*kept)
    for order in ("-params.p", "params.p", "-started_at"):
        for _ in range(2):
            check_find(indexed, kept, [], order)
    assert indexes(indexed) == 3, "a number and a text for params, a text for the time"
    by_auc = ("metrics", "val/auc.1")
    expected = [run.id for run in sort_runs(kept, "-created_at") if value_at(run, by_auc) is not ABSENT]
    check_find(indexed, kept, [(by_auc, ">", 0.5)], "-params.p")
    assert len(expected) == 133
    changed = indexed.update(*(replace(run, params={"p": 100 + number}) for number, run in enumerate(kept[:50])))
    indexed.delete(Run, kept[60].id)
    now = [*changed, *kept[50:60], *kept[61:]]
    for order in ("-params.p", "params.p"):
        check_find(indexed, now, [], order)


def test_an_index_serves_the_page(indexed: SqlRecords) -> None:
    indexed.put(*make_runs(300))
    indexed.find(Run, order="-metrics.loss", limit=5)
    (part, _) = parse_order("-metrics.loss", "run", indexed.database.paths)
    statement = (
        "SELECT body FROM records WHERE project = 'p' AND kind = 'run' AND deleted_at IS NULL"  # noqa: S608
        f" AND {part.where.text} ORDER BY {part.by.text} LIMIT 5"
    )
    if isinstance(indexed, SqliteRecords):
        # The plan has one line: the index returns the rows in order, without sorting.
        (plan,) = indexed.database.read(f"EXPLAIN QUERY PLAN {statement}")
        assert "search_" in plan[-1]
    else:
        plan = indexed.database.read(f"EXPLAIN {statement}")
        assert "search_" in str(plan)


def test_indexes_are_few_and_made_outside_of_transactions_only(
    indexed: SqlRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everloop.stores.records import postgres, sqlite

    for module in (sqlite, postgres):
        monkeypatch.setattr(module, "MOST_INDEXES", 2)
    with indexed.transaction():
        indexed.find(Run, order="metrics.a", limit=1)
    assert indexes(indexed) == 0
    for name in ("a", "a", "b", "c"):
        indexed.find(Run, order=f"metrics.{name}", limit=1)
    indexed.find(Run, order='metrics.say "x"', limit=1)
    indexed.find(Run, order="-created_at", limit=1)
    indexed.find(Run, order="metrics.d")
    indexed.as_of(START).find(Run, order="metrics.e", limit=1)
    assert indexes(indexed) == 2


def test_numbers_beyond_every_float_find_nothing(store: Store) -> None:
    for digits in (10**400, -(10**400)):
        assert store.records.find(Run, ("seconds", "=", digits)) == []
        assert store.records.find(Run, ("seconds", "in", [digits, 1.0])) == []


@pytest.mark.parametrize("name", ["\0", "a\0b", "\ud800", "a\udfff"])
def test_names_that_cannot_be_stored_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="names never contain"):
        Compare(("metrics", name), ">", 1)
