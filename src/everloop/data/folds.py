"""Folds: each row is judged once by a model that has not seen it; in time, each block by a model of the earlier ones.

Without a time column rows go by a hash of their key, class by class, so a row lands in the same fold whatever order it
comes in, and rows of one key stay together. With one, the rows are cut into blocks of equal size in their order: the
first fold learns from the first block and is judged on the second, the next learns from both, and so on; with `window`
it learns from the last so many blocks only.
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
    """Which rows one model learns from and which it is judged on, by their numbers from 0, ascending."""

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
        time: rows of one moment stay together; each fold is judged on rows after those that it learned from.
        gap: with `time`, leave out so much before the judged rows, as long as a target takes to be known.
        window: with `time`, learn from the last so many blocks only.
        key: without `time`: rows of one key stay together.
        target: of few classes: each fold gets its share of each class.
        seed: another division, without `time`.

    Raises:
        DataError: too few rows, keys or moments for so many folds; a named column is missing; times that are null.
        UsageError: arguments that do not fit together.
    """
    if count < 2:
        raise UsageError(f"{count} folds divide nothing.", help="Ask for at least 2.")
    if time is None and (gap is not None or window is not None):
        raise UsageError("gap= and window= need a time column.", help="Name it with time=.")
    if time is not None and (key is not None or target is not None):
        raise UsageError("Folds in time are cut by time alone.", help="Leave out key= and target=.")
    if window is not None and window < 1:
        raise UsageError(f"window={window} leaves nothing to learn from.")
    rows = as_eager(frame)
    for name, role in ((time, "time column"), (key, "key"), (target, "target")):
        if name is not None:
            require_column(name, rows.columns, role)
    if time is not None:
        return _by_time(rows, count, time, parse_duration(gap) if gap is not None else timedelta(0), window)
    place = _by_hash(rows, count, key, target, seed)
    made = []
    for number in range(count):
        judged = place == number
        if not judged.any() or judged.all():
            raise DataError(f"There are too few rows for {count} folds.", help="Ask for fewer, or gather more rows.")
        made.append(Fold(train=(~judged).arg_true(), valid=judged.arg_true()))
    return made


def _by_hash(rows: pl.DataFrame, count: int, key: str | None, target: str | None, seed: int) -> pl.Series:
    names = rows[key] if key is not None else pl.int_range(len(rows), eager=True)
    classes = rows[target].cast(pl.String) if target is not None and has_classes(rows[target]) else pl.lit("")
    table = pl.DataFrame({"name": names}).with_columns(class_=classes)
    groups = table.group_by("name", maintain_order=True).first()
    groups = groups.with_columns(hash=hashes(groups["name"], seed)).sort("class_", "hash", nulls_last=True)
    # Dealt out like cards, class after class: no fold has two more of a class than another.
    dealt = groups.select("name", fold=pl.int_range(pl.len()) % count)
    return table.join(dealt, on="name", how="left", maintain_order="left", nulls_equal=True)["fold"]


def _by_time(rows: pl.DataFrame, count: int, time: str, gap: timedelta, window: int | None) -> list[Fold]:
    if nulls := rows[time].null_count():
        raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    moments = rows.select(as_utc(time, rows.schema[time])).to_series()
    ordered = moments.sort()
    starts = [ordered[len(ordered) * place // (count + 1)] for place in range(count + 1)] if len(ordered) else []
    if len(set(starts)) != count + 1:
        raise DataError(f"There are too few moments for {count} folds in time.", help="Ask for fewer.")
    made = []
    for number in range(1, count + 1):
        judged = moments >= starts[number]
        if number < count:
            judged &= moments < starts[number + 1]
        learned = moments < starts[number] - gap
        if window is not None:
            learned &= moments >= starts[max(0, number - window)]
        if not learned.any():
            raise DataError(f"gap={gap} leaves fold {number} nothing to learn from.", help="Ask for fewer folds.")
        made.append(Fold(train=learned.arg_true(), valid=judged.arg_true()))
    return made
