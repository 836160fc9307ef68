"""The records of a fork, against the conformance suite and against a full copy of the store."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from everloop.stores.forks.fork_database import create_database
from everloop.stores.forks.overlay_records import OverlayRecords
from everloop.stores.forks.record_layers import OriginLayer
from everloop.stores.records.sqlite import SqliteRecords
from everloop.testing.stores import START, OpenRecords, RecordStoreSuite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores import Clock, RecordStore


class TestForkOfAnEmptyStore(RecordStoreSuite):
    @pytest.fixture
    def open_records(self, tmp_path: Path) -> Iterator[OpenRecords]:
        from everloop.testing.stores import ManualClock

        base = SqliteRecords(tmp_path / "base.db", project="flights", actor="user:ann@desk", clock=ManualClock())
        database = create_database(tmp_path / "own.db")

        def open_records(clock: Clock, project: str = "flights", actor: str = "user:ann@desk") -> RecordStore:
            layers = [OriginLayer(base.as_of(START))]
            return OverlayRecords(database, layers, moment=START, depth=1, project=project, actor=actor, clock=clock)

        yield open_records
        database.close()
        base.close()
