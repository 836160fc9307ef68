"""Tables in memory behave as Delta tables do, alone and over the tables of another store."""

from __future__ import annotations

from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import DataError, ReadOnlyError
from everloop.stores import MemoryTables, Store, Tables
from everloop.testing.stores import START, ManualClock
from everloop.testing.tables import TableStoreSuite, rows, seen

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.stores import TableStore


class TestDeltaTables(TableStoreSuite):
    @pytest.fixture
    def tables(self, store: Store) -> TableStore:
        return store.tables


class TestMemoryTables(TableStoreSuite):
    @pytest.fixture
    def tables(self, clock: ManualClock) -> TableStore:
        return MemoryTables(clock)


class TestMemoryTablesOverDelta(TableStoreSuite):
    """Over tables of other names, which stay as they are."""

    @pytest.fixture
    def tables(self, store: Store, clock: ManualClock) -> TableStore:
        return MemoryTables(clock, below=store.tables.as_of(clock.now()))


def test_rows_below_are_those_that_had_arrived(store: Store, clock: ManualClock) -> None:
    store.tables.append("t", rows(1, 2), batch=("w", 5))
    moment = clock.now()
    clock.advance()
    store.tables.append("t", rows(3))
    store.tables.append("later", rows(4))
    above = MemoryTables(clock, below=store.tables.as_of(moment))
    assert seen(above.scan("t")) == [1, 2]
    assert above.names() == ["t"]
    assert not above.exists("later")
    above.append("t", rows(9, y=["new"]))
    store.tables.append("t", rows(5))
    assert above.scan("t").sort("x").collect()["y"].to_list() == [None, None, "new"]
    assert seen(above.scan("t", since=START, until=START)) == []
    assert above.forget("t", moment + timedelta(microseconds=1)) == 2
    assert seen(above.scan("t")) == [9]
    above.drop("t")
    assert above.names() == []
    above.append("t", rows(7))
    assert seen(above.scan("t")) == [7]
    assert seen(store.tables.scan("t")) == [1, 2, 3, 5]


def test_a_rewrite_replaces_rows_below(store: Store, clock: ManualClock) -> None:
    store.tables.append("t", rows(1, 2, 3))
    above = MemoryTables(clock, below=store.tables.as_of(clock.now()))
    since = rows(2)["event_at"][0]
    assert above.rewrite("t", since, lambda found: found.with_columns(pl.col("x") * 10))
    assert seen(above.scan("t")) == [1, 20, 30]
    assert seen(store.tables.scan("t")) == [1, 2, 3]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("y", [1, None], dtype=pl.UInt8),
        pl.Series("y", ["a", None], dtype=pl.String),
        pl.Series("y", [1.5, None], dtype=pl.Float32),
        pl.Series("y", [START, None]).dt.cast_time_unit("ms"),
        pl.Series("y", [[1], None]),
        pl.Series("y", [{"a": 1}, None]),
        pl.Series("y", [b"x", None]),
    ],
)
def test_values_have_the_types_that_delta_gives_them(store: Store, clock: ManualClock, column: pl.Series) -> None:
    frame = rows(1, 2).with_columns(column)
    memory = MemoryTables(clock)
    for tables in (store.tables, memory):
        tables.append("t", frame)
    delta, here = (tables.scan("t").sort("x").collect() for tables in (store.tables, memory))
    assert here.select(sorted(here.columns)).equals(delta.select(sorted(delta.columns)))
    assert dict(here.schema) == dict(delta.schema)


@pytest.mark.parametrize("wrong", [pl.Series("y", [None, None]), pl.Series("y", [timedelta(1), None])])
def test_types_without_a_place_in_tables_are_refused(store: Store, clock: ManualClock, wrong: pl.Series) -> None:
    for tables in (store.tables, MemoryTables(clock)):
        with pytest.raises(DataError, match="do not fit"):
            tables.append("t", rows(1, 2).with_columns(wrong))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 28), st.integers(0, 3), st.integers(1, 5)), max_size=80))
@settings(max_examples=40, deadline=None)
def test_many_commits_are_scanned_as_one_frame(commits: list[tuple[int, int, int]]) -> None:
    clock = ManualClock()
    tables = MemoryTables(clock)
    plain: list[tuple[object, object, int]] = []
    for day, wait, count in commits:
        clock.advance(wait)
        frame = rows(*[(day + step) % 28 + 1 for step in range(count)])
        tables.append("t", frame)
        plain += [(at, clock.now(), x) for at, x in frame.select("event_at", "x").iter_rows()]
    if not commits:
        return
    snapshot = tables.snapshot("t")
    assert snapshot is not None
    assert sorted(x for part in snapshot.files for x in snapshot.scan(part).collect()["x"]) == sorted(
        x for *_, x in plain
    )
    since, until = rows(5, 20)["event_at"].to_list()
    cut = START + timedelta(seconds=len(commits) // 2)
    expected = sorted(x for at, arrived, x in plain if since <= at < until and arrived <= cut)  # type: ignore[operator]
    assert seen(tables.scan("t", since=since, until=until, as_of=cut)) == expected
    assert seen(tables.as_of(cut).scan("t", since=since, until=until)) == expected


def test_threads_lose_no_rows(clock: ManualClock) -> None:
    tables = MemoryTables(clock)

    def write(writer: int) -> None:
        for number in range(50):
            for _ in range(2):
                tables.append("t", rows(1), batch=(f"w{writer}", number))

    threads = [Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tables.scan("t").collect().height == 200


def test_views_of_the_past_in_memory_are_read_only(clock: ManualClock) -> None:
    tables = MemoryTables(clock)
    tables.append("t", rows(1))
    past = tables.as_of(clock.now())
    for write in (lambda: past.vacuum("t"), lambda: past.forget("t", START), lambda: past.rewrite("t", START, len)):  # type: ignore[arg-type]
        with pytest.raises(ReadOnlyError):
            write()


def test_delta_and_memory_are_both_table_stores(tmp_path: Path, clock: ManualClock) -> None:
    stores: list[TableStore] = [Tables(tmp_path, clock), MemoryTables(clock)]
    assert len({one.root for one in stores}) == 2
