"""Profile a dataset version: distributions, correlations, missing values, and possible leakage.

Distributions, correlations and leakage suspects are computed from up to about `SAMPLE_ROWS` evenly spread rows. Nulls,
extremes and distinct values are those of the whole snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from everloop.data.profiling.leakage import LeakageSuspect, find_suspects, single_scores
from everloop.data.snapshots.column_statistics import column_statistics
from everloop.data.snapshots.snapshots import get_snapshot, load_snapshot
from everloop.data.table_inputs import Frame, as_lazy, require_column, type_name
from everloop.errors import DataError
from everloop.records import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.records import Json
    from everloop.stores import Store

SAMPLE_ROWS = 100_000
BINS = 24
MAX_BARS = 12
MAX_CORRELATED = 30
STRIPES = 60


@dataclass(frozen=True)
class Bars:
    """A distribution as bars: for each bar its label, its count, and the mean of the target."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    targets: tuple[float | None, ...] = ()
    others: int = 0
    """The number of rows in classes that have no bar."""


@dataclass(frozen=True)
class ColumnProfile:
    name: str
    type: str
    role: str | None
    nulls: float
    """Share of all rows."""
    stats: dict[str, Json]
    bars: Bars | None
    stripes: tuple[float, ...]
    """Share of nulls in consecutive sections of the rows; empty if there are none."""
    score: float | None
    """How well this column alone predicts the target, 0 to 1; None if it cannot be computed."""


@dataclass(frozen=True)
class Profile:
    snapshot: Snapshot
    sampled: int
    columns: tuple[ColumnProfile, ...]
    correlated: tuple[str, ...]
    correlations: tuple[tuple[float | None, ...], ...]
    """Rank correlations between the columns of `correlated`."""
    suspects: tuple[LeakageSuspect, ...]


def profile_snapshot(snapshot: Snapshot | str, store: Store) -> Profile:
    """Profile a snapshot.

    Raises:
        NotFoundError: the snapshot does not exist.
    """
    found = get_snapshot(snapshot, store) if isinstance(snapshot, str) else snapshot
    return _profile(found, load_snapshot(found, store))


def profile_table(
    frame: Frame, name: str, store: Store, *, target: str | None = None, time: str | None = None, key: str | None = None
) -> Profile:
    """Profile a table that is not stored as a version.

    Args:
        name: the name of the table in the profile.

    Raises:
        DataError: the table has no rows, or does not have the target, time or key column.
    """
    table = as_lazy(frame)
    schema = table.collect_schema()
    for role, column in {"target": target, "time column": time, "key": key}.items():
        if column is not None:
            require_column(column, schema, role)
    rows = table.select(pl.len()).collect(engine="streaming").item()
    if not rows:
        raise DataError(f"{name} has no rows to profile.", help="Check its source.")
    snapshot = store.new(
        Snapshot,
        dataset=name,
        version=0,
        digest="",
        rows=rows,
        size_bytes=0,
        columns={column: type_name(dtype) for column, dtype in schema.items()},
        files=(),
        stats=column_statistics(table, rows),
        target=target,
        time=time,
        entity=key,
    )
    return _profile(snapshot, table)


