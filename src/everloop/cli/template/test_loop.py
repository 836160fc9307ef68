"""Quick tests of this project; run them with `pytest`. They do not train a model."""

import sys
from pathlib import Path

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))

from loop import loop, prepare


def test_prepared_table_has_the_columns_that_the_loop_needs() -> None:
    wines = pl.read_csv(Path(__file__).parents[1] / "data" / "wine.csv")
    table = prepare(wines)
    assert loop.data.target in table.columns
    assert table[loop.data.key].is_unique().all()
    assert table["darkness"].is_finite().all()
