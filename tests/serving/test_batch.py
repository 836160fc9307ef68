"""Batch scoring: in pieces, the answers are those of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import RequestError, UsageError
from everloop.models import load_model
from everloop.serving.batch import score_piece, score_table
from everloop.testing.models import sample_table

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import Store

READERS: dict[str, Any] = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_pieces_make_the_whole(store: Store, release: Any, tmp_path: Path, task: str, ending: str) -> None:
    predictor = load_model(store, release(task=task).key)
    table = sample_table(250, seed=3)
    output = tmp_path / f"scored{ending}"
    assert score_table(predictor, table.lazy(), output, piece_rows=40) == 250
    found, expected = READERS[ending](output), score_piece(predictor, table)
    assert found.columns == expected.columns
    assert found["flight_id"].to_list() == table["flight_id"].to_list()
    assert found["score"].to_list() == pytest.approx(expected["score"].to_list(), rel=1e-12)
    if task != "regression":
        assert found["label"].to_list() == expected["label"].to_list()
    assert list(tmp_path.glob(".scored*")) == []


def test_an_empty_table_keeps_its_columns(store: Store, release: Any, tmp_path: Path) -> None:
    predictor = load_model(store, release(task="multiclass").key)
    output = tmp_path / "scored.parquet"
    assert score_table(predictor, sample_table(5).clear().lazy(), output) == 0
    assert pl.read_parquet(output).columns[-5:] == ["score", "score_long", "score_none", "score_short", "label"]


def test_what_fails_leaves_no_file(store: Store, release: Any, tmp_path: Path) -> None:
    predictor = load_model(store, release().key)
    output = tmp_path / "scored.parquet"
    with pytest.raises(RequestError, match="distance"):
        score_table(predictor, sample_table(5).drop("distance").lazy(), output)
    with pytest.raises(UsageError, match="xls"):
        score_table(predictor, sample_table(5).lazy(), tmp_path / "scored.xls")
    assert list(tmp_path.glob("*scored*")) == []
