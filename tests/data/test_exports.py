"""Each export format reads back each type of column unchanged, or refuses it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes

import everloop as el
from everloop.data import export_table, take_snapshot
from everloop.errors import UsageError
from everloop.stores import Store, open_store

MORE = {
    "ns with a rest": pl.Series([1_001, None]).cast(pl.Datetime("ns")),
    "far": pl.Series([2**50, None]).cast(pl.Datetime("ms")),
    "float16": pl.Series([1.5, None], dtype=pl.Float16),
    "finite": pl.Series([0.1, -0.0, 5e-324, 1.7976931348623157e308, None]),
    "uint128": pl.Series([2**127, None], dtype=pl.UInt128),
    "floats": pl.Series([[0.1, None], None]),
    "odd floats": pl.Series([[0.1, float("nan")], None]),
    "tokens": pl.Series(
        [
            "NA",
            "-",
            " ",
            "",
            "null",
            "007",
            'a"b',
            "a,b",
            "two\nlines",
            "cr\rx",
            None,
            "#x",
            "1",
            "\ufeffz",
            "true",
            "a\0b",
        ]
    ),
}
NOT_IN_CSV = {
    "duration",
    "duration_ms",
    "binary",
    "null",
    "list",
    "times",
    "nothing",
    "array",
    "struct",
    "floats",
    "odd floats",
    "float32",
    "float64",
    "far",
}
NOT_IN_JSON = {
    *("duration", "duration_ms", "binary", "time", "times", "decimal", "long", "uint128"),
    *("float32", "float64", "extremes", "odd floats", "far", "int128"),
}


def exported(values: pl.DataFrame, store: Store, path: Path) -> Path:
    return export_table(take_snapshot(values, "d", store), store, path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
def test_a_format_holds_a_column_or_refuses_it_by_name(
    store: Store, tmp_path: Path, every_type: dict[str, pl.Series], suffix: str
) -> None:
    refused = {".csv": NOT_IN_CSV, ".jsonl": NOT_IN_JSON}.get(suffix, set())
    assert refused <= every_type.keys() | MORE.keys()
    for place, (name, values) in enumerate((every_type | MORE).items()):
        table = pl.DataFrame([values.alias("odd"), pl.Series("row", range(len(values)))])
        path = tmp_path / f"{place}{suffix}"
        if name in refused:
            with pytest.raises(
                UsageError, match=r"'odd' of 'd@\d+' (is|contains) .*\.parquet and \.arrow support every type"
            ):
                exported(table, store, path)
            assert not list(tmp_path.glob(f"*{path.name}*")), "nothing is left behind"
            continue
        exported(table, store, path)
        dtype = table.schema["odd"]
        if suffix == ".jsonl" and dtype in (pl.Int8, pl.UInt8, pl.UInt16):
            again = el.read(path).select(pl.col("odd").cast(dtype), "row").collect()
        else:
            options: Any = {"schema": dict(table.schema)} if suffix in (".csv", ".jsonl") else {}
            again = el.read(path, **options).collect()
        assert_frame_equal(again, table, check_exact=True)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(dataframes(min_cols=1, max_cols=4, min_size=1, max_size=4, allow_null=True))
def test_parquet_and_arrow_hold_everything(tmp_path: Path, table: pl.DataFrame) -> None:
    with open_store(tmp_path / uuid4().hex) as store:
        for suffix in (".parquet", ".arrow"):
            path = exported(table, store, tmp_path / f"{uuid4().hex}{suffix}")
            assert_frame_equal(el.read(path).collect(), table, categorical_as_str=True)


def test_csv_says_what_its_lines_cannot(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'x', the only column of 'd@1', is null in 2 rows"):
        exported(pl.DataFrame({"x": [None, 1, None]}), store, tmp_path / "a.csv")
    with pytest.raises(UsageError, match="has no name"):
        exported(pl.DataFrame({"": [1], "y": [2]}), store, tmp_path / "b.csv")
    exported(pl.DataFrame({"x": ["", "a"]}), store, tmp_path / "c.csv")
    assert el.read(tmp_path / "c.csv", schema={"x": pl.String}).collect()["x"].to_list() == ["", "a"]
