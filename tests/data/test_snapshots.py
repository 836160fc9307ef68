"""Dataset versions are read back unchanged, and the same content is the same version."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from polars.testing import assert_frame_equal
from polars.testing.parametric import dataframes

from everloop.data import diff_snapshots, get_snapshot, load_snapshot, take_snapshot
from everloop.errors import CorruptionError, DataError, NotFoundError, UsageError
from everloop.records import Snapshot
from everloop.stores import Store, open_store

START = datetime(2026, 1, 1)


def flights(rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": range(rows),
            "departs_at": [START + timedelta(hours=n) for n in range(rows)],
            "carrier": [("AA", "UA", None)[n % 3] for n in range(rows)],
            "late": [n % 4 == 0 for n in range(rows)],
        }
    )


def test_a_snapshot_describes_its_table(store: Store) -> None:
    snapshot = take_snapshot(
        flights(), "delays", store, target="late", time="departs_at", key="id", sources=[{"kind": "files"}], run="r1"
    )
    assert snapshot.key == "delays@1"
    assert (snapshot.rows, snapshot.target, snapshot.time, snapshot.entity) == (100, "late", "departs_at", "id")
    assert snapshot.columns == {"id": "int64", "departs_at": "timestamp[us]", "carrier": "string", "late": "bool"}
    assert snapshot.starts_at == START.replace(tzinfo=UTC)
    assert snapshot.ends_at == datetime(2026, 1, 5, 3, tzinfo=UTC)
    assert snapshot.stats["id"] == {
        "nulls": 0,
        "distinct": 100,
        "min": 0,
        "max": 99,
        "mean": 49.5,
        "std": pytest.approx(29.011492),
    }
    assert snapshot.stats["carrier"] == {"nulls": 33, "distinct": 2}
    assert snapshot.sources == ({"kind": "files"},)
    assert store.records.get(Snapshot, "delays@1") == snapshot
    manifest = json.loads(store.objects.read(snapshot.digest))
    assert manifest["files"] == list(snapshot.files)
    assert load_snapshot(snapshot, store).collect().equals(flights())


def test_the_same_content_is_the_same_version(store: Store) -> None:
    first = take_snapshot(flights(), "delays", store, target="late", run="r1")
    chunked = pl.concat([flights()[:7], flights()[7:]], rechunk=False)
    for same in (chunked, flights().lazy(), flights().to_arrow()):
        assert take_snapshot(same, "delays", store, target="late", run="r2") == first
    other = take_snapshot(flights(99), "delays", store, target="late")
    assert other.key == "delays@2"
    assert take_snapshot(flights(), "delays", store, target="late") == first
    reordered = take_snapshot(flights().reverse(), "delays", store, target="late")
    assert reordered.key == "delays@3"
    without_target = take_snapshot(flights(), "delays", store)
    assert (without_target.key, without_target.files) == ("delays@4", first.files)
    assert take_snapshot(flights(), "elsewhere", store, target="late").key == "elsewhere@1"


_TAKE = """
import sys
import polars as pl
from everloop.data import take_snapshot
from everloop.stores import open_store
pl.Series([sys.argv[2], "b"], dtype=pl.Categorical)  # categories met in another order must not matter
values = pl.Series(["a", "b", "c", None] * 1250, dtype=pl.Categorical)
frame = pl.DataFrame({"id": range(5000), "c": values})
with open_store(sys.argv[1]) as store:
    sys.stdin.readline()
    print(take_snapshot(frame, "delays", store, key="id").key)
"""


@pytest.mark.slow
def test_two_processes_with_one_content_make_one_version(store: Store) -> None:
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKE, str(store.home), word],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for word in ("z", "c")
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    assert [taker.communicate()[0].strip() for taker in takers] == ["delays@1", "delays@1"]
    assert len(store.records.find(Snapshot)) == 1


def test_another_machine_that_takes_the_number_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks hold on one machine; between machines the store's unique keys decide."""
    put = type(store.records).put

    def late(records: Any, *new: Snapshot, **options: Any) -> None:
        monkeypatch.undo()
        with open_store(store.home) as other, monkeypatch.context() as patch:
            patch.setattr(type(other), "lock", lambda *_, **__: open_store(store.home))  # no lock between machines
            take_snapshot(flights(50), "delays", other)
        put(records, *new, **options)

    monkeypatch.setattr(type(store.records), "put", late)
    assert take_snapshot(flights(60), "delays", store).key == "delays@2"
    assert get_snapshot("delays@1", store).rows == 50


