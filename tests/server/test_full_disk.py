"""A full disk: writing is answered 507, reading and searching keep working, and so does writing once there is space.

Where this machine lets us mount one, the home is on a small file system of its own, which is filled to the last byte.
Everywhere, SQLite is also held to the pages that it has, which it reports in the same way.
"""

from __future__ import annotations

import base64
import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import InsufficientStorageError, StoreError, UsageError
from everloop.server.storage_errors import no_space_error
from everloop.stores import open_store
from everloop.stores.records.sqlite import SqliteDatabase
from everloop.stores.records.sqlite_connection import SqliteConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

API = "/api/2.0/mlflow/"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
SIZE_MB = 16
LONG = "x" * 7000
QUERY = '{ mlflowGetRun(input: {runId: "%s"}) { run { info { runId } } } }'


class Disk:
    """A folder on a file system of `SIZE_MB`, which the test can fill and free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let us mount a file system")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Pages:
    """Limits every connection of a SQLite store to the current number of pages of its file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened: list[SqliteConnection] = []
        self._full = False
        connect = SqliteDatabase._connect

        def connected(database: SqliteDatabase) -> SqliteConnection:
            made = connect(database)
            self._opened.append(made)
            self._apply(made)
            return made

        monkeypatch.setattr(SqliteDatabase, "_connect", connected)

    def fill(self) -> None:
        self._full = True
        for one in self._opened:
            self._apply(one)

    def free(self) -> None:
        self._full = False
        for one in self._opened:
            self._apply(one)

    def _apply(self, connection: SqliteConnection) -> None:
        try:
            # SQLite itself takes the pages that there are for the least limit.
            connection.fetch(f"PRAGMA max_page_count = {1 if self._full else 2**30}")
        except UsageError:
            return  # closed by now


