"""Bad input raises an error that names the file, the row and the rule, and is never coerced silently."""

from __future__ import annotations

import socket
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from everloop.data import add_table, read
from everloop.data.sources.reading_notes import collect_notes
from everloop.errors import SourceError, UsageError
from everloop.records import Snapshot
from everloop.stores import Store

HUGE = "9" * 44
LONG = 11_000  # rows, more than types are guessed from


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(folder))
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "home"))
    return folder


def write(folder: Path, content: str | bytes, name: str = "a.csv") -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def rows(source: Any, **options: Any) -> list[tuple[Any, ...]]:
    return read(source, **options).collect().rows()


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(source, **options).collect()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "separator"),
    [("a;b\n1,5;2\n2,5;3\n", ";"), ("a\tb\n1\t2\n", "\t"), ("a|b|c\n1|2|3\n4|5|6\n", "|")],
)
def test_another_separator_is_seen(project: Path, text: str, separator: str) -> None:
    message = refused(write(project, text))
    assert "a.csv' seems to be separated by" in message
    assert f"separator={separator!r}" in message
    assert read("a.csv", separator=separator).collect().width > 1


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("stadt;miete\nKöln;900,5\nBonn;800,0\n".encode("cp1252"), {"encoding": "cp1252", "separator": ";"}),
        ("straße;miete\nA;900,5\nB;800,0\n".encode("cp1252"), {"encoding": "cp1252", "separator": ";"}),
        (b"stadt;miete\n" + b"A;1\n" * LONG + "Köln;2\n".encode("cp1252"),
         {"encoding": "cp1252", "separator": ";"}),
        ("stadt\tmiete\nKöln\t900\n".encode("utf-16"), {"encoding": "utf-16", "separator": "\t"}),
        ("stadt\tmiete\nKöln\t900\n".encode("utf-16-le"), {"encoding": "utf-16-le", "separator": "\t"}),
        ("stadt,miete\nKöln,900\n".encode("cp1252"), {"encoding": "cp1252"}),
    ],
)  # fmt: skip
def test_encoding_and_separator_are_named_at_once(project: Path, content: bytes, options: dict[str, str]) -> None:
    name = write(project, content)
    with pytest.raises(SourceError) as caught:
        read(name).collect()
    arguments = ", ".join(f"{option}={value!r}" for option, value in options.items())
    assert f" {arguments}." in str(caught.value)
    assert "--encoding" in caught.value.option_help
    assert ("--separator" in caught.value.option_help) is ("separator" in options)
    assert read(name, **options).collect().width == 2


def test_a_single_text_column_is_accepted(project: Path) -> None:
    assert rows(write(project, "text\nhello; world\nyes\n")) == [("hello; world",), ("yes",)]


@pytest.mark.parametrize(
    ("content", "line", "encoding"),
    [
        ("a,b\n1,café\n".encode("cp1252"), 2, "cp1252"),
        ("a,café\n1,2\n".encode("cp1252"), 1, "cp1252"),
        (b"a,b\n" + b"1,ok\n" * LONG + "2,café\n".encode("cp1252"), LONG + 2, "cp1252"),
        ("a,b\n1,café\n".encode() + "2,café\n".encode("cp1252"), 3, "cp1252"),
    ],
)
def test_invalid_utf8_is_reported_with_its_line(project: Path, content: bytes, line: int, encoding: str) -> None:
    message = refused(write(project, content))
    assert f"Line {line} of" in message
    assert "a.csv' contains the byte 0xe9" in message
    assert f"encoding='{encoding}'" in message