def test_large_tables_are_kept_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.data.snapshots.parquet_parts._FILE_ROWS", 30)
    snapshot = take_snapshot(flights(), "delays", store)
    assert [file["rows"] for file in snapshot.files] == [30, 30, 30, 10]
    assert load_snapshot(snapshot, store).collect().equals(flights())
    assert take_snapshot(flights().lazy(), "delays", store) == snapshot
    grown = take_snapshot(flights(110), "delays", store)
    assert grown.files[:3] == snapshot.files[:3]


@pytest.mark.slow
@given(dataframes(min_cols=1, max_cols=4, min_size=1, max_size=20, allow_null=True))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_comes_out_is_what_went_in(tmp_path: Path, frame: pl.DataFrame) -> None:
    with open_store(tmp_path / "round-trip") as store:
        snapshot = take_snapshot(frame, "any", store)
        found = load_snapshot(snapshot, store).collect()
        assert found.schema == frame.schema
        assert_frame_equal(found, frame, check_exact=True)
        assert take_snapshot(found, "any", store) == snapshot
        assert take_snapshot(frame.lazy(), "any", store) == snapshot  # streamed, the same files


def test_types_of_every_kind(store: Store) -> None:
    frame = pl.DataFrame(
        {
            "decimal": pl.Series([Decimal("1.10"), None], dtype=pl.Decimal(38, 2)),
            "duration": pl.Series([timedelta(days=1), None], dtype=pl.Duration("ms")),
            "zoned": pl.Series([START, None], dtype=pl.Datetime("ns", "Europe/Berlin")),
            "categorical": pl.Series(["b", None], dtype=pl.Categorical),
            "enum": pl.Series(["y", None], dtype=pl.Enum(["x", "y"])),
            "null": [None, None],
            "list": pl.Series([[["a"], None], None], dtype=pl.List(pl.List(pl.Categorical))),
            "struct": [{"a": 1, "b": [1.5]}, None],
            "array": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int8, 2)),
            "binary": [b"\0", None],
            "huge": pl.Series([2**100, None], dtype=pl.Int128),
            "unsigned": pl.Series([2**64 - 1, None], dtype=pl.UInt64),
            "nan": [float("nan"), float("-inf")],
        }
    )
    snapshot = take_snapshot(frame, "types", store)
    found = load_snapshot("types", store).collect()
    assert found.schema == frame.schema
    assert found.equals(frame)
    assert snapshot.columns == {
        "decimal": "decimal[38, 2]",
        "duration": "duration[ms]",
        "zoned": "timestamp[ns, Europe/Berlin]",
        "categorical": "categorical",
        "enum": "enum",
        "null": "null",
        "list": "list[list[categorical]]",
        "struct": "struct[a: int64, b: list[float64]]",
        "array": "array[int8, 2]",
        "binary": "binary",
        "huge": "int128",
        "unsigned": "uint64",
        "nan": "float64",
    }
    assert store.records.get(Snapshot, "types@1") == snapshot


def test_tables_of_other_libraries(store: Store) -> None:
    arrow = take_snapshot(pa.table({"a": [1, 2]}), "t", store)
    assert take_snapshot(pd.DataFrame({"a": [1, 2]}), "t", store) == arrow
    with pytest.raises(UsageError, match="A table was expected, not a dict"):
        take_snapshot({"a": [1]}, "t", store)


def refuse(store: Store, frame: pl.DataFrame, said: str, **roles: str) -> None:
    with pytest.raises(DataError, match=said):
        take_snapshot(frame, "delays", store, **roles)
    assert store.records.find(Snapshot) == []