class Client:
    """Writes and reads of each kind, over everloop's and MLflow's API."""

    def __init__(self, control: Any) -> None:
        self.control = control
        self.number = 0
        self.run = self.post("runs/create", experiment_id="0", run_name="before").json["run"]["info"]["run_id"]
        assert self.post("runs/log-metric", run_id=self.run, key="m", value=1.0, timestamp=1).status == 200
        assert control.request("PUT", f"{PROXY}/0/{self.run}/artifacts/kept.txt", b"kept").status == 200

    def post(self, path: str, **fields: Any) -> Any:
        return self.control.request("POST", path if path.startswith("/") else API + path, fields)

    def writes(self) -> dict[str, Any]:
        """Large writes, each of which needs more space."""
        self.number += 1
        mark = f"{self.number}"
        tags = [{"key": f"t{mark}-{i}", "value": f"{mark}{i}{LONG}"} for i in range(90)]
        metrics = [{"key": f"k{mark}-{i}" + "k" * 200, "value": i, "timestamp": 1, "step": i} for i in range(900)]
        roles = {f"p{mark}-{i}" + "p" * 60: "viewer" for i in range(900)}
        upload = b"y" * (SIZE_MB << 18)
        return {
            "a run": self.post("runs/create", experiment_id="0", tags=tags),
            "tags": self.post("runs/log-batch", run_id=self.run, tags=tags),
            "metrics": self.post("runs/log-batch", run_id=self.run, metrics=metrics),
            "an experiment": self.post("experiments/create", name=f"e{mark}", tags=tags),
            "a model": self.post("registered-models/create", name=f"m{mark}", tags=tags),
            "users": self.post("/api/v1/access/users", name=f"u{mark}", roles=roles, password="a long password"),
            "a file": self.control.request("PUT", f"{PROXY}/0/{self.run}/artifacts/large-{mark}.bin", upload),
        }

    def writes_until_full(self, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Repeats the writes until the free space in SQLite's existing pages is used up."""
        for _ in range(20):
            answers = {name: got for name, got in self.writes().items() if name not in without}
            if all(got.status == 507 for got in answers.values()):
                break
        return answers

    def reads(self) -> dict[str, Any]:
        ask = self.control.request
        return {
            "the run": ask("GET", f"{API}runs/get?run_id={self.run}"),
            "history": ask("GET", f"{API}metrics/get-history?run_id={self.run}&metric_key=m"),
            "runs": self.post("runs/search", experiment_ids=["0"], filter="metrics.m > 0"),
            "experiments": self.post("experiments/search", max_results=10),
            "models": ask("GET", f"{API}registered-models/search"),
            "files": ask("GET", f"{API}artifacts/list?run_id={self.run}"),
            "a file": ask("GET", f"{PROXY}/0/{self.run}/artifacts/kept.txt"),
            "graphql": self.post("/graphql", query=QUERY % self.run),
            "records": ask("GET", "/api/v1/runs"),
            "events": ask("GET", "/api/v1/events"),
            "status": ask("GET", "/api/v1/status"),
            "health": ask("GET", "/health"),
        }  # fmt: skip


def refused(answers: dict[str, Any]) -> None:
    for name, got in answers.items():
        assert got.status == 507, (name, got.status, got.body[:500])
        said = got.json.get("error", got.json)
        assert "no space" in said["message"], (name, said)
        assert said.get("error_code", "RESOURCE_EXHAUSTED") == "RESOURCE_EXHAUSTED"


def taken(answers: dict[str, Any]) -> None:
    for name, got in answers.items():
        assert got.status in (200, 201), (name, got.status, got.body[:500])


@pytest.mark.slow
def test_a_full_file_system(disk, serve, monkeypatch, tmp_path):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with open_store(disk.folder / "home", project="p") as store, serve(store) as control:
        client = Client(control)
        disk.fill()
        refused(client.writes_until_full())
        taken(client.reads())
        assert client.reads()["the run"].json["run"]["data"]["metrics"][0]["value"] == 1.0
        disk.free()
        taken(client.writes())
        taken(client.reads())
        assert not [one for one in (disk.folder / "home" / "artifacts" / ".uploads").iterdir() if one.is_file()]


@pytest.mark.slow
def test_a_store_that_may_not_grow(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    pages = Pages(monkeypatch)
    with open_store(tmp_path / "home", project="p") as store, serve(store) as control:
        client = Client(control)
        taken(client.writes())
        pages.fill()
        refused(client.writes_until_full(without=("a file",)))
        taken(client.reads())
        pages.free()
        taken(client.writes())
        taken(client.reads())


@pytest.mark.slow
def test_a_token_works_while_the_disk_is_full(serve, monkeypatch, tmp_path):
    from everloop.server.access import UserStore

    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    pages = Pages(monkeypatch)
    with open_store(tmp_path / "home", project="p") as store:
        user_store = UserStore(store)
        user_store.add_user("ada", {"*": "admin"}, "a long password")
        _, secret = user_store.create_token("ci", "ada")
        with serve(store, auth=True) as control:
            pages.fill()
            # The use of a token is noted once an hour: its record grows, which the store refuses.
            with pytest.raises(InsufficientStorageError):
                any(user_store.create_token(f"t{number}", "ada") is None for number in range(1000))
            assert control.request("GET", "/api/v1/runs", authorization=f"Bearer {secret}").status == 200
            basic = base64.b64encode(b"ada:a long password").decode()
            assert control.request("GET", "/api/v1/runs", authorization=f"Basic {basic}").status == 200


def failing(cause: BaseException) -> StoreError:
    try:
        try:
            raise cause
        except BaseException as error:
            raise StoreError("It failed.") from error
    except StoreError as error:
        return error


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        lambda: OSError(errno.EDQUOT, "Disk quota exceeded"),
        lambda: OSError(errno.EFBIG, "File too large"),
        lambda: sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full"),
        lambda: sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error"),
        lambda: sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE, "disk I/O error"),
        lambda: sqlite3.OperationalError("database or disk is full"),
        lambda: InsufficientStorageError("No space left."),
    ],
)
def test_what_counts_as_a_full_disk(make: Callable[[], BaseException]) -> None:
    assert no_space_error(make()) is not None
    assert no_space_error(failing(make())) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(errno.EACCES, "Permission denied"),
        lambda: sqlite_error(sqlite3.SQLITE_IOERR_READ, "disk I/O error"),
        lambda: UsageError("No."),
    ],
)
def test_what_does_not_count_as_a_full_disk(make: Callable[[], BaseException]) -> None:
    assert no_space_error(make()) is None
    assert no_space_error(failing(make())) is None


def test_a_limit_of_file_sizes(tmp_path):
    """The same for a process whose files may not grow. It is a separate process, as the limit cannot be lifted."""
    script = """
import resource, sqlite3, sys, threading
from pathlib import Path
from everloop.stores import open_store
from everloop.server.storage_errors import no_space_error
with open_store(Path(sys.argv[1]), project="p") as store:
    from everloop.records import Run
    def run(size):
        return store.new(Run, name="r", started_at=store.now(), tags={"a": "x" * size})
    store.records.put(run(10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    for number in range(50):
        try:
            store.records.put(run(50_000))
        except Exception as error:
            assert no_space_error(error) is not None, repr(error)
            break
    else:
        raise SystemExit("never full")
    assert store.records.find(Run)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.records.put(run(50_000))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "home")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
