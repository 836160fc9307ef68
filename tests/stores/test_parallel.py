"""Sixty-four simultaneous processes: all of them succeed, and nothing is lost or duplicated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from everloop.records import Run
from everloop.stores import Store, open_store
from everloop.stores.records.sqlite import SqliteRecords
from everloop.testing.stores import START, ManualClock

pytestmark = pytest.mark.slow

PROCESSES = 64

# Forked from a process that has imported everything, so that all begin within milliseconds.
CROWD = """
import os, sys, traceback
from everloop.records import Point, Run
from everloop.stores import open_store
from everloop.stores.objects import content_addressing
from everloop.stores.records import sqlite

def work(number, home, url):
{work}

count, home, url = int(sys.argv[1]), sys.argv[2], sys.argv[3]
started, start = os.pipe()
children = []
for number in range(count):
    child = os.fork()
    if child == 0:
        os.close(start)
        os.read(started, 1)
        try:
            work(number, home, url)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
os.close(start)
failed = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)
sys.exit(min(failed, 100))
"""


def crowd(work: str, home: Path, *, count: int = PROCESSES, url: str = "") -> None:
    lines = "\n".join(f"    {line}" for line in work.splitlines())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CROWD.format(work=lines), str(count), str(home), url],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_an_empty_folder_is_opened_by_all_at_once(tmp_path: Path) -> None:
    crowd(
        "store = open_store(home)\n"
        "run = store.new(Run, name=str(number), started_at=store.now())\n"
        "store.records.put(run)\n"
        "assert store.records.get(Run, run.id) == run\n"
        "store.close()\n",
        tmp_path / "home",
    )
    with open_store(tmp_path / "home", create=False) as store:
        names = [run.name for run in store.records.find(Run)]
        assert sorted(names) == sorted(map(str, range(PROCESSES)))
        assert store.records.problems() == []


def test_all_write_at_once(tmp_path: Path) -> None:
    open_store(tmp_path / "home").close()
    crowd(
        "store = open_store(home)\n"
        "run = store.new(Run, name=str(number), started_at=store.now())\n"
        "store.records.put(run)\n"
        "for step in range(3):\n"
        "    (run,) = store.records.update(__import__('dataclasses').replace(run, params={'step': step}))\n"
        "    store.records.append_points(run.id, [Point(key='loss', value=1.0, step=step, at=store.now())])\n"
        "    with store.records.transaction():\n"
        "        store.records.append_event('one', 'x', run.id)\n"
        "        store.records.append_event('two', 'x', run.id)\n",
        tmp_path / "home",
    )
    with open_store(tmp_path / "home") as store:
        runs = store.records.find(Run)
        assert len(runs) == PROCESSES
        assert {(run.revision, run.params["step"]) for run in runs} == {(3, 2)}
        assert all(len(store.records.read_points(run.id)) == 3 for run in runs)
        events = store.records.events_since(0, limit=10_000)
        assert len(events) == PROCESSES * (1 + 3 + 6)
        pairs = [event for event in events if event.verb in ("one", "two")]
        assert all(one.subject == two.subject for one, two in zip(pairs[::2], pairs[1::2], strict=True))


def test_all_count_one_record_up(tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        run = store.new(Run, name="counter", started_at=store.now(), params={"count": 0})
        store.records.put(run)
    crowd(
        "from dataclasses import replace\n"
        "store = open_store(home)\n"
        "with store.records.transaction():\n"
        "    (run,) = store.records.find(Run)\n"
        "    store.records.update(replace(run, params={'count': run.params['count'] + 1}))\n",
        tmp_path / "home",
    )
    with open_store(tmp_path / "home") as store:
        assert store.records.get(Run, run.id).params == {"count": PROCESSES}


def test_all_open_an_empty_schema_and_write(postgres_url: str, tmp_path: Path) -> None:
    from everloop.stores.records.postgres import PostgresRecords

    crowd(
        "from everloop.stores.records.postgres import PostgresRecords\n"
        "from everloop.stores import SystemClock, new_id\n"
        "clock = SystemClock()\n"
        "records = PostgresRecords(url, project='p', actor='a', clock=clock)\n"
        "now = clock.now()\n"
        "records.put(Run(id=new_id(now), project='p', created_at=now, name=str(number), started_at=now))\n"
        "records.close()\n",
        tmp_path / "home",
        count=12,
        url=postgres_url,
    )
    records = PostgresRecords(postgres_url, project="p", actor="a", clock=ManualClock())
    assert sorted(run.name for run in records.find(Run)) == sorted(map(str, range(12)))
    assert len(records.events_since(0)) == 12
    records.close()


def test_all_add_the_same_objects(tmp_path: Path) -> None:
    crowd(
        "store = open_store(home)\n"
        "for item in range(20):\n"
        "    data = bytes([item]) * 5000\n"
        "    assert store.objects.read(store.objects.add(data)) == data\n",
        tmp_path / "home",
        count=24,
    )
    with open_store(tmp_path / "home") as store:
        assert len(list(store.objects.digests())) == 20
        assert list((store.home / "objects" / ".tmp").iterdir()) == []


def test_several_append_to_one_new_table(store: Store) -> None:
    # Delta's runtime has threads, which do not survive a fork, so this test uses threads too.
    from concurrent.futures import ThreadPoolExecutor

    def append(number: int) -> int:
        frame = pl.DataFrame({"event_at": [START], "x": [number]})
        # Each writer sends its first batch twice, as after a crash.
        return sum(store.tables.append("t", frame, batch=(f"w{number}", batch)) for batch in (0, 0, 1))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(append, range(6))) == [2] * 6
    counts = store.tables.scan("t").collect().group_by("x").len().sort("x")
    assert counts["len"].to_list() == [2] * 6


def test_of_two_who_send_one_batch_one_writes_it(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    frame = pl.DataFrame({"event_at": [START], "x": [1]})
    store.tables.append("t", frame)
    with ThreadPoolExecutor(4) as pool:
        wrote = list(pool.map(lambda _: store.tables.append("t", frame, batch=("w", 0)), range(4)))
    assert sum(wrote) == 1
    assert store.tables.scan("t").collect().height == 2


def test_a_reader_waits_for_no_writer(tmp_path: Path) -> None:
    first = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    second = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    with first.transaction():
        first.append_event("x", "y", "z")
        assert second.last_event() == 0
    assert second.last_event() == 1
    first.close()
    second.close()


def test_a_busy_store_is_an_error_after_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.errors import UnavailableError
    from everloop.stores.records import sqlite

    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(sqlite, "PATIENCE_S", 0.05)
    first = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    second = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    with first.transaction(), pytest.raises(UnavailableError, match="locked by another process"):
        second.append_event("x", "y", "z")
    second.append_event("x", "y", "z")
    first.close()
    second.close()
