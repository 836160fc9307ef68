"""Searching by any value on every database, compared with a simple implementation in Python."""

from __future__ import annotations

import math
import re
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.errors import NotFoundError, UsageError
from everloop.records import EndpointRecord, Run
from everloop.stores import RecordStore, new_id
from everloop.stores.clock import micros
from everloop.stores.records import migrations as migrations_package
from everloop.stores.records.expressions import And, Compare, Expression, Not, Or
from everloop.stores.records.postgres import PostgresRecords
from everloop.stores.records.record_codec import encode
from everloop.stores.records.sqlite import SqliteRecords
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = st.sampled_from(["", "a", "A", "ab", "a%b", "a_b", "*", "[a]", "0.5", "1", "-3e2", "ü", "Ü", "z" * 300, "z" * 299 + "y", "true", "\\", "\n", "\U0001f600"])  # fmt: skip # noqa: E501
NUMBERS = st.sampled_from([0, 1, -1, 0.5, -0.0, 1e300, math.inf, -math.inf, 3, 2**62, 1e-320])
METRICS = st.one_of(NUMBERS, st.just(math.nan))
PARAMS = st.one_of(TEXTS, NUMBERS.filter(math.isfinite), st.booleans(), st.none(), st.just([1, "a"]))
NAMES = st.sampled_from(["x", "val/auc.1", "a b", 'say "x"'])
RUNS = st.lists(
    st.fixed_dictionaries(
        {
            "name": TEXTS.filter(bool),
            "state": st.sampled_from(["running", "finished", "failed"]),
            "loop": st.none() | TEXTS,
            "seconds": st.none() | NUMBERS.filter(math.isfinite),
            "started_at": st.integers(0, 3).map(lambda days: START + timedelta(days=days)),
            "ended_at": st.none() | st.just(START),
            "params": st.dictionaries(NAMES, PARAMS, max_size=3),
            "tags": st.dictionaries(NAMES, TEXTS, max_size=3),
            "metrics": st.dictionaries(NAMES, METRICS, max_size=3),
        }
    ),
    max_size=14,
)
PATHS = st.one_of(
    st.sampled_from([("name",), ("state",), ("loop",), ("seconds",), ("started_at",), ("ended_at",), ("archived_at",)]),
    st.tuples(st.sampled_from(["params", "tags", "metrics"]), NAMES),
)
CONSTANTS = st.one_of(TEXTS, NUMBERS, st.booleans(), st.integers(0, 3).map(lambda days: START + timedelta(days=days)))
COMPARES = st.one_of(
    st.builds(Compare, PATHS, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), CONSTANTS),
    st.builds(Compare, PATHS, st.sampled_from(["in", "not in"]), st.lists(CONSTANTS, max_size=3).map(tuple)),
    st.builds(
        Compare,
        PATHS,
        st.sampled_from(["like", "not like", "ilike", "not ilike"]),
        st.lists(st.sampled_from(["%", "_", "a", "A", "*", "[", "?", "\\", "Ü"]), max_size=4).map("".join),
    ),
    st.builds(Compare, PATHS, st.sampled_from(["is null", "is not null"])),
)
EXPRESSIONS = st.recursive(
    COMPARES,
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=5,
)
ORDERS = st.lists(st.tuples(PATHS, st.booleans()), min_size=1, max_size=3)


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStore]:
    common: dict[str, Any] = {"project": "flights", "actor": "user:ann@desk", "clock": ManualClock()}
    opened: SqliteRecords | PostgresRecords
    if request.param == "sqlite":
        opened = SqliteRecords(tmp_path / "records.db", **common)
    else:
        opened = PostgresRecords(request.getfixturevalue("postgres_shared"), **common)
    yield opened
    opened.close()


