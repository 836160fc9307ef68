"""A store for the control plane of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def store(tmp_path, monkeypatch) -> Iterator[Store]:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with open_store(tmp_path / "home", project="p", actor="user:operator") as opened:
        yield opened
