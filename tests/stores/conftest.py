from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

# Before the suites are imported, so that a failed comparison shows both sides.
pytest.register_assert_rewrite("everloop.testing.stores", "everloop.testing.tables")

from everloop.stores import Store, open_store  # noqa: E402
from everloop.testing.stores import ManualClock  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock) -> Iterator[Store]:
    with open_store(tmp_path / "home", project="flights", actor="user:ann@desk", clock=clock) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("EVERLOOP_STORE", raising=False)
