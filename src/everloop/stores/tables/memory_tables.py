"""Tables in memory, over the tables of another store, which are only read.

A table is a list of blocks of rows. Small commits are merged into larger blocks, and a block remembers the range of its
times, so that most scans read few blocks. Rows of the store below are read when they are needed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from everloop.errors import DataError, NotFoundError, ReadOnlyError
from everloop.stores.clock import new_id
from everloop.stores.tables.table_rows import ARRIVED_AT, EVENT_AT, checked_name, stamped_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import polars as pl

    from everloop.stores.clock import Clock
    from everloop.stores.tables.table_store import TableSnapshot, TableStore

_SMALL_COMMITS = 16
"""The number of blocks of about the same size that are merged into one."""
_KNOWN_COMMITS = 500
"""The number of last commits that can be read one by one, which takes memory beside that of the blocks."""
_BELOW = "below"


@dataclass(frozen=True)
class _Block:
    """Rows of one or more commits, and the ranges of their times."""

    rows: pl.DataFrame
    commits: int
    first: datetime
    last: datetime
    arrived_first: datetime
    arrived_last: datetime

    @classmethod
    def of(cls, rows: pl.DataFrame, commits: int = 1) -> _Block:
        at, arrived = rows[EVENT_AT], rows[ARRIVED_AT]
        times: list[Any] = [at.min(), at.max(), arrived.min(), arrived.max()]
        return cls(rows, commits, *times)


@dataclass(frozen=True)
class _Table:
    """One version of a table. A write replaces it."""

    id: str
    schema: dict[str, Any]
    below: pl.LazyFrame | None = None
    blocks: tuple[_Block, ...] = ()
    commits: tuple[tuple[int, pl.DataFrame], ...] = ()
    known_after: int = -1
    """The rows of the commits after this version are known one by one."""
    version: int = -1
    batches: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MemorySnapshot:
    """A `TableSnapshot` of a table in memory."""

    name: str
    _table: _Table = field(repr=False)

    @property
    def id(self) -> str:
        return self._table.id

    @property
    def version(self) -> int:
        return self._table.version

    @property
    def files(self) -> tuple[str, ...]:
        below = () if self._table.below is None else (_BELOW,)
        return (*below, *(f"block-{at}" for at in range(len(self._table.blocks))))

    def scan(self, path: str) -> pl.LazyFrame:
        kind, _, number = path.partition("-")
        if kind == _BELOW:
            return _parts(self._table)[0]
        if kind == "block":
            return self._table.blocks[int(number)].rows.lazy()
        return dict(self._table.commits)[int(number)].lazy()

    def rows(self) -> pl.LazyFrame:
        return _joined(self._table, _parts(self._table))

    def last_batch(self, writer: str) -> int:
        return self._table.batches.get(writer, -1)


@dataclass
class _Contents:
    """The tables, shared by all views. A table that was dropped is None, which hides the one below."""

    tables: dict[str, _Table | None] = field(default_factory=dict)
    guard: threading.RLock = field(default_factory=threading.RLock)


class MemoryTables:
    """A `TableStore` in memory of this process."""

    def __init__(self, clock: Clock, *, below: TableStore | None = None, as_of: datetime | None = None) -> None:
        """
        Args:
            below: tables whose rows are visible as well. What its writers have appended is not known as batches here,
                because that may be more than had arrived by the moment of a view.
        """
        self.clock = clock
        self._below = below
        self._as_of = as_of
        self._contents = _Contents()
        self.root = f"memory:{new_id(clock.now())}"

    def with_clock(self, clock: Clock) -> Self:
        """The same tables, with another clock for the arrival of rows."""
        return self._view(clock, self._as_of)

    def as_of(self, moment: datetime) -> Self:
        return self._view(self.clock, moment if self._as_of is None else min(moment, self._as_of))

    def append(
        self,
        name: str,
        frame: Any,
        *,
        batch: tuple[str, int] | None = None,
        progress: Sequence[tuple[str, int, int]] = (),
    ) -> bool:
        self._writable()
        checked_name(name)
        rows = stamped_rows(name, frame, self.clock)
        if rows.is_empty() and batch is None and not progress:
            return False
        with self._contents.guard:
            table = self._find(name) or _Table(new_id(self.clock.now()), {})
            if batch is not None and table.batches.get(batch[0], -1) >= batch[1]:
                return False
            if any(table.batches.get(writer, -1) != before for writer, before, _ in progress):
                return False
            schema = _merged_schema(name, table.schema, rows)
            fitted = _fitted(name, rows, schema)
            marks = dict([*(() if batch is None else (batch,)), *((writer, after) for writer, _, after in progress)])
            version = table.version + 1
            blocks, commits = table.blocks, (*table.commits, (version, fitted))
            if not fitted.is_empty():
                blocks = _merged_blocks((*blocks, _Block.of(fitted)), schema)
            known_after = table.known_after
            if len(commits) > _KNOWN_COMMITS:
                known_after, commits = commits[0][0], commits[1:]
            self._contents.tables[name] = _Table(
                table.id, schema, table.below, blocks, commits, known_after, version, table.batches | marks
            )
        return True

    def scan(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        as_of: datetime | None = None,
        verify: bool = False,
    ) -> pl.LazyFrame:
        if verify:
            self.prove(name)
        table = self._open(name)
        cut = min((moment for moment in (as_of, self._as_of) if moment is not None), default=None)
        frame = _joined(table, _parts(table, since, until, cut))
        return frame if columns is None else frame.select(columns)

    def exists(self, name: str) -> bool:
        checked_name(name)
        return self._find(name) is not None

    def names(self, prefix: str = "") -> list[str]:
        with self._contents.guard:
            found = {name for name, table in self._contents.tables.items() if table is not None}
        below = [] if self._below is None else self._below.names(prefix)
        found |= {name for name in below if name not in found and self._find(name) is not None}
        return sorted(name for name in found if name.startswith(prefix))

    def snapshot(self, name: str) -> MemorySnapshot | None:
        checked_name(name)
        table = self._find(name)
        return None if table is None else MemorySnapshot(name, table)

    def added_since(self, snapshot: TableSnapshot, after: int) -> list[tuple[int, list[str]]] | None:
        if not isinstance(snapshot, MemorySnapshot) or after < snapshot._table.known_after:
            return None
        return [
            (version, [] if rows.is_empty() else [f"commit-{version}"])
            for version, rows in snapshot._table.commits
            if version > after
        ]

    def last_batch(self, name: str, writer: str) -> int:
        table = self._find(checked_name(name))
        return -1 if table is None else table.batches.get(writer, -1)

    def prove(self, name: str) -> None:
        table = self._open(name)
        if table.below is not None and self._below is not None and self._below.exists(name):
            self._below.prove(name)

    def compact(self, name: str) -> None:
        """Does nothing: small commits are merged when they are appended."""
        self._writable()
        self._open(name)

    def tidy(self, name: str, *, most_files: int = 40) -> bool:
        checked_name(name)
        return False

    def forget(self, name: str, before: datetime) -> int:
        import polars as pl

        self._writable()
        with self._contents.guard:
            table = self._open(name)
            gone = int(_joined(table, _parts(table)).select((pl.col(ARRIVED_AT) < before).sum()).collect().item())
            if gone:
                self._replace(name, table, pl.col(ARRIVED_AT) >= before, None)
        return gone

    def rewrite(self, name: str, since: datetime, change: Callable[[pl.DataFrame], pl.DataFrame]) -> bool:
        import polars as pl

        self._writable()
        with self._contents.guard:
            table = self._open(name)
            rows = change(_joined(table, _parts(table, since)).collect())
            self._replace(name, table, pl.col(EVENT_AT) < since, rows)
        return True

    def vacuum(self, name: str, *, keep_hours: int = 168) -> list[str]:
        self._writable()
        self._open(name)
        return []

    def drop(self, name: str) -> None:
        self._writable()
        with self._contents.guard:
            self._open(name)
            self._contents.tables[name] = None

    def _replace(self, name: str, table: _Table, keep: pl.Expr, rows: pl.DataFrame | None) -> None:
        """Store a version with the rows that meet a condition, and others in place of the rest."""
        kept = [block.rows.filter(keep) for block in table.blocks]
        added = [] if rows is None else [_fitted(name, stamped_rows(name, rows, self.clock), table.schema)]
        blocks = tuple(_Block.of(one) for one in (*kept, *added) if not one.is_empty())
        below = None if table.below is None else table.below.filter(keep)
        version = table.version + 1
        self._contents.tables[name] = _Table(table.id, table.schema, below, blocks, (), version, version, table.batches)

    def _find(self, name: str) -> _Table | None:
        with self._contents.guard:
            if name in self._contents.tables:
                return self._contents.tables[name]
            if self._below is None or not self._below.exists(name):
                return None
            below = self._below.scan(name)
            # A table that was created later exists already, but none of its rows has arrived.
            if below.head(1).select(EVENT_AT).collect().is_empty():
                return None
            found = _Table(new_id(self.clock.now()), dict(below.collect_schema()), below, known_after=0, version=0)
            self._contents.tables[name] = found
            return found

    def _open(self, name: str) -> _Table:
        table = self._find(checked_name(name))
        if table is None:
            known = ", ".join(self.names()[:5]) or "none yet"
            raise NotFoundError(f"There is no table '{name}'.", help=f"Existing tables: {known}")
        return table

    def _view(self, clock: Clock, moment: datetime | None) -> Self:
        view = type(self)(clock, below=self._below, as_of=moment)
        view._contents, view.root = self._contents, self.root
        return view

    def _writable(self) -> None:
        if self._as_of is not None:
            raise ReadOnlyError(
                f"These tables are open as of {self._as_of.isoformat()} and cannot be changed.",
                help="Open the store without as_of.",
            )


def _parts(
    table: _Table, since: datetime | None = None, until: datetime | None = None, cut: datetime | None = None
) -> list[pl.LazyFrame]:
    """The rows of a table within these times, block by block."""
    import polars as pl

    found: list[pl.LazyFrame] = []
    within = []
    if since is not None:
        within.append(pl.col(EVENT_AT) >= since)
    if until is not None:
        within.append(pl.col(EVENT_AT) < until)
    if cut is not None:
        within.append(pl.col(ARRIVED_AT) <= cut)
    if table.below is not None:
        found.append(_widened(table.below, dict(table.below.collect_schema()), table.schema).filter(*within))
    for block in table.blocks:
        outside = (
            (since is not None and block.last < since)
            or (until is not None and block.first >= until)
            or (cut is not None and block.arrived_first > cut)
        )
        if not outside:
            inside = (
                (since is None or block.first >= since)
                and (until is None or block.last < until)
                and (cut is None or block.arrived_last <= cut)
            )
            rows = _widened(block.rows.lazy(), dict(block.rows.schema), table.schema)
            found.append(rows if inside else rows.filter(*within))
    return found


def _joined(table: _Table, parts: list[pl.LazyFrame]) -> pl.LazyFrame:
    import polars as pl

    return pl.concat(parts) if parts else pl.LazyFrame(schema=table.schema)


def _widened(rows: pl.LazyFrame, known: dict[str, Any], schema: dict[str, Any]) -> pl.LazyFrame:
    """Rows with all columns of a table, in its order."""
    import polars as pl

    if list(known) == list(schema):
        return rows
    return rows.select(
        pl.col(name) if name in known else pl.lit(None, kind).alias(name) for name, kind in schema.items()
    )


def _merged_blocks(blocks: tuple[_Block, ...], schema: dict[str, Any]) -> tuple[_Block, ...]:
    """Merge the last blocks if there are many of about the same size, so that a table never has many blocks."""
    import polars as pl

    while len(blocks) >= _SMALL_COMMITS and blocks[-_SMALL_COMMITS].commits < _SMALL_COMMITS * blocks[-1].commits:
        last = blocks[-_SMALL_COMMITS:]
        rows = pl.concat(
            [_widened(one.rows.lazy(), dict(one.rows.schema), schema).collect() for one in last], rechunk=True
        )
        blocks = (*blocks[:-_SMALL_COMMITS], _Block.of(rows, sum(one.commits for one in last)))
    return blocks


def _merged_schema(name: str, schema: dict[str, Any], rows: pl.DataFrame) -> dict[str, Any]:
    """The columns of a table and of new rows. New columns get the types that a Delta table would give them.

    Raises:
        DataError: rows of such a type cannot be stored in a table.
    """
    import polars as pl

    signed: dict[Any, Any] = {pl.UInt8: pl.Int8, pl.UInt16: pl.Int16, pl.UInt32: pl.Int32, pl.UInt64: pl.Int64}
    found = dict(schema)
    for column, kind in rows.schema.items():
        if column in found:
            continue
        if kind in (pl.Null, pl.Duration, pl.Time, pl.Object):
            raise DataError(
                f"The rows do not fit the table '{name}': the column '{column}' has the type {kind}.",
                help="Cast it to a number, a text, a boolean or a datetime.",
            )
        plain: Any = signed.get(type(kind), kind) if kind.is_unsigned_integer() else kind
        if isinstance(kind, pl.Datetime):
            plain = pl.Datetime("us", kind.time_zone and "UTC")
        elif isinstance(kind, (pl.Categorical, pl.Enum)):
            plain = pl.String()
        found[column] = plain
    return found


def _fitted(name: str, rows: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    import polars as pl

    wrong: Any = {column: schema[column] for column, kind in rows.schema.items() if kind != schema[column]}
    try:
        rows = rows.cast(wrong) if wrong else rows
    except pl.exceptions.PolarsError as error:
        raise DataError(f"The rows do not fit the table '{name}': {str(error).partition(chr(10))[0]}") from error
    columns = [column for column in schema if column in rows.columns]
    return rows if columns == rows.columns else rows.select(columns)
