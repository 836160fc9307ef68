from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from everloop.errors import StoreError, UsageError
from everloop.stores import Store
from everloop.stores.records.connections import Connections
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.records.sqlite_connection import SqliteConnection


class Wire:
    """A connection that records the statements it executes."""

    def __init__(self, log: list[str], *, fails: str = "") -> None:
        self.log = log
        self.fails = fails

    def execute(self, statement: str, /) -> None:
        self._say(statement)

    def commit(self) -> None:
        self._say("COMMIT")

    def rollback(self) -> None:
        self._say("ROLLBACK")

    def close(self) -> None:
        self._say("close")

    def _say(self, word: str) -> None:
        self.log.append(word)
        if self.fails and word.startswith(self.fails):
            raise OSError(word)


@pytest.mark.slow
def test_each_thread_has_its_own_and_leaves_none_behind() -> None:
    log: list[str] = []
    pool = Connections(lambda: Wire(log))
    mine = pool.slot()
    assert pool.slot() is mine
    others: list[int] = []
    thread = threading.Thread(target=lambda: others.append(id(pool.slot())))
    thread.start()
    thread.join()
    gc.collect()
    assert others != [id(mine)]
    assert log == ["close"]
    pool.close()
    assert log == ["close", "close"]
    with pytest.raises(UsageError, match="closed"):
        pool.slot()


def test_transactions_nest_as_savepoints() -> None:
    log: list[str] = []
    slot = Connections(lambda: Wire(log)).slot()
    begin = lambda: log.append("BEGIN")  # noqa: E731
    with slot.transaction(begin), slot.transaction(begin):
        log.append("work")

    def fail() -> None:
        with slot.transaction(begin):
            raise ZeroDivisionError

    with slot.transaction(begin), pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert log == [
        *("BEGIN", "SAVEPOINT inner_1", "work", "RELEASE inner_1", "COMMIT"),
        *("BEGIN", "SAVEPOINT inner_1", "ROLLBACK TO inner_1", "COMMIT"),
        *("BEGIN", "ROLLBACK"),
    ]
    assert slot.depth == 0


def test_a_connection_that_cannot_roll_back_is_dropped() -> None:
    log: list[str] = []
    pool = Connections(lambda: Wire(log, fails="ROLLBACK"))
    slot = pool.slot()

    def fail() -> None:
        with slot.transaction(lambda: None):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert slot.broken
    assert pool.slot() is not slot
    pool.close()


def test_a_child_touches_nothing_of_its_parents() -> None:
    log: list[str] = []
    pool = Connections(lambda: Wire(log))
    mine = pool.slot()
    child = os.fork()
    if child == 0:
        alike = pool.slot() is mine
        pool.close()
        # The child's own connection is closed, and the parent's is not.
        os._exit(1 if alike or log != ["close"] else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log == []
    pool.close()


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 36, 0))
    with pytest.raises(StoreError, match=r"3\.37"):
        SqliteDatabase(tmp_path / "r.db")


def test_a_path_that_cannot_be_a_database(tmp_path: Path) -> None:
    (tmp_path / "r.db").mkdir()
    with pytest.raises(StoreError, match="Cannot open"):
        SqliteDatabase(tmp_path / "r.db")


def test_threads_share_a_store(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.records.append_event("x", "y", str(number)), range(80)))
    assert len(store.records.events_since(0)) == 80


CLOSED_WHILE_USED = """
import sys, threading, time
from everloop.errors import UsageError
from everloop.records import Run
from everloop.stores import open_store

for number in range(40):
    store = open_store(f"{sys.argv[1]}/{number}", project="p")
    for name in "abcdefgh":
        store.records.put(store.new(Run, name=name, state="finished", started_at=store.now()))
    others = []

    def use():
        try:
            while True:
                store.records.find(Run, ("name", "=", "c"))
                store.records.append_event("v", "k", "s", "key", {})
        except UsageError as error:
            assert "closed" in str(error), error
        except BaseException as error:
            others.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    store.close()
    for thread in threads:
        thread.join()
    assert not others, others
    with open_store(f"{sys.argv[1]}/{number}", project="p") as store:
        assert store.records.last_event() >= 0
"""


@pytest.mark.slow
def test_a_store_is_closed_while_other_threads_use_it(tmp_path):
    """Python's own `close` frees the statements that other threads execute, which ends the process with a crash."""
    done = subprocess.run([sys.executable, "-c", CLOSED_WHILE_USED, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_closing_interrupts_a_long_statement(tmp_path):
    raw = sqlite3.connect(tmp_path / "x", check_same_thread=False)
    connection = SqliteConnection(raw)
    outcome = []

    def count():
        try:
            connection.fetch("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
        except sqlite3.OperationalError as error:
            outcome.append(error.sqlite_errorname)

    thread = threading.Thread(target=count)
    thread.start()
    time.sleep(0.1)
    connection.close()
    thread.join(10)
    assert outcome == ["SQLITE_INTERRUPT"]
    with pytest.raises(UsageError, match="closed"):
        connection.fetch("SELECT 1")
    with pytest.raises(sqlite3.ProgrammingError):
        raw.execute("SELECT 1")
