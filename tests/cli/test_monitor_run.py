"""`everloop monitor run` on plain tables: CSV, Parquet, a database, a log that is split, and its exit codes."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from everloop.monitoring.incidents.incident_actions import mute
from everloop.records import Incident
from everloop.stores import open_store


def table(rows, seed, shift=0.0, day=0, days=1):
    random = np.random.default_rng(seed)
    seconds = np.sort(random.integers(days * 86_400, size=rows))
    start = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day)
    age = random.normal(40, 10, rows)
    return pl.DataFrame(
        {
            "at": [start + timedelta(seconds=int(one)) for one in seconds],
            "age": age + shift,
            "city": random.choice(["oslo", "rome"], rows),
            "score": 1 / (1 + np.exp((40 - age) / 5)),
            "late": (random.normal(age, 10) > 40).astype(int),
        }
    )


@pytest.fixture
def tables(everloop):
    """The command, in a folder with tables: before, the same again, and moved."""
    table(1000, 1).write_parquet("before.parquet")
    table(500, 2).write_csv("same.csv")
    table(500, 3, shift=20).write_csv("moved.csv")
    return everloop


@pytest.mark.slow
def test_tables_need_no_project_and_no_store(tables):
    quiet = tables("monitor", "run", "--reference", "before.parquet", "--current", "same.csv")
    assert quiet.code == 0
    assert "Nothing to worry about: 4 columns behave as in the reference." in quiet.out
    loud = tables("monitor", "run", "--reference", "before.parquet", "--current", "moved.csv", "--html", "out.html")
    assert loud.code == 1
    assert "1 alarm needs attention. 'age' has risen from 39" in loud.out
    assert "Report: out.html" in loud.out
    assert Path("out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not Path(".everloop").exists()


def test_json_has_the_same_answer_and_exit_code(tables):
    result = tables(
        "monitor", "run", "--reference", "before.parquet", "--current", "moved.csv", "--target", "late", "--prediction",
        "score", "--columns", "age, city", "--budget", "2", "--json",
    )  # fmt: skip
    # The labels say that nothing was harmed.
    assert (result.code, result.json["incidents"][0]["severity"]) == (0, "notice")
    assert result.json["performance"]["metric"] == "roc_auc"
    assert {one["name"] for one in result.json["columns"]} == {"age", "city", "score", "late"}


def test_a_log_is_split_by_time_and_windowed(tables):
    log = pl.concat([table(2000, 1, days=20), table(300, 2, day=20, days=3), table(600, 3, 20, day=23, days=6)])
    log.write_csv("log.csv")
    arguments = ("monitor", "run", "--log", "log.csv", "--time", "at", "--columns", "age,city")
    result = tables(*arguments, "--split", "2026-03-21", "--every", "1d", "--json")
    assert result.code == 1
    assert (result.json["reference"]["rows"], result.json["current"]["rows"]) == (2000, 900)
    assert result.json["reference"]["name"].endswith("log.csv before 2026-03-21")
    assert len(result.json["windows"]) == 9
    (incident,) = result.json["incidents"]
    assert incident["began_at"] in ("2026-03-24T00:00:00+00:00", "2026-03-25T00:00:00+00:00")
    empty = tables(*arguments, "--split", "2020-01-01")
    assert empty.code == 6
    assert "log.csv before 2020-01-01 has no rows" in empty.err


@pytest.mark.slow
def test_a_database_is_read_with_a_query(tables):
    with sqlite3.connect("log.db") as database:
        database.execute("CREATE TABLE log (age REAL, kind TEXT)")
        rows = [(age, kind) for kind in "ab" for age in table(200, 5)["age"]]
        database.executemany("INSERT INTO log VALUES (?, ?)", rows)
    url = f"sqlite:///{Path('log.db').absolute()}"
    result = tables(
        "monitor", "run", "--reference", url, "--reference-query", "SELECT age FROM log WHERE kind = 'a'",
        "--current", url, "--current-query", "SELECT age FROM log WHERE kind = 'b'", "--json",
    )  # fmt: skip
    assert (result.code, result.json["current"]["rows"]) == (0, 200), result.out


def test_options_of_reading_apply_to_both_tables(tables):
    for name in ("one", "two"):
        Path(f"{name}.txt").write_text("x;y\n" + "\n".join(f"{number},5;a" for number in range(50)))
    arguments = ("--separator", ";", "--decimal-comma", "--format", "csv")
    result = tables("monitor", "run", "--reference", "one.txt", "--current", "two.txt", *arguments, "--json")
    assert (result.code, [one["name"] for one in result.json["columns"]]) == (0, ["x", "y"]), result.out


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        ("--reference before.parquet", 2, "--reference cannot be used like this."),
        ("--current same.csv", 2, "Pass --reference A and --current B, or --log TABLE"),
        ("--reference before.parquet --current same.csv --log same.csv", 2, "cannot be used like this"),
        ("--log same.csv", 2, "--log needs --time and --split"),
        ("--log same.csv --time at --split noon", 2, "--split 'noon' is not a time. Write a date or a time"),
        ("--reference before.parquet --current same.csv --split 2026-01-01", 2, "--split needs --log."),
        ("--html out.html", 2, "--html needs tables. Name them"),
        ("mine --reference before.parquet --current same.csv", 2, "The loop 'mine' has nothing to do with tables."),
        ("--reference nothing.csv --current same.csv", 6, "nothing.csv"),
        ("--reference before.parquet --current same.csv --target lat", 6, "Did you mean 'late' or 'at'?"),
        ("--reference before.parquet --current same.csv --time city", 6, "which is not a time in ISO 8601"),
        ("--reference before.parquet --current same.csv --time at --every 1s", 0, ""),
        ("--reference before.parquet --current same.csv --budget 0", 2, "must be a number above 0"),
        ("--reference before.parquet --current same.csv --html none/out.html", 2, "'none/out.html' cannot be written"),
        ("--season 1y", 2, "--season needs tables. Name them"),
        ("--reference before.parquet --current same.csv --season 1y", 2, "Name the column with --time, or leave"),
        ("--reference before.parquet --current same.csv --time at --season 1q", 2, "'1q' is not a season."),
        ("--reference before.parquet --current same.csv --time at --season 1d", 2, "is not longer than a window"),
        ("", 2, "loop.py"),
    ],
)
def test_wrong_use_says_what_to_type(tables, options, code, problem):
    if "1s" in options:
        table(1200, 9).write_csv("same.csv")
        code, problem = 2, "Choose longer windows, such as --every 1w."
    result = tables("monitor", "run", *options.split())
    text = " ".join(result.err.split())
    assert result.code == code, result.out + text
    assert problem in text
    assert "Traceback" not in text


def test_in_a_project_an_open_alarm_decides_the_exit_code(furnished):
    assert furnished("monitor run").code == 0
    with open_store(".everloop") as store:
        now = store.now()
        alarm = store.new(Incident, endpoint="double", kind="drift", severity="alarm", title="'x' has doubled.",
                          began_at=now, seen_at=now)  # fmt: skip
        store.records.put(alarm)
    loud = furnished("monitor run")
    assert (loud.code, "'x' has doubled." in loud.out) == (1, True)
    assert furnished("monitor ls --severity alarm --json").json[0]["title"] == "'x' has doubled."
    with open_store(".everloop") as store:
        mute(store, alarm.id)
    assert furnished("monitor run").code == 0
