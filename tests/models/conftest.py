from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from everloop.stores import Store, open_store
from everloop.testing.models import sample_table, train_sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from everloop.training.trained_model import Trained


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


@pytest.fixture(scope="session")
def table() -> pl.DataFrame:
    return sample_table()


@pytest.fixture(scope="session")
def linear() -> Trained:
    return train_sample("linear")


@pytest.fixture(scope="session")
def lightgbm() -> Trained:
    return train_sample("lightgbm")
