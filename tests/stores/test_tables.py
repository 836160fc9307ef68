from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from threading import Barrier, Thread
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pytest

from everloop.errors import CorruptionError, DataError, NotFoundError, ReadOnlyError, UsageError
from everloop.stores import Store, Tables
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tables(store: Store) -> Tables:
    return store.tables


def day(number: int) -> datetime:
    return datetime(2024, 1, number, tzinfo=UTC)


def rows(*days: int, **columns: object) -> pl.DataFrame:
    return pl.DataFrame({"event_at": [day(number) for number in days], "x": list(days), **columns})


def seen(frame: pl.LazyFrame) -> list[int]:
    return sorted(frame.collect()["x"].to_list())


def test_rows_have_both_times(tables: Tables) -> None:
    assert tables.append("predictions/delays", rows(1, 2)) is True
    frame = tables.scan("predictions/delays").collect().sort("x")
    assert frame.schema["event_at"] == frame.schema["arrived_at"] == pl.Datetime("us", "UTC")
    assert frame["event_at"].to_list() == [day(1), day(2)]
    assert frame["arrived_at"].to_list() == [START, START]
    tables.append("predictions/delays", rows(3))
    assert seen(tables.scan("predictions/delays")) == [1, 2, 3]


def test_arrow_data_is_accepted_as_a_frame(tables: Tables) -> None:
    arrow = pa.table({"event_at": pa.array([day(1)], pa.timestamp("ns", "Europe/Berlin")), "x": [1]})
    tables.append("t", arrow)
    tables.append("t", rows(2).lazy())
    tables.append("t", pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches()))
    tables.append("t", arrow.to_pandas())
    frame = tables.scan("t").collect()
    assert frame.schema["event_at"] == pl.Datetime("us", "UTC")
    assert sorted(frame["event_at"].to_list()) == [day(1), day(1), day(1), day(2)]


def test_times_without_a_zone_and_days_are_utc(tables: Tables) -> None:
    naive = pl.DataFrame({"event_at": [datetime(2024, 1, 1)], "arrived_at": [date(2024, 1, 2)]})
    tables.append("t", naive.with_columns(pl.col("event_at").cast(pl.Datetime("ms"))))
    (row,) = tables.scan("t").collect().to_dicts()
    assert row == {"event_at": day(1), "arrived_at": day(2)}


def test_scans_are_half_open_and_pick_columns(tables: Tables) -> None:
    tables.append("t", rows(1, 2, 3, 4))
    assert seen(tables.scan("t", since=day(2), until=day(4))) == [2, 3]
    assert seen(tables.scan("t", since=day(3))) == [3, 4]
    assert seen(tables.scan("t", until=day(1))) == []
    assert tables.scan("t", columns=["x"], until=day(2)).collect().to_dict(as_series=False) == {"x": [1]}


def test_the_past_shows_what_had_arrived(tables: Tables, clock: ManualClock) -> None:
    tables.append("t", rows(1))
    then = clock.now()
    clock.advance()
    tables.append("t", rows(2))
    assert seen(tables.scan("t", as_of=then)) == [1]
    past = tables.as_of(then)
    assert seen(past.scan("t")) == [1]
    assert seen(past.scan("t", as_of=clock.now())) == [1]
    assert seen(past.as_of(clock.now()).scan("t")) == [1]
    assert seen(tables.as_of(then - timedelta(microseconds=1)).scan("t")) == []
    for write in (lambda: past.append("t", rows(3)), lambda: past.compact("t"), lambda: past.drop("t")):
        with pytest.raises(ReadOnlyError):
            write()


def test_a_batch_that_is_sent_again_is_written_once(tables: Tables) -> None:
    assert tables.last_batch("t", "w") == -1
    assert tables.append("t", rows(1), batch=("w", 0)) is True
    assert tables.append("t", rows(1), batch=("w", 0)) is False
    assert tables.append("t", rows(2), batch=("w", 5)) is True
    assert tables.append("t", rows(3), batch=("w", 4)) is False
    assert tables.append("t", rows(4), batch=("v", 0)) is True
    assert seen(tables.scan("t")) == [1, 2, 4]
    assert tables.last_batch("t", "w") == 5
    assert tables.last_batch("t", "v") == 0
    assert tables.last_batch("t", "u") == -1


def test_columns_may_be_added_and_may_be_missing(tables: Tables) -> None:
    tables.append("t", rows(1))
    tables.append("t", rows(2, y=["new"]))
    tables.append("t", rows(3))
    frame = tables.scan("t").collect().sort("x")
    assert frame["y"].to_list() == [None, "new", None]


def test_empty_frames_write_nothing(tables: Tables) -> None:
    assert tables.append("t", rows().cast({"x": pl.Int64, "event_at": pl.Datetime("us", "UTC")})) is False
    assert not tables.exists("t")