def test_an_encoding_that_is_named_is_read(project: Path) -> None:
    for encoding, named in (("cp1252", "cp1252"), ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le")):
        name = write(project, "a,b\n1,café\n".encode(encoding), f"{encoding}.csv")
        if encoding.startswith("utf-16"):
            assert f"encoding='{named}'" in refused(name)
        assert rows(name, encoding=named) == [(1, "café")]
    with pytest.raises(UsageError, match="no encoding 'utf-61'"):
        read("cp1252.csv", encoding="utf-61")
    assert "is not in ascii" in refused("cp1252.csv", encoding="ascii")


def test_a_byte_order_mark_is_no_part_of_a_name(project: Path) -> None:
    for content in ("\ufeffa,b\n1,2\n", '\ufeff"a",b\n1,2\n'):
        assert read(write(project, content)).collect().columns == ["a", "b"]
    assert "not valid JSON: Unexpected UTF-8 BOM" in refused(write(project, '\ufeff{"a": 1}\n', "b.jsonl"))


def test_dates_in_five_formats_stay_texts(project: Path) -> None:
    said = ["2026-01-05", "05/01/2026", "5 Jan 2026", "20260105", "2026-01-05T00:00:00Z"]
    name = write(project, "day,x\n" + "".join(f"{one},1\n" for one in said))
    assert read(name).collect()["day"].to_list() == said
    assert "Row 2 of time column 'day' contains '05/01/2026', which is not a time in ISO 8601" in refused(
        name, event_time="day"
    )


def test_an_ambiguous_date_stays_text(project: Path) -> None:
    assert rows(write(project, "day,x\n01/02/2026,1\n03/04/2026,2\n")) == [("01/02/2026", 1), ("03/04/2026", 2)]
    assert rows(write(project, "day,x\n2026-01-02,1\n", "b.csv")) == [(date(2026, 1, 2), 1)]
    late = write(project, "day,x\n" + "2026-01-05,1\n" * LONG + "05/01/2026,1\n", "c.csv")
    assert f"Column 'day' is date, but row {LONG + 1} of" in refused(late)


@pytest.mark.parametrize(
    ("text", "row", "value"),
    [
        ("a,b\n9007199254740993,1\n" + "1,1\n" * LONG + "1.5,2\n", 1, "9007199254740993"),
        ("a,b\n1.5,1\n9007199254740993,2\n", 2, "9007199254740993"),
        ("a,b\n1.5,1\n1e400,2\n", 2, "1e400"),
        (
            f"a,b\n1,1\n{HUGE},2\n",
            2,
            HUGE,
        ),
        ("a,b\n" + "-1,1\n" * LONG + "9223372036854775808,2\n", LONG + 1, "9223372036854775808"),
        ("a,b\n1.5,1\n1e-400,2\n", 2, "1e-400"),
    ],
)
def test_a_number_that_does_not_fit_is_not_rounded(project: Path, text: str, row: int, value: str) -> None:
    message = refused(write(project, text))
    assert f"row {row} of" in message
    assert f"a.csv' contains '{value}'" in message
    assert read("a.csv", schema_overrides={"a": pl.String}).collect()["a"].to_list()[row - 1] == value


def test_what_fits_is_kept_exactly(project: Path) -> None:
    assert rows(write(project, "a,b\n9223372036854775808,1\n1,2\n")) == [(9223372036854775808, 1), (1, 2)]
    late = write(project, "a,b\n" + "1,1\n" * LONG + "9223372036854775808,2\n", "d.csv")
    assert rows(late)[-1] == (9223372036854775808, 2)
    assert rows(write(project, "a,b\n9007199254740994,1\n1.5,2\n", "b.csv")) == [(9007199254740994.0, 1), (1.5, 2)]
    assert rows(write(project, "a,b\ninf,1\n1.5,2\n", "c.csv"))[1] == (1.5, 2)


def test_zeros_in_front_are_kept(project: Path) -> None:
    assert rows(write(project, "zip,n\n01234,0\n99999,1\n")) == [("01234", 0), ("99999", 1)]
    late = write(project, "zip,n\n" + "99999,1\n" * LONG + "01234,1\n", "b.csv")
    with collect_notes() as notes:
        assert rows(late)[-1] == ("01234", 1)
    assert [str(one) for one in notes] == [
        f"'zip': kept as text, because row {LONG + 1} of '{project}/b.csv' contains '01234'"
    ]
    for text in ("-007", "007.50", "+5", "+0.5", "00"):
        assert rows(write(project, f"a,b\n1,1\n{text},2\n2.5,3\n")) == [("1", 1), (text, 2), ("2.5", 3)]


def test_a_header_that_says_one_name_twice(project: Path) -> None:
    assert "a.csv' has two columns called 'x'" in refused(write(project, "x,y,x\n1,2,3\n"))


def test_lines_and_quotes_that_do_not_end(project: Path) -> None:
    assert "end in CR alone" in refused(write(project, "a,b\r1,2\r"))
    assert rows("a.csv", eol_char="\r") == [(1, 2)]
    unclosed = refused(write(project, 'a,b\nx,0\n"x,1\ny,2\n', "b.csv"))
    assert "Row 2 of" in unclosed
    assert "b.csv' has a quote that is never closed: '\"x,1'" in unclosed
    two = refused(write(project, 'a,b\n1,"x\n2,y\n3,"z\n', "c.csv"))
    assert "Row 1 of" in two
    assert "a closing quote that is not followed by ','" in two
    inside = refused(write(project, 'a,b\n1,ok\n2,5" nail\n3,x\n', "d.csv"))
    assert "Row 2 of" in inside
    assert "single quote character inside a value: '5\" nail'" in inside
    assert rows("d.csv", quote_char=None)[1] == (2, '5" nail')


def test_columns_that_differ_between_files(project: Path) -> None:
    write(project, "delay,id\n1,2\n", "1.csv")
    for text, said in (
        ("id,delay\n7,8\n", None),
        ("delays,id\n1,2\n", "2.csv' has no column 'delay', which .*Did you mean 'delays'"),
        ("delay,id,x\n1,2,3\n", "1.csv' has no column 'x', which .*2.csv' has"),
        ("delay\n1\n", "2.csv' has no column 'id', which .*1.csv' has"),
        ("delay,id\nlate,2\n", "'delay' is int64 in .*1.csv' but string in .*2.csv'"),
        ("delay,id\n1.5,2\n", None),
    ):
        write(project, text, "2.csv")
        if said is None:
            assert read("*.csv").collect().columns == ["delay", "id"]
            continue
        with pytest.raises(SourceError, match=said):
            read("*.csv")
    write(project, "id,delay\n7,8\n", "2.csv")
    assert rows("*.csv") == [(1, 2), (8, 7)]
    write(project, "delay,id\n9007199254740993,2\n", "1.csv")
    write(project, "delay,id\n1.5,2\n", "2.csv")
    assert "row 1 of" in refused("*.csv")


def test_numbers_that_differ_between_parquet_files(project: Path) -> None:
    pl.DataFrame({"a": [2**53 + 1]}).write_parquet(project / "1.parquet")
    pl.DataFrame({"a": [1.5]}).write_parquet(project / "2.parquet")
    assert "contains 9007199254740993 in" in refused("*.parquet")
    pl.DataFrame({"a": [2**53]}).write_parquet(project / "1.parquet")
    assert rows("*.parquet") == [(float(2**53),), (1.5,)]
    pl.DataFrame({"a": [1]}).cast(pl.Decimal(10, 2)).write_parquet(project / "1.parquet")
    assert "Column 'a' is decimal[10, 2]" in refused("*.parquet")


def test_json_values_of_two_types(project: Path) -> None:
    message = refused(write(project, '{"a": "x", "b": {"a": 5}}\n{"a": "y \\"a\\": 7"}\n{"a": 1}\n', "a.jsonl"))
    assert "Column 'a' is string, but line 3 of" in message
    assert "a.jsonl' contains 1" in message
    assert rows("a.jsonl", schema_overrides={"a": pl.String})[2][0] == "1"
    assert "object 2 of" in refused(write(project, '[{"a": "x"}, {"a": 7}]', "b.json"))
    assert rows(write(project, '{"a": "x \\"a\\": 7"}\n{"a": null}\n', "c.jsonl")) == [('x "a": 7',), (None,)]


def test_empty_files_of_every_kind(project: Path) -> None:
    for name in ("a.csv", "a.parquet", "a.arrow", "a.json", "a.jsonl"):
        message = refused(write(project, b"", name))
        assert name in message
    pl.DataFrame({"a": []}, schema={"a": pl.Int64}).write_parquet(project / "b.parquet")
    assert rows("b.parquet") == []


def test_clocks_that_are_set_forward_and_back(project: Path) -> None:
    def at(*hours: str) -> str:
        return write(project, "t,n\n" + "".join(f"{hour},1\n" for hour in hours))

    name = at("2026-03-29T01:30:00", "2026-03-29T03:30:00")
    berlin = read(name, event_time="t", time_zone="Europe/Berlin").collect()["t"]
    assert berlin.to_list() == [datetime(2026, 3, 29, 0, 30, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]
    assert read(name, event_time="t").collect()["t"][0] == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    skipped = at("2026-03-29T01:30:00", "2026-03-29T02:30:00")
    message = refused(skipped, event_time="t", time_zone="Europe/Berlin")
    assert "Row 2 of time column 't' contains 2026-03-29 02:30:00, which does not exist in Europe/Berlin" in message
    doubled = at("2026-10-25T02:30:00")
    assert "which occurs twice in Europe/Berlin" in refused(doubled, event_time="t", time_zone="Europe/Berlin")
    with pytest.raises(UsageError, match="no time zone 'Europe/Berlni'"):
        read(name, event_time="t", time_zone="Europe/Berlni")
    # Times with an offset need no time zone.
    offsets = at("2026-03-29T01:00:00+01:00", "2026-03-29T03:30:00+02:00")
    moments = [datetime(2026, 3, 29, 0, 0, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]
    assert read(offsets, event_time="t", time_zone="Europe/Berlin").collect()["t"].to_list() == moments
    mixed = at("2026-03-29T01:00:00+01:00", "2026-03-29T03:30:00")
    assert read(mixed).collect()["t"].dtype == pl.String


def test_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_WAIT_S", "0")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]  # bound and not listening: refused at once
        message = refused(f"postgresql://me:secret@127.0.0.1:{port}/flights", query="SELECT 1")
    assert "The query failed on 'postgresql://me@127.0.0.1" in message
    assert "secret" not in message


def test_nothing_is_kept_of_what_was_refused(store: Store, project: Path) -> None:
    for text, options in (("id,x\n1,2\n1,3\n", {"key": "id"}), ("id,x\n1,2,3\n", {}), ("id\tx\n1\t2\n", {})):
        with pytest.raises(Exception, match=r"id|fields|tab"):
            add_table(project / write(project, text), "flights", store, **options)
    assert store.records.find(Snapshot) == []
