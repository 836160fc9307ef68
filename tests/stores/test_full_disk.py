"""A full disk always raises the same error, leaves nothing half-written and does not prevent reading. Once there is
space again, everything works."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from everloop.errors import InsufficientStorageError, ReadOnlyError, StoreError
from everloop.stores.full_disk import is_full, looks_full, storage_error, writing

BEGIN = """
import os, sys, warnings
from datetime import UTC, datetime
import polars as pl
from everloop.errors import InsufficientStorageError
from everloop.records import Run, Point
from everloop.stores import Journal, open_store, read_journal
from everloop.stores.backup import backup
from everloop.stores.verify import verify
from everloop.stores.trust import Keyring
from everloop.stores.sealing import SecretKeys

folder = sys.argv[1]
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)

def rows(count):
    noise = os.urandom(8 * count)
    values = [int.from_bytes(noise[8 * n : 8 * n + 8], "big", signed=True) for n in range(count)]
    return pl.DataFrame({"event_at": [MOMENT] * count, "value": values})

def full(call, *arguments):
    try:
        call(*arguments)
    except InsufficientStorageError as error:
        assert error.http_status == 507 and "No space left" in str(error), error
        assert error.help and "Free some space" in error.help
        return
    raise AssertionError(f"{call} had space")

def until_full(call):
    def again():
        for number in range(100_000):
            call(number)
    full(again)

def files():
    return sorted(
        os.path.join(at, name) for at, _, names in os.walk(folder) for name in names
        if name != "filler" and not name.endswith(("-wal", "-shm"))
    )
"""

DEVICE = (
    BEGIN
    + """
store = open_store(folder + "/home")
run = store.new(Run, name="first", started_at=store.now(), state="finished")
store.records.put(run)
store.records.append_points(run.id, [Point(key="loss", value=0.5, at=store.now())])
digest = store.objects.add(b"kept")
store.tables.append("t", rows(3))
journal = Journal.create(store.journals, "s")
journal.append(b"first")
with open(folder + "/large", "wb") as file:
    file.write(os.urandom(300_000))
os.mkdir(folder + "/tree")
with open(folder + "/tree/a", "wb") as file:
    file.write(os.urandom(30_000))
from everloop.tracking import start_run, read_history
tracked = start_run("tracked", store=store)
tracked.log({"loss": 1.0}, step=1)

