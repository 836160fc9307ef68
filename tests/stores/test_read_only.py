"""Reading works in a read-only home, creates no files there, and returns the right data."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from everloop.errors import ReadOnlyError
from everloop.records import ModelVersion, Run
from everloop.stores import open_store
from everloop.stores.records.sqlite import SqliteRecords
from everloop.stores.records.sqlite_frozen import FrozenReader
from everloop.testing.stores import ManualClock

Reader = Callable[..., subprocess.CompletedProcess[str]]

READ = """
import json, sys
from everloop.cli.app import run
from everloop.errors import ReadOnlyError
from everloop.records import Run
from everloop.stores import open_store

home = sys.argv[1]
for words in json.loads(sys.argv[2]):
    code = run([*words, "--home", home])
    assert code == 0, (words, code)
from everloop.data import load_snapshot
from everloop.tracking import search_runs
with open_store(home, create=False) as store:
    (found,) = [one for one in store.records.find(Run) if one.name == "r"]
    assert [one.id for one in search_runs(store, "name = 'r'").rows] == [found.id]
    assert [point.value for point in store.records.read_points(found.id, "loss")] == [0.5]
    assert store.objects.read(sys.argv[3]) == b"kept"
    assert store.objects.path(sys.argv[3]).read_bytes() == b"kept"
    assert store.tables.scan("t").collect().height == 1
    assert load_snapshot("d@1", store).collect().height == 3
    assert not store.locked("nothing")
    attempts = {
        "record": lambda: store.records.append_event("x", "y", "z"),
        "object": lambda: store.objects.add(b"other"),
        "table": lambda: store.tables.append("t", store.tables.scan("t").collect()),
        "lock": lambda: store.lock("new").__enter__(),
        "table2": lambda: store.tables.append("other", store.tables.scan("t").collect()),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except ReadOnlyError as error:
            assert "read-only" in str(error), error
            assert error.help and "ls -ld" in error.help, error.help
        else:
            raise AssertionError(name)
print("read")
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with data, in a folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="everloop-read-only-"))
    folder.chmod(0o755)
    yield folder / "home"
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def fill(home: Path) -> tuple[str, str]:
    """Write some data of each type. Returns the run's id and an object's digest."""
    from everloop.data import take_snapshot
    from everloop.records import Point

    with open_store(home) as store:
        run = store.new(Run, name="r", started_at=store.now(), ended_at=store.now(), state="finished")
        store.records.put(run)
        store.records.append_points(run.id, [Point(key="loss", value=0.5, at=store.now())])
        store.records.put(store.new(ModelVersion, model="m", version=1, package="sha256:" + "0" * 64, run=run.id))
        digest = store.objects.add(b"kept")
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        store.tables.append("t", pl.DataFrame({"event_at": [moment], "value": [1]}))
        take_snapshot(pl.DataFrame({"a": [1, 2, 3]}), "d", store)
        with store.lock("held"):
            pass
    return run.id, digest


def listing(top: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(top)): (path.stat().st_size, path.stat().st_mtime_ns) for path in top.rglob("*")}


