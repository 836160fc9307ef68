"""Read scores and inputs from the columns of logged predictions or of any table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import DataError
from everloop.monitoring.logged_windows import INPUT

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def scores_of(rows: pl.DataFrame) -> Array:
    """Return scores of shape (n, k) from a list column `scores`, otherwise (n,) from `score`. Missing ones are NaN.

    Raises:
        DataError: there is no such column, or the rows of `scores` differ in length.
    """
    if "scores" in rows.columns and rows.height:
        lengths = rows["scores"].list.len().drop_nulls()
        if lengths.n_unique() == 1:
            missing = [float("nan")] * int(lengths[0])
            return np.asarray([row or missing for row in rows["scores"].to_list()], dtype=np.float64)
        if len(lengths):
            raise DataError(
                "The rows have different numbers of scores.", help="Choose the rows of one version, with its classes."
            )
    if "score" not in rows.columns:
        raise DataError("The rows have no column 'score'.", help=f"They have: {', '.join(rows.columns)}")
    return rows["score"].cast(float, strict=False).to_numpy()


def plain_inputs(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the inputs of logged predictions under their own names; a frame without logged inputs as it is."""
    import polars as pl

    logged = [name for name in rows.columns if name.startswith(INPUT)]
    return rows.select(pl.col(name).alias(name.removeprefix(INPUT)) for name in logged) if logged else rows
