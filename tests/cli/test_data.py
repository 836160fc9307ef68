"""`everloop data` as people type it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest


@pytest.fixture
def table(everloop):
    pl.DataFrame({"id": range(100), "x": [float(n) for n in range(100)]}).write_csv("one.csv")
    pl.DataFrame({"id": range(50, 150), "x": [float(n) + (n == 60) for n in range(50, 150)]}).write_csv("two.csv")
    return everloop


@pytest.mark.slow
def test_a_snapshot_from_a_file_to_a_file(table):
    everloop = table
    assert everloop("data", "add", "one.csv", "numbers", "--key", "id", "--json").json["key"] == "numbers@1"
    assert "numbers@1: 100 rows" in everloop("data", "add", "one.csv", "numbers", "--key", "id").out
    assert everloop("data", "add", "two.csv", "numbers", "--key", "id", "--json").json["key"] == "numbers@2"
    assert [one["key"] for one in everloop("data", "ls", "--json").json] == ["numbers@2", "numbers@1"]
    shown = everloop("data", "show", "numbers").out
    assert "numbers@2" in shown
    assert "two.csv" in shown
    assert "two.csv" in str(everloop("lineage", "numbers@2", "--json").json["sources"])
    diff = everloop("data", "diff", "numbers@1", "numbers@2", "--json").json
    assert (diff["rows_added"], diff["rows_removed"], diff["rows_changed"]) == (50, 50, 1)
    assert diff["shifts"]["x"]["kind"] == "ks"
    assert "Shifted distributions" in everloop("data", "diff", "numbers@1", "numbers@2").out
    assert everloop("data", "export", "numbers@1", "out.parquet", "--json").json["rows"] == 100
    assert pl.read_parquet("out.parquet").height == 100
    assert everloop("data", "export", "numbers@1", "out.parquet").code == 4
    assert everloop("data", "rm", "numbers@1").code == 2  # no terminal to confirm in
    assert everloop("data", "rm", "numbers@1", "--yes", "--json").json == {"deleted": ["numbers@1"]}
    assert everloop("data", "show", "numbers@1").code == 3
    assert everloop("data", "restore", "numbers@1", "--json").json["rows"] == 100


def test_a_folder_of_files(everloop):
    Path("texts").mkdir()
    for name in "abc":
        Path("texts", f"{name}.txt").write_text(name)
    assert "texts@1: 3 files" in everloop("data", "add", "texts", "texts", "--files").out
    assert everloop("data", "export", "texts", "copy").code == 0
    assert Path("copy/b.txt").read_text() == "b"
    assert everloop("data", "add", "texts", "texts", "--files", "--key", "path").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["add", "none.csv", "numbers"], 6, "none.csv"),
        (["add", "one.csv", "numbers", "--key", "idd"], 6, "Did you mean 'id'"),
        (["show", "nothing"], 3, "nothing"),
    ],
)
def test_errors_say_what_helps(table, arguments, code, says):
    assert table("data", "add", "one.csv", "numbers").code == 0
    result = table("data", *arguments)
    assert (result.code, says in result.err) == (code, True), result.err


def test_profile_contract_and_check(table):
    everloop = table
    everloop("data", "add", "one.csv", "numbers", "--key", "id")
    profile = everloop("data", "profile", "numbers@1", "--output", "pages/page.html", "--json").json
    assert {column["name"] for column in profile["columns"]} == {"id", "x"}
    assert Path("pages/page.html").read_text().startswith("<!doctype html>")
    assert "numbers@1" in everloop("data", "profile", "numbers").out
    assert everloop("data", "contract", "numbers@1", "--output", "numbers.toml").code == 0
    assert everloop("data", "contract", "numbers@1", "--output", "numbers.toml").code == 4
    assert everloop("data", "check", "one.csv", "numbers.toml").code == 0
    edited = Path("numbers.toml").read_text().replace('name = "x"\n', 'name = "x"\nnullable = false\n')
    Path("numbers.toml").write_text(edited)
    Path("three.csv").write_text("id,x\n1,2.0\n2,\n1,3.0\n")
    result = everloop("data", "check", "three.csv", "numbers.toml", "--bad", "bad.parquet", "--json")
    assert (result.code, result.json["bad_rows"]) == (1, 2)
    assert {(one["column"], one["rule"], tuple(one["first_rows"])) for one in result.json["violations"]} >= {
        ("x", "nullable", (2,)),
        ("id", "unique", (3,)),
    }
    assert pl.read_parquet("bad.parquet")["_broken"].to_list() == [["x: nullable"], ["id: unique"]]
    assert everloop("data", "check", "one.csv", "none.toml").code == 3


def test_errors_about_unreadable_files_advise_options_that_work(everloop):
    Path("semi.csv").write_text("zip;n\n12;1\n13;2\n")
    result = everloop("data", "add", "semi.csv", "semi")
    assert (result.code, "--separator ';'" in result.err, "separator=" in result.err) == (6, True, False), result.err
    assert everloop("data", "add", "semi.csv", "semi", "--separator", ";", "--schema", "zip=string").code == 0
    assert everloop("data", "show", "semi", "--json").json["columns"] == {"zip": "string", "n": "int64"}
    Path("latin.csv").write_bytes("a,b\n1,café\n".encode("cp1252"))
    assert "--encoding cp1252" in everloop("data", "profile", "latin.csv").err
    profile = everloop("data", "profile", "latin.csv", "--encoding", "cp1252", "--json").json
    assert [column["name"] for column in profile["columns"]] == ["a", "b"]
    Path("tabs.data").write_text("a\tb\n1\t2\n")
    assert "--format" in everloop("data", "add", "tabs.data", "tabs").err
    result = everloop("data", "add", "tabs.data", "tabs", "--format", "csv")
    assert "--separator tab" in result.err
    assert everloop("data", "add", "tabs.data", "tabs", "--format", "csv", "--separator", "tab").code == 0
    result = everloop("data", "add", "semi.csv", "semi", "--separator", ";", "--schema", "zip=strnig")
    assert (result.code, "no type 'strnig'" in result.err) == (2, True)


def test_a_file_is_profiled_without_adding_it(table):
    everloop = table
    profile = everloop("data", "profile", "one.csv", "--target", "x", "--output", "page.html", "--json").json
    assert {column["name"]: column["role"] for column in profile["columns"]} == {"id": None, "x": "target"}
    page = Path("page.html").read_text()
    assert "one.csv" in page
    assert "one.csv@" not in page
    assert everloop("data", "ls", "--json").json == []
    assert everloop("data", "profile", "nothing").code == 3


def test_values_read_as_null_are_printed_and_recorded(everloop):
    Path("a.csv").write_text("id,x\n1,2\n2,NA\n3, \n4,5\n")
    result = everloop("data", "add", "a.csv", "numbers")
    assert "Note: 'x': 1 value read as null: 'NA'" in result.err
    assert "1 blank value read as null" in result.err
    assert "read as null: 'NA'" in everloop("data", "show", "numbers").out
    assert "read as null" in everloop("data", "profile", "a.csv").err
    assert everloop("data", "profile", "a.csv", "--json").json["notes"][0] == "'x': 1 blank value read as null"
    result = everloop("data", "add", "a.csv", "strict", "--null-values", "")
    assert "--null-values NA" in result.err
    assert "--schema x=string" in result.err
    Path("odd.csv").write_text("id,x\n1,2\n2,odd one\n3,4\n")
    result = everloop("data", "add", "odd.csv", "odd")
    assert "--null-values 'odd one', or --schema x=string" in result.err
    assert everloop("data", "add", "odd.csv", "odd", "--null-values", "odd one").code == 0


def test_a_run_prints_the_values_that_its_steps_read_as_null(everloop):
    Path("a.csv").write_text("id,x\n1,2\n2,NA\n3,4\n")
    Path("loop.py").write_text(
        "import everloop as el\nimport polars as pl\n\n"
        "@el.step\ndef rows() -> pl.DataFrame:\n    return el.read('a.csv').collect()\n\n"
        "loop = el.Loop('numbers', data=el.Dataset(rows, target='x'), train=el.AutoTrain(budget_s=1))\n"
    )
    result = everloop("run", "rows")
    assert (result.code, "'x': 1 value read as null: 'NA'" in result.err) == (0, True), result.err
    assert "'x': 1 value read as null: 'NA'" in everloop("run", "rows").err  # cached, and still so
