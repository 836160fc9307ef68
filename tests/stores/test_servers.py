"""Failures of a database server: lost connections, errors in a transaction, and a missing server."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from everloop.errors import MissingExtraError, StoreError, UnavailableError
from everloop.stores.records.postgres import PostgresDatabase, PostgresRecords
from everloop.testing.stores import ManualClock


@pytest.fixture
def records(postgres_shared: str) -> Iterator[PostgresRecords]:
    opened = PostgresRecords(postgres_shared, project="p", actor="a", clock=ManualClock())
    yield opened
    opened.close()


def hang_up(records: PostgresRecords, server: str) -> None:
    """Close the connection as the server does when it restarts."""
    import psycopg

    ((process,),) = records.database.read("SELECT pg_backend_pid()")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (process,))


def test_reads_and_writes_continue_after_a_lost_connection(records: PostgresRecords, postgres_shared: str) -> None:
    records.append_event("one", "x", "y")
    hang_up(records, postgres_shared)
    assert records.last_event() == 1
    hang_up(records, postgres_shared)
    records.append_event("two", "x", "y")
    hang_up(records, postgres_shared)
    with records.transaction():
        records.append_event("three", "x", "y")
    assert [event.verb for event in records.events_since(0)] == ["one", "two", "three"]


def test_a_transaction_that_loses_its_server_is_an_error_and_rolled_back(
    records: PostgresRecords, postgres_shared: str
) -> None:
    def write() -> None:
        with records.transaction():
            records.append_event("lost", "x", "y")
            hang_up(records, postgres_shared)
            records.append_event("lost", "x", "y")

    with pytest.raises(UnavailableError, match="does not respond"):
        write()
    assert records.events_since(0) == []
    records.append_event("next", "x", "y")
    assert len(records.events_since(0)) == 1


def test_a_transaction_with_a_failed_statement_is_an_error(records: PostgresRecords) -> None:
    def write() -> None:
        with records.transaction():
            records.append_event("lost", "x", "y")
            with pytest.raises(StoreError):
                records.database.read("SELECT nonsense")

    with pytest.raises(StoreError, match="was rolled back"):
        write()
    assert records.events_since(0) == []


def test_a_missing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", "0.2")
    with pytest.raises(UnavailableError, match="has not responded for") as caught:
        PostgresDatabase("postgresql://user:secret@127.0.0.1:1/name?connect_timeout=2")
    assert "secret" not in str(caught.value)


def test_without_its_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"everloop\[postgres\]"):
        PostgresDatabase("postgresql://nowhere/name")
