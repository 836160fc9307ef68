"""Compare two snapshots: which rows, columns, types and values changed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from everloop.data.profiling.column_shifts import ColumnShift, find_shifts
from everloop.data.snapshots.snapshots import get_snapshot, load_snapshot

if TYPE_CHECKING:
    from everloop.records import Snapshot
    from everloop.stores import Store

_AFTER = "\N{UNIT SEPARATOR}after"


@dataclass(frozen=True)
class SnapshotDiff:
    """The changes from `before` to `after`.

    Rows are paired by the key column if both snapshots have the same one. Otherwise rows are compared as a whole, with
    their number of repetitions, and a changed row counts as one removed and one added.
    """

    before: str
    after: str
    rows_before: int
    rows_after: int
    rows_added: int = 0
    rows_removed: int = 0
    rows_changed: int = 0
    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()
    columns_retyped: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The types before and after, by column."""
    values_changed: dict[str, int] = field(default_factory=dict)
    """The number of rows with a changed value, by column; empty if rows are not paired."""
    shifts: dict[str, ColumnShift] = field(default_factory=dict)
    """The shift of each column's distribution, if it is greater than chance explains."""

    @property
    def same(self) -> bool:
        """Whether both have the same columns and rows, in any order."""
        changed = self.rows_added or self.rows_removed or self.rows_changed
        return not (changed or self.columns_added or self.columns_removed or self.columns_retyped)


def diff_snapshots(before: Snapshot | str, after: Snapshot | str, store: Store) -> SnapshotDiff:
    """Compare two snapshots. Rows are compared in the columns that both have with the same type.

    Raises:
        NotFoundError: a snapshot does not exist.
    """
    one = get_snapshot(before, store) if isinstance(before, str) else before
    two = get_snapshot(after, store) if isinstance(after, str) else after
    common = [name for name, kind in one.columns.items() if two.columns.get(name) == kind]
    diff = SnapshotDiff(
        before=one.key,
        after=two.key,
        rows_before=one.rows,
        rows_after=two.rows,
        columns_added=tuple(name for name in two.columns if name not in one.columns),
        columns_removed=tuple(name for name in one.columns if name not in two.columns),
        columns_retyped={
            name: (kind, two.columns[name])
            for name, kind in one.columns.items()
            if name in two.columns and two.columns[name] != kind
        },
    )
    if one.files == two.files:
        return diff
    left, right = (load_snapshot(each, store, columns=common) for each in (one, two))
    diff = replace(diff, shifts=find_shifts(left, right, (one.rows, two.rows)))
    if one.entity is not None and one.entity == two.entity and one.entity in common:
        return _by_key(diff, left, right, one.entity, [name for name in common if name != one.entity])
    return _by_rows(diff, left, right, common)


def _by_key(diff: SnapshotDiff, left: pl.LazyFrame, right: pl.LazyFrame, key: str, others: list[str]) -> SnapshotDiff:
    pairs = left.join(right, on=key, how="inner", suffix=_AFTER)
    changes = [pl.col(name).ne_missing(pl.col(name + _AFTER)).alias(name) for name in others]
    changed = pairs.select(pl.lit(value=False).alias(key), *changes)
    counted = changed.select(
        pl.len().alias("paired" + _AFTER), pl.any_horizontal(pl.all()).sum().alias("changed" + _AFTER), pl.all().sum()
    )
    row = counted.collect().row(0, named=True)
    paired, rows_changed = row.pop("paired" + _AFTER), row.pop("changed" + _AFTER)
    return replace(
        diff,
        rows_added=diff.rows_after - paired,
        rows_removed=diff.rows_before - paired,
        rows_changed=rows_changed,
        values_changed={name: row[name] for name in others if row[name]},
    )


def _by_rows(diff: SnapshotDiff, left: pl.LazyFrame, right: pl.LazyFrame, common: list[str]) -> SnapshotDiff:
    if not common:
        return replace(diff, rows_added=diff.rows_after, rows_removed=diff.rows_before)
    row = pl.struct(common).hash().alias("row")
    counts = [frame.select(row).group_by("row").len() for frame in (left, right)]
    both = counts[0].join(counts[1], on="row", how="full", suffix="_after", coalesce=True)
    before, after = (pl.col(name).fill_null(0).cast(pl.Int64) for name in ("len", "len_after"))
    more = (after - before).clip(lower_bound=0).sum().alias("added")
    fewer = (before - after).clip(lower_bound=0).sum().alias("removed")
    added, removed = both.select(more, fewer).collect().row(0)
    return replace(diff, rows_added=added, rows_removed=removed)
