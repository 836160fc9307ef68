"""Outside state changes if, and only if, the contents change."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop import plugins
from everloop.data import files_change, files_state, read, sql_change, sql_state
from everloop.data.sources import file_states
from everloop.data.sources.sql_sources import redacted
from everloop.errors import SourceError
from everloop.stores import collect_observations

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

SPEC = {"patterns": ["*.csv"]}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(folder))
    monkeypatch.setattr(file_states, "_hashed", {})
    return folder


def put(path: Path, text: str, age_s: float = 60) -> None:
    """A file that looks as if it was written a while ago."""
    path.write_text(text)
    stamp = time.time() - age_s
    os.utime(path, (stamp, stamp))


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    hashed: list[Path] = []
    original = file_states.content_hash

    def counting(path: Path) -> str:
        hashed.append(path)
        return original(path)

    monkeypatch.setattr(file_states, "content_hash", counting)
    return hashed


def test_a_changed_file_changes_the_state(project: Path) -> None:
    put(project / "a.csv", "a\n1\n")
    before = files_state(SPEC)
    put(project / "a.csv", "a\n2\n")
    after = files_state(SPEC, before)
    assert after != before
    assert files_change(before, after) == "1 file changed"


def test_a_file_written_twice_within_a_tick_of_the_clock(project: Path) -> None:
    path = project / "a.csv"
    for turn in range(20):
        path.write_text(f"a\n{turn:02}\n")
        before = files_state(SPEC)
        stamps = path.stat()
        path.write_text(f"a\n{turn + 50:02}\n")
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
        assert files_state(SPEC, before) != before


def test_an_unchanged_file_is_not_hashed_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.csv", "b.csv"):
        put(project / name, name)
    time.sleep(0.06)  # until the change times prove something
    hashed = count_hashes(monkeypatch)
    before = files_state(SPEC)
    assert len(hashed) == 2
    file_states._hashed.clear()  # as in another process
    assert files_state(SPEC, before) == before
    assert len(hashed) == 2
    put(project / "b.csv", "other")
    time.sleep(0.06)
    assert files_state(SPEC, before) != before
    assert [path.name for path in hashed[2:]] == ["b.csv"]
    assert files_state(SPEC) == files_state(SPEC)
    assert len(hashed) == 4  # a.csv once more, without the earlier state to go by


def test_a_touched_file_is_hashed_and_the_state_stays(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project / "a.csv", "a\n1\n")
    before = files_state(SPEC)
    os.utime(project / "a.csv", (1, 1))
    hashed = count_hashes(monkeypatch)
    assert files_state(SPEC, before) == before
    assert len(hashed) == 1


def test_a_replacement_of_equal_size_and_time_is_seen(project: Path) -> None:
    put(project / "a.csv", "a\n1\n")
    time.sleep(0.06)
    before = files_state(SPEC)
    stamps = (project / "a.csv").stat()
    (project / "a.csv").write_text("a\n2\n")
    os.utime(project / "a.csv", ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert files_state(SPEC, before) != before


def test_a_glob_sees_new_files_and_those_that_go(project: Path) -> None:
    put(project / "a.csv", "1")
    one = files_state(SPEC)
    put(project / "b.csv", "2")
    put(project / "c.csv", "3")
    put(project / "note.txt", "not matched")
    three = files_state(SPEC, one)
    assert files_change(one, three) == "2 new files"
    (project / "a.csv").unlink()
    put(project / "b.csv", "4")
    two = files_state(SPEC, three)
    assert files_change(three, two) == "1 file changed, 1 file gone"
    assert files_change(two, two) == ""
    assert files_state({"patterns": ["missing/*.csv"]}) == files_state({"patterns": []})
    (project / "b.csv").rename(project / "d.csv")
    assert files_change(two, files_state(SPEC, two)) == "1 new file, 1 file gone"


def test_a_file_that_may_not_be_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project / "a.csv", "1")

    def refuses(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file_states, "content_hash", refuses)
    with pytest.raises(SourceError, match=r"a\.csv' cannot be read: Permission denied"):
        files_state(SPEC)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 40
)


@pytest.mark.slow
@given(
    st.dictionaries(names, st.binary(max_size=6), max_size=4), st.dictionaries(names, st.binary(max_size=6), max_size=4)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_states_are_equal_just_where_contents_are(project: Path, one: dict[str, bytes], two: dict[str, bytes]) -> None:
    spec = {"patterns": [str(project / name) for name in {**one, **two}]}
    states: list[str] = []
    for files in (one, two, one):
        for path in project.iterdir():
            path.unlink()
        for name, content in files.items():
            (project / name).write_bytes(content)
        states.append(files_state(spec, states[0] if states else None))
    assert (states[0] == states[1]) == (one == two)
    assert states[0] == states[2]
    assert (files_change(states[0], states[1]) == "") == (one == two)


def test_the_state_of_a_query_follows_its_rows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "a.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (a INTEGER)")
    connection.execute("INSERT INTO t VALUES (1)")
    spec = {"url": "sqlite:///a.db", "query": "SELECT a FROM t"}
    with collect_observations() as seen:
        read(spec["url"], query=spec["query"])
    one = seen[0]["state"]
    assert sql_state(spec, one) == one
    connection.execute("CREATE TABLE other (b INTEGER)")
    assert sql_state(spec, one) == one
    connection.execute("INSERT INTO t VALUES (2)")
    two = sql_state(spec, one)
    assert two != one
    assert sql_change(one, two) == "other rows"
    time.sleep(0.06)
    three = sql_state(spec)
    assert sql_change(two, three) == ""

    def unwanted(*_: object) -> pl.DataFrame:
        raise AssertionError("nobody has written, so nothing is asked")

    monkeypatch.setattr("everloop.data.sources.sql_sources.query_frame", unwanted)
    assert sql_state(spec, three) == three
    connection.close()


def test_passwords_do_not_reach_the_records() -> None:
    assert redacted("postgresql://me:secret@host:5432/db?a=b") == "postgresql://me@host:5432/db?a=b"
    assert redacted("postgresql://me@host/db") == "postgresql://me@host/db"
    assert redacted("sqlite:///a.db") == "sqlite:///a.db"


def test_the_plugin_table_leads_here() -> None:
    assert plugins.load("observation", "files") is files_state
    assert plugins.load("observation", "sql") is sql_state
    assert plugins.load("observation_change", "files") is files_change
    assert plugins.load("observation", "horizon")({}, since="x") == "none"
