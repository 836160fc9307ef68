"""Secrets in URLs are never shown, however malformed a URL is."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from everloop.errors import EverloopError, UsageError
from everloop.stores import ObstoreBytes, open_store
from everloop.stores.home import find_store_urls
from everloop.stores.records.postgres_connections import PostgresConnector
from everloop.stores.store_urls import check_path, check_url, database_name, mask_text, mask_url, recalled, remembered

SECRET = "hunter2XYZZY"
PIECES = ("hunter2", "XYZZY")

FORMS = [
    f"postgresql://user:{SECRET}@host/db",
    f"postgres://user:pa ss {SECRET}@host",
    f"postgresql://user:{SECRET}@ho st/db",
    "postgresql://user:hunter2@XYZZY@host/db",
    "postgresql://user:hunter2/XYZZY@host/db",
    "postgresql://user:hunter2?XYZZY@host/db",
    "postgresql://user:hunter2#XYZZY@host/db",
    "postgresql://user:hunter2:XYZZY@host:5432/db",
    "postgresql://user:hunter2\\XYZZY@host:5432/db",
    "postgresql://user:hunter2[XYZZY]@host:5432/db",
    "postgresql://user:123?XYZZY@host/db",
    "postgresql://user:123/XYZZY@host/db",
    f"postgresql://user:{SECRET}@host:99999/db",
    f"postgresql://user:{SECRET}@host:54a2/db",
    f"postgresql://user:{SECRET}@host:-1/db",
    f"postgresql://user:{SECRET}@host:/db",
    f"postgresql://user:{SECRET}@[::1/db",
    f"postgresql://user:{SECRET}@::1/db",
    "postgresql://user:hunter2%zzXYZZY@host/db",
    "postgresql://user:hunter2%XYZZY@host/db",
    "postgresql://user:hunter2%00XYZZY@host/db",
    f"postgresql://user:{SECRET}é@host/db",
    f"postgresql://user:{SECRET}",
    f"postgresql://:{SECRET}@host/db",
    f"postgresql://us er:{SECRET}@host/db",
    f"postgresql://user:{SECRET}@/db",
    f"postgresql:///db?password={SECRET}",
    f"postgresql://host/db?sslpassword={SECRET}&sslmode=require",
    f"postgresql://host/db?passwrd={SECRET}",
    f"postgresql://host/db?{SECRET}",
    f"postgresql://user:{SECRET}@h1,h2:5433,h3:x/db",
    f"postgresql://user:{SECRET}@host/db?sslmode=nonsense",
    f"postgresql+psycopg://user:{SECRET}@host/db",
    f"POSTGRESQL://user:{SECRET}@host/db",
    f"s3://AKIA123:{SECRET}@bucket/x",
    f"s3://{SECRET}@bucket/x",
    f"s3://bucket/x?secret_access={SECRET}",
    f"gs://{SECRET}@bucket",
    f"az://container/x?sv=1&sig={SECRET}",
    f"redis://:{SECRET}@host:6379/0",
    "redis://default:hunter2@XYZZY@host",
    f"mysql+pymysql://u:{SECRET}@h/db",
    f"https://{SECRET}@github.com/x",
    f"https://u:{SECRET}@host/x.csv",
    f"https://host/x.csv?X-Amz-Signature={SECRET}&X-Amz-Date=5",
    f"foo://user:{SECRET}@host",
    f"db2+ibm_db://user:{SECRET}@host/db",
    f"user:{SECRET}@host/db",
    f"postgres:/user:{SECRET}@host/db",
    f"postgres:user:{SECRET}@host/db",
    f"postgresql:\\\\user:{SECRET}@host",
    f"//user:{SECRET}@host/db",
    f"host=h user=u password={SECRET} dbname=x",
    "host=h password='hunter2 XYZZY' dbname=x",
    f"Server=h;Uid=u;Pwd={SECRET};",
    f" postgresql://user:{SECRET}@host/db",
    f"post gres://user:{SECRET}@host",
    f'"postgresql://user:{SECRET}@host/db"',
    f"DATABASE_URL=postgresql://user:{SECRET}@host/db",
    f"postgresql://user:{SECRET}@host/db,postgresql://user:{SECRET}@other/db",
    f"jdbc:postgresql://host/db?user=u&password={SECRET}",
    "postgresql://user:hunter2\nXYZZY@host/db",
    f"postgresql://user:\t{SECRET}@host",
    f"\npostgresql://user:{SECRET}@host/db\n",
    f"postgresql://user:{SECRET}\x00@host/db",
    f"postgresql://user:{SECRET}\x1b[2J@host/db",
    f"postgresql://user:{SECRET * 200}@host/db",
]


def hides(text: str) -> bool:
    return not any(piece in text for piece in PIECES)


def all_of(error: BaseException) -> str:
    """Everything of an error that can appear in a log: message, help, causes and traceback."""
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    for cause in (error.__cause__, error.__context__):
        if cause is not None and not error.__suppress_context__:
            shown += all_of(cause)
    return shown


@pytest.mark.parametrize("url", FORMS)
def test_no_form_shows_its_secret(url: str) -> None:
    assert hides(mask_url(url))
    assert "\n" not in mask_url(url)
    assert hides(mask_text(f"could not reach {url} now", url))
    for schemes in (("postgresql", "postgres"), ("s3", "gs", "az"), ("redis",)):
        try:
            check_url(url, "The URL", schemes)
        except UsageError as error:
            assert hides(all_of(error)), error  # noqa: PT017 - a URL may be right for some of them
    if "://" in url:
        assert hides(database_name(url))


@pytest.mark.parametrize("url", FORMS)
def test_no_form_shows_its_secret_when_a_store_is_opened_with_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the home, as each part of a store, and in the connector."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", "0")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "1")
    monkeypatch.chdir(tmp_path)
    shown = ""

    def attempt(action: object) -> None:
        nonlocal shown
        assert callable(action)
        try:
            action()
        except EverloopError as error:
            shown += all_of(error)

    if "\x00" not in url:
        monkeypatch.setenv("EVERLOOP_STORE", url)
        attempt(open_store)
        monkeypatch.delenv("EVERLOOP_STORE")
    for part in ("home", "records", "objects", "tables"):
        spelled = "".join(f"\\u{ord(sign):04x}" for sign in url)
        (tmp_path / "everloop.toml").write_text(f'[store]\n{part} = "{spelled}"\n')
        if part == "records" and "@host" in url and not url.startswith("postgresql://user:hunter2XYZZY@host:"):
            # Resolving names can be slow, and only the check of the URL matters here.
            attempt(find_store_urls)
        else:
            attempt(lambda: open_store().objects)
    attempt(lambda: ObstoreBytes(url).size("x"))
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert hides("\n".join(names)), "no file or folder is named after it"
    assert hides(shown + caplog.text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/models@3/x", "s3://bucket/models@3/x"),
        ("https://host/path@v1?id=5", "https://host/path@v1?id=5"),
        ("https://host:8080/path@v1", "https://host:8080/path@v1"),
        ("/srv/data/home", "/srv/data/home"),
        ("models/delays@3", "models/delays@3"),
        ("postgresql://ann@host:5433/db?sslmode=require", "postgresql://ann@host:5433/db?sslmode=require"),
        ("postgresql://ann:pw@host/db", "postgresql://ann@host/db"),
        ("abfss://box@account.dfs.core.windows.net/x", "abfss://box@account.dfs.core.windows.net/x"),
        ("postgresql://h1:5432,h2:5433/db", "postgresql://h1:5432,h2:5433/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("sqlite:///folder/file.db", "sqlite:///folder/file.db"),
        ("db2+ibm_db://ann:pw@host:5433/db", "db2+ibm_db://ann@host:5433/db"),
        ("", ""),
    ],
)
def test_what_is_not_secret_is_shown(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///db",
        "postgresql://host",
        "postgres://user@host/db",
        "postgresql://user:p%40ss%2Fw%3Ard@host:5432/db?sslmode=require",
        "postgresql://user:a:b@host/db",
        "postgresql://h1:5432,h2:5433/db?target_session_attrs=read-write",
        "postgresql://[::1]:5432/db",
        "postgresql://root@/postgres?host=/tmp/folder&options=-csearch_path%3Dx",
        "postgresql://%2Fvar%2Frun/db",
    ],
)
def test_well_formed_urls_are_taken(url: str) -> None:
    check_url(url, "The URL", ("postgresql", "postgres"))


def test_the_help_says_how_to_encode() -> None:
    with pytest.raises(UsageError, match="more than one @") as caught:
        PostgresConnector("postgresql://user:p@ss@host/db")
    assert "%40" in str(caught.value.help)


@pytest.mark.parametrize("path", ["/srv/home", "home", "../x", "a@b", "day:one", "~/x", "models@3/x"])
def test_paths_are_not_taken_for_urls(path: str) -> None:
    check_path(path, "The home")


def test_a_library_is_quoted_without_the_password() -> None:
    url = "postgresql://user:p%40ss@host/db?options=-csecret%3Dx"
    told = mask_text("password authentication failed; tried p@ss and p%40ss on postgresql://user:p%40ss@host/db", url)
    assert told == "password authentication failed; tried *** and *** on postgresql://user@host/db"
    assert mask_text("no entry for user 'a'", "postgresql://u:a@host/db") == "no entry for user '***'"


def test_a_failed_connection_shows_no_password_anywhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", "0")
    caplog.set_level(logging.DEBUG)
    for url in (
        f"postgresql://user:{SECRET}@127.0.0.1:1/db",
        f"postgresql://user:{SECRET}@127.0.0.1:1/db?sslmode=nonsense",
        f"postgresql://127.0.0.1:1/db?user=u&password={SECRET}",
        f"postgresql://127.0.0.1:1/db?nosuch={SECRET}",
        f"postgresql://user:{SECRET}@/db?host=/nowhere/{SECRET[:0]}",
    ):
        with pytest.raises(EverloopError) as caught:
            PostgresConnector(url).connect()
        assert hides(all_of(caught.value) + caplog.text)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


@pytest.mark.slow
def test_commands_show_no_password(tmp_path: Path) -> None:
    """On stdout and stderr, with and without --json, for all commands."""
    (tmp_path / ".everloop" / "locks").mkdir(parents=True)
    (tmp_path / "everloop.toml").write_text(f'[store]\nrecords = "postgresql://user:{SECRET}@127.0.0.1:1/db"\n')
    environment = {**os.environ, "EVERLOOP_POSTGRES_WAIT_S": "0"}
    script = (
        "import sys\nfrom everloop.cli import main\nfrom everloop.cli.app import run\n"
        "codes = [run(words.split()) for words in sys.argv[1:]]\nassert all(codes), codes\n"
    )
    words = ["runs ls --json", "models ls", "verify --json", "events --json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert hides(done.stdout + done.stderr)
    assert "postgresql://127.0.0.1:1/db" in done.stdout


def test_store_urls_and_object_stores_hide_what_is_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "everloop.toml").write_text(f'[store]\nrecords = "postgresql://user:{SECRET}@host/db"\n')
    urls, _ = find_store_urls()
    assert hides(repr(urls))
    assert SECRET in urls.records
    with pytest.raises(UsageError, match="in the environment"):
        ObstoreBytes(f"s3://AKIA:{SECRET}@bucket")


def test_a_process_remembers_what_a_record_does_not_hold() -> None:
    url = f"mysql://user:{SECRET}@host/db"
    assert remembered(url) == "mysql://user@host/db"
    assert recalled("mysql://user@host/db") == url
    assert recalled("mysql://other@host/db") == "mysql://other@host/db"
