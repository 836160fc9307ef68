"""Real servers, started once for a test session and listening on a socket in their own folder only."""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = [
    "tests.fixtures.control_plane",
    "tests.fixtures.finished_demo",
    "tests.fixtures.forked_trials",
    "tests.fixtures.models",
    "tests.fixtures.serving",
]

# A shell that starts a program in the background makes it ignore Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What continuous integration refuses must fail again where it is looked at: there, examples follow from the test.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Thousands of tests and modules stay. Scanning them for garbage again and again is a thirtieth of all work."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_project_left_behind() -> Iterator[None]:
    """Loading a project says in the environment where it is, and commands enter its folder: for a whole process."""
    folder, store, project = Path.cwd(), os.environ.get("EVERLOOP_STORE"), os.environ.pop("EVERLOOP_PROJECT", None)
    yield
    os.chdir(folder)
    for name, value in (("EVERLOOP_STORE", store), ("EVERLOOP_PROJECT", project)):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def need(program: str, what: str, way_out: str) -> None:
    """Skip, or fail where this program is required."""
    if program in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
        pytest.fail(f"{what} is required and not installed")
    pytest.skip(f"{what} is not installed; {way_out}")


@pytest.fixture(name="need")
def _need() -> Callable[[str, str, str], None]:
    """`need`, for tests that find out for themselves."""
    return need


@pytest.fixture
def small_device() -> Callable[[Path, str], list[str]]:
    """What a command is put behind to see a device of this size, such as `1m`, at a folder.

    The device lives as long as the command's process. Skips where the machine does not allow it.
    """

    def prefix(folder: Path, size: str) -> list[str]:
        own = ["unshare", "--mount", "--propagation", "private"]
        if os.geteuid() != 0:
            own += ["--user", "--map-root-user"]
        script = f'mount -t tmpfs -o size={size} tmpfs "$1" && shift && exec "$@"'
        found = [*own, "sh", "-c", script, "sh", str(folder)]
        if shutil.which("unshare") is None or subprocess.run([*found, "true"], capture_output=True).returncode != 0:
            pytest.skip("this machine does not let us mount a small device")
        return found

    return prefix


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a throw-away Redis."""
    given = os.environ.get("EVERLOOP_TEST_REDIS")
    if given:
        yield given
        return
    program = shutil.which("redis-server")
    if program is None:
        need("redis", "Redis", "set EVERLOOP_TEST_REDIS to the URL of a server")
    folder = Path(tempfile.mkdtemp(prefix="everloop-redis-"))
    socket = folder / "socket"
    command = [str(program), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(200):
                if socket.exists():
                    break
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            server.terminate()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a throw-away server's database `postgres`, which listens on a socket in its own folder only."""
    given = os.environ.get("EVERLOOP_TEST_POSTGRES")
    if given:
        yield given
        return
    with OwnPostgres.started("-c fsync=off -c synchronous_commit=off -c max_connections=200") as server:
        yield server.url


class OwnPostgres:
    """A throw-away server that tests may restart, and fill with connections."""

    def __init__(self, options: str) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        found = programs[-1] if programs else shutil.which("initdb")
        if found is None:
            need("postgres", "PostgreSQL", "set EVERLOOP_TEST_POSTGRES to the URL of a server")
        # Not below pytest's own folder, which each session closes to all other users, and whose names are too long
        # for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="everloop-postgres-"))
        self.options = f"-k {self.folder} -c listen_addresses='' {options}"
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.url = f"postgresql://{self.user}@/postgres?host={self.folder}"
        self._as_user = _other_user(self.folder)
        self._binaries = Path(str(found)).parent
        data = ["-D", str(self.folder / "data")]
        made = [str(self._binaries / "initdb"), *data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--no-sync"]
        _call(self._as_user, made)
        self._control = [str(self._binaries / "pg_ctl"), *data, "-w"]

    @classmethod
    @contextmanager
    def started(cls, options: str) -> Iterator[OwnPostgres]:
        server = cls(options)
        server.start()
        yield server
        server.stop()
        shutil.rmtree(server.folder)

    def start(self) -> None:
        _call(self._as_user, [*self._control, "-l", str(self.folder / "log"), "-o", self.options, "start"])

    def stop(self) -> None:
        _call(self._as_user, [*self._control, "-m", "immediate", "stop"])


@pytest.fixture(scope="session")
def own_postgres() -> type[OwnPostgres]:
    """For tests that need a server of their own."""
    return OwnPostgres


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a schema of its own, in which nothing has been made yet."""
    with _schema(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def _postgres_tables(postgres_server: str) -> Iterator[str]:
    with _schema(postgres_server) as url:
        yield url


@pytest.fixture
def postgres_shared(_postgres_tables: str) -> Iterator[str]:
    """URL of a schema that others use as well, one after the other; emptied afterwards."""
    import psycopg

    yield _postgres_tables
    with psycopg.connect(_postgres_tables, autocommit=True) as connection:
        connection.execute(
            "TRUNCATE records, revisions, metrics, points, events, searched_records, searched_values, searched_paths"
            " RESTART IDENTITY"
        )


@contextmanager
def _schema(server: str) -> Iterator[str]:
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{name}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE".encode())


def _other_user(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root, so root lends the folder to its user."""
    if os.getuid() != 0:
        return []
    shutil.chown(folder, "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


def _call(as_user: list[str], command: list[str]) -> None:
    done = subprocess.run([*as_user, *command], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def _s3_url() -> Iterator[str]:
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def s3(_s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a stand-in for S3, which the environment names; its own SDK can fill it."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", _s3_url),
        ("AWS_ALLOW_HTTP", "true"),
    ):
        monkeypatch.setenv(name, value)
    return _s3_url


@pytest.fixture(autouse=True)
def _project_modules():
    """Forget the project modules that a test has registered for import, so that no other test imports them."""
    from everloop.pipeline.code.project_modules import finder

    files, folders = dict(finder._files), set(finder._folders)
    yield
    finder._files.clear()
    finder._files.update(files)
    finder._folders.clear()
    finder._folders.update(folders)
