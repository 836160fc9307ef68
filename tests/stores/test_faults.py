"""Killed processes, full devices and damaged bytes do not break a store."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from everloop.errors import CorruptionError, EverloopError, InsufficientStorageError
from everloop.records import Run
from everloop.stores import LocalBytes, Store, open_store
from everloop.stores.verify import verify
from everloop.testing.stores import ManualClock

WRITER = """
import sys
from dataclasses import replace
from everloop.records import Run
from everloop.stores import open_store

store = open_store(sys.argv[1], project="flights")
number = 0
while True:
    with store.records.transaction():
        runs = [store.new(Run, name=f"{number}{part}", started_at=store.now()) for part in "ab"]
        store.records.put(*runs)
        store.records.update(replace(runs[0], state="finished"))
    digest = store.objects.add(b"%d" % number * 50_000)
    print(number, digest, flush=True)
    number += 1
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_only_complete_writes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    told: dict[int, str] = {}
    for attempt in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(home)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5 + 7 * attempt):
                number, digest = writer.stdout.readline().split()
                told[int(number)] = digest
            time.sleep(0.003 * attempt)
            writer.kill()
            writer.wait()
        with open_store(home, project="flights") as store:
            names = [run.name for run in store.records.find(Run)]
            assert sorted(name[:-1] for name in names if name.endswith("a")) == sorted(
                name[:-1] for name in names if name.endswith("b")
            )
            assert {(run.name[-1], run.state) for run in store.records.find(Run)} == {
                ("a", "finished"),
                ("b", "running"),
            }
            assert {f"{number}a" for number in told} <= set(names), "what was acknowledged is there"
            assert all(store.objects.has(digest) for digest in told.values())
            assert store.records.problems() == []
            for digest, _ in store.objects.digests():
                store.objects.prove(digest)


def test_a_killed_opener_leaves_a_store_that_opens(tmp_path: Path) -> None:
    program = "import sys\nfrom everloop.stores import open_store\nopen_store(sys.argv[1])\nprint('open')\n"
    for delay in (0.0, 0.002, 0.01):
        home = tmp_path / f"home{delay}"
        with subprocess.Popen([sys.executable, "-c", program, str(home)], stdout=subprocess.DEVNULL) as opener:
            deadline = time.monotonic() + 30
            while not home.exists() and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(delay)
            opener.kill()
        with open_store(home) as store:
            store.records.append_event("x", "y", "z")
            assert store.records.last_event() == 1


