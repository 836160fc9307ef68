"""Split a table into training, validation and test rows.

With a time column, the latest rows are the test part and the rows before them the validation part, as in production.
Without one, rows are assigned by a hash of their key within each class. So a row is always in the same part, whatever
the order of the rows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Literal

import polars as pl

from everloop.data.dataset import checked_holdout, checked_span
from everloop.data.table_inputs import Frame, as_eager, as_utc, require_column
from everloop.errors import DataError, UsageError
from everloop.stores.durations import parse_duration

Side = Literal["train", "valid", "test", "gap", "old"]
_MAX_CLASSES = 20
_LEAST_WEIGHT = 1e-12


@dataclass(frozen=True)
class Split:
    """The parts of a table, each in the table's order. Every row is in exactly one part, in `gap` or in `old`."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    gap: pl.DataFrame
    """Rows that are left out: those within `gap=` before a boundary."""
    sides: pl.Series
    """`train`, `valid`, `test`, `gap` or `old` for each row of the table."""
    old: pl.DataFrame
    """Rows that are left out because they are older than `window=`."""

    def rows(self, side: Side) -> pl.Series:
        """The row numbers of one part, from 0, ascending."""
        return (self.sides == side).arg_true()


def split(
    frame: Frame,
    *,
    time: str | None = None,
    holdout: float | str = 0.2,
    gap: str | None = None,
    window: str | None = None,
    key: str | None = None,
    target: str | None = None,
    seed: int = 0,
) -> Split:
    """Divide a table into train, valid and test.

    Args:
        time: the time column. The latest rows are held out; rows of one time stay together.
        holdout: the size of the test part, and of the validation part: a share of the rows, or with `time` a duration.
        gap: with `time`, the duration to leave out before each boundary: the time until a label is known.
        window: with `time`, the duration that the training rows span, counted back from the newest of them. Older rows
            are left out.
        key: without `time`, rows with the same key stay together. By default each row has its own key.
        target: if it has few classes, each part gets the same share of each class, and needs at least two classes.
        seed: without `time`, selects another division.

    Raises:
        DataError: a part would have no rows or a single class, a named column is missing, or a time is null.
        UsageError: the arguments do not fit together.
    """
    checked_holdout(holdout, time)
    checked_span("window", window, time)
    if gap is not None and time is None:
        raise UsageError("gap= needs a time column.", help="Name it with time=.")
    rows = as_eager(frame)
    for name, role in ((time, "time column"), (key, "key"), (target, "target")):
        if name is not None:
            require_column(name, rows.columns, role)
    if len(rows) < 3:
        raise DataError(
            f"The table has {len(rows)} row{'' if len(rows) == 1 else 's'}, too few for train, valid and test.",
            help="Collect more rows.",
        )
    if target is not None and has_classes(rows[target]) and rows[target].drop_nulls().n_unique() < 2:
        only = rows[target].drop_nulls().head(1).to_list()
        raise DataError(
            f"The target '{target}' has a single class: {only[0]!r}." if only else f"The target '{target}' is null.",
            help="A model needs at least two classes. Check whether the labels of both have arrived.",
        )
    if time is not None:
        sides = _by_time(rows, time, holdout, parse_duration(gap) if gap is not None else timedelta(0))
        if window is not None:
            sides = _without_old(rows, time, sides, parse_duration(window))
    else:
        sides = _by_hash(rows, float(holdout), key, target, seed)
    parts = {side: rows.filter(sides == side) for side in ("train", "valid", "test", "gap", "old")}
    _refuse(parts, target, has_classes(rows[target]) if target is not None else False, holdout, window)
    return Split(**parts, sides=sides)


def has_classes(target: pl.Series) -> bool:
    """Whether the values are classes rather than amounts: booleans, text, or at most twenty distinct integers."""
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
        # The last time itself belongs to the test part: (last - length, last].
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