def _profile(snapshot: Snapshot, table: pl.LazyFrame) -> Profile:
    rows = table.gather_every(max(1, snapshot.rows // SAMPLE_ROWS)).collect(engine="streaming")
    if snapshot.time is not None:
        rows = rows.sort(snapshot.time, maintain_order=True)
    roles = {snapshot.target: "target", snapshot.time: "time", snapshot.entity: "key"}
    target = _target_numbers(rows[snapshot.target]) if snapshot.target in rows.columns else None
    scores = single_scores(rows, snapshot)
    columns = tuple(
        ColumnProfile(
            name=name,
            type=snapshot.columns[name],
            role=roles.get(name),
            nulls=_null_share(snapshot, name),
            stats=snapshot.stats.get(name, {}),
            bars=None
            if _identifies_rows(rows, name, snapshot)
            else _bars(rows[name], target if name != snapshot.target else None),
            stripes=_stripes(rows[name]),
            score=scores.get(name),
        )
        for name in rows.columns
    )
    numbers = [name for name in rows.columns if _is_number(rows.schema[name]) and name != snapshot.entity]
    names = numbers[:MAX_CORRELATED]
    return Profile(
        snapshot=snapshot,
        sampled=rows.height,
        columns=columns,
        correlated=tuple(names),
        correlations=_correlations(rows, names),
        suspects=tuple(find_suspects(rows, snapshot, scores)),
    )


def _null_share(snapshot: Snapshot, name: str) -> float:
    nulls = snapshot.stats.get(name, {}).get("nulls", 0)
    return float(nulls) / snapshot.rows if isinstance(nulls, int | float) else 0.0


def _identifies_rows(rows: pl.DataFrame, name: str, snapshot: Snapshot) -> bool:
    """Whether most bars would represent a single row."""
    texts = isinstance(rows.schema[name], pl.String) and rows[name].n_unique() > rows.height / 2 > MAX_BARS
    return texts or name == snapshot.entity


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or isinstance(dtype, pl.Boolean)


def _target_numbers(values: pl.Series) -> pl.Series | None:
    """The target as numbers, for its mean per bar; None if it has more than two classes."""
    if values.dtype.is_numeric() or isinstance(values.dtype, pl.Boolean):
        return values.cast(pl.Float64)
    classes = values.drop_nulls().unique().sort()
    if len(classes) == 2 and isinstance(values.dtype, pl.String | pl.Categorical | pl.Enum):
        return (values.cast(pl.String) == str(classes[1])).cast(pl.Float64)
    return None


def _bars(values: pl.Series, target: pl.Series | None) -> Bars | None:
    dtype = values.dtype
    if isinstance(dtype, pl.Boolean | pl.String | pl.Categorical | pl.Enum):
        return _class_bars(values.cast(pl.String), target)
    if not (dtype.is_numeric() or dtype.is_temporal()):
        return None
    plain = values.to_physical() if dtype.is_temporal() else values
    amounts = plain.cast(pl.Float64)
    finite = amounts.filter(amounts.is_finite().fill_null(value=False))
    if not len(finite):
        return None
    if dtype.is_integer() and finite.n_unique() <= MAX_BARS:
        return _class_bars(values.cast(pl.String), target, numeric=True)
    low, high = _number(finite.min()), _number(finite.max())
    # A few extreme values must not squeeze all others into one bar.
    first, last = _number(finite.quantile(0.005)), _number(finite.quantile(0.995))
    if last > first and (high - low) > 5 * (last - first):
        low, high = first, last
    width = (high - low) / BINS or 1.0
    table = pl.DataFrame({"x": amounts}).with_columns(y=target if target is not None else pl.lit(None, pl.Float64))
    table = table.filter(pl.col("x").is_finite())
    bar = ((pl.col("x") - low) / width).floor().clip(0, BINS - 1).cast(pl.Int64)
    grouped = table.group_by(bar.alias("bar")).agg(pl.len().alias("n"), pl.col("y").mean())
    counted = {row["bar"]: row for row in grouped.iter_rows(named=True)}
    edges = [low + index * width for index in range(BINS)]
    return Bars(
        labels=tuple(_edge_label(edge, dtype) for edge in edges),
        counts=tuple(counted[index]["n"] if index in counted else 0 for index in range(BINS)),
        targets=tuple(counted[index]["y"] if index in counted else None for index in range(BINS)),
    )


def _class_bars(values: pl.Series, target: pl.Series | None, *, numeric: bool = False) -> Bars:
    table = pl.DataFrame({"x": values}).with_columns(y=target if target is not None else pl.lit(None, pl.Float64))
    grouped = table.drop_nulls("x").group_by("x").agg(pl.len().alias("n"), pl.col("y").mean())
    order = pl.col("x").cast(pl.Int64) if numeric else -pl.col("n").cast(pl.Int64)
    grouped = grouped.sort(order, "x")
    shown = grouped.head(MAX_BARS)
    rest = grouped[MAX_BARS:]["n"].to_list()
    return Bars(
        labels=tuple(shown["x"].to_list()),
        counts=tuple(shown["n"].to_list()),
        targets=tuple(shown["y"].to_list()),
        others=sum(rest),
    )


def _edge_label(value: float, dtype: pl.DataType) -> str:
    if dtype.is_temporal():
        moment = pl.Series([round(value)]).cast(pl.Int32 if isinstance(dtype, pl.Date) else pl.Int64).cast(dtype)[0]
        if isinstance(dtype, pl.Duration):
            return str(moment)
        text = str(moment.isoformat())
        return text.replace("T", " ")[:16] if isinstance(dtype, pl.Datetime) else text
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, float | int) else 0.0


def _stripes(values: pl.Series) -> tuple[float, ...]:
    if not values.null_count():
        return ()
    count = min(STRIPES, len(values))
    section = (pl.int_range(pl.len()) * count // pl.len()).alias("section")
    shares = values.is_null().alias("null").to_frame().group_by(section).agg(pl.col("null").mean()).sort("section")
    return tuple(shares["null"].to_list())


def _correlations(rows: pl.DataFrame, names: Sequence[str]) -> tuple[tuple[float | None, ...], ...]:
    if len(names) < 2:
        return ()
    ranks = rows.select(pl.col(name).cast(pl.Float64).fill_nan(None).rank() for name in names)
    correlations = [
        pl.corr(one, other).alias(f"{left} {right}")
        for left, one in enumerate(names)
        for right, other in enumerate(names)
        if left < right
    ]
    found = ranks.select(correlations).row(0, named=True)
    table: list[tuple[float | None, ...]] = []
    for left in range(len(names)):
        line: list[float | None] = []
        for right in range(len(names)):
            value = 1.0 if left == right else found[f"{min(left, right)} {max(left, right)}"]
            line.append(None if value is None or value != value else round(value, 3))
        table.append(tuple(line))
    return tuple(table)
