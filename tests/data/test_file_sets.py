"""Compressed files, partition folders, and sets of files with different types."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zipfile
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from everloop.data import read
from everloop.data.sources import compression
from everloop.errors import SourceError, UsageError

TABLE = pl.DataFrame({"id": [1, 2, 3], "name": ["a", "b", "c"]})


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(folder))
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "home"))
    return folder


def refused(*source: Any, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(source[0] if len(source) == 1 else list(source), **options).collect()
    return str(caught.value)


def pack(path: Path, data: bytes) -> None:
    """Write `data` as the suffix says."""
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".bz2":
            path.write_bytes(bz2.compress(data))
        case ".xz":
            path.write_bytes(lzma.compress(data))
        case ".zst":
            path.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
        case _:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(path.stem, data)
                archive.writestr(f"__MACOSX/._{path.stem}", "left by macOS")


CONTENTS = {
    "csv": TABLE.write_csv().encode(),
    "tsv": TABLE.write_csv(separator="\t").encode(),
    "jsonl": TABLE.write_ndjson().encode(),
    "json": json.dumps(TABLE.to_dicts()).encode(),
}


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst", "zip"])
def test_compressed_files_are_read_as_what_they_hold(project: Path, packing: str) -> None:
    for form, content in CONTENTS.items():
        pack(project / f"a.{form}.{packing}", content)
        assert read(f"a.{form}.{packing}").collect().equals(TABLE), form
    (project / "folder").mkdir()
    pack(project / "folder" / f"1.csv.{packing}", CONTENTS["csv"])
    (project / "folder" / "2.csv").write_bytes(CONTENTS["csv"])
    assert read("folder").collect().equals(pl.concat([TABLE, TABLE]))
    assert read("folder/*.csv*").collect().height == 6


def test_a_zip_tells_its_format_by_what_it_holds(project: Path) -> None:
    with zipfile.ZipFile(project / "export.zip", "w") as archive:
        archive.mkdir("data")
        archive.writestr("data/table.tsv", CONTENTS["tsv"])
    assert read("export.zip").collect().equals(TABLE)
    with zipfile.ZipFile(project / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x\n1\n")
        archive.writestr("b.csv", "x\n1\n")
    assert "two.zip' contains 2 files (a.csv, b.csv), but must contain exactly one" in refused("two.zip")


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst", "zip"])
def test_archives_that_are_damaged_or_too_large_are_refused(
    project: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / f"a.csv.{packing}"
    pack(path, CONTENTS["csv"] * 1_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"a.csv.{packing}'" in refused(path.name)
    path.write_bytes(b"id,name\n1,a\n")
    assert "cannot be unpacked" in refused(path.name)
    monkeypatch.setattr(compression, "_ALWAYS_BYTES", 10_000)
    monkeypatch.setattr(compression, "_MOST_RATIO", 2)
    path.write_bytes(whole)
    message = refused(path.name)
    assert "unpacks to more than" in message
    left = [item for item in (project.parent / "home").rglob("*") if item.is_file() and "copies" in item.parts]
    assert left == []


def test_copies_of_what_a_file_held_before_are_removed_in_time(project: Path, tmp_path: Path) -> None:
    copies = tmp_path / "home" / "cache" / "copies"
    for turn in range(3):
        pack(project / "a.csv.gz", f"x\n{turn}\n".encode())
        assert read("a.csv.gz").collect()["x"].to_list() == [turn]
        assert len(list(copies.iterdir())) == 1
        for copy in copies.iterdir():
            os.utime(copy, (0, 0))
    assert read("a.csv.gz").collect()["x"].to_list() == [2]


def test_an_error_in_a_compressed_file_names_it(project: Path) -> None:
    pack(project / "a.csv.gz", b"x,y\n1,2\n2,3\n3,4\noops,5\n")
    assert "row 4 of" in refused("a.csv.gz")
    assert "project/a.csv.gz' contains 'oops'" in refused("a.csv.gz")


def test_folders_name_columns(project: Path) -> None:
    for year in (2024, 2025):
        for month in ("01", "12"):
            folder = project / "flights" / f"year={year}" / f"month={month}"
            folder.mkdir(parents=True)
            for form in ("parquet", "csv", "jsonl"):
                getattr(TABLE, {"parquet": "write_parquet", "csv": "write_csv", "jsonl": "write_ndjson"}[form])(
                    folder / f"part.{form}"
                )
    for form in ("parquet", "csv", "jsonl"):
        found = read(f"flights/**/*.{form}").collect()
        assert found.columns == ["id", "name", "year", "month"]
        assert (found.schema["year"], found.schema["month"]) == (pl.Int64(), pl.String())
        assert found["month"].to_list() == ["01"] * 3 + ["12"] * 3 + ["01"] * 3 + ["12"] * 3
    one = read("flights/year=2025/month=12/part.csv").collect()
    assert one["year"].to_list() == [2025] * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], [1, 2]),
        (["1", "x"], ["1", "x"]),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None]),
        (["2025-01-05", "2025-02-01"], [date(2025, 1, 5), date(2025, 2, 1)]),
        (["S%C3%A3o Paulo", "a%2Fb"], ["São Paulo", "a/b"]),
        (["NA", "DE"], ["NA", "DE"]),
        (["1.5", "2"], [1.5, 2.0]),
        (["9" * 25, "1"], ["9" * 25, "1"]),
    ],
)
def test_values_of_folders_have_sensible_types(project: Path, values: list[str], expected: list[Any]) -> None:
    for value in values:
        (project / "set" / f"k={value}").mkdir(parents=True)
        pl.DataFrame({"x": [1]}).write_parquet(project / "set" / f"k={value}" / "a.parquet")
    assert sorted(read("set").collect()["k"].to_list(), key=str) == sorted(expected, key=str)


def test_folders_that_contradict_are_refused(project: Path) -> None:
    for folder in ("k=1", "k=2"):
        (project / folder).mkdir()
        pl.DataFrame({"x": [1], "k": [1]}).write_parquet(project / folder / "a.parquet")
    assert "has 1 in column 'k', but its folder is called 'k=2'" in refused("k=*/*.parquet")
    assert read("k=1/a.parquet").collect().columns == ["x", "k"]
    (project / "other").mkdir()
    pl.DataFrame({"x": [1], "k": [1]}).write_parquet(project / "other" / "a.parquet")
    assert "name the columns" in refused("k=1/a.parquet", "other/a.parquet")


AT = datetime(2026, 1, 5, 10)
LONG = 10**5_000
"""An integer that Python does not convert to text."""


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (pl.Series([1, 2], dtype=pl.Int8), pl.Series([300], dtype=pl.Int16), pl.Int16()),
        (pl.Series([1], dtype=pl.Int32), pl.Series([1], dtype=pl.UInt32), pl.Int64()),
        (pl.Series([-1], dtype=pl.Int64), pl.Series([1], dtype=pl.UInt64), pl.Int64()),
        (pl.Series([None]), pl.Series(["x"]), pl.String()),
        (pl.Series([1.5], dtype=pl.Float32), pl.Series([1], dtype=pl.Int64), pl.Float64()),
        (pl.Series([AT], dtype=pl.Datetime("ms")), pl.Series([AT], dtype=pl.Datetime("ns")), pl.Datetime("ns")),
        (
            pl.Series([AT], dtype=pl.Datetime("ms", "UTC")),
            pl.Series([AT], dtype=pl.Datetime("us", "UTC")),
            pl.Datetime("us", "UTC"),
        ),
        (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"]), pl.String()),
        (pl.Series(["a"], dtype=pl.Enum(["a"])), pl.Series(["b"], dtype=pl.Enum(["b"])), pl.Categorical()),
        (pl.Series([[1]], dtype=pl.List(pl.Int8)), pl.Series([[2]], dtype=pl.List(pl.Int64)), pl.List(pl.Int64)),
        (pl.Series([[]], dtype=pl.List(pl.Null)), pl.Series([["x"]]), pl.List(pl.String)),
        (
            pl.Series([{"a": 1}], dtype=pl.Struct({"a": pl.Int8})),
            pl.Series([{"a": 2}], dtype=pl.Struct({"a": pl.Int32})),
            pl.Struct({"a": pl.Int32}),
        ),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_files_of_a_set_are_unified(
    project: Path, one: pl.Series, other: pl.Series, together: pl.DataType, form: str
) -> None:
    write = "write_parquet" if form == "parquet" else "write_ipc"
    for first, second in ((one, other), (other, one)):
        getattr(pl.DataFrame({"x": first}), write)(project / f"1.{form}")
        getattr(pl.DataFrame({"x": second}), write)(project / f"2.{form}")
        found = read(f"*.{form}").collect()["x"]
        assert found.dtype == together
        assert found.to_list() == [*first.to_list(), *second.to_list()]


def test_what_does_not_go_together_keeps_its_values(project: Path) -> None:
    for other in (pl.Series(["1.5"]), pl.Series([AT]), pl.Series([True])):
        pl.DataFrame({"x": [1]}).write_parquet(project / "1.parquet")
        pl.DataFrame({"x": other}).write_parquet(project / "2.parquet")
        message = refused("*.parquet")
        assert "Column 'x' is int64 in" in message
        assert "schema_overrides={'x': pl.String}" in message
        assert read("*.parquet", schema_overrides={"x": pl.String}).collect()["x"].null_count() == 0
    pl.DataFrame({"x": [datetime(3000, 1, 1)]}).write_parquet(project / "1.parquet")
    pl.DataFrame({"x": [AT]}).cast(pl.Datetime("ns")).write_parquet(project / "2.parquet")
    assert "another file has nanoseconds, which only reach from 1678 to 2262" in refused("*.parquet")
    pl.DataFrame({"x": [2**63]}, schema={"x": pl.UInt64}).write_parquet(project / "1.parquet")
    pl.DataFrame({"x": [-1]}).write_parquet(project / "2.parquet")
    assert "int64 cannot hold both" in refused("*.parquet")
    pl.DataFrame({"x": [2**127]}, schema={"x": pl.UInt128}).write_parquet(project / "1.parquet")
    assert "int128 cannot hold both" in refused("*.parquet")
    pl.DataFrame({"x": [1.5]}).write_parquet(project / "2.parquet")
    assert read("*.parquet").collect()["x"].to_list() == [float(2**127), 1.5]
    pl.DataFrame({"x": [2**64 - 1]}, schema={"x": pl.UInt64}).write_parquet(project / "2.parquet")
    assert read("*.parquet").collect()["x"].to_list() == [2**127, 2**64 - 1]
    with pytest.raises(UsageError, match="Did you mean 'x'"):
        read("2.parquet", schema_overrides={"xx": pl.String})
    assert "which int8 cannot hold" in refused("1.parquet", schema_overrides={"x": "int8"})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ['{"a": 9007199254740993}', '{"a": 0.5}'],
            "line 1 of '{}' contains 9007199254740993, which float64 cannot hold",
        ),
        (
            ['{"a": 0.5}', '{"a": 9007199254740993}'],
            "line 2 of '{}' contains 9007199254740993, which float64 cannot hold",
        ),
        (['{"a": true}', '{"a": 1}'], "Column 'a' is bool, but line 2 of '{}' contains 1 (int64)"),
        (['{"a": 1}', '{"a": [1]}'], "Column 'a' is int64, but line 2 of '{}' contains [1] (list)"),
        (['{"a": [1]}', '{"a": ["x"]}'], "Column 'a[]' is int64, but line 2 of '{}' contains 'x' (string)"),
        (['{"a": {"b": 1}}', '{"a": {"b": "x"}}'], "Column 'a.b' is int64, but line 2 of '{}' contains 'x' (string)"),
        (['{"a": {"b": 1}}', '{"a": 5}'], "Column 'a' is struct, but line 2 of '{}' contains 5 (int64)"),
        (['{"a": 1, "b": 2}', '{"a": 1, "a": 2}'], "Line 2 of '{}' has the key 'a' twice"),
        (['{"a": {"b": 1, "b": 2}}'], "Line 1 of '{}' has the key 'b' twice"),
        (
            ['{"a": 1}', '{"a": 123456789012345678901234567890}'],
            "line 2 of '{}' contains 123456789012345678901234567890",
        ),
        (
            ['{"a": 1}', '{"a": NaN}'],
            "Line 2 of '{}' is not valid JSON: it contains NaN, Infinity or a number out of range",
        ),
        (
            ['{"a": 1}', '{"a": 1e400}'],
            "Line 2 of '{}' is not valid JSON: it contains NaN, Infinity or a number out of range",
        ),
    ],
)
def test_json_values_that_do_not_fit_are_named(project: Path, lines: list[str], said: str) -> None:
    (project / "a.jsonl").write_text("\n".join(lines))
    assert said.format(project / "a.jsonl") in refused("a.jsonl")
    usual = '{"z": 0.5}\n'
    (project / "b.jsonl").write_text(usual * 3 + "\n".join(lines))
    message = refused("b.jsonl")
    assert "b.jsonl'" in message
    assert any(f"ine {number} of" in message for number in (4, 5))
    (project / "c.json").write_text(f"[{', '.join(lines)}]")
    assert "c.json'" in refused("c.json")


def test_json_values_can_be_taken_as_written(project: Path) -> None:
    (project / "a.jsonl").write_text('{"a": 9007199254740993}\n{"a": 0.5}\n')
    assert read("a.jsonl", schema_overrides={"a": pl.String}).collect()["a"].to_list()[0] == "9007199254740993"
    (project / "b.jsonl").write_text('{"a": {"b": 1}}\n{"a": {"c": [1.5, 2]}}\n{"a": null}\n')
    assert read("b.jsonl").collect().height == 3


def test_long_whole_numbers_of_json_are_kept(project: Path) -> None:
    (project / "a.jsonl").write_text('{"a": 9223372036854775808}\n{"a": 1}\n')
    found = read("a.jsonl").collect()["a"]
    assert (found.dtype, found.to_list()) == (pl.UInt64(), [2**63, 1])
    (project / "a.json").write_text('[{"a": 9223372036854775808}, {"a": 1}]')
    assert read("a.json").collect()["a"].to_list() == [2**63, 1]


def test_keys_that_differ_between_json_files(project: Path) -> None:
    (project / "1.jsonl").write_text('{"delay": 1}\n{"delay": 2, "n": 1}\n')
    (project / "2.jsonl").write_text('{"dleay": 1, "n": 1}\n')
    message = refused("*.jsonl")
    assert "2.jsonl' has no key 'delay', which line 1 of" in message
    assert "Did you mean 'dleay'" in message
    (project / "2.jsonl").write_text('{"n": 1}\n{"n": 2.5, "delay": 0, "note": "x"}\n')
    assert "1.jsonl' has no key 'note', which line 2 of" in refused("*.jsonl")
    found = read("*.jsonl", schema_overrides={"note": "string"}).collect()
    assert found.rows() == [(1, None, None), (2, 1.0, None), (None, 1.0, None), (0, 2.5, "x")]
    assert read("*.jsonl", missing_columns="insert").collect().height == 4
    (project / "2.jsonl").write_text('{"delay": "late", "n": 1}\n')
    assert "Column 'delay' is int64, but line 1 of" in refused("*.jsonl")
    (project / "1.jsonl").write_text('{"a": {"b": 1}}\n')
    (project / "2.jsonl").write_text('{"a": {"c": "x"}}\n')
    assert read("*.jsonl").collect()["a"].to_list() == [{"b": 1, "c": None}, {"b": None, "c": "x"}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"a": 2**53 + 1}, {"a": 0.5}],
            "because row 2 has a fraction, but row 1 contains 9007199254740993, which float64 cannot hold",
        ),
        ([{"a": True}, {"a": 1}], "Column 'a' is bool, but row 2 contains 1 (int64)"),
        ([{"a": [1]}, {"a": ["x"]}], "Column 'a[]' is int64, but row 2 contains 'x' (string)"),
        ([{"a": {"b": 1}}, {"a": {"b": None}}, {"a": {"b": "x"}}], "Column 'a.b' is int64, but row 3 contains 'x'"),
        ([{"a": 1}, {"a": 2**70}], "row 2 contains 1180591620717411303424, which int64 cannot hold"),
        ([{"a": -1}, {"a": 2**63}], "row 2 contains 9223372036854775808, which int64 cannot hold"),
        ([{"a": LONG}], "Column 'a' is int64, but row 1 contains a number of more than 4,300 digits, which int64"),
        ([{"a": "x"}, {"a": LONG}], "Column 'a' is string, but row 2 contains a number of more than 4,300 digits"),
        ([{"a": 1}, {"a": {"b": [LONG]}}], "Column 'a' is int64, but row 2 contains a dict with a number of more"),
        ([{"a": [LONG]}], "Column 'a[]' is int64, but row 1 contains a number of more than 4,300 digits"),
        ([{"a": AT}, {"a": date(2026, 1, 1)}], "Column 'a' is timestamp[us], but row 2 contains 2026-01-01 (date)"),
        ([{"a": AT}, {"a": AT.astimezone()}], "timestamp[us, UTC]"),
    ],
)
def test_rows_of_dicts_keep_the_same_promises(rows: list[dict[str, Any]], said: str) -> None:
    assert said in refused(rows, columns=["a"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": 1, 2: 3}], "Row 1 has the key 2, which is not a string"),
        ([{LONG: 1}], "Row 1 has the key a number of more than 4,300 digits, which is not a string"),
        ([{"a": 1}, [LONG]], "Row 2 is a list with a number of more than 4,300 digits, but each row must be a dict"),
        ([{}, {}], "The rows have no keys"),
        ([{"a": None}, {"a": 1j}], "Column 'a' of row 2 contains 1j, a complex"),
        ([{"a": Decimal("1e50")}], "The rows do not form a table"),
    ],
)
def test_rows_that_no_table_can_hold_are_refused(rows: list[Any], said: str) -> None:
    assert said in refused(rows)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("long.json", '[{"a": 1, "b": 2}, {"a": -1SO_LONG}]', "Column 'a' is int64, but object 2 of "),
        ("long.json", '[{"a": {"b": 1SO_LONG}}]', "Column 'a.b' is int64, but object 1 of "),
        ("long.jsonl", '{"a": 1}\n{"a": 1SO_LONG}\n', "long.jsonl' is not valid JSON: it contains NaN, Infinity or a"),
    ],
)
def test_numbers_that_python_cannot_read_are_refused(project: Path, name: str, text: str, said: str) -> None:
    (project / name).write_text(text.replace("SO_LONG", "0" * 5_000))
    assert said in refused(name)


def test_numbers_of_numpy_go_with_those_of_python() -> None:
    np = pytest.importorskip("numpy")
    found = read([{"a": np.int64(1), "b": np.float32(1.5)}, {"a": 2, "b": 2}]).collect()
    assert found.rows() == [(1, 1.5), (2, 2.0)]


def test_a_query_keeps_the_same_promises(project: Path) -> None:
    import sqlite3

    with sqlite3.connect(project / "a.db") as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(0.5,), (2**53 + 1,)])
    connection.close()
    said = refused("sqlite:///a.db", query="SELECT a FROM t")
    assert "because row 1 has a fraction, but row 2 contains 9007199254740993, which float64 cannot hold" in said
    assert "CAST the column" in said