@pytest.mark.slow
def test_every_search_finds_what_a_plain_reading_finds(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = iter(range(10**6))

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(RUNS, EXPRESSIONS, ORDERS, st.integers(1, 5), st.booleans())
    def check(
        described: list[dict[str, Any]],
        where: Expression,
        order: list[tuple[tuple[str, ...], bool]],
        size: int,
        at_once: bool,
    ) -> None:
        # Both strategies for a page: sorting a few rows, and scanning an index.
        monkeypatch.setattr("everloop.stores.records.sql_search.FEW", 5000 if at_once else -1)
        monkeypatch.setattr("everloop.stores.records.sql_search.WINDOW", size)
        own = store.for_project(f"p{next(turn)}")
        runs = [_run(own, **one) for one in described]
        own.put(*runs)
        expected = [run.id for run in _plain_sort(runs, order) if _true(where, run)]
        assert [hit.id for hit in own.search(Run, where, order=order)] == expected
        assert own.count(Run, where) == len(expected)
        found: list[str] = []
        after = None
        while page := own.search(Run, where, order=order, limit=size, after=after):
            found += [hit.id for hit in page]
            after = page[-1]
        assert found == expected

    check()


def test_values_are_returned_unchanged(store: RecordStore) -> None:
    params = {"a": 1, "b": 0.5, "c": "0.5", "d": True, "e": [1, None], "f": {"g": "h"}, "n": None}
    run = _run(store, name="r", params=params, metrics={"m": math.inf, "bad": math.nan}, ended_at=START)
    store.put(run)
    paths = [("params", name) for name in (*params, "f.g")]
    paths += [("metrics", "m"), ("metrics", "bad"), ("ended_at",), ("seconds",)]
    (row,) = store.values_at(Run, [run.id], paths)
    assert math.isnan(row.pop(("metrics", "bad")))
    assert row == {
        ("params", "a"): 1,
        ("params", "b"): 0.5,
        ("params", "c"): "0.5",
        ("params", "d"): True,
        ("params", "e"): [1, None],
        ("params", "f.g"): "h",
        ("metrics", "m"): math.inf,
        ("ended_at",): START,
    }
    assert store.search_names(Run, "params") == ["a", "b", "c", "d", "e", "f.g"]


def test_updates_deletions_and_restorations_are_followed(store: RecordStore) -> None:
    run = _run(store, name="r", params={"a": 1, "b": "x"}, metrics={"m": 1.0})
    store.put(run)
    (updated,) = store.update(replace(run, params={"a": 2}, metrics={"m": 1.0, "n": 5.0}))
    assert _ids(store, Compare(("params", "a"), "=", 2)) == [run.id]
    assert _ids(store, Compare(("params", "a"), "=", 1)) == []
    assert _ids(store, Compare(("params", "b"), "is null")) == [run.id]
    store.delete(Run, run.id)
    assert store.count(Run, And(())) == 0
    assert _ids(store, Compare(("metrics", "n"), ">", 0)) == []
    store.restore(Run, run.id)
    assert _ids(store, Compare(("metrics", "n"), ">", 0)) == [run.id]
    assert store.get_many(Run, ["none", run.id]) == [updated]
    with suppress(RuntimeError), store.transaction():
        store.update(replace(updated, name="other"))
        assert _ids(store, Compare(("name",), "=", "other")) == [run.id]
        raise RuntimeError
    assert _ids(store, Compare(("name",), "=", "other")) == []


def test_a_search_stays_in_its_project_and_its_moment(store: RecordStore) -> None:
    clock = store.clock  # type: ignore[attr-defined]
    run = _run(store, name="r", metrics={"m": 1.0})
    store.put(run)
    then = clock.now()
    clock.advance(60)
    store.update(replace(run, metrics={"m": 2.0}))
    store.put(_run(store, name="later", metrics={"m": 3.0}))
    past = store.as_of(then)
    assert _ids(past, Compare(("metrics", "m"), "=", 1.0)) == [run.id]
    assert past.count(Run, And(())) == 1
    assert past.values_at(Run, [run.id], [("metrics", "m")]) == [{("metrics", "m"): 1.0}]
    hit = past.search(Run, And(()), order=[(("name",), False)])[0]
    with pytest.raises(UsageError, match="past"):
        store.search(Run, And(()), order=[(("name",), False)], after=hit)
    assert _ids(store.for_project("trains"), And(())) == []


def test_paths_that_cannot_be_searched_are_refused(store: RecordStore) -> None:
    with pytest.raises(UsageError, match="cannot be searched by 'source'"):
        store.search(Run, Compare(("source",), "=", "x"))
    with pytest.raises(UsageError, match="Searchable fields: none"):
        store.count(EndpointRecord, Compare(("name",), "=", "x"))
    many = Or(tuple(Compare(("name",), "=", str(number)) for number in range(501)))
    with pytest.raises(UsageError, match="too long"):
        store.count(Run, many)
    for op, value in (
        ("~", 1),
        ("like", 1),
        ("in", "a"),
        ("=", None),
        ("<", math.nan),
        (">=", math.nan),
        ("=", "\0"),
        ("is null", 1),
    ):
        with pytest.raises(UsageError):
            Compare(("name",), op, value)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="without a time zone"):
        Compare(("started_at",), ">", datetime(2024, 1, 1))


