"""Moving a store to other places and back changes nothing in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.errors import ConflictError, CorruptionError, EverloopError, StoreError, UsageError
from everloop.records import Alias, ModelVersion, Point, Run
from everloop.stores import Store, open_store
from everloop.stores.records.expressions import Compare
from everloop.stores.records.row_copies import NOT_COPIED, TABLES, compare_rows, copy_rows
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.relocation import MovedStore, move_store
from everloop.stores.store_config import with_settings
from everloop.stores.verify import verify
from everloop.testing.stores import START, ManualClock

CONFIG = '# ours\n[project]\nname = "p"  # kept\n\n[store]\nhome = "home"\n\n[other]\nx = 1\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "everloop.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(store: Store, clock: ManualClock) -> None:
    run = store.new(Run, name="ünï\U0001f680", started_at=store.now(), params={"lr": 0.1, "z": {"a": [None, 2**70]}})
    other = store.for_project("q")
    store.records.put(run)
    clock.advance()
    store.records.update(replace(run, metrics={"loss": float("nan"), "auc": -0.0, "big": float("inf")}))
    deleted = store.new(Run, name="deleted", started_at=store.now())
    store.records.put(deleted)
    clock.advance()
    store.records.delete(Run, deleted.id)
    store.records.put(store.new(ModelVersion, model="m", version=1, package=f"sha256:{1:064x}"))
    other.records.put(other.new(Alias, model="m", name="champion", version="m@1"))
    values = [float("nan"), -0.0, 1e-320, float("-inf"), 0.1 + 0.2]
    points = [Point(key=f"k{n % 3}", value=values[n % 5], step=n, at=START) for n in range(40)]
    store.records.append_points(run.id, points)
    store.records.append_event("alarm", "endpoint", "e", data={"x": [1, None]})
    store.objects.add(b"small")
    store.objects.add(os.urandom(9 << 20))
    store.objects.add(b"")
    for number in range(3):
        frame = pl.DataFrame({"event_at": [START + timedelta(days=number)], "value": [number]})
        store.tables.append("predictions/delays", frame)


def shown(store: Store) -> dict[str, Any]:
    """Everything that callers can see."""
    return {
        "stored": list(store.records.stored()),
        "events": store.records.events_since(0),
        "runs": [store.records.history(Run, one.id) for one in store.records.find(Run)].__repr__(),
        "points": repr([store.records.read_points(one.id) for one in store.records.find(Run)]),
        "search": [hit.id for hit in store.records.search(Run, Compare(("params", "lr"), ">", 0))],
        "names": store.records.search_names(Run, "metrics"),
        "past": repr(store.records.as_of(START).find(Run)),
        "objects": sorted(store.objects.bytes_store.list()),
        "rows": store.tables.scan("predictions/delays").sort("value").collect().rows(),
    }


def kinds_of_problems(store: Store) -> set[str]:
    return {problem.kind for problem in verify(store).problems}


@pytest.mark.slow
def test_a_store_moves_there_and_back(project: Path, postgres_url: str, clock: ManualClock) -> None:
    with open_store(clock=clock) as store:
        fill(store, clock)
        before, problems = shown(store), kinds_of_problems(store)
        there = {"records": postgres_url, "objects": str(project / "o"), "tables": str(project / "t")}
        planned = move_store(store, there, dry_run=True)
        assert (project / "everloop.toml").read_text() == CONFIG
        assert not (project / "o").exists()
        first = move_store(store, there)
        assert (planned.rows, planned.objects, planned.size_bytes) == (first.rows, first.objects, first.size_bytes)
        # A process that still has the old database open cannot write to it.
        with pytest.raises(StoreError, match="moved to"):
            store.records.append_event("lost", "run", "x")
    assert "# ours" in (project / "everloop.toml").read_text()
    with open_store(clock=clock) as store:
        assert store.urls.records == postgres_url
        assert shown(store) == before
        assert kinds_of_problems(store) == problems
        # The numbers continue behind those that were copied.
        event = store.records.append_event("later", "run", "x")
        assert event.seq > before["events"][-1].seq
        store.records.append_points("s", [Point(key="new", value=1.0, step=0, at=START)])
        store.records.put(store.new(Run, name="later", started_at=store.now(), metrics={"new": 1.0}))
        between = shown(store)
        back = move_store(store, {"records": "everloop.db", "objects": "objects", "tables": "tables"})
        with pytest.raises(StoreError, match="moved to"):
            store.records.append_points("s", [Point(key="new", value=1.0, step=0, at=START)])
    assert back.digests.keys() == first.digests.keys() == {"records", "objects", "tables"}
    with open_store(clock=clock) as store:
        assert store.urls.records == str(project / "home" / "everloop.db")
        assert shown(store) == between
        assert kinds_of_problems(store) == problems
        store.records.append_event("last", "run", "x")
        move_store(store, {"records": postgres_url, "tables": str(project / "t")})
    with open_store(clock=clock) as store:
        assert [event.verb for event in store.records.events_since(0)][-1] == "last"


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "update", "delete", "restore", "points", "event"]),
        st.integers(0, 3),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
            st.one_of(
                st.floats(),
                st.integers(-(2**70), 2**70),
                st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9),
                st.booleans(),
                st.none(),
            ),
            max_size=3,
        ),
    ),
    max_size=14,
)


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(actions=ACTIONS)
def test_any_records_are_equal_after_two_moves(
    tmp_path_factory: pytest.TempPathFactory, postgres_shared: str, clock: ManualClock, actions: list[Any]
) -> None:
    from everloop.stores.records.postgres import PostgresDatabase
    from everloop.stores.records.row_copies import clear_rows

    folder = tmp_path_factory.mktemp("move")
    with open_store(folder / "home", project="p", clock=clock) as store:
        runs: list[str] = []
        for verb, number, values in actions:
            clock.advance()
            try:
                _act(store, runs, verb, number, values)
            except EverloopError:
                continue
        source = store.records.database  # type: ignore[attr-defined]
        middle, back = PostgresDatabase(postgres_shared), SqliteDatabase(folder / "back.db")
        with source.transaction(), middle.transaction(), back.transaction():
            clear_rows(middle)
            copy_rows(source, middle, lambda table, done: None)
            copy_rows(middle, back, lambda table, done: None)
            first, second = compare_rows(source, middle), compare_rows(source, back)
            assert first == second
            for table in TABLES:
                query = f"SELECT * FROM {table.name} ORDER BY {', '.join(table.key)}"  # noqa: S608
                rows = [database.read(query) for database in (source, back)]
                assert repr(rows[0]).replace("-0.0", "0.0") == repr(rows[1]).replace("-0.0", "0.0")
            clear_rows(middle)
        middle.close()
        back.close()


def _act(store: Store, runs: list[str], verb: str, number: int, values: dict[str, Any]) -> None:
    if verb == "put" or not runs:
        run = store.new(Run, name="r", started_at=store.now(), params=values)
        store.records.put(run)
        runs.append(run.id)
        return
    ref = runs[number % len(runs)]
    match verb:
        case "update":
            found = store.records.get(Run, ref)
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, float)}
            store.records.update(replace(found, metrics=numbers))
        case "delete":
            store.records.delete(Run, ref)
        case "restore":
            store.records.restore(Run, ref)
        case "points":
            store.records.append_rows(ref, [(key, number, 0, float(number)) for key in values])
        case _:
            store.records.append_event("e", "run", ref, data=values)


def test_every_table_of_the_database_is_considered(tmp_path: Path, postgres_url: str) -> None:
    """A table that a later migration adds must be copied, or listed as not copied, with all its columns."""
    from everloop.stores.records.postgres import PostgresDatabase

    database = SqliteDatabase(tmp_path / "x.db")
    found = database.read("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    assert {name for (name,) in found} == {table.name for table in TABLES} | set(NOT_COPIED)
    server = PostgresDatabase(postgres_url)
    for table in TABLES:
        columns = {row[1] for row in database.read(f"PRAGMA table_info({table.name})")}
        assert columns == set(table.columns)
        theirs = server.read(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema()"
            " AND table_name = ? AND column_name <> 'doc'",
            (table.name,),
        )
        assert {name for (name,) in theirs} == columns
    database.close()
    server.close()


def test_a_target_with_other_contents_is_refused(project: Path, clock: ManualClock) -> None:
    with open_store(project / "other", project="p", clock=clock) as other:
        fill(other, clock)
        events = len(other.records.events_since(0))
    with open_store(clock=clock) as store:
        fill(store, clock)
        with pytest.raises(UsageError, match="already contains other records"):
            move_store(store, {"records": "../other/everloop.db"})
        with pytest.raises(UsageError, match="contain other files"):
            move_store(store, {"tables": "../other/tables"})
        store.records.append_event("still", "run", "x")
    with open_store(project / "other", project="p") as other:
        assert len(other.records.events_since(0)) == events
    assert (project / "everloop.toml").read_text() == CONFIG


def test_a_store_in_use_is_not_moved(project: Path, clock: ManualClock) -> None:
    from everloop.stores import Journal

    with open_store(clock=clock) as store:
        with store.lock("run-x"), pytest.raises(ConflictError, match="lock run-x"):
            move_store(store, {"records": "new.db"})
        with Journal.create(store.journals, "run") as journal, pytest.raises(ConflictError, match=journal.path.name):
            move_store(store, {"records": "new.db"})
        assert isinstance(move_store(store, {"records": "new.db"}), MovedStore)


def test_damage_is_not_copied(project: Path, clock: ManualClock) -> None:
    with open_store(clock=clock) as store:
        fill(store, clock)
        store.records.database.write("UPDATE events SET verb = 'x' WHERE seq = 2")  # type: ignore[attr-defined]
        with pytest.raises(CorruptionError, match="'events' \\(seq 2\\)"):
            move_store(store, {"records": "new.db"})
    assert (project / "everloop.toml").read_text() == CONFIG
    database = SqliteDatabase(project / "home" / "new.db")
    assert database.read("SELECT count(*) FROM records") == [(0,)]
    database.close()


def test_an_object_that_differs_from_its_name_is_not_copied(project: Path, clock: ManualClock) -> None:
    with open_store(clock=clock) as store:
        digest = store.objects.add(b"good")
        hexed = digest.removeprefix("sha256:")
        path = Path(store.urls.objects) / "sha256" / hexed[:2] / hexed[2:]
        path.chmod(0o600)
        path.write_bytes(b"evil")
        with pytest.raises(CorruptionError, match="differs from its digest"):
            move_store(store, {"objects": "new"})


MOVE = """
import sys
from everloop.stores import open_store, relocation
store = open_store()
store.objects.bytes_store
relocation.move_store(store, {"records": sys.argv[1], "objects": "o", "tables": "t"},
    progress=lambda part, done: print(part, done, flush=True))
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_move_that_is_killed_can_be_repeated(project: Path, postgres_url: str, clock: ManualClock) -> None:
    with open_store(clock=clock) as store:
        fill(store, clock)
        before = shown(store)
    kills = 0
    for after in (0, 1, 3, 6, 9, 11, 13, 99):
        child = subprocess.Popen([sys.executable, "-c", MOVE, postgres_url], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for number, line in enumerate(child.stdout):
            if number == after and line != "done\n":
                child.send_signal(signal.SIGKILL)
                kills += 1
                break
        child.stdout.close()
        if child.wait(60) == 0:
            break
        if tomllib.loads((project / "everloop.toml").read_text())["store"].get("records") is not None:
            break
        with open_store(clock=clock) as store:
            assert shown(store) == before
        time.sleep(0.1)
    assert kills >= 5
    with open_store(clock=clock) as store:
        assert store.urls.records == postgres_url
        assert shown(store) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"store": {"records": "a"}}),
        ("[store]\nrecords = 'b' # x\n", {"store": {"records": "a"}}),
        (
            "[ store ]\nhome='h'\n[x]\nrecords='other'",
            {"store": {"home": "h", "records": "a"}, "x": {"records": "other"}},
        ),
        ("x = 1\n", {"x": 1, "store": {"records": "a"}}),
    ],
)
def test_only_the_settings_change(text: str, expected: dict[str, Any]) -> None:
    assert tomllib.loads(with_settings(text, {"records": "a"})) == expected