def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_store(home) as store:
        store.records.put(*(store.new(Run, name="x" * 500, started_at=store.now()) for _ in range(200)))
    path = home / "everloop.db"
    whole = bytearray(path.read_bytes())
    pages = len(whole) // 4096
    # The first pages contain the schema, without which the database cannot be opened.
    for page in range(pages // 2, pages):
        whole[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(whole)
    with open_store(home) as store:
        assert store.records.problems() != []
        assert not verify(store).ok
        with pytest.raises(CorruptionError, match=r"everloop\.db.*everloop verify"):
            store.records.find(Run)
    path.write_bytes(b"this is no database at all" * 1000)
    with pytest.raises(CorruptionError):
        open_store(home)


def test_a_damaged_record_is_reported(store: Store) -> None:
    run = store.new(Run, name="r", started_at=store.now())
    store.records.put(run)
    connection = sqlite3.connect(store.home / "everloop.db")
    # The file is changed directly, because the database itself would refuse such an UPDATE.
    connection.execute("DROP INDEX records_by_fingerprint")
    for body in ('{"id": 3}', "{", '{"id": {"$float": "x"}}'):
        connection.execute("UPDATE records SET body = ?", (body,))
        connection.commit()
        with pytest.raises(CorruptionError, match="cannot be read"):
            store.records.get(Run, run.id)
    connection.close()


def test_a_full_database_refuses_writes_and_recovers(tmp_path: Path) -> None:
    from everloop.stores.records.sqlite import SqliteDatabase, SqliteRecords

    records = SqliteRecords(tmp_path / "r.db", project="p", actor="a", clock=ManualClock())
    assert isinstance(records.database, SqliteDatabase)
    records.append_event("first", "x", "y")
    records.database.read("PRAGMA max_page_count = 40")

    def fill() -> None:
        with records.transaction():
            for _ in range(1000):
                records.append_event("x", "y", "z", data={"pad": "x" * 1000})

    with pytest.raises(InsufficientStorageError, match="No space left"):
        fill()
    assert records.last_event() == 1
    records.database.read("PRAGMA max_page_count = 4000")
    records.append_event("second", "x", "y")
    assert [event.verb for event in records.events_since(0)] == ["first", "second"]
    records.close()


FULL = """
import os, sys
import pytest
from everloop.errors import InsufficientStorageError
from everloop.records import Run
from everloop.stores import Journal, ObstoreBytes, open_store

def raises(call):
    with pytest.raises(InsufficientStorageError):
        call()

folder = sys.argv[1]
store = open_store(folder + "/home")
small = store.objects.add(b"small")
journal = Journal.create(store.journals, "s")
journal.append(b"first")
with open(folder + "/big", "wb") as file:
    file.write(os.urandom(600_000))
raises(lambda: store.objects.add(os.urandom(5_000_000)))
def add_files():
    for number in range(10):
        with open(folder + "/big", "r+b") as file:
            file.write(b"%d" % number)
        store.objects.add_file(folder + "/big")
raises(add_files)
remote = ObstoreBytes(folder + "/other")
raises(lambda: remote.put("k", os.urandom(5_000_000)))
assert remote.size("k") is None
with open(folder + "/filler", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
raises(lambda: [journal.append(bytes(1000)) for _ in range(100)])
raises(lambda: store.objects.add(os.urandom(5000)))
raises(lambda: store.objects.fetch(small, folder + "/copy"))
def fill():
    for number in range(1000):
        store.records.put(store.new(Run, name="x" * 1000, started_at=store.now()))
raises(fill)
assert not os.path.exists(folder + "/copy")
os.unlink(folder + "/filler")
os.unlink(folder + "/big")
# When there is space again, everything works and nothing is damaged.
journal.append(b"last")
store.records.put(store.new(Run, name="last", started_at=store.now(), state="finished"))
from everloop.stores.verify import verify
assert verify(store).problems == (), verify(store).problems
assert store.objects.read(small) == b"small"
from everloop.stores import read_journal
frames = [payload for payload, _ in read_journal(journal.path)]
assert frames[0] == b"first" and frames[-1] == b"last", frames
assert [run.name for run in store.records.find(Run)][-1] == "last"
print("recovered")
"""


@pytest.mark.slow
def test_a_full_device_refuses_writes_and_recovers(
    tmp_path: Path, small_device: Callable[[Path, str], list[str]]
) -> None:
    done = subprocess.run(
        [*small_device(tmp_path, "4m"), sys.executable, "-W", "error", "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "recovered\n", done.stderr[-3000:]


def test_a_draft_of_a_killed_process_is_not_an_object(tmp_path: Path) -> None:
    store = LocalBytes(tmp_path)
    store.put("a/b", b"x")
    (tmp_path / ".tmp" / "1-1-00").write_bytes(b"half")
    assert list(store.list()) == [("a/b", 1)]
    assert [path.name for path in store.drafts()] == ["1-1-00"]


@pytest.mark.parametrize("size", [0, 10, 100])
def test_random_bytes_are_not_a_store(tmp_path: Path, size: int) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "everloop.db").write_bytes(os.urandom(size * 4096))
    try:
        store = open_store(tmp_path / "home")
    except EverloopError:
        assert size > 0
    else:
        # An empty file is a database that nothing has been written to yet.
        assert size == 0
        assert store.records.last_event() == 0
        store.close()
