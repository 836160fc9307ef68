"""Folds for cross-validation, by key or by time.

Without a time column, rows are assigned by a hash of their key within each class. So a row is always in the same fold,
whatever the order of the rows, and rows with the same key stay together. Each row is in the validation part of exactly
one fold.

With a time column, the rows are cut into blocks of equal size in the order of time. The first fold trains on the first
block and validates on the second, the next one trains on both and validates on the third, and so on. With `window`, a
fold trains only on that many blocks before its validation block.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from everloop.data.splits import has_classes, hashes
from everloop.data.table_inputs import Frame, as_eager, as_utc, require_column
from everloop.errors import DataError, UsageError
from everloop.stores.durations import parse_duration


@dataclass(frozen=True)
class Fold:
    """The training and validation rows of one fold: row numbers from 0, ascending."""

    train: pl.Series
    valid: pl.Series


def split_folds(
    frame: Frame,
    count: int = 5,
    *,
    time: str | None = None,
    gap: str | None = None,
    window: int | None = None,
    key: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> list[Fold]:
    """Divide a table for cross-validation.

    Args:
        count: the number of folds.
        time: the time column. Each fold validates on rows later than its training rows; rows of one time stay together.
        gap: with `time`, the duration to leave out before the validation rows: the time until a label is known.
        window: with `time`, train only on this many blocks.
        key: without `time`, rows with the same key stay together.
        target: if it has few classes, each fold gets the same share of each class.
        seed: without `time`, selects another division.

    Raises:
        DataError: there are too few rows, keys or times for this many folds, a named column is missing, or a time is
            null.
        UsageError: the arguments do not fit together.
    """
    if count < 2:
        raise UsageError(f"count={count} is too small: cross-validation needs at least 2 folds.", help="Try count=5.")
    if time is None and (gap is not None or window is not None):
        raise UsageError("gap= and window= need a time column.", help="Name it with time=.")
    if time is not None and (key is not None or target is not None):
        raise UsageError("Folds by time cannot use key= or target=.", help="Leave them out.")
    if window is not None and window < 1:
        raise UsageError(f"window={window} leaves no rows to train on.", help="Use at least window=1.")
    rows = as_eager(frame)
    for name, role in ((time, "time column"), (key, "key"), (target, "target")):
        if name is not None:
            require_column(name, rows.columns, role)
    if time is not None:
        return _by_time(rows, count, time, parse_duration(gap) if gap is not None else timedelta(0), window)
    fold_numbers = _by_hash(rows, count, key, target, seed)
    folds = []
    for number in range(count):
        valid = fold_numbers == number
        if not valid.any() or valid.all():
            raise DataError(f"There are too few rows for {count} folds.", help="Use fewer folds, or collect more rows.")
        folds.append(Fold(train=(~valid).arg_true(), valid=valid.arg_true()))
    return folds


def _by_hash(rows: pl.DataFrame, count: int, key: str | None, target: str | None, seed: int) -> pl.Series:
    names = rows[key] if key is not None else pl.int_range(len(rows), eager=True)
    classes = rows[target].cast(pl.String) if target is not None and has_classes(rows[target]) else pl.lit("")
    table = pl.DataFrame({"name": names}).with_columns(class_=classes)
    groups = table.group_by("name", maintain_order=True).first()
    groups = groups.with_columns(hash=hashes(groups["name"], seed)).sort("class_", "hash", nulls_last=True)
    # Assign the keys in turn, class after class, so that the folds' counts of a class differ by at most one.
    assigned = groups.select("name", fold=pl.int_range(pl.len()) % count)
    return table.join(assigned, on="name", how="left", maintain_order="left", nulls_equal=True)["fold"]


def _by_time(rows: pl.DataFrame, count: int, time: str, gap: timedelta, window: int | None) -> list[Fold]:
    if nulls := rows[time].null_count():
        raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    moments = rows.select(as_utc(time, rows.schema[time])).to_series()
    ordered = moments.sort()
    starts = [ordered[len(ordered) * block // (count + 1)] for block in range(count + 1)] if len(ordered) else []
    if len(set(starts)) != count + 1:
        raise DataError(f"There are too few different times for {count} folds.", help="Use fewer folds.")
    folds = []
    for number in range(1, count + 1):
        valid = moments >= starts[number]
        if number < count:
            valid &= moments < starts[number + 1]
        train = moments < starts[number] - gap
        if window is not None:
            train &= moments >= starts[max(0, number - window)]
        if not train.any():
            raise DataError(
                f"gap={gap} leaves no rows to train fold {number} on.", help="Use fewer folds, or a shorter gap."
            )
        folds.append(Fold(train=train.arg_true(), valid=valid.arg_true()))
    return folds