@pytest.mark.parametrize(
    "text", ["store = {home = 'h'}\n", "store.home = 'h'\n", '[store]\nhome = """\nrecords = 1\n"""\n']
)
def test_settings_in_another_form_are_left_alone(text: str) -> None:
    with pytest.raises(EverloopError, match="cannot change"):
        with_settings(text, {"records": "a"})


@given(value=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_written_correctly(value: str) -> None:
    assert tomllib.loads(with_settings("[store]\n", {"records": value}))["store"]["records"] == value


@pytest.mark.slow
def test_the_command_moves_a_store_and_says_so(
    project: Path, postgres_url: str, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from everloop.cli.app import run

    with open_store(clock=clock) as store:
        fill(store, clock)
        before = shown(store)
    assert run(["store", "move", "--json"]) == UsageError.exit_code
    assert "nothing to move" in capsys.readouterr().out
    assert run(["store", "move", postgres_url, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dry_run"] is True
    assert run(["store", "move", postgres_url, "--objects", "o", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"]["records"] == 4
    assert found["objects"] == len(before["objects"])
    assert found["digests"].keys() == {"records", "objects"}
    with open_store(clock=clock) as store:
        assert store.urls.records == postgres_url
        assert shown(store)["objects"] == before["objects"]
    capsys.readouterr()
    assert run(["store", "move", postgres_url, "--json"]) == UsageError.exit_code
    assert "already there" in capsys.readouterr().out