def test_rows_that_do_not_fit_are_refused(tables: Tables) -> None:
    tables.append("t", rows(1))
    for wrong, word in (
        (pl.DataFrame({"x": [1]}), "event_at"),
        (pl.DataFrame({"event_at": [None, day(1)]}), "null in 1 row for"),
        (pl.DataFrame({"event_at": ["yesterday"]}), "not a time"),
        (pl.DataFrame({"event_at": [day(1)], "arrived_at": [3]}), "not a time"),
        (pl.DataFrame({"event_at": [day(1)], "x": ["a text"]}), "do not fit"),
        ([{"event_at": day(1)}], "not a table of rows"),
    ):
        with pytest.raises(DataError, match=word):
            tables.append("t", wrong)
    assert seen(tables.scan("t")) == [1]


def test_names(tables: Tables) -> None:
    assert tables.names() == []
    for name in ("predictions/delays", "predictions/costs", "labels"):
        tables.append(name, rows(1))
    assert tables.names() == ["labels", "predictions/costs", "predictions/delays"]
    assert tables.names("predictions/") == ["predictions/costs", "predictions/delays"]
    assert tables.exists("labels")
    assert not tables.exists("predictions")
    for name in ("", "/a", "a/", "../a", "a/../b", ".a", "a b", "_delta_log/.."):
        with pytest.raises(UsageError, match="not a valid name"):
            tables.append(name, rows(1))


def test_what_is_not_there(tables: Tables) -> None:
    tables.append("labels", rows(1))
    for use in (
        lambda: tables.scan("none"),
        lambda: tables.compact("none"),
        lambda: tables.drop("none"),
        lambda: tables.prove("none"),
    ):
        with pytest.raises(NotFoundError, match="labels"):
            use()


def test_compacting_joins_files_and_keeps_rows_and_batches(tables: Tables, store: Store) -> None:
    for number in range(1, 6):
        tables.append("t", rows(number), batch=("w", number))
    tables.compact("t")
    assert seen(tables.scan("t")) == [1, 2, 3, 4, 5]
    assert tables.last_batch("t", "w") == 5
    assert len(tables.vacuum("t", keep_hours=0)) == 5
    assert seen(tables.scan("t")) == [1, 2, 3, 4, 5]
    assert len(list((store.home / "tables" / "t").glob("*.parquet"))) == 1


def test_a_dropped_table_is_gone_and_can_begin_again(tables: Tables, store: Store) -> None:
    tables.append("a/b", rows(1), batch=("w", 3))
    tables.drop("a/b")
    assert not tables.exists("a/b")
    assert not (store.home / "tables" / "a" / "b").exists()
    assert tables.append("a/b", rows(2, y=[1]), batch=("w", 0)) is True
    assert seen(tables.scan("a/b")) == [2]


def test_a_damaged_or_missing_file_is_noticed(tables: Tables, store: Store) -> None:
    tables.append("t", rows(*range(1, 29)))
    tables.prove("t")
    (path,) = (store.home / "tables" / "t").glob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * 60 + whole[160:])
    with pytest.raises(CorruptionError, match="'t'"):
        tables.prove("t")
    path.unlink()
    with pytest.raises(CorruptionError, match="'t'"):
        tables.prove("t")


def test_tables_over_a_url(tmp_path: Path, clock: ManualClock) -> None:
    tables = Tables(f"file://{tmp_path}/tables", clock)
    tables.append("a/b", rows(1))
    tables.append("c", rows(2))
    assert tables.names() == ["a/b", "c"]
    assert seen(tables.scan("a/b")) == [1]
    tables.drop("a/b")
    assert tables.names() == ["c"]
    assert not tables.exists("a/b")
    shutil.rmtree(tmp_path / "tables")
    assert not tables.exists("c")


def test_of_simultaneous_creators_of_a_table_one_creates_it_and_the_others_append(store: Store) -> None:
    for number in range(10):
        name = f"race/{number}"
        start = Barrier(3)

        def append(batch: tuple[str, int], name: str = name, start: Barrier = start) -> None:
            own = Tables(store.tables.root, ManualClock())
            start.wait()
            own.append(name, rows(batch[1]), batch=batch)

        threads = [Thread(target=append, args=(("writer", 1),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen(store.tables.scan(name)) == [1]


def test_rows_are_written_only_on_the_progress_that_they_build_on(tables: Tables) -> None:
    assert tables.append("x", rows(1), progress=[("a", -1, 3), ("b", -1, 0)])
    assert not tables.append("x", rows(1), progress=[("a", -1, 3)])
    assert not tables.append("x", rows(2), progress=[("a", 3, 4), ("b", 1, 2)])
    assert tables.append("x", rows(2), progress=[("a", 3, 4), ("c", -1, 9)])
    assert [tables.last_batch("x", writer) for writer in "abc"] == [4, 0, 9]
    assert seen(tables.scan("x")) == [1, 2]