def test_records_of_older_versions_are_indexed_by_the_first_search(store: RecordStore) -> None:
    runs = [_run(store, name=f"r{number}", metrics={"m": float(number)}) for number in range(5)]
    store.put(*runs)
    store.delete(Run, runs[0].id)
    database = store.database  # type: ignore[attr-defined]
    with store.transaction():
        # The state of a home right after the migration that creates the tables.
        for table in ("searched_values", "searched_records", "searched_paths"):
            database.write(f"DELETE FROM {table}")  # noqa: S608
        database.write("INSERT INTO searched_backlog SELECT id FROM records WHERE deleted_at IS NULL")
    again = type(store).__new__(type(store))
    again.__dict__.update(store.__dict__)
    again._caught_up = [False]  # type: ignore[attr-defined]
    store.update(replace(runs[1], metrics={"m": 10.0}))
    found = again.search(Run, And(()), order=[(("metrics", "m"), True)])
    assert [hit.id for hit in found] == [runs[number].id for number in (1, 4, 3, 2)]
    assert database.read("SELECT count(*) FROM searched_backlog") == [(0,)]


def test_what_a_purge_removes_takes_its_points_along(store: RecordStore) -> None:
    from everloop.records import Point

    run = _run(store, name="r")
    store.put(run)
    store.append_points(f"run:{run.id}", [Point(key="m", value=1.0, at=START)])
    store.delete(Run, run.id)
    assert store.purge(START + timedelta(days=1)) == 1
    assert store.read_points(f"run:{run.id}") == []
    with pytest.raises(NotFoundError):
        store.restore(Run, run.id)


def _ids(store: RecordStore, where: Expression) -> list[str]:
    return [hit.id for hit in store.search(Run, where, order=[(("name",), False)], limit=10)]


def _run(store: RecordStore, **fields: Any) -> Run:
    return Run(id=new_id(START), project=store.project, created_at=START, **{"started_at": START, **fields})


def _at(run: Run, path: tuple[str, ...]) -> Any:
    value = getattr(run, path[0])
    return value.get(path[1]) if len(path) > 1 else value


def _number_of(run: Run, path: tuple[str, ...]) -> float | None:
    value = _at(run, path)
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value):
        return float(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _text_of(run: Run, path: tuple[str, ...]) -> str | None:
    import json

    value = _at(run, path)
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, datetime) or path[0] in ("metrics", "seconds"):
        return None
    return json.dumps(value, separators=(",", ":"))


def _true(where: Expression, run: Run) -> bool:
    match where:
        case And(parts):
            return all(_true(part, run) for part in parts)
        case Or(parts):
            return any(_true(part, run) for part in parts)
        case Not(part):
            return not _true(part, run)
    path, op, value = where.path, where.op, where.value
    if op.startswith("not ") or op in ("!=", "is null"):
        positive = {"!=": "=", "is null": "is not null"}.get(op, op.removeprefix("not "))
        return not _true(Compare(path, positive, value), run)  # type: ignore[arg-type]
    if op == "is not null":
        return _at(run, path) is not None
    if isinstance(value, tuple):
        return any(_true(Compare(path, "=", item), run) for item in value)
    if isinstance(value, bool):
        value = str(value).lower()
    left: Any = _text_of(run, path) if isinstance(value, str) else _number_of(run, path)
    right: Any = value.timestamp() if isinstance(value, datetime) else value
    if left is None:
        return False
    if op in ("like", "ilike"):
        if op == "ilike":
            left, right = (re.sub("[A-Z]", lambda found: found[0].lower(), text) for text in (left, right))
        return _like(right, left)
    return {"=": left == right, "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]


def _like(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(_like(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and _like(pattern[1:], text[1:])


def _plain_sort(runs: list[Run], order: list[tuple[tuple[str, ...], bool]]) -> list[Run]:
    found = list(runs)
    if order[0][1]:
        found.reverse()
    for path, down in reversed(order):
        numbers = [run for run in found if _number_of(run, path) is not None]
        texts = [run for run in found if _number_of(run, path) is None and _text_of(run, path) is not None]
        rest = [run for run in found if _number_of(run, path) is None and _text_of(run, path) is None]
        numbers.sort(key=lambda run: _number_of(run, path) or 0.0, reverse=down)
        texts.sort(key=lambda run: (_text_of(run, path) or "")[:200], reverse=down)
        found = [*numbers, *texts, *rest]
    return found


def test_a_home_of_the_first_version_is_searched_after_its_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    run = Run(id=new_id(START), project="flights", created_at=START, name="old", started_at=START, metrics={"m": 2.0})
    script = (Path(migrations_package.__file__).parent / "sqlite" / "0001_records.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{script}; PRAGMA user_version = 1;")
        old.execute(
            "INSERT INTO records (id, project, kind, key, state, created_at, revision, written_at, body)"
            " VALUES (?, 'flights', 'run', ?, 'running', ?, 0, ?, ?)",
            (run.id, run.id, micros(START), micros(START), encode(run)),
        )
        old.commit()
    store = SqliteRecords(path, project="flights", actor="user:ann@desk", clock=ManualClock())
    try:
        assert _ids(store, Compare(("metrics", "m"), ">", 1.0)) == [run.id]
        assert store.search_names(Run, "metrics") == ["m"]
    finally:
        store.close()
