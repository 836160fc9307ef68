from __future__ import annotations

import shutil
from threading import Barrier, Thread
from typing import TYPE_CHECKING

import pytest

from everloop.errors import CorruptionError
from everloop.stores import Store, Tables
from everloop.testing.stores import ManualClock
from everloop.testing.tables import rows, seen

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tables(store: Store) -> Tables:
    return store.tables


def test_compacting_joins_files_and_keeps_rows_and_batches(tables: Tables, store: Store) -> None:
    for number in range(1, 6):
        tables.append("t", rows(number), batch=("w", number))
    tables.compact("t")
    assert seen(tables.scan("t")) == [1, 2, 3, 4, 5]
    assert tables.last_batch("t", "w") == 5
    assert len(tables.vacuum("t", keep_hours=0)) == 5
    assert seen(tables.scan("t")) == [1, 2, 3, 4, 5]
    assert len(list((store.home / "tables" / "t").glob("*.parquet"))) == 1


def test_a_dropped_table_is_gone_and_can_begin_again(tables: Tables, store: Store) -> None:
    tables.append("a/b", rows(1), batch=("w", 3))
    tables.drop("a/b")
    assert not tables.exists("a/b")
    assert not (store.home / "tables" / "a" / "b").exists()
    assert tables.append("a/b", rows(2, y=[1]), batch=("w", 0)) is True
    assert seen(tables.scan("a/b")) == [2]


def test_a_damaged_or_missing_file_is_noticed(tables: Tables, store: Store) -> None:
    tables.append("t", rows(*range(1, 29)))
    tables.prove("t")
    (path,) = (store.home / "tables" / "t").glob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * 60 + whole[160:])
    with pytest.raises(CorruptionError, match="'t'"):
        tables.prove("t")
    path.unlink()
    with pytest.raises(CorruptionError, match="'t'"):
        tables.prove("t")


def test_tables_over_a_url(tmp_path: Path, clock: ManualClock) -> None:
    tables = Tables(f"file://{tmp_path}/tables", clock)
    tables.append("a/b", rows(1))
    tables.append("c", rows(2))
    assert tables.names() == ["a/b", "c"]
    assert seen(tables.scan("a/b")) == [1]
    tables.drop("a/b")
    assert tables.names() == ["c"]
    assert not tables.exists("a/b")
    shutil.rmtree(tmp_path / "tables")
    assert not tables.exists("c")


def test_of_simultaneous_creators_of_a_table_one_creates_it_and_the_others_append(store: Store) -> None:
    for number in range(10):
        name = f"race/{number}"
        start = Barrier(3)

        def append(batch: tuple[str, int], name: str = name, start: Barrier = start) -> None:
            own = Tables(store.tables.root, ManualClock())
            start.wait()
            own.append(name, rows(batch[1]), batch=batch)

        threads = [Thread(target=append, args=(("writer", 1),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen(store.tables.scan(name)) == [1]
