"""A rollout scores each logged row once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from everloop.loop.comparison import scored_rows as module
from everloop.loop.comparison.scored_rows import ScoredRows, scored_rows
from everloop.packages import Predictor, build_package
from everloop.prediction_log.prediction_log import input_column
from everloop.registry import load_model, register
from everloop.stores import open_store
from everloop.testing.models import sample_table, train_sample

if TYPE_CHECKING:
    from pathlib import Path

FEATURES = ("distance", "carrier", "wind", "weekend")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    with open_store(tmp_path / "store") as store:
        register(store, "m", build_package(train_sample(features=FEATURES), store=store, sample=sample_table(100)))
        return load_model(store, "m@1")


def test_only_new_rows_are_scored(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    table = sample_table(60, seed=1)
    rows = table.select(pl.col(name).alias(input_column(name)) for name in FEATURES)
    rows = rows.with_columns(id=pl.Series([f"r{index}-0" for index in range(60)]))
    expected = model.predict(table)
    scored: list[int] = []
    original = type(model).answer_frame

    def counted(self: Predictor, frame: pl.DataFrame) -> Any:
        scored.append(frame.height)
        return original(self, frame)

    monkeypatch.setattr(type(model), "answer_frame", counted)
    known = ScoredRows()
    # Labels come in any order, so new rows are among known ones.
    for part in (rows[::3], rows, rows.reverse(), rows[5:9]):
        places = np.asarray([int(one[1:-2]) for one in part["id"]])
        answers = known.answer(model, part)
        assert answers.scores == pytest.approx(expected[places], abs=1e-12)
        assert answers.places is not None
        assert answers.places.tolist() == (answers.scores >= 0.5).astype(int).tolist()
    assert scored == [20, 40]


def test_only_the_answers_of_the_last_rollouts_are_kept() -> None:
    module._kept.clear()
    moments = [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 7)]
    first = scored_rows("tables", moments[0], "m@1")
    assert scored_rows("tables", moments[0], "m@1") is first
    for moment in moments[1:]:
        scored_rows("tables", moment, "m@1")
    assert len(module._kept) == 4
    assert scored_rows("tables", moments[0], "m@1") is not first
