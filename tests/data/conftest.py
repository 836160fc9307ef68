from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def every_type() -> dict[str, pl.Series]:
    """A column of three rows for each type that Polars has, and for names that could collide with ours."""
    paris = pl.Datetime("us", "Europe/Paris")
    # Two in the hour that the clocks of Paris show twice.
    twice = [datetime(2013, 10, 27, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    wide = [2**64 - 1, 0, None]
    return {
        "int8": pl.Series([-128, 127, None], dtype=pl.Int8),
        "uint8": pl.Series([255, 0, None], dtype=pl.UInt8),
        "uint16": pl.Series([65535, 0, None], dtype=pl.UInt16),
        "uint32": pl.Series([2**32 - 1, 0, None], dtype=pl.UInt32),
        "uint64": pl.Series(wide, dtype=pl.UInt64),
        "int64": pl.Series([-(2**63), 2**63 - 1, None]),
        "int128": pl.Series([2**100, -(2**127), None], dtype=pl.Int128),
        "float32": pl.Series([0.1, float("nan"), None], dtype=pl.Float32),
        "float64": pl.Series([-0.0, float("nan"), None]),
        "extremes": pl.Series([5e-324, float("-inf"), None]),
        "decimal": pl.Series([Decimal("1.50"), Decimal("-0.10"), None], dtype=pl.Decimal(12, 2)),
        "long": pl.Series([Decimal("9" * 38), Decimal(1), None], dtype=pl.Decimal(38, 0)),
        "date": pl.Series([date(1, 1, 1), date(9999, 12, 31), None]),
        "naive": pl.Series([datetime(2013, 1, 1, 0, 0, 0, 1), datetime(1, 1, 1), None]),
        "ms": pl.Series([datetime(2013, 1, 1), datetime(9999, 1, 1), None], dtype=pl.Datetime("ms")),
        "ns": pl.Series([datetime(2013, 1, 1, 0, 0, 0, 1), None, None], dtype=pl.Datetime("ns")),
        "zone": pl.Series([*twice, None]).dt.convert_time_zone("Europe/Paris").cast(paris),
        "time": pl.Series([time(23, 59, 59, 999_999), time(0), None]),
        "duration": pl.Series([timedelta(microseconds=-1), timedelta(days=9999), None]),
        "duration_ms": pl.Series([timedelta(days=-1), None, None], dtype=pl.Duration("ms")),
        "text": pl.Series(["", "ü\0", None]),
        "categorical": pl.Series(["b", "a", None], dtype=pl.Categorical),
        "enum": pl.Series(["b", "a", None], dtype=pl.Enum(["b", "a", 'c"]'])),
        "binary": pl.Series([b"", b"\xff\0", None]),
        "bool": pl.Series([True, False, None]),
        "null": pl.Series([None, None, None]),
        "list": pl.Series([[1, None], [], None], dtype=pl.List(pl.UInt8)),
        "times": pl.Series([[time(1)], [None], None], dtype=pl.List(pl.Time)),
        "nothing": pl.Series([[None], [], None], dtype=pl.List(pl.Null)),
        "array": pl.Series([[1.5, None], [0.0, -0.0], None], dtype=pl.Array(pl.Float32, 2)),
        "struct": pl.Series([{"a b": date(2013, 1, 1), "c": [wide[0]]}, {"a b": None, "c": None}, None],
                            dtype=pl.Struct({"a b": pl.Date, "c": pl.List(pl.UInt64)})),
        "event_at": pl.Series([1, 2, 3]),
        "Arrived_At": pl.Series([1, 2, 3]),
        "known_at": pl.Series([1, 2, 3]),
        "__at": pl.Series([1, 2, 3]),
        "a, b{=}": pl.Series([1, 2, 3]),
        "": pl.Series([1, 2, 3]),
    }  # fmt: skip