def row_weights(times: pl.Series, half_life: str, newest: object = None) -> pl.Series:
    """Return the weight of each row for training: halved for each `half_life` of its age.

    Args:
        times: the times of the rows, without nulls.
        half_life: a duration.
        newest: the time that has the weight 1. Default: the newest of `times`.

    Returns:
        Weights in (0, 1], not scaled further. They never underflow to 0.
    """
    moments = pl.DataFrame({"time": times}).select(as_utc("time", times.dtype)).to_series()
    last = moments.max() if newest is None else newest
    age_s = (pl.lit(last) - pl.col("moment")).dt.total_microseconds() / 1_000_000
    halvings = age_s / parse_duration(half_life).total_seconds()
    weight = pl.lit(0.5).pow(halvings).clip(_LEAST_WEIGHT, 1.0)
    return pl.DataFrame({"moment": moments}).select(weight.alias("weight")).to_series()


def _without_old(rows: pl.DataFrame, time: str, sides: pl.Series, window: timedelta) -> pl.Series:
    moments = rows.select(as_utc(time, rows.schema[time])).to_series()
    newest = moments.filter(sides == "train").max()
    is_old = (pl.col("side") == "train") & (pl.col("moment") <= pl.lit(newest) - window)
    table = pl.DataFrame({"moment": moments, "side": sides})
    return table.select(pl.when(is_old).then(pl.lit("old")).otherwise("side").alias("side")).to_series()


def _by_hash(rows: pl.DataFrame, holdout: float, key: str | None, target: str | None, seed: int) -> pl.Series:
    """Order the keys of each class by hash. The first share is the test part, the next one the validation part."""
    names = rows[key] if key is not None else pl.int_range(len(rows), eager=True)
    classes = rows[target].cast(pl.String) if target is not None and has_classes(rows[target]) else pl.lit("")
    table = pl.DataFrame({"name": names}).with_columns(class_=classes)
    groups = table.group_by("name", maintain_order=True).first()
    groups = groups.with_columns(hash=hashes(groups["name"], seed))
    rank = pl.col("hash").rank("ordinal").over("class_").cast(pl.Int64)
    # Each part gets at least one key of each class that has three.
    count = pl.len().over("class_").cast(pl.Int64)
    most = pl.max_horizontal((count - 1) // 2, pl.lit(1, pl.Int64))
    size = (count * holdout).round().cast(pl.Int64).clip(1, most)
    side = pl.when(rank <= size).then(pl.lit("test")).when(rank <= 2 * size).then(pl.lit("valid"))
    sided = groups.select("name", side.otherwise(pl.lit("train")).alias("side"))
    return table.join(sided, on="name", how="left", maintain_order="left", nulls_equal=True)["side"]


def hashes(names: pl.Series, seed: int) -> pl.Series:
    """A 64-bit hash of each name, the same on every machine and in every version of Polars."""
    salt = seed.to_bytes(8, "little", signed=True)
    texts = names.cast(pl.String).cast(pl.Binary).fill_null(b"").to_list()
    digests = b"".join([blake2b(text, digest_size=8, salt=salt).digest() for text in texts])
    return pl.Series(struct.unpack(f"<{len(texts)}Q", digests), dtype=pl.UInt64)


def _refuse(
    parts: dict[str, pl.DataFrame], target: str | None, classes: bool, holdout: float | str, window: str | None
) -> None:
    sizes = ", ".join(f"{side} {len(parts[side])}" for side in ("train", "valid", "test"))
    for side in ("train", "valid", "test"):
        if not len(parts[side]):
            raise DataError(
                f"holdout={holdout!r} leaves no rows for {side} ({sizes}).",
                help="Hold out less, or use rows from a longer time.",
            )
        if target is None or not classes:
            continue
        found = parts[side][target].drop_nulls().unique(maintain_order=True)
        if len(found) < 2:
            narrow = side == "train" and len(parts["old"]) > 0
            cause = f"window='{window}'" if narrow else f"holdout={holdout!r}"
            remedy = f"{'Use a longer window' if narrow else 'Hold out more'}, or collect rows of the other classes."
            content = f"a single class {found[0]!r}" if len(found) else "no value"
            raise DataError(
                f"{cause} leaves {side} with {content} of the target '{target}' ({sizes}).",
                help=remedy,
            )
