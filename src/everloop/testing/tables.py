"""The conformance suite for table stores."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.errors import DataError, NotFoundError, ReadOnlyError, UsageError
from everloop.testing.stores import START, ManualClock

if TYPE_CHECKING:
    from everloop.stores import TableStore


def day(number: int) -> datetime:
    return datetime(2024, 1, number, tzinfo=UTC)


def rows(*days: int, **columns: object) -> pl.DataFrame:
    """One row for each of these days of January 2024, with the number of the day in `x`."""
    return pl.DataFrame({"event_at": [day(number) for number in days], "x": list(days), **columns})


def seen(frame: pl.LazyFrame) -> list[int]:
    return sorted(frame.collect()["x"].to_list())


class TableStoreSuite:
    """Derive from this class and define fixtures: `clock`, a `ManualClock`, and `tables`, an empty store with it."""

    def test_rows_have_both_times(self, tables: TableStore) -> None:
        assert tables.append("predictions/delays", rows(1, 2)) is True
        frame = tables.scan("predictions/delays").collect().sort("x")
        assert frame.schema["event_at"] == frame.schema["arrived_at"] == pl.Datetime("us", "UTC")
        assert frame["event_at"].to_list() == [day(1), day(2)]
        assert frame["arrived_at"].to_list() == [START, START]
        tables.append("predictions/delays", rows(3))
        assert seen(tables.scan("predictions/delays")) == [1, 2, 3]

    def test_arrow_data_is_accepted_as_a_frame(self, tables: TableStore) -> None:
        import pyarrow as pa

        arrow = pa.table({"event_at": pa.array([day(1)], pa.timestamp("ns", "Europe/Berlin")), "x": [1]})
        tables.append("t", arrow)
        tables.append("t", rows(2).lazy())
        tables.append("t", pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches()))
        tables.append("t", arrow.to_pandas())
        frame = tables.scan("t").collect()
        assert frame.schema["event_at"] == pl.Datetime("us", "UTC")
        assert sorted(frame["event_at"].to_list()) == [day(1), day(1), day(1), day(2)]

    def test_times_without_a_zone_and_days_are_utc(self, tables: TableStore) -> None:
        naive = pl.DataFrame({"event_at": [datetime(2024, 1, 1)], "arrived_at": [date(2024, 1, 2)]})
        tables.append("t", naive.with_columns(pl.col("event_at").cast(pl.Datetime("ms"))))
        (row,) = tables.scan("t").collect().to_dicts()
        assert row == {"event_at": day(1), "arrived_at": day(2)}

    def test_scans_are_half_open_and_pick_columns(self, tables: TableStore) -> None:
        tables.append("t", rows(1, 2, 3, 4))
        assert seen(tables.scan("t", since=day(2), until=day(4))) == [2, 3]
        assert seen(tables.scan("t", since=day(3))) == [3, 4]
        assert seen(tables.scan("t", until=day(1))) == []
        assert tables.scan("t", columns=["x"], until=day(2)).collect().to_dict(as_series=False) == {"x": [1]}

    def test_the_past_shows_what_had_arrived(self, tables: TableStore, clock: ManualClock) -> None:
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

    def test_a_batch_that_is_sent_again_is_written_once(self, tables: TableStore) -> None:
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

    def test_columns_may_be_added_and_may_be_missing(self, tables: TableStore) -> None:
        tables.append("t", rows(1))
        tables.append("t", rows(2, y=["new"]))
        tables.append("t", rows(3))
        frame = tables.scan("t").collect().sort("x")
        assert frame["y"].to_list() == [None, "new", None]

    def test_empty_frames_write_nothing(self, tables: TableStore) -> None:
        assert tables.append("t", rows().cast({"x": pl.Int64, "event_at": pl.Datetime("us", "UTC")})) is False
        assert not tables.exists("t")

    def test_rows_that_do_not_fit_are_refused(self, tables: TableStore) -> None:
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

    def test_names(self, tables: TableStore) -> None:
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

    def test_what_is_not_there(self, tables: TableStore) -> None:
        tables.append("labels", rows(1))
        for use in (
            lambda: tables.scan("none"),
            lambda: tables.compact("none"),
            lambda: tables.drop("none"),
            lambda: tables.prove("none"),
        ):
            with pytest.raises(NotFoundError, match="labels"):
                use()

    def test_rows_are_written_only_on_the_progress_that_they_build_on(self, tables: TableStore) -> None:
        assert tables.append("x", rows(1), progress=[("a", -1, 3), ("b", -1, 0)])
        assert not tables.append("x", rows(1), progress=[("a", -1, 3)])
        assert not tables.append("x", rows(2), progress=[("a", 3, 4), ("b", 1, 2)])
        assert tables.append("x", rows(2), progress=[("a", 3, 4), ("c", -1, 9)])
        assert [tables.last_batch("x", writer) for writer in "abc"] == [4, 0, 9]
        assert seen(tables.scan("x")) == [1, 2]

    def test_snapshots_show_one_version_and_what_came_after_another(self, tables: TableStore) -> None:
        assert tables.snapshot("t") is None
        tables.append("t", rows(1, 2), batch=("w", 1))
        first = tables.snapshot("t")
        assert first is not None
        version = first.version
        assert (first.name, first.last_batch("w"), first.last_batch("v")) == ("t", 1, -1)
        assert seen(first.rows()) == [1, 2]
        assert sorted(x for part in first.files for x in seen(first.scan(part))) == [1, 2]
        tables.append("t", rows(3))
        tables.append("t", rows(4, 5), batch=("w", 2))
        second = tables.snapshot("t")
        assert second is not None
        assert second.id == first.id
        assert second.last_batch("w") == 2
        added = tables.added_since(second, version)
        assert added is not None
        assert [number for number, _ in added] == [version + 1, version + 2]
        assert [sorted(x for part in parts for x in seen(second.scan(part))) for _, parts in added] == [[3], [4, 5]]
        assert tables.added_since(second, second.version) == []

    def test_a_table_that_begins_again_has_another_id(self, tables: TableStore) -> None:
        tables.append("t", rows(1), batch=("w", 3))
        before = tables.snapshot("t")
        assert before is not None
        identity = before.id
        tables.drop("t")
        assert not tables.exists("t")
        assert tables.last_batch("t", "w") == -1
        tables.append("t", rows(2, y=[1]), batch=("w", 0))
        after = tables.snapshot("t")
        assert after is not None
        assert after.id != identity
        assert seen(tables.scan("t")) == [2]

    def test_forgetting_and_rewriting(self, tables: TableStore, clock: ManualClock) -> None:
        tables.append("t", rows(1, 5))
        clock.advance()
        then = clock.now()
        tables.append("t", rows(2, 3, 4))
        assert tables.rewrite("t", day(3), lambda found: found.with_columns(pl.col("x") * 10)) is True
        assert seen(tables.scan("t")) == [1, 2, 30, 40, 50]
        assert tables.forget("t", then) == 2
        assert seen(tables.scan("t")) == [2, 30, 40]
        assert tables.forget("t", then) == 0
        tables.append("t", rows(6))
        assert seen(tables.scan("t", since=day(4))) == [6, 40]

    def test_compacting_keeps_rows_and_batches(self, tables: TableStore) -> None:
        for number in range(1, 6):
            tables.append("t", rows(number), batch=("w", number))
        tables.compact("t")
        assert tables.tidy("t", most_files=100) is False
        tables.vacuum("t")
        tables.prove("t")
        assert seen(tables.scan("t", verify=True)) == [1, 2, 3, 4, 5]
        assert tables.last_batch("t", "w") == 5
