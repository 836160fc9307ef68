"""Incremental sources: a function that takes the last cursor and returns the rows after it.

    def orders(since: int | None):
        yield from api.orders(after_id=since or 0)

    el.read(orders, cursor="id")

The rows are appended to a table in the store, and the cursor is the greatest value in that table. Rows and state are
the same data, so a process that dies in between loses neither. A call that fails halfway stores nothing and is
repeated next time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, date, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

import polars as pl

from everloop.data.sources.read_progress import report_progress
from everloop.data.sources.row_values import find_problem
from everloop.data.table_inputs import as_eager, nearest, type_name
from everloop.errors import SourceError, UsageError
from everloop.stores import observe
from everloop.stores.tables.delta_tables import ARRIVED_AT, EVENT_AT

if TYPE_CHECKING:
    from everloop.records import Json
    from everloop.stores import Store

Cursor = int | float | str | datetime | date | None
Source = Callable[[Cursor], Iterable[Any]]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEW_ROWS = " and more"


def read_new(source: Source, cursor: str) -> pl.LazyFrame:
    """Fetch the rows after the cursor, store them, and return all rows so far, sorted by the cursor.

    Raises:
        SourceError: the source has not returned any row yet, or it returned a row without a cursor or something that
            is not a row.
        UsageError: the source is not a function of a module.
    """
    spec = _spec(source, cursor)
    table = _table(spec)
    with ExitStack() as stack:
        store = _store(stack)
        with store.lock(table.replace("/", "@")):
            since = _last_cursor(store, table, cursor)
            fresh = _fetch(spec, source(since), cursor, since)
            if since is not None and fresh.height:
                fresh = _without_known_rows(store, table, fresh, cursor, since)
            if fresh.height:
                store.tables.append(table, fresh)
        if not store.tables.exists(table):
            raise SourceError(
                f"{spec['function']} has not returned any rows yet, so its columns are unknown.",
                help="Read again once it has rows.",
            )
        last = _last_cursor(store, table, cursor)
        observe("cursor", spec, _text(last))
        return store.tables.scan(table).drop(EVENT_AT, ARRIVED_AT).sort(cursor, maintain_order=True)


def cursor_state(spec: dict[str, Json], since: str | None = None) -> str:
    """A text that changes when the source has rows after the cursor. Nothing is stored."""
    with ExitStack() as stack:
        store = _store(stack)
        last = _last_cursor(store, _table(spec), spec["cursor"])
    if since is not None and _text(last) != since:
        return _text(last)
    for row in _items(_load(spec)(last)):
        values = row[spec["cursor"]].to_list() if isinstance(row, pl.DataFrame) else [row.get(spec["cursor"])]
        if any(last is None or value > last for value in values if value is not None):
            return f"{_text(last)}{_NEW_ROWS}"
    return _text(last)


def count_new(source: Source, cursor: str, store: Store) -> int:
    """Return how many rows the source has after its cursor, without storing them.

    Raises:
        SourceError: the source returned a row without a cursor or something that is not a row.
        UsageError: the source is not a function of a module.
    """
    spec = _spec(source, cursor)
    since = _last_cursor(store, _table(spec), cursor)
    fresh = _fetch(spec, _load(spec)(since), cursor, since)
    if since is None or not fresh.width:
        return fresh.height
    return fresh.filter(pl.col(cursor) > since).height


def cursor_change(before: str, after: str) -> str:
    """Describe the change between two states; empty if there is none."""
    return "" if before == after else f"new rows after {before}"


def _spec(source: Source, cursor: str) -> dict[str, Json]:
    function = getattr(source, "function", source)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not name or "<" in name:
        raise UsageError(
            f"{source!r} cannot be imported by its name, so it cannot be read again later.",
            help="Define the source as a function at the top level of a module.",
        )
    return {"module": module, "function": name, "cursor": cursor}


def _load(spec: dict[str, Json]) -> Source:
    value: Any = sys.modules.get(spec["module"]) or import_module(spec["module"])
    for part in spec["function"].split("."):
        value = getattr(value, part)
    return getattr(value, "function", value)  # type: ignore[no-any-return]


def _table(spec: dict[str, Json]) -> str:
    return f"sources/{spec['module']}.{spec['function']}@{_safe(spec['cursor'])}"


def _safe(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else f"={ord(letter):x}" for letter in name)


def _last_cursor(store: Store, table: str, cursor: str) -> Any:
    if not store.tables.exists(table):
        return None
    return store.tables.scan(table).select(pl.col(cursor).max()).collect().item()


def collect_items(name: str, items: Iterable[Any]) -> pl.DataFrame:
    """Collect everything that a source yields (dicts, lists of dicts, tables) in one table.

    Raises:
        SourceError: an item is not a row, or a column mixes types.
    """
    dicts: list[Mapping[str, Any]] = []
    frames: list[pl.DataFrame] = []
    for number, item in enumerate(_items(items), 1):
        if isinstance(item, pl.DataFrame):
            frames.append(item)
        else:
            dicts.append(item)
        if number % 1_000 == 0:
            report_progress("source", number, None, "rows", name)
    if dicts:
        frames.append(_frame(name, dicts))
    if not frames:
        return pl.DataFrame()
    return pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]


def _fetch(spec: dict[str, Json], items: Iterable[Any], cursor: str, since: Any) -> pl.DataFrame:
    rows = collect_items(spec["function"], items)
    if not rows.width:
        return rows
    if cursor not in rows.columns:
        raise SourceError(
            f"The rows of {spec['function']} have no column '{cursor}'.", help=nearest(cursor, rows.columns)
        )
    if rows[cursor].null_count():
        first = rows[cursor].is_null().arg_max()
        raise SourceError(
            f"Row {(first or 0) + 1} of {spec['function']} has no value in the cursor column '{cursor}'.",
            help="Give every row a cursor value, or leave the row out.",
        )
    if EVENT_AT in rows.columns or ARRIVED_AT in rows.columns:
        raise SourceError(
            f"{spec['function']} returns a column '{EVENT_AT}' or '{ARRIVED_AT}', which everloop uses itself.",
            help="Rename it.",
        )
    if since is not None:
        try:
            rows = rows.filter(pl.col(cursor) >= since)
        except pl.exceptions.PolarsError as error:
            kind = type_name(rows.schema[cursor])
            raise SourceError(
                f"'{cursor}' of {spec['function']} is now {kind}, but its last value was {since!r}.",
                help="Return cursor values of one type.",
            ) from error
    dtype = rows.schema[cursor]
    # A number is not a time, but the table needs one. The arrival time tells such rows apart.
    event_at = pl.col(cursor) if isinstance(dtype, pl.Datetime | pl.Date) else pl.lit(_EPOCH)
    return rows.with_columns(event_at.alias(EVENT_AT))


def _without_known_rows(store: Store, table: str, fresh: pl.DataFrame, cursor: str, since: Any) -> pl.DataFrame:
    """Drop rows that are stored already: sources often return the rows at the cursor itself again."""
    known = store.tables.scan(table).filter(pl.col(cursor) == since).drop(EVENT_AT, ARRIVED_AT).collect()
    names = [name for name in fresh.columns if name in known.columns and name != EVENT_AT]
    seen = known.select(names).with_columns(pl.lit(value=True).alias("__seen"))
    try:
        joined = fresh.join(seen.unique(), on=names, how="left", nulls_equal=True, maintain_order="left")
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"The source now returns other columns than '{table}' has: {str(error).splitlines()[0]}."
        ) from error
    return joined.filter(pl.col("__seen").is_null()).drop("__seen")


def _items(items: Iterable[Any]) -> Iterator[Any]:
    """Yield single rows as dicts and pages of rows as frames."""
    for item in items:
        if isinstance(item, Mapping):
            yield item
        elif isinstance(item, pl.DataFrame | pl.LazyFrame) or hasattr(item, "__arrow_c_stream__"):
            yield as_eager(item)
        elif isinstance(item, list | tuple) and all(isinstance(each, Mapping) for each in item):
            yield from item
        else:
            raise SourceError(
                f"The source returned {item!r}, which is not a row.", help="Yield dicts, lists of dicts, or tables."
            )


def _frame(name: str, dicts: list[Mapping[str, Any]]) -> pl.DataFrame:
    names = list(dict.fromkeys(column for item in dicts for column in item))
    values = [[item.get(column) for column in names] for item in dicts]
    mixed = find_problem(names, values)
    if mixed is not None:
        raise SourceError(f"{name}: {mixed}", help="Convert the values before the source returns them.")
    return pl.DataFrame(values, schema=names, orient="row", infer_schema_length=None)


def _text(cursor: Cursor) -> str:
    return json.dumps(cursor.isoformat() if isinstance(cursor, datetime | date) else cursor)


def _store(stack: ExitStack) -> Store:
    from everloop.stores import checked_store, open_store
    from everloop.tracking import current_run

    run, checked = current_run(), checked_store()
    if checked is not None:
        return checked
    return run.store if run is not None else stack.enter_context(open_store())
