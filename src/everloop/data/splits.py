"""Which rows train, which choose, and which judge.

With a time column the last part is the test and the part before it the validation, as a model meets them. Without,
rows go by a hash of their key, class by class, so the same row lands on the same side whatever order it comes in.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Literal

import polars as pl

from everloop.data.dataset import checked_holdout
from everloop.data.table_inputs import Frame, as_eager, as_utc, require_column
from everloop.errors import DataError, UsageError
from everloop.stores.durations import parse_duration

Side = Literal["train", "valid", "test", "gap"]
_MAX_CLASSES = 20


@dataclass(frozen=True)
class Split:
    """The parts of a table, each in the table's order; together with `gap` they hold every row exactly once."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    gap: pl.DataFrame
    """Rows that belong to no side: those within `gap=` before a boundary."""
    sides: pl.Series
    """For each row of the table `train`, `valid`, `test` or `gap`."""

    def rows(self, side: Side) -> pl.Series:
        """The row numbers of one side, from 0, ascending."""
        return (self.sides == side).arg_true()


def split(
    frame: Frame,
    *,
    time: str | None = None,
    holdout: float | str = 0.2,
    gap: str | None = None,
    key: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> Split:
    """Divide a table into train, valid and test.

    Args:
        time: rows of one moment stay together; the later ones are held out.
        holdout: share of the rows, or with `time` a duration, for the test; and as much again for validation.
        gap: with `time`, leave out so much before each boundary, as long as a target takes to be known.
        key: without `time`: rows of one key stay together. Without a key, each row is its own.
        target: of few classes: each side gets its share of each class, and one class alone is refused.
        seed: another division, without `time`.

    Raises:
        DataError: a side would have no rows, or one class only; a named column is missing; times that are null.
        UsageError: arguments that do not fit together.
    """
    checked_holdout(holdout, time)
    if gap is not None and time is None:
        raise UsageError("gap= needs a time column.", help="Name it with time=.")
    rows = as_eager(frame)
    for name, role in ((time, "time column"), (key, "key"), (target, "target")):
        if name is not None:
            require_column(name, rows.columns, role)
    if len(rows) < 3:
        raise DataError(f"{len(rows)} rows cannot be divided into train, valid and test.", help="Gather more rows.")
    if target is not None and has_classes(rows[target]) and rows[target].drop_nulls().n_unique() < 2:
        only = rows[target].drop_nulls().head(1).to_list()
        raise DataError(
            f"The target '{target}' holds one class only: {only[0]!r}." if only else f"The target '{target}' is null.",
            help="A model needs at least two. Have the labels of both arrived?",
        )
    if time is not None:
        sides = _by_time(rows, time, holdout, parse_duration(gap) if gap is not None else timedelta(0))
    else:
        sides = _by_hash(rows, float(holdout), key, target, seed)
    parts = {side: rows.filter(sides == side) for side in ("train", "valid", "test", "gap")}
    _refuse(parts, target, has_classes(rows[target]) if target is not None else False, holdout)
    return Split(**parts, sides=sides)


def has_classes(target: pl.Series) -> bool:
    """Whether the values are classes rather than amounts: booleans, texts, or at most twenty distinct integers."""
    dtype = target.dtype
    if isinstance(dtype, pl.Boolean | pl.String | pl.Categorical | pl.Enum):
        return True
    if dtype.is_integer():
        return target.drop_nulls().n_unique() <= _MAX_CLASSES
    return target.drop_nulls().n_unique() <= 2 if dtype.is_float() else False


def _by_time(rows: pl.DataFrame, time: str, holdout: float | str, gap: timedelta) -> pl.Series:
    if nulls := rows[time].null_count():
        raise DataError(f"The time column '{time}' is null in {nulls} rows.", help="Drop them, or fill them.")
    moments = rows.select(as_utc(time, rows.schema[time])).to_series()
    if isinstance(holdout, str):
        length = parse_duration(holdout)
        last = moments.max()
        # The last moment itself belongs to the test: (last - length, last].
        test = pl.select(pl.lit(last) - length + timedelta(microseconds=1)).to_series()
        valid = pl.select(pl.lit(last) - 2 * length + timedelta(microseconds=1)).to_series()
    else:
        ordered = moments.sort()
        count = min(max(1, round(len(rows) * holdout)), (len(rows) - 1) // 2)
        test = ordered.slice(len(rows) - count, 1)
        valid = ordered.slice(max(0, len(rows) - 2 * count), 1)
    moment = pl.col("moment")
    sides = (
        pl.when(moment >= pl.lit(test))
        .then(pl.lit("test"))
        .when(moment >= pl.lit(test) - gap)
        .then(pl.lit("gap"))
        .when(moment >= pl.lit(valid))
        .then(pl.lit("valid"))
        .when(moment >= pl.lit(valid) - gap)
        .then(pl.lit("gap"))
        .otherwise(pl.lit("train"))
    )
    return pl.DataFrame({"moment": moments}).select(sides.alias("side")).to_series()


def _by_hash(rows: pl.DataFrame, holdout: float, key: str | None, target: str | None, seed: int) -> pl.Series:
    """Within each class the keys are ordered by hash; the first share is the test, the next the validation."""
    names = rows[key] if key is not None else pl.int_range(len(rows), eager=True)
    classes = rows[target].cast(pl.String) if target is not None and has_classes(rows[target]) else pl.lit("")
    table = pl.DataFrame({"name": names}).with_columns(class_=classes)
    groups = table.group_by("name", maintain_order=True).first()
    groups = groups.with_columns(hash=hashes(groups["name"], seed))
    place = pl.col("hash").rank("ordinal").over("class_").cast(pl.Int64)
    # At least one of each class for each side, where there are three.
    count = pl.len().over("class_").cast(pl.Int64)
    most = pl.max_horizontal((count - 1) // 2, pl.lit(1, pl.Int64))
    held = (count * holdout).round().cast(pl.Int64).clip(1, most)
    side = pl.when(place <= held).then(pl.lit("test")).when(place <= 2 * held).then(pl.lit("valid"))
    sided = groups.select("name", side.otherwise(pl.lit("train")).alias("side"))
    return table.join(sided, on="name", how="left", maintain_order="left", nulls_equal=True)["side"]


def hashes(names: pl.Series, seed: int) -> pl.Series:
    """64 bits per name, the same on every machine and in every version of Polars."""
    salt = seed.to_bytes(8, "little", signed=True)
    texts = names.cast(pl.String).cast(pl.Binary).fill_null(b"").to_list()
    digests = b"".join([blake2b(text, digest_size=8, salt=salt).digest() for text in texts])
    return pl.Series(struct.unpack(f"<{len(texts)}Q", digests), dtype=pl.UInt64)


def _refuse(parts: dict[str, pl.DataFrame], target: str | None, classes: bool, holdout: float | str) -> None:
    sizes = ", ".join(f"{side} {len(parts[side])}" for side in ("train", "valid", "test"))
    for side in ("train", "valid", "test"):
        if not len(parts[side]):
            raise DataError(
                f"holdout={holdout!r} leaves no rows for {side} ({sizes}).",
                help="Hold out less, or more rows of a longer time.",
            )
        if target is None or not classes:
            continue
        found = parts[side][target].drop_nulls().unique(maintain_order=True)
        if len(found) < 2:
            said = f"one class only, {found[0]!r}," if len(found) else "no target at all"
            raise DataError(
                f"holdout={holdout!r} leaves {side} with {said} of '{target}' ({sizes}).",
                help="Hold out more, or gather rows of the other classes.",
            )