def by_modes(home: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user who may not write to the home. Root may always write, so it drops this right first."""
    for path in [home, *home.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    limits = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return execute([*limits, sys.executable, "-c", program, str(home), *arguments])


def by_mount(home: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the home's disk mounted read-only, in a separate namespace."""
    own = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() != 0:
        own += ["--user", "--map-root-user"]
    mount = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
    if shutil.which("unshare") is None or execute([*own, "sh", "-c", mount, "sh", str(home)]).returncode != 0:
        pytest.skip("this machine does not let us mount a folder read-only")
    command = [*own, "sh", "-c", f'{mount} && exec "$2" -c "$3" "$1" "$4" "$5"', "sh", str(home), sys.executable]
    return execute([*command, program, *arguments, *[""] * (2 - len(arguments))])


def execute(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EVERLOOP_KEYS": "/nowhere", "COLUMNS": "200"}
    environment.pop("EVERLOOP_STORE", None)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/", env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_modes, by_mount])
def test_everything_can_be_read_and_nothing_is_made(home: Path, way: Reader) -> None:
    run, digest = fill(home)
    commands = [
        ["runs", "ls"],
        ["runs", "ls", "--json"],
        ["runs", "show", run],
        ["models", "ls"],
        ["data", "ls"],
        ["data", "show", "d@1"],
        ["lineage", "m@1"],
        ["events"],
        ["endpoints", "ls"],
        ["monitor", "ls"],
        ["release", "ls"],
        ["webhooks", "ls"],
        ["tokens", "ls"],
    ]
    before = listing(home)
    done = way(home, READ, json.dumps(commands), digest)
    assert done.stdout.endswith("read\n"), done.stderr[-3000:]
    assert listing(home) == before


def test_verify_reads_as_well(home: Path) -> None:
    fill(home)
    program = "import sys\nfrom everloop.cli.app import run\nprint(run(['verify', '--home', sys.argv[1], '--json']))\n"
    before = listing(home)
    done = by_modes(home, program)
    # The only problem that verify reports is the version's missing package.
    report = json.loads(done.stdout.rpartition("}")[0] + "}")["report"]
    assert [problem["kind"] for problem in report["problems"]] == ["reference"], done.stderr
    assert report["counts"]["records"] == 3
    assert listing(home) == before


def test_a_log_that_a_dead_writer_left_is_read(home: Path) -> None:
    """The log has no index, and none can be created there."""
    open_store(home).close()
    dying = (
        "import os, sys\nfrom everloop.stores import open_store\nstore = open_store(sys.argv[1])\n"
        "store.records.append_event('last', 'y', 'z')\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", dying, str(home)], check=True)
    assert (home / "everloop.db-wal").stat().st_size > 0
    (home / "everloop.db-shm").unlink()
    program = (
        "import sys, glob\nfrom everloop.stores import open_store\n"
        "with open_store(sys.argv[1], create=False) as store:\n"
        "    print([event.verb for event in store.records.events_since(0)], store.records.problems())\n"
        "print(glob.glob('/tmp/everloop-reading-*'))\n"
    )
    before = listing(home)
    done = by_modes(home, program)
    assert done.stdout == "['last'] []\n[]\n", done.stderr[-2000:]
    assert listing(home) == before


def test_a_living_writers_rows_are_seen(home: Path) -> None:
    """While the owner writes, a user who may only read sees all earlier writes."""
    with open_store(home) as store:
        store.records.append_event("one", "y", "z")
        reader = FrozenReader(home / "everloop.db")
        for verb in ("two", "three"):
            store.records.append_event(verb, "y", "z")
            rows = reader.read("SELECT verb FROM events ORDER BY seq")
            assert rows[-1] == (verb,)
        reader.close()


def test_a_database_that_changes_without_a_log_is_read_again(tmp_path: Path) -> None:
    """The owner opens the database, writes, writes the log back and closes it between two reads."""
    path = tmp_path / "r.db"

    def write(number: int) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS t (number INTEGER, pad BLOB)")
            connection.execute("INSERT INTO t VALUES (?, zeroblob(5000))", (number,))

    write(0)
    tmp_path.chmod(0o500)
    reader = FrozenReader(path)
    tried: list[str] = []
    real = reader._try

    def only_frozen(options: str) -> sqlite3.Connection | None:
        # Root may write anywhere, so reading with files beside the database is prevented here.
        tried.append(options)
        return real(options) if "immutable" in options else None

    reader._try = only_frozen  # type: ignore[method-assign]
    for number in range(1, 6):
        assert reader.read("SELECT count(*) FROM t") == [(number,)]
        assert reader.read("SELECT count(*) FROM t") == [(number,)]
        tmp_path.chmod(0o700)
        write(number)
        tmp_path.chmod(0o500)
    assert tried.count("mode=ro&immutable=1") == 5, "it is opened again only when it has changed"
    reader.close()
    tmp_path.chmod(0o700)


def test_a_home_that_is_writable_again_is_written_to(home: Path) -> None:
    """The store does not have to be opened again."""
    fill(home)
    for path in (home, home / "everloop.db"):
        path.chmod(path.stat().st_mode & ~0o222)
    # One process cannot be two users, so the result of the operating system's check is patched.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everloop.stores.records.sqlite.can_write_beside", lambda path: False)
        records = SqliteRecords(home / "everloop.db", project="default", actor="a", clock=ManualClock())
        seen = records.last_event()
        with pytest.raises(ReadOnlyError):
            records.append_event("x", "y", "z")
    for path in (home, home / "everloop.db"):
        path.chmod(path.stat().st_mode | 0o200)
    records.append_event("x", "y", "z")
    assert records.last_event() == seen + 1
    records.close()


def test_an_old_database_says_what_to_do(home: Path) -> None:
    open_store(home).close()
    with closing(sqlite3.connect(home / "everloop.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    program = "import sys\nfrom everloop.cli.app import run\nprint(run(['runs', 'ls', '--home', sys.argv[1]]))\n"
    done = by_modes(home, program)
    assert done.stdout == "10\n"
    assert "older everloop" in done.stderr
    assert "Open it once as its owner" in done.stderr


def test_a_home_cannot_be_made_where_nothing_can_be(home: Path) -> None:
    home.mkdir()
    program = "import sys\nfrom everloop.stores import open_store\nopen_store(sys.argv[1] + '/new')\n"
    done = by_modes(home, program)
    assert "ReadOnlyError" in done.stderr
    assert "read-only for this user" in done.stderr