def test_what_no_model_could_learn_from_is_refused(store: Store) -> None:
    refuse(store, flights(0), "no rows")
    refuse(store, pl.DataFrame(), "no rows")
    refuse(store, flights(), "no column 'lat' to use as the target. Did you mean 'late'", target="lat")
    refuse(store, flights(), "no column 'departs' to use as the time column", time="departs")
    refuse(store, flights(), "no column 'ident' to use as the key", key="ident")
    refuse(store, flights().with_columns(late=None), "null in all 100 rows", target="late")
    refuse(store, flights(), "'carrier' is null in 33 rows", key="carrier")
    doubled = pl.concat([flights(), flights(7)])
    refuse(store, doubled, r"7 values occur in more than one row, such as 0 \(2 times\), 1 \(2 times\)", key="id")
    refuse(store, flights(), "'carrier' is string, but must contain times", time="carrier")
    refuse(store, flights(), "'id' is int64, but must contain times", time="id")
    refuse(store, flights().with_columns(departs_at=pl.lit(None, pl.Datetime)), "null in 100 rows", time="departs_at")
    refuse(store, pl.DataFrame({"a": pl.Series([object()], dtype=pl.Object)}), "which cannot be stored")
    refuse(store, pl.DataFrame({"a": pl.Series([[{}]], dtype=pl.List(pl.Struct([])))}), "which cannot be stored")


@pytest.mark.parametrize("name", ["", "a@1", " a"])
def test_names_that_could_be_mistaken_for_keys(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        take_snapshot(flights(), name, store)


def test_loading_by_key_by_name_and_by_column(store: Store) -> None:
    take_snapshot(flights(10), "delays", store)
    take_snapshot(flights(20), "delays", store)
    assert load_snapshot("delays@1", store).collect().height == 10
    assert load_snapshot("delays", store).collect().height == 20
    assert load_snapshot("delays", store, columns=["late", "id"]).collect().columns == ["late", "id"]
    with pytest.raises(DataError, match=r"no column 'ltae'\. Did you mean 'late'"):
        load_snapshot("delays", store, columns=["ltae"])
    with pytest.raises(NotFoundError, match="delays@2"):
        load_snapshot("delays@9", store)
    with pytest.raises(NotFoundError):
        load_snapshot("nothing", store)


def test_a_damaged_file_is_not_read(store: Store) -> None:
    snapshot = take_snapshot(flights(), "delays", store)
    path = Path(store.objects.path(snapshot.files[0]["digest"]))
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with open_store(store.home) as again, pytest.raises(CorruptionError):
        load_snapshot(snapshot, again)


def test_changes_are_found_by_key(store: Store) -> None:
    before = take_snapshot(flights(), "delays", store, key="id")
    changed = flights(105).filter(pl.col("id") >= 2)
    changed = changed.with_columns(late=pl.when(pl.col("id") < 5).then(None).otherwise("late"))
    after = take_snapshot(changed.with_columns(extra=1).cast({"departs_at": pl.Date}), "delays", store, key="id")
    diff = diff_snapshots("delays@1", "delays@2", store)
    assert (diff.rows_before, diff.rows_after) == (100, 103)
    assert (diff.rows_added, diff.rows_removed, diff.rows_changed) == (5, 2, 3)
    assert diff.values_changed == {"late": 3}
    assert (diff.columns_added, diff.columns_removed) == (("extra",), ())
    assert diff.columns_retyped == {"departs_at": ("timestamp[us]", "date")}
    assert not diff.same
    assert diff_snapshots(before, before, store).same
    assert diff_snapshots(after, before, store).rows_added == 2


def test_changes_are_found_without_a_key(store: Store) -> None:
    take_snapshot(pl.DataFrame({"a": [1, 1, 2, None], "b": [[1], [1], None, [2]]}), "t", store)
    take_snapshot(pl.DataFrame({"a": [2, 1, 3, None, None], "b": [None, [1], None, [2], [2]]}), "t", store)
    diff = diff_snapshots("t@1", "t@2", store)
    assert (diff.rows_added, diff.rows_removed, diff.rows_changed) == (2, 1, 0)
    take_snapshot(pl.DataFrame({"a": [None, 2, 1, 1], "b": [[2], None, [1], [1]]}), "t", store)
    assert diff_snapshots("t@1", "t@3", store).same
    take_snapshot(pl.DataFrame({"other": [1]}), "t", store)
    diff = diff_snapshots("t@1", "t@4", store)
    assert (diff.rows_added, diff.rows_removed) == (1, 4)