def fill():
    with open(folder + "/filler", "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass

fill()
before = files()
full(store.objects.add, os.urandom(200_000))
full(store.objects.add_file, folder + "/large")
full(store.objects.add_tree, folder + "/tree")
full(store.objects.fetch, digest, folder + "/out/copy")
full(store.tables.append, "t", rows(20_000))
full(store.tables.append, "new", rows(20_000))
until_full(lambda number: journal.append(bytes(1000)))
full(Journal.create, store.journals, "other")
def put(number):
    store.records.put(store.new(Run, name="x" * 2000, started_at=store.now(), state="finished"))
until_full(put)
until_full(lambda number: store.records.append_points(run.id, [Point(key="p", value=1.0, at=store.now())] * 500))
until_full(lambda number: store.records.append_event("x", "y", "z", data={"pad": "x" * 2000}))
full(backup, store, folder + "/kept.tar")
fill()
full(Keyring(folder + "/more-keys").public_key)
full(SecretKeys(store.home).seal, "x", "y")
fill()

# Tracking never raises: data that cannot be written stays in memory.
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for step in range(2, 3000):
        tracked.log({"loss": 1.0 / step}, step=step)
assert len(warned) == 1 and "held in memory" in str(warned[0].message), [str(one.message) for one in warned]

# Reading still works: in this process, and in one that opens the home only now.
count = len(store.records.find(Run))
assert store.objects.read(digest) == b"kept"
assert store.tables.scan("t").collect().height == 3
assert [payload for payload, _ in read_journal(journal.path)][0] == b"first"
import subprocess
script = "import sys; from everloop.stores import open_store; from everloop.records import Run;" \\
    "store = open_store(sys.argv[1], create=False); print(len(store.records.find(Run)))"
done = subprocess.run([sys.executable, "-c", script, folder + "/home"], capture_output=True, text=True)
assert done.stdout == f"{count}\\n", done.stderr[-2000:]

after = [name for name in files() if "/journals/" not in name and "/locks/" not in name]
left = set(after) - set(before)
assert not {name for name in left if not name.endswith((".db",))}, left
assert not os.path.exists(folder + "/out/copy") and not os.path.exists(folder + "/kept.tar")

os.unlink(folder + "/filler")
# When there is space again, everything works in the same process.
assert store.objects.add_file(folder + "/large")
assert store.objects.add_tree(folder + "/tree")
assert store.tables.append("t", rows(10)) and store.tables.append("new", rows(10))
assert store.tables.scan("t").collect().height == 13
journal.append(b"last")
assert [payload for payload, _ in read_journal(journal.path)][-1] == b"last"
put(0)
store.records.append_event("last", "y", "z")
assert SecretKeys(store.home).seal("x", "y")
tracked.log({"loss": 0.0}, step=3000)
tracked.finish()
points = store.records.read_points(f"run:{tracked.id}", "loss")
assert [point.step for point in points] == list(range(1, 3001)), len(points)
assert verify(store).problems == (), verify(store).problems
print("recovered")
"""
)

LIMITED = (
    BEGIN
    + """
import resource
store = open_store(folder + "/home")
store.records.append_event("first", "y", "z")
digest = store.objects.add(b"kept")
journal = Journal.create(store.journals, "s")
journal.append(b"first")
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
full(store.objects.add, os.urandom(500_000))
until_full(lambda number: journal.append(bytes(10_000)))
until_full(lambda number: store.records.append_event("x", "y", "z", data={"pad": "x" * 20_000}))
full(store.tables.append, "t", rows(100_000))
assert store.objects.read(digest) == b"kept"
assert store.records.events_since(0, limit=1)[0].verb == "first"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
assert store.objects.add(os.urandom(500_000))
journal.append(b"last")
assert store.tables.append("t", rows(100_000))
store.records.append_event("last", "y", "z")
assert verify(store).problems == (), verify(store).problems
print("recovered")
"""
)


def run(program: str, folder: Path, before: list[str] | None = None) -> None:
    command = [*(before or ()), sys.executable, "-W", "error::ResourceWarning", "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "recovered\n", done.stderr[-3000:]


@pytest.mark.slow
def test_a_full_device_refuses_writes_can_be_read_and_recovers(
    tmp_path: Path, small_device: Callable[[Path, str], list[str]]
) -> None:
    run(DEVICE, tmp_path, small_device(tmp_path, "6m"))


@pytest.mark.slow
def test_a_limit_for_the_size_of_files_is_the_same_error(tmp_path: Path) -> None:
    run(LIMITED, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_reason_is_one_error(number: int, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number))
    assert isinstance(storage_error(error, tmp_path), InsufficientStorageError)
    assert is_full(error)
    # The form in which libraries written in Rust and C++ report it.
    assert is_full(RuntimeError(f"Generic LocalFileSystem error: {os.strerror(number)} (os error {number})"))
    caused = ValueError("upload failed")
    caused.__cause__ = error
    assert is_full(caused)
    with pytest.raises(InsufficientStorageError, match="No space left"), writing(tmp_path):
        raise error


def test_other_failures_are_other_errors(tmp_path: Path) -> None:
    for number, kind in ((errno.EROFS, ReadOnlyError), (errno.EACCES, ReadOnlyError), (errno.EIO, StoreError)):
        error = storage_error(OSError(number, os.strerror(number)), tmp_path)
        assert type(error) is kind
        assert not is_full(error)
    assert not is_full(ValueError("a value"))
    assert not is_full(StoreError("The name 'No space left on device' is taken."))


def test_the_earlier_name_still_catches_it() -> None:
    assert InsufficientStorageError is InsufficientStorageError
    assert InsufficientStorageError.http_status == 507


def test_space_is_looked_for_by_writing(tmp_path: Path) -> None:
    assert not looks_full(tmp_path / "x.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.db").write_bytes(bytes(100_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        assert looks_full(tmp_path / "x.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
