"""The types that a user names for the keys of a JSON file."""

from __future__ import annotations

from datetime import time
from decimal import Decimal

import polars as pl
import pytest

import everloop as el
from everloop.errors import EverloopError

LINES = '{"a": 1, "at": "10:20:30", "price": "1.50"}\n{"a": 2, "at": null, "price": 2.5}\n'
ARRAY = f"[{','.join(LINES.splitlines())}]"


@pytest.fixture(params=[("lines.jsonl", LINES), ("array.json", ARRAY)], ids=["lines", "array"])
def path(request, tmp_path):
    name, text = request.param
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16, pl.UInt64, pl.Float32])
@pytest.mark.parametrize("option", ["schema", "schema_overrides"])
def test_every_width_of_numbers_is_read(path, dtype, option):
    others = {"at": pl.String, "price": pl.String} if option == "schema" else {"price": pl.String}
    read = el.read(path, **{option: {"a": dtype, **others}}).collect()
    assert read["a"].dtype == dtype
    assert read["a"].to_list() == [1, 2]


def test_times_and_decimals_are_read_from_their_texts(path):
    read = el.read(path, schema_overrides={"at": pl.Time, "price": pl.Decimal(10, 2)}).collect()
    assert read["at"].to_list() == [time(10, 20, 30), None]
    assert read["price"].to_list() == [Decimal("1.50"), Decimal("2.50")]


@pytest.mark.parametrize(
    ("name", "dtype", "named"),
    [
        ("a", pl.Duration("us"), "'a' cannot be read as duration"),
        ("at", pl.Binary, "'at' cannot be read as"),
        ("price", pl.Decimal(10, 0), "'1.50', a value of 'price'|'2.5', a value of 'price'"),
        ("price", pl.Time, "cannot be read"),
        ("at", pl.Int8, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(path, name, dtype, named):
    with pytest.raises(EverloopError, match=named):
        el.read(path, schema_overrides={"price": pl.String, name: dtype}).collect()


def test_a_number_too_large_for_its_type_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 300}\n')
    with pytest.raises(EverloopError, match=r"x\.jsonl"):
        el.read(tmp_path / "x.jsonl", schema_overrides={"a": pl.Int8}).collect()
