"""The record stores, each against the conformance suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from everloop.testing.stores import OpenRecords, RecordStoreSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from everloop.stores import Clock, RecordStore


def _opener(
    make: Callable[[str, str, Clock], RecordStore],
) -> Iterator[OpenRecords]:
    opened: list[RecordStore] = []

    def open_records(clock: Clock, project: str = "flights", actor: str = "user:ann@desk") -> RecordStore:
        opened.append(make(project, actor, clock))
        return opened[-1]

    yield open_records
    for store in opened:
        store.close()


class TestSqliteRecords(RecordStoreSuite):
    @pytest.fixture
    def open_records(self, tmp_path: Path) -> Iterator[OpenRecords]:
        from everloop.stores.records.sqlite import SqliteRecords

        path = tmp_path / "everloop.db"
        yield from _opener(lambda project, actor, clock: SqliteRecords(path, project=project, actor=actor, clock=clock))


class TestPostgresRecords(RecordStoreSuite):
    @pytest.fixture
    def open_records(self, postgres_shared: str) -> Iterator[OpenRecords]:
        from everloop.stores.records.postgres import PostgresRecords

        yield from _opener(
            lambda project, actor, clock: PostgresRecords(postgres_shared, project=project, actor=actor, clock=clock)
        )
