"""Prepare tables for training: select labelled rows and feature columns, and set validation rows aside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from everloop.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from everloop.training.trained_model import Task

VALID_SHARE = 0.2


def table(given: Any) -> pl.DataFrame:
    """Return a Polars frame or anything with an Arrow C stream as a Polars data frame.

    Raises:
        UsageError: the value is not a table.
    """
    import polars as pl

    if isinstance(given, pl.DataFrame):
        return given
    if isinstance(given, pl.LazyFrame):
        return given.collect()
    if hasattr(given, "__arrow_c_stream__"):
        return pl.DataFrame(given)
    raise UsageError(f"A {type(given).__name__} is not a table.", help="Pass a Polars frame or an Arrow table.")


def labelled(frame: pl.DataFrame, target: str, what: str, notes: list[str]) -> pl.DataFrame:
    """Return the rows with a target. If rows are left out, a note is added to `notes`.

    Raises:
        TrainingError: the target's column is missing, or no row has a target.
    """
    if target not in frame.columns:
        from everloop.data.table_inputs import nearest

        raise TrainingError(f"The {what} rows have no column '{target}'.", help=nearest(target, frame.columns))
    column = frame[target]
    known = column.is_not_null() & (column.is_not_nan() if column.dtype.is_float() else True)
    without = frame.height - int(known.sum())
    if without == frame.height:
        raise TrainingError(
            f"Target '{target}' is null in all {frame.height} {what} rows.", help="Wait for labels, or check the join."
        )
    if without:
        notes.append(f"{without} of {frame.height} {what} rows have no '{target}' and were left out")
    return frame.filter(known) if without else frame


def feature_columns(
    frame: pl.DataFrame, target: str, features: Sequence[str] | None, weight: str | None = None
) -> list[str]:
    """Return the columns to learn from: `features`, or all columns except the target and the weight.

    Raises:
        TrainingError: a feature is missing or is the target itself, or there are no features.
    """
    names = (
        [name for name in frame.columns if name not in (target, weight)]
        if features is None
        else list(dict.fromkeys(features))
    )
    for name in names:
        if name == target:
            raise TrainingError(f"The target '{target}' cannot be a feature.", help="Take it out of `features`.")
        if name not in frame.columns:
            from everloop.data.table_inputs import nearest

            raise TrainingError(f"There is no feature column '{name}'.", help=nearest(name, frame.columns))
    if not names:
        raise TrainingError(f"Besides the target '{target}', there is no column to learn from.", help="Add features.")
    return names


def weights_of(frame: pl.DataFrame, weight: str) -> NDArray[np.float64]:
    """Return the weights of the rows, scaled to 1 on average.

    Raises:
        TrainingError: the column is missing, or a weight is null, not finite or not above 0.
    """
    if weight not in frame.columns:
        from everloop.data.table_inputs import nearest

        raise TrainingError(f"There is no weight column '{weight}'.", help=nearest(weight, frame.columns))
    column = frame[weight]
    if not column.dtype.is_numeric() or column.null_count():
        reason = f"has {column.null_count()} nulls" if column.null_count() else f"is {column.dtype}"
        raise TrainingError(f"The weight column '{weight}' {reason}.", help="Give every row a number above 0.")
    weights = column.to_numpy().astype(np.float64)
    wrong = ~(np.isfinite(weights) & (weights > 0))
    if wrong.any():
        raise TrainingError(
            f"The weight in row {int(wrong.argmax()) + 1} of '{weight}' is {weights[wrong][0]:g}, but must be above 0.",
            help="Leave rows out that should not count.",
        )
    scaled: NDArray[np.float64] = weights / weights.mean()
    return scaled


def set_aside(frame: pl.DataFrame, y: NDArray[np.float64], task: Task, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split rows randomly into training and validation rows, stratified by class. Both keep the order of `frame`."""
    rng = np.random.default_rng(seed)
    aside = np.zeros(frame.height, dtype=bool)
    groups = [np.arange(frame.height)] if task == "regression" else [np.flatnonzero(y == k) for k in np.unique(y)]
    for rows in groups:
        count = round(VALID_SHARE * len(rows))
        # A class with at least two rows is in both parts.
        aside[rng.permutation(rows)[: max(count, 1) if len(rows) > 1 else 0]] = True
    return frame.filter(~aside), frame.filter(aside)
