"""Reading: every kind of source, and errors that name the file, the row and the column."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from everloop import plugins
from everloop.data import as_of, read
from everloop.errors import EverloopError, SourceError, UsageError
from everloop.stores import Store, collect_observations
from everloop.tracking import start_run

FRAME = pl.DataFrame({"id": [1, 2, 3], "name": ["a", "b", None], "x": [0.5, None, 2.5]})


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(folder))
    return folder


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def refused(*source: Any, kind: type[EverloopError] = SourceError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        read(source[0] if len(source) == 1 else list(source), **options).collect()
    return str(caught.value)


def test_each_format_gives_the_same_rows(project: Path) -> None:
    FRAME.write_csv(project / "a.csv")
    FRAME.write_csv(project / "a.tsv", separator="\t")
    FRAME.write_parquet(project / "a.parquet")
    FRAME.write_ipc(project / "a.arrow")
    FRAME.write_ndjson(project / "a.jsonl")
    (project / "a.json").write_text(json.dumps(FRAME.to_dicts()))
    FRAME.write_delta(project / "table")
    for name in ("a.csv", "a.tsv", "a.parquet", "a.arrow", "a.jsonl", "a.json", "table"):
        assert read(name).collect().equals(FRAME), name
    assert read(project / "a.csv").collect().equals(FRAME)
    assert read("a.csv", columns=["x", "id"]).collect().equals(FRAME.select("x", "id"))
    (project / "a.csv").rename(project / "a.txt")
    assert read("a.txt", format="csv").collect().equals(FRAME)


def test_globs_lists_and_folders_join_their_files_in_order(project: Path) -> None:
    for month in (3, 1, 2):
        (project / "flights" / str(month)).mkdir(parents=True)
        pl.DataFrame({"month": [month]}).write_parquet(project / "flights" / str(month) / "part.parquet")
    (project / "flights" / "readme.md").write_text("not data")
    assert read("flights/*/*.parquet").collect()["month"].to_list() == [1, 2, 3]
    assert read("flights/**/*.parquet").collect()["month"].to_list() == [1, 2, 3]
    assert read("flights").collect()["month"].to_list() == [1, 2, 3]
    paths = ["flights/2/part.parquet", Path("flights/1/part.parquet")]
    assert read(paths).collect()["month"].to_list() == [2, 1]


def test_a_path_with_the_characters_of_a_glob_is_a_path(project: Path) -> None:
    FRAME.write_parquet(project / "a[1].parquet")
    assert read("a[1].parquet").collect().equals(FRAME)


def test_what_does_not_exist_is_named_with_what_does(project: Path) -> None:
    write(project, "data/flights.csv", "a\n1\n")
    assert "There is no file 'data/flihgts.csv'" in refused("data/flihgts.csv")
    assert "Did you mean 'data/flights.csv'" in refused("data/flihgts.csv")
    assert "No file matches 'data/*.parquet'" in refused("data/*.parquet")
    assert "data" in refused("dta/flights.csv")
    assert "The format of '" in refused(write(project, "data/x.bin", "1"))
    assert "several formats" in refused("data/flights.csv", write(project, "b.json", "{}"))
    assert "Did you mean 'delay'" in refused(write(project, "d.csv", "delay,id\n1,2\n"), columns=["dleay"])
    assert "its URL scheme is not supported" in refused("s4://bucket/x.csv")


def test_csv_types_hold_for_every_row(project: Path) -> None:
    many = "id,x,day\n" + "1,2,2026-01-05\n" * 12_000
    frame = read(write(project, "a.csv", many + "2,2.5,2026-01-06\n")).collect()
    assert frame.schema == {"id": pl.Int64, "x": pl.Float64, "day": pl.Date}
    assert frame["x"].to_list()[-2:] == [2.0, 2.5]
    message = refused(write(project, "b.csv", many + "2,oops,2026-01-06\n"))
    assert "Column 'x' is int64, but row 12001 of" in message
    assert "b.csv' contains 'oops'" in message
    assert "null_values=['oops']" in message
    assert read("b.csv", null_values=["oops"]).collect()["x"].null_count() == 1
    message = refused(write(project, "c.csv", many + "1,2,yesterday\n"))
    assert "Column 'day' is date, but row 12001 of" in message


def test_a_type_that_the_caller_names_is_kept(project: Path) -> None:
    name = write(project, "a.csv", "id,x\n01,1\n02,300\n")
    assert read(name, schema_overrides={"id": pl.String}).collect()["id"].to_list() == ["01", "02"]
    assert "Column 'x' is int8, but row 2" in refused(name, schema_overrides={"x": pl.Int8})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", "Row 2 of"),
        ("a,b,c\n1,2,3\n1,2,3\n4,5,6,7\n", "Row 3 of"),
        ('a,b\n"x,y",1\n"two\nlines",2\n3\n', "Row 3 of"),
        ("", "is empty: it does not even have a header"),
        ("\n\n", "empty"),
    ],
)
def test_a_ragged_or_empty_csv_is_refused(project: Path, text: str, said: str) -> None:
    message = refused(write(project, "a.csv", text))
    assert said in message
    assert "a.csv'" in message


def test_what_looks_ragged_and_is_not(project: Path) -> None:
    text = 'a,b\n"one,\ntwo",\n"three",\n\n'
    assert read(write(project, "a.csv", text)).collect()["a"].to_list()[:2] == ["one,\ntwo", "three"]
    ragged = write(project, "b.csv", "a,b\n1,2\n3\n")
    assert read(ragged, truncate_ragged_lines=True).collect().rows() == [(1, 2), (3, None)]


def test_csv_with_a_header_only_has_columns_and_no_rows(project: Path) -> None:
    name = write(project, "a.csv", "a,b\n")
    assert read(name).collect().shape == (0, 2)
    both = read([name, write(project, "b.csv", "b,a\n1,x\n"), write(project, "c.csv", "a,b\ny,2.5\n")]).collect()
    assert both.rows() == [("x", 1.0), ("y", 2.5)]


def test_csv_files_that_differ_are_refused_by_name(project: Path) -> None:
    one, two = write(project, "1.csv", "a,b\n1,2\n"), write(project, "2.csv", "a,c\n1,2\n")
    message = refused(one, two)
    assert "has no column" in message
    three = write(project, "3.csv", "a,b\nx,2\n")
    assert "Column 'a' is int64 in" in refused(one, three)


def test_unknown_options_are_named(project: Path) -> None:
    name = write(project, "a.csv", "a\n1\n")
    assert "'sep'" in refused(name, sep=";", kind=UsageError)
    FRAME.write_parquet(project / "a.parquet")
    assert "'sep'" in refused("a.parquet", sep=";", kind=UsageError)
    assert "no format 'xml'" in refused(name, format="xml", kind=UsageError)


def test_json_lines_are_refused_by_number(project: Path) -> None:
    assert "Line 3 of" in refused(write(project, "a.jsonl", '{"a": 1}\n\n{"a": \n'))
    assert "Line 2 of" in refused(write(project, "b.jsonl", '{"a": 1}\n[2]\n'))
    assert "is empty" in refused(write(project, "c.json", "  \n"))
    assert read(write(project, "d.json", '{"a": 1}\n{"a": 2.5, "b": "x"}\n')).collect().rows() == [
        (1.0, None),
        (2.5, "x"),
    ]


def test_files_that_are_not_what_they_are_called(project: Path) -> None:
    for name in ("a.parquet", "a.arrow"):
        message = refused(write(project, name, "this is text"))
        assert name in message
        assert "cannot be read as" in message


def test_parquet_files_with_other_columns_or_types(project: Path) -> None:
    FRAME.write_parquet(project / "1.parquet")
    FRAME.drop("x").write_parquet(project / "2.parquet")
    assert "2.parquet' has no column 'x'" in refused("1.parquet", "2.parquet")
    FRAME.with_columns(x=pl.lit("text")).write_parquet(project / "3.parquet")
    assert "Column 'x' is float64 in" in refused("1.parquet", "3.parquet")
    FRAME.with_columns(pl.col("id").cast(pl.Int32)).select("x", "id", "name").write_parquet(project / "4.parquet")
    both = read(["1.parquet", "4.parquet"]).collect()
    assert both.equals(pl.concat([FRAME, FRAME]))


def test_rows_and_tables_of_other_libraries() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2.5}]
    expected = pl.DataFrame({"a": [1.0, 2.5], "b": ["x", None]})
    assert read(rows).collect().equals(expected)
    assert read(row for row in rows).collect().equals(expected)
    assert read(FRAME).collect().equals(FRAME)
    assert read(FRAME.lazy()).collect().equals(FRAME)
    assert read(pa.table({"a": [1, 2]})).collect().rows() == [(1,), (2,)]
    assert read(pd.DataFrame({"a": [1, 2]})).collect().rows() == [(1,), (2,)]
    assert "The source has no rows" in refused([])
    assert "Row 2 is 5" in refused([{"a": 1}, 5])
    assert "Column 'a' is int64, but row 3 contains 'x' (string)" in refused([{"a": 1}, {"a": None}, {"a": "x"}])
    assert "cannot be read. Pass a path, a glob, a URL" in refused(5, kind=UsageError)
    assert "cannot be read. Pass a path, a glob, a URL" in refused({"a": 1}, kind=UsageError)


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE flights (id INTEGER, name TEXT, x REAL)")
        connection.executemany("INSERT INTO flights VALUES (?, ?, ?)", FRAME.rows())
    connection.close()


def test_a_query_of_sqlite(project: Path) -> None:
    database(project / "flights.db")
    assert read("sqlite:///flights.db", query="SELECT * FROM flights ORDER BY id").collect().equals(FRAME)
    absolute = f"sqlite:///{project / 'flights.db'}"
    assert read(absolute, query="SELECT id FROM flights WHERE x > 1").collect().rows() == [(3,)]
    assert "Did you mean 'flights'" in refused("sqlite:///flights.db", query="SELECT * FROM flihgts")
    assert "Did you mean 'flights.db'" in refused("sqlite:///flihgts.db", query="SELECT 1")
    assert "two columns called 'id'" in refused("sqlite:///flights.db", query="SELECT id, id FROM flights")
    assert "readonly" in refused("sqlite:///flights.db", query="DELETE FROM flights")
    mixed = "SELECT 1 AS a UNION ALL SELECT 'x'"
    assert "Column 'a' is int64, but row 2 contains 'x'" in refused("sqlite:///flights.db", query=mixed)
    assert "query='SELECT …'" in refused("sqlite:///flights.db", kind=UsageError)
    assert "needs a database" in refused("flights.csv", query="SELECT 1", kind=UsageError)


def test_times_are_utc(project: Path) -> None:
    moment = datetime(2026, 1, 1, 12)
    frame = pl.DataFrame({"naive": [moment], "day": [date(2026, 1, 1)]}).with_columns(
        zoned=pl.col("naive").dt.replace_time_zone("Europe/Berlin"), ns=pl.col("naive").cast(pl.Datetime("ns"))
    )
    frame.write_parquet(project / "a.parquet")
    for name, hour in (("naive", 12), ("day", 0), ("zoned", 11), ("ns", 12)):
        values = read("a.parquet", event_time=name).collect()[name]
        assert values.dtype == pl.Datetime("us", "UTC")
        assert values.to_list() == [datetime(2026, 1, 1, hour, tzinfo=UTC)]
    texts = write(project, "a.csv", "at\n2026-01-01 12:00:00\n")
    assert read(texts, event_time="at", try_parse_dates=False).collect()["at"].to_list() == [moment.replace(tzinfo=UTC)]
    bad = [{"at": "2026-01-01T00:00:00"}, {"at": "noon"}]
    assert "Row 2 of time column 'at' contains 'noon'" in refused(bad, event_time="at")
    assert "has type Int64, but must contain times" in refused([{"at": 1}], event_time="at")
    assert "has no column 'when'" in refused([{"at": 1}], event_time="when")


def test_during_a_replay_the_future_does_not_exist(store: Store) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [{"n": n, "event": start + timedelta(days=n), "arrival": start + timedelta(days=n + 2)} for n in range(5)]

    def seen(**options: str) -> list[int]:
        return read(rows, **options).collect()["n"].to_list()  # type: ignore[arg-type]

    assert seen(event_time="event") == [0, 1, 2, 3, 4]
    with as_of(start + timedelta(days=3)):
        assert seen() == [0, 1, 2, 3, 4]
        assert seen(event_time="event") == [0, 1, 2, 3]
        assert seen(event_time="event", arrival_time="arrival") == [0, 1]
        with as_of(start + timedelta(days=9)):
            assert seen(event_time="event") == [0, 1, 2, 3]
    clock = store.simulate(start + timedelta(days=1))
    with start_run("turn", store=store), collect_observations() as first:
        assert seen(event_time="event") == [0, 1]
    clock.set(start + timedelta(days=2))
    with start_run("turn", store=store), collect_observations() as second:
        assert seen(event_time="event") == [0, 1, 2]
    assert [item["kind"] for item in first] == ["horizon"]
    assert first != second
    with pytest.raises(UsageError, match="no time zone"), as_of(datetime(2026, 1, 1)):
        pass


def test_what_is_read_is_observed(project: Path) -> None:
    FRAME.write_csv(project / "a.csv")
    FRAME.write_delta(project / "table")
    database(project / "flights.db")
    query = "SELECT * FROM flights"
    with collect_observations() as seen:
        read("*.csv")
        read("table")
        read("sqlite:///flights.db", query=query)
        read(FRAME)
    assert [(item["kind"], item["spec"]) for item in seen] == [
        ("files", {"patterns": ["*.csv"]}),
        ("files", {"patterns": ["table/_delta_log/*"]}),
        ("sql", {"url": "sqlite:///flights.db", "query": query}),
    ]
    for item in seen:
        assert plugins.load("observation", item["kind"])(item["spec"], since=item["state"]) == item["state"]
