"""Connecting waits for a server without a free connection, for a limited time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from everloop.errors import EverloopError, UnavailableError, UsageError
from everloop.stores.records.postgres import PostgresRecords
from everloop.stores.records.postgres_connections import PostgresConnector
from everloop.testing.stores import ManualClock

MOST = 6


@pytest.fixture(scope="module")
def server(own_postgres: Any) -> Iterator[Any]:
    options = f"-c fsync=off -c max_connections={MOST} -c superuser_reserved_connections=1 -c autovacuum=off"
    with own_postgres.started(options) as started:
        import psycopg

        with psycopg.connect(started.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE plain LOGIN; GRANT CREATE ON SCHEMA public TO plain")
        yield started


@pytest.fixture
def plain(server: Any) -> str:
    """The URL of a user without a reserved connection."""
    return str(server.url).replace(f"{server.user}@", "plain@")


def fill(url: str, stack: ExitStack) -> list[Any]:
    """Use all connections that the server has for this user."""
    import psycopg

    taken = []
    while True:
        try:
            connection = psycopg.connect(url)
        except psycopg.OperationalError:
            return taken
        stack.callback(connection.close)
        taken.append(connection)
        assert len(taken) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("reserved", [True, False])
def test_a_free_connection_is_waited_for(server: Any, plain: str, reserved: bool) -> None:
    """Also if the last connections are reserved for the superuser, where the server's message differs."""
    with ExitStack() as stack:
        taken = fill(plain, stack)
        if not reserved:
            taken += fill(server.url, stack)
        assert len(taken) >= MOST - 2
        # The last free connection is reserved for the superuser.
        timer = threading.Timer(0.4, lambda: [one.close() for one in (taken[0], taken[-1])])
        timer.start()
        stack.callback(timer.join)
        connection = PostgresConnector(plain, 30.0).connect(autocommit=True)
        stack.callback(connection.close)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_the_wait_ends_with_one_clear_error(plain: str) -> None:
    with ExitStack() as stack:
        fill(plain, stack)
        connector = PostgresConnector(plain, 0.3)
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match=r"no free connection for 0\.3 s") as caught:
            connector.connect()
        assert time.monotonic() - begun >= 0.3
        assert caught.value.http_status == 503
        assert "EVERLOOP_POSTGRES_WAIT_S" in str(caught.value.help)
        assert caught.value.__cause__ is None


@pytest.mark.slow
def test_many_threads_do_not_wait_one_after_the_other(plain: str) -> None:
    """After a wait without success, the next calls try only once, until one succeeds."""
    with ExitStack() as stack:
        taken = fill(plain, stack)
        connector = PostgresConnector(plain, 0.3)
        with pytest.raises(UnavailableError):
            connector.connect()
        connector.wait_s = 3600.0
        with pytest.raises(UnavailableError):
            connector.connect()
        taken[0].close()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                stack.callback(connector.connect().close)
                break
            except UnavailableError:
                time.sleep(0.05)
        connector.wait_s = 0.3
        begun = time.monotonic()
        with pytest.raises(UnavailableError):
            connector.connect()
        assert time.monotonic() - begun >= 0.3, "it is waited for again"


def test_permanent_errors_are_raised_immediately(plain: str) -> None:
    for url, words in (
        (plain.replace("/postgres?", "/nosuchdatabase?"), "does not exist"),
        (plain.replace("plain@", "nobody@"), "does not exist"),
    ):
        with pytest.raises(UnavailableError, match=words):
            PostgresConnector(url, 3600.0).connect()


@pytest.mark.slow
def test_a_store_can_be_used_when_connections_are_free_again(plain: str) -> None:
    with ExitStack() as stack:
        taken = fill(plain, stack)
        timer = threading.Timer(0.3, taken[0].close)
        timer.start()
        stack.callback(timer.join)
        records = PostgresRecords(plain, project="p", actor="a", clock=ManualClock())
        stack.callback(records.close)
        found: list[int] = []

        def other_thread() -> None:
            records.append_event("x", "y", "z")
            found.append(records.last_event())
            records.close()

        # A second thread needs a second connection, which is not available yet.
        timer = threading.Timer(0.3, taken[1].close)
        timer.start()
        stack.callback(timer.join)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join(60)
        assert len(found) == 1


@pytest.mark.slow
def test_a_restart_is_waited_for(server: Any, plain: str) -> None:
    records = PostgresRecords(plain, project="p", actor="a", clock=ManualClock())
    before = len(records.events_since(0))
    for verb in ("read", "write"):
        server.stop()
        timer = threading.Timer(0.3, server.start)
        timer.start()
        if verb == "read":
            assert len(records.events_since(0)) == before
        else:
            records.append_event("after", "x", "y")
        timer.join()
    assert len(records.events_since(0)) == before + 1
    records.close()


def test_a_server_that_stays_away_is_an_error_and_comes_back(server: Any, plain: str) -> None:
    records = PostgresRecords(plain, project="p", actor="a", clock=ManualClock())
    connector = records.database._connector  # type: ignore[attr-defined]
    connector.wait_s = 0.3
    server.stop()
    try:
        for _ in range(3):
            with pytest.raises(UnavailableError, match="has not responded for"):
                records.last_event()
            with pytest.raises(UnavailableError, match="has not responded for"):
                records.append_event("x", "y", "z")
    finally:
        server.start()
    records.append_event("again", "y", "z")
    records.close()


@pytest.mark.slow
def test_an_event_loop_is_not_held_up_for_long(plain: str) -> None:
    async def connect() -> None:
        PostgresConnector(plain, 3600.0).connect()

    with ExitStack() as stack:
        fill(plain, stack)
        with pytest.raises(UnavailableError):
            asyncio.run(connect())


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9", "inf"])
def test_the_wait_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", text)
    with pytest.raises(UsageError, match="not a number of seconds"):
        PostgresConnector("postgresql:///x")


def test_the_environment_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PostgresConnector("postgresql:///x").wait_s == 10.0
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", "2.5")
    assert PostgresConnector("postgresql:///x").wait_s == 2.5


def test_errors_of_the_connector_are_everloop_errors(plain: str) -> None:
    with pytest.raises(EverloopError):
        PostgresConnector(f"{plain}&nosuchoption=1", 0).connect()
