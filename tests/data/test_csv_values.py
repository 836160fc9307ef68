"""The type of a csv column follows from all of its values, and never from their order."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.data import add_table, read
from everloop.data.sources.reading_notes import collect_notes
from everloop.errors import EverloopError, SourceError, UsageError
from everloop.stores import Store

LONG = 3_000  # rows, more than are looked at first
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv("EVERLOOP_PROJECT", str(folder))
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "home"))
    return folder


def column(folder: Path, values: list[str], name: str = "a.csv", **options: Any) -> pl.Series:
    (folder / name).write_text("x,row\n" + "".join(f"{value},{row}\n" for row, value in enumerate(values)))
    return read(name, **options).collect()["x"]


def outcome(folder: Path, values: list[str], **options: Any) -> tuple[str, Any]:
    """The type and the sorted values, or the error message without the row."""
    try:
        found = column(folder, values, **options)
    except SourceError as error:
        return "error", error.message.split(" row ")[0] + error.message.split(" contains ")[-1]
    return str(found.dtype), sorted(map(repr, found.to_list()))


WHOLE = st.integers(-(10**17), 10**17).map(str)
FRACTION = st.floats(allow_nan=False, allow_infinity=False).map(repr)
DAY = st.dates(date(1000, 1, 1)).map(date.isoformat)
MOMENT = st.datetimes(datetime(1000, 1, 1)).map(lambda at: at.isoformat(timespec="microseconds"))
ZONED = st.datetimes(datetime(1000, 1, 2), timezones=st.just(UTC)).map(datetime.isoformat)
BOOL = st.sampled_from(["true", "false", "True", "FALSE"])
KINDS = (WHOLE, FRACTION, DAY, MOMENT, ZONED, BOOL)
NULL = st.sampled_from(["", " ", "   ", "NA", "N/A", "NULL", "null", "nan", "NaN", "-", "n/a", "None", "#N/A", "?"])
ODD = st.sampled_from(
    ["oops", "007", "-007", "007.50", "+5", "12 kg", "2026-02-30", "01/02/2026", "x-1", "1_000", "0x1F"]
)


@pytest.mark.slow
@FEW
@given(st.data())
def test_a_type_does_not_depend_on_where_a_value_stands(project: Path, data: st.DataObject) -> None:
    usual = data.draw(st.sampled_from(KINDS))
    values = data.draw(st.lists(usual, min_size=2, max_size=8))
    odd = data.draw(st.lists(NULL | ODD, min_size=1, max_size=2))
    many = [*values * (LONG // len(values)), *odd]
    shuffled = random.Random(0).sample(many, len(many))
    first = outcome(project, [*odd, *many[: -len(odd)]])
    assert first == outcome(project, many)
    assert first == outcome(project, shuffled)


@pytest.mark.slow
@FEW
@given(st.sampled_from(KINDS).flatmap(lambda kind: st.lists(kind, min_size=1, max_size=20)), st.lists(NULL, max_size=5))
def test_missing_values_change_no_type(project: Path, values: list[str], nulls: list[str]) -> None:
    clean, mixed = column(project, values), column(project, [*nulls, *values])
    assert mixed.dtype == clean.dtype
    assert mixed.null_count() == len(nulls)
    assert mixed.drop_nulls().to_list() == clean.to_list()


@pytest.mark.slow
@FEW
@given(st.lists(st.sampled_from(["1", "2.5", "NA", "-", " ", "7"]), min_size=2, max_size=12), st.data())
def test_a_type_does_not_depend_on_how_rows_are_cut_into_files(
    project: Path, values: list[str], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(values) - 1))
    whole = column(project, values)
    column(project, values[:cut], "part-1.csv")
    column(project, values[cut:], "part-2.csv")
    parts = read("part-*.csv").collect()["x"]
    assert (parts.dtype, parts.to_list()) == (whole.dtype, whole.to_list())


def test_missing_values_are_noted(project: Path) -> None:
    with collect_notes() as notes:
        found = column(project, ["1", " ", "NA", "2.5", "   ", "-", "NA"])
    assert found.to_list() == [1.0, None, None, 2.5, None, None, None]
    assert [str(one) for one in notes] == ["'x': 2 blank values read as null", "'x': 3 values read as null: '-', 'NA'"]
    with collect_notes() as notes:
        assert column(project, ["1", "", "2"]).to_list() == [1, None, 2]
        assert column(project, ["Oslo", "NA", "-", " "]).to_list() == ["Oslo", "NA", "-", " "]
    assert notes == []


def test_what_means_null_can_be_named(project: Path) -> None:
    assert column(project, ["1", "oops", "NA"], null_values=["oops"]).to_list() == [1, None, None]
    assert column(project, ["Oslo", "NA"], null_values=["NA"]).to_list() == ["Oslo", None]
    assert column(project, ["a", "9"], null_values={"x": "9"}).to_list() == ["a", None]
    with pytest.raises(SourceError, match=r"row 2 of .* contains 'NA'"):
        column(project, ["1", "NA", "2"], null_values=[])
    assert column(project, ["1.5", "nan"], null_values=[])[1] != column(project, ["1.5", "nan"], null_values=[])[1]
    with pytest.raises(UsageError, match="zz"):
        column(project, ["1"], null_values={"zz": "9"})


def test_a_text_among_numbers_is_an_error_and_many_are_text(project: Path) -> None:
    numbers = [str(n) for n in range(LONG)]
    for place in (0, 1, LONG // 2, LONG - 1):
        with pytest.raises(SourceError, match=rf"is int64, but row {place + 1} of .* contains 'oops'"):
            column(project, [*numbers[:place], "oops", *numbers[place:]])
    tickets = [*numbers[:600], *(f"A/{n}" for n in range(200))]
    with collect_notes() as notes:
        assert column(project, tickets).to_list() == tickets
    assert str(notes[0]).startswith("'x': kept as text, because 200 of 800 values are not numbers, such as 'A/0'")
    assert column(project, ["A1", "B2", "7"]).to_list() == ["A1", "B2", "7"]


def test_times_finer_than_microseconds_are_refused(project: Path) -> None:
    with pytest.raises(
        SourceError, match=r"row 2 of .* contains '2026-01-05T10:00:00.1234567', which timestamp\[us\] cannot"
    ):
        column(project, ["2026-01-05T10:00:00", "2026-01-05T10:00:00.1234567"])
    fine = column(project, ["2026-01-05T10:00:00.123456789"], schema_overrides={"x": pl.Datetime("ns")})
    assert fine.dt.nanosecond().to_list() == [123456789]
    assert column(project, ["2026-01-05T10:00:00.123456000"]).to_list() == [datetime(2026, 1, 5, 10, 0, 0, 123456)]
    kept = column(project, ["2026-01-05T10:00:00.1234567"], schema_overrides={"x": "string"})
    assert kept.to_list() == ["2026-01-05T10:00:00.1234567"]


def test_a_type_that_is_named_holds_every_value(project: Path) -> None:
    assert column(project, ["007", "8"], schema_overrides={"x": "int64"}).to_list() == [7, 8]
    assert column(project, ["1.50", "NA"], schema_overrides={"x": "decimal[10, 2]"}).dtype == pl.Decimal(10, 2)
    assert column(project, ["1", "0", "true"], schema_overrides={"x": bool}).to_list() == [True, False, True]
    with pytest.raises(SourceError, match=r"is date, but row 2 of .* contains '01/02/2026'"):
        column(project, ["2026-01-01", "01/02/2026"], schema_overrides={"x": pl.Date})
    with pytest.raises(UsageError, match="no column 'y', which an option names"):
        column(project, ["1"], schema_overrides={"y": pl.Int64})


def test_blank_lines_are_not_rows(project: Path) -> None:
    (project / "a.csv").write_text('\nx,y\n1,"two\n\nlines"\n\n   \n2,b\n\n')
    assert read("a.csv").collect().rows() == [(1, "two\n\nlines"), (2, "b")]
    (project / "a.csv").write_text("x\n1\n\n2\n")
    assert read("a.csv").collect()["x"].to_list() == [1, 2]
    (project / "a.tsv").write_text("x\ty\n1\ta\n\t\n\n2\tb\n")
    assert read("a.tsv").collect().rows() == [(1, "a"), (None, None), (2, "b")]
    (project / "a.csv").write_text("x,y\n1,2\n\n3,oops\n5,6\n7,8\n")
    with pytest.raises(SourceError, match=r"row 2 of '.*/project/a.csv' contains 'oops'"):
        read("a.csv")


@pytest.mark.parametrize(
    ("text", "said", "options"),
    [
        ("# made by hand\nx,y\n1,2\n3,4\n", "begins with a comment: '# made by hand'", {"comment_prefix": "#"}),
        ("# one\n# two, with a comma\nx,y,z\n1,2,3\n", "begins with a comment", {"comment_prefix": "#"}),
        ("Report of May\n\nx,y\n1,2\n3,4\n", "If the header is 'x,y'", {"skip_rows": 1}),
    ],
)
def test_lines_before_the_header_get_advice_that_works(
    project: Path, text: str, said: str, options: dict[str, Any]
) -> None:
    (project / "a.csv").write_text(text)
    with pytest.raises(SourceError) as caught:
        read("a.csv")
    assert said in str(caught.value)
    (name, value), *_ = options.items()
    assert f"{name}={value!r}" in str(caught.value.help)
    assert read("a.csv", **options).collect().rows()[0][:2] == (1, 2)


def test_a_header_that_begins_with_a_hash_is_a_header(project: Path) -> None:
    (project / "a.csv").write_text("#id,y\n1,2\n")
    assert read("a.csv").collect().columns == ["#id", "y"]


def test_columns_without_a_name_are_refused(project: Path) -> None:
    for text, said in (
        (",x\n0,1\n", "Column 1 of 2 in"),
        ("x,y,\n1,2,\n", "Column 3 of 3 in"),
        ("x, ,z\n1,2,3\n", "Column 2"),
    ):
        (project / "a.csv").write_text(text)
        with pytest.raises(SourceError, match=said) as caught:
            read("a.csv")
        names = ["a", "b", "c"][: text.splitlines()[0].count(",") + 1]
        assert "new_columns=" in str(caught.value.help)
        assert read("a.csv", new_columns=names).collect().columns == names


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (",x,y\n0,1,a\n1,2,b\n", ["x", "y"]),
        ("x,y,\n1,a,\n2,b,\n", ["x", "y"]),
        (",x, ,y,\n0,1,odd,a,\n1,2,,b,z\n", ["x", "y"]),
        ('"","x","y"\n0,1,"a"\n1,2,"b"\n', ["x", "y"]),
        ("\n,x,y\n0,1,a\n\n1,2,b\n", ["x", "y"]),
        ("x,y\n1,a\n2,b\n", ["x", "y"]),
    ],
)
def test_columns_without_a_name_are_left_out_with_drop_unnamed(project: Path, text: str, columns: list[str]) -> None:
    (project / "a.csv").write_text(text)
    found = read("a.csv", drop_unnamed=True).collect()
    assert found.to_dict(as_series=False) == {"x": [1, 2], "y": ["a", "b"]}
    assert found.columns == columns


def test_the_index_of_pandas_is_left_out_of_some_files_only(project: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5], "y": ["a", "b"]})
    frame.to_csv(project / "a.csv")
    frame.to_csv(project / "b.csv", index=False)
    with pytest.raises(SourceError, match="Column 1 of 3") as caught:
        read("*.csv")
    assert "drop_unnamed=True" in str(caught.value.help)
    assert "--drop-unnamed" in str(caught.value.option_help)
    found = read("*.csv", drop_unnamed=True).collect()
    assert found.to_dict(as_series=False) == {"x": [1.5, 2.5] * 2, "y": ["a", "b"] * 2}
    assert read("a.csv", drop_unnamed=True, columns=["y"]).collect().columns == ["y"]


def test_decimal_commas_are_read_with_the_option(project: Path) -> None:
    (project / "a.csv").write_text("x;y\n1,5;1\n-2;2\nNA;3\n")
    assert read("a.csv", separator=";", decimal_comma=True).collect()["x"].to_list() == [1.5, -2.0, None]
    (project / "a.csv").write_text("x;y\n1.234;1\n")
    assert read("a.csv", separator=";", decimal_comma=True).collect()["x"].to_list() == ["1.234"]


def test_a_decimal_comma_without_the_option_is_noted(project: Path) -> None:
    (project / "a.csv").write_text("x;y\n1,5;1\n2;2\n-3,25;3\n")
    with collect_notes() as notes:
        assert read("a.csv", separator=";").collect()["x"].to_list() == ["1,5", "2", "-3,25"]
    assert [str(one) for one in notes] == [
        "'x': kept as text, because numbers such as '1,5' in row 1 have a decimal comma"
    ]
    assert (notes[0].help, notes[0].option_help) == (
        "To read them as numbers, pass decimal_comma=True.",
        "To read them as numbers, pass --decimal-comma.",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"separator": "::"},
        {"separator": ""},
        {"quote_char": "''"},
        {"skip_rows": -1},
        {"null_values": 5},
        {"null_values": [5]},
        {"schema": ["x"]},
        {"schema_overrides": {"x": pl.List(pl.Int64)}},
        {"schema_overrides": {"x": "no such type"}},
        {"schema_overrides": {"x": 5}},
    ],
)
def test_options_that_make_no_sense_are_refused(project: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        column(project, ["1", "2"], **options)


def test_files_of_another_kind_are_not_taken_for_csv(project: Path) -> None:
    for content in (b"PK\x03\x04rest", b"\x1f\x8brest", b"PAR1rest"):
        (project / "a.csv").write_bytes(content)
        with pytest.raises(SourceError, match=r"a\.csv' is not a csv"):
            read("a.csv")


def test_advice_never_destroys_a_value(project: Path) -> None:
    for odd in ("2026-01-05 10:00:00", "01/02/2026"):
        with pytest.raises(SourceError) as caught:
            column(project, ["2026-01-05", "2026-01-06", odd])
        assert "null_values" not in str(caught.value.help)
        assert "schema_overrides={'x': pl.String}" in str(caught.value.help)


def test_notes_stand_beside_the_source_of_a_snapshot(project: Path, store: Store) -> None:
    (project / "a.csv").write_text("x,y\n1,a\nNA,b\n")
    kept = add_table("a.csv", "numbers", store)
    assert [source["notes"] for source in kept.sources] == [["'x': 1 value read as null: 'NA'"]]


def test_errors_name_the_file_and_not_its_copy(project: Path) -> None:
    (project / "a.csv").write_bytes("x,y\n1,é\n2,b\n3,c\noops,d\n".encode("cp1252"))
    with pytest.raises(EverloopError, match=r"row 4 of '.*/project/a.csv' contains 'oops'"):
        read("a.csv", encoding="cp1252")
