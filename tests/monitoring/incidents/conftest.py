"""A store whose clock the test sets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from everloop.stores import open_store

START = datetime(2026, 3, 2, 9, tzinfo=UTC)


class Hands:
    """A clock that the test moves. It counts as a real one, because messages are not sent in a simulation."""

    simulated = False

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def go(self, **span: float) -> None:
        self.moment += timedelta(**span)


@pytest.fixture
def clock():
    return Hands()


@pytest.fixture
def store(tmp_path, clock):
    with open_store(tmp_path / "home", project="p", actor="user:ada", clock=clock) as opened:
        yield opened
