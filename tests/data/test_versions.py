"""Versions of tables and folders are stored, read by time or number, compared, exported and deleted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from everloop import plugins
from everloop.data import (
    ReadProgress,
    add_folder,
    add_table,
    delete_snapshots,
    diff_snapshots,
    export_folder,
    export_table,
    get_snapshot,
    load_snapshot,
    read,
    read_files,
    restore_snapshot,
    take_snapshot,
    watch_progress,
)
from everloop.errors import AlreadyExistsError, ConflictError, DataError, NotFoundError, SourceError, UsageError
from everloop.records import ModelVersion, Snapshot
from everloop.stores import Store, collect_observations, open_store
from everloop.stores.gc import gc
from everloop.stores.verify import verify
from everloop.tracking import start_run

FRAME = pl.DataFrame({"id": [1, 2, 3], "name": ["a", "b", None]})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "cats").mkdir(parents=True)
    for number in range(5):
        (folder / "cats" / f"{number}.txt").write_bytes(bytes([number]) * 100)
    (folder / "large.bin").write_bytes(b"x" * 200_000)
    (folder / ".hidden").write_text("left out")
    settle()
    return folder


def settle() -> None:
    """Wait until the stamps of newly written files prove something."""
    time.sleep(0.08)


def test_versions_are_read_by_number_by_name_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with open_store() as store:
        clock = store.simulate(start)
        take_snapshot(FRAME, "flights", store)
        clock.set(start + timedelta(days=10))
        take_snapshot(FRAME.head(2), "flights", store)
    assert read("everloop:flights@1").collect().equals(FRAME)
    assert read("everloop:flights").collect().height == 2
    assert read("everloop:flights@2026-03-05").collect().height == 3
    assert read("everloop:flights@2026-03-11T00:00:00+00:00", columns=["id"]).collect().shape == (2, 1)
    for ref, said in (
        ("flights@9", "flights@2"),
        ("flihgts", "flights"),
        ("flights@2026-02-01", "Its first version was created at 2026-03-01"),
        ("flights@2026-02-31", "is not a time in ISO 8601"),
    ):
        with pytest.raises(SourceError, match=said):
            read(f"everloop:{ref}")
    with pytest.raises(UsageError, match="which takes no query=, format= or other options"):
        read("everloop:flights", separator=";")


def test_a_version_that_is_read_is_observed(store: Store) -> None:
    take_snapshot(FRAME, "flights", store)
    look, told = (plugins.load(kind, "version") for kind in ("observation", "observation_change"))
    with start_run("turn", store=store), collect_observations() as seen:
        assert read("everloop:flights").collect().equals(FRAME)
        (one,) = seen
        assert (one["kind"], one["spec"]) == ("version", {"ref": "flights"})
        assert look(one["spec"], since=one["state"]) == one["state"]
        take_snapshot(FRAME.head(1), "flights", store)
        assert told(one["state"], look(one["spec"])) == "another version"


def test_plain_parquet_that_others_read(store: Store) -> None:
    duckdb = pytest.importorskip("duckdb")
    snapshot = take_snapshot(FRAME, "flights", store)
    paths = [str(store.objects.path(file["digest"])) for file in snapshot.files]
    assert duckdb.execute("SELECT * FROM read_parquet(?) ORDER BY id", [paths]).fetchall() == FRAME.rows()
    assert pd.read_parquet(paths[0])["id"].tolist() == [1, 2, 3]
    asked = duckdb.sql("SELECT 1 AS a, 'x' AS b")
    assert read(asked).collect().rows() == [(1, "x")]


def test_a_table_is_added_with_where_it_came_from(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "flights.csv"
    FRAME.write_csv(path)
    snapshot = add_table(path, "flights", store, key="id")
    assert snapshot.sources[0]["kind"] == "files"
    assert snapshot.sources[0]["spec"] == {"patterns": [str(path)]}
    assert load_snapshot(snapshot, store).collect().equals(FRAME)
    assert add_table(path, "flights", store, key="id") == snapshot


def test_a_file_that_changes_while_it_is_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flights.csv"
    FRAME.write_csv(path)
    with collect_observations() as seen:
        frame = read(path)
    path.write_text("id,name\n7,z\n")
    with pytest.raises(SourceError, match=r"flights\.csv' changed while it was read"):
        take_snapshot(frame, "flights", store, sources=seen)
    assert store.records.find(Snapshot) == []

    with collect_observations() as seen:
        frame = read(str(tmp_path / "*.csv"))
    (tmp_path / "next.csv").write_text("id,name\n8,y\n")  # a new file is none that was read
    assert take_snapshot(frame, "flights", store, sources=seen).rows == 1


def test_a_folder_is_kept_and_comes_back(store: Store, pictures: Path, tmp_path: Path) -> None:
    heard: list[ReadProgress] = []
    with watch_progress(heard.append):
        snapshot = add_folder(pictures, "pictures", store)
    assert (snapshot.rows, snapshot.entity) == (6, "path")
    assert heard[-1].done == heard[-1].total
    assert {news.what for news in heard} == {"files", "snapshot"}
    listed = load_snapshot(snapshot, store).collect()
    assert listed["path"].to_list() == [*(f"cats/{number}.txt" for number in range(5)), "large.bin"]
    assert listed["size_bytes"].sum() == 200_500
    exported = export_folder("pictures", store, tmp_path / "again")
    assert (exported / "cats" / "3.txt").read_bytes() == bytes([3]) * 100
    assert dict(read_files(snapshot, store, ["cats/1.txt"])) == {"cats/1.txt": bytes([1]) * 100}
    assert len(dict(read_files(snapshot, store))) == 6
    assert add_folder(exported, "pictures", store) == snapshot
    with pytest.raises(DataError, match="no file 'dogs'"):
        next(read_files(snapshot, store, ["dogs"]))
    with pytest.raises(DataError, match="is a table"):
        export_folder(take_snapshot(FRAME, "t", store), store, tmp_path / "t")
    for wrong, said in ((pictures / "none", "no folder"), (pictures / "large.bin", "no folder")):
        with pytest.raises(SourceError, match=said):
            add_folder(wrong, "pictures", store)


def test_an_unchanged_file_is_not_read_again(store: Store, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = add_folder(pictures, "pictures", store)
    looked: list[str] = []
    from everloop.data.snapshots import file_folders

    steady = file_folders._read_unchanged
    monkeypatch.setattr(
        file_folders, "_read_unchanged", lambda source, objects: looked.append(source.name) or steady(source, objects)
    )
    assert add_folder(pictures, "pictures", store) == first
    assert looked == []
    (pictures / "cats" / "2.txt").write_bytes(b"two")
    (pictures / "dogs.txt").write_bytes(b"wow")
    (pictures / "cats" / "4.txt").unlink()
    settle()
    second = add_folder(pictures, "pictures", store)
    assert sorted(looked) == ["2.txt", "dogs.txt"]
    diff = diff_snapshots(first, second, store)
    assert (diff.rows_added, diff.rows_removed, diff.rows_changed) == (1, 1, 1)
    assert diff.values_changed == {"size_bytes": 1, "sha256": 1}
    # The cache is only valid as long as the store has the files.
    delete_snapshots(store, ["pictures"])
    gc(store, grace_s=0)
    looked.clear()
    third = add_folder(pictures, "pictures", store)
    assert len(looked) == 6
    assert dict(read_files(third, store))["cats/2.txt"] == b"two"


def test_a_file_that_keeps_changing(store: Store, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.data.snapshots import file_folders

    whole = file_folders._read

    def grows(path: Path) -> bytes:
        data = whole(path)
        if path.name == "3.txt":
            with path.open("ab") as file:
                file.write(b"more")
        return data

    monkeypatch.setattr(file_folders, "_read", grows)
    with pytest.raises(SourceError, match=r"3\.txt' keeps changing while it is read"):
        add_folder(pictures, "pictures", store)


def test_a_link_is_refused_by_name(store: Store, pictures: Path) -> None:
    (pictures / "cats" / "link").symlink_to(pictures / "large.bin")
    with pytest.raises(UsageError, match=r"'cats/link' in .* is a symbolic link"):
        add_folder(pictures, "pictures", store)


def test_shifts_are_reported_unless_chance_explains_them(store: Store) -> None:
    rows = 4000
    before = pl.DataFrame({"x": range(rows), "c": ["a", "b"] * (rows // 2), "n": [1.0] * rows, "id": range(rows)})
    after = before.with_columns(
        x=pl.col("x") + 1000,
        c=pl.when(pl.col("id") % 3 == 0).then(pl.lit("a")).otherwise("c"),
        n=pl.when(pl.col("id") % 2 == 0).then(None).otherwise("n"),
    )
    take_snapshot(before, "t", store, key="id")
    take_snapshot(after, "t", store, key="id")
    take_snapshot(before.sample(fraction=1.0, shuffle=True, seed=1).head(rows - 7), "t", store, key="id")
    shifts = diff_snapshots("t@1", "t@2", store).shifts
    assert set(shifts) == {"x", "c", "n"}
    assert shifts["x"].kind == "ks"
    assert shifts["x"].distance == pytest.approx(0.25)
    assert (shifts["x"].before, shifts["x"].after) == (1999.5, 2999.5)
    assert (shifts["c"].kind, shifts["c"].after) == ("tv", "a")
    assert (shifts["n"].kind, shifts["n"].nulls) == ("nulls", (0.0, 0.5))
    assert diff_snapshots("t@1", "t@3", store).shifts == {}


def test_versions_are_exported(store: Store, tmp_path: Path) -> None:
    snapshot = take_snapshot(FRAME, "flights", store)
    for name in ("a.parquet", "b.csv", "c.jsonl", "d.arrow"):
        path = export_table(snapshot, store, tmp_path / "out" / name)
        assert read(path).collect().equals(FRAME), name
    with pytest.raises(AlreadyExistsError):
        export_table(snapshot, store, tmp_path / "out" / "a.parquet")
    with pytest.raises(UsageError, match=r"does not have the suffix of a format that can be written"):
        export_table(snapshot, store, tmp_path / "a.xls")
    nested = take_snapshot(pl.DataFrame({"a": [[1]]}), "nested", store)
    with pytest.raises(UsageError, match=r"cannot be written as \.csv"):
        export_table(nested, store, tmp_path / "nested.csv")
    assert not list(tmp_path.glob(".*.part"))


def test_versions_are_deleted_and_come_back(store: Store) -> None:
    for rows in (1, 2, 3):
        take_snapshot(FRAME.head(rows), "flights", store)
    with pytest.raises(ConflictError, match="is the newest version"):
        delete_snapshots(store, ["flights@3"])
    assert [one.key for one in delete_snapshots(store, ["flights@1"])] == ["flights@1"]
    with pytest.raises(NotFoundError):
        get_snapshot("flights@1", store)
    assert restore_snapshot(store, "flights@1").rows == 1
    assert load_snapshot("flights@1", store).collect().height == 1
    model = store.new(ModelVersion, model="delays", version=1, package="sha256:" + "0" * 64, snapshot="flights@2")
    store.records.put(model)
    with pytest.raises(ConflictError, match="delays@1 was trained on 'flights@2'"):
        delete_snapshots(store, ["flights"])
    assert len(delete_snapshots(store, ["flights"], force=True)) == 3
    with pytest.raises(NotFoundError):
        delete_snapshots(store, ["flights"])


_WORK = """
import sys
import polars as pl
from everloop.data import take_snapshot
from everloop.stores import open_store
with open_store(sys.argv[1]) as store:
    print("begun", flush=True)
    for number in range(1000):
        frame = pl.DataFrame({"id": range(number * 7, number * 7 + 200_000)})
        take_snapshot(frame.lazy() if number % 2 else frame, "flights", store, key="id")
"""


@pytest.mark.slow
def test_a_kill_while_snapshots_are_taken(tmp_path: Path) -> None:
    """Versions are stored completely or not at all, and `gc` removes what is left behind."""
    home = tmp_path / "home"
    for kill in range(int(os.environ.get("EVERLOOP_KILLS", "2")) // 10 + 2):
        with subprocess.Popen([sys.executable, "-c", _WORK, str(home)], stdout=subprocess.PIPE) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            time.sleep(0.1 + 0.037 * kill)
            worker.send_signal(signal.SIGKILL)
        with open_store(home) as store:
            assert verify(store).problems == ()
            for snapshot in store.records.find(Snapshot, order="version"):
                assert load_snapshot(snapshot, store).collect().height == snapshot.rows == 200_000
    with open_store(home) as store:
        gc(store, grace_s=0)
        assert not list((home / "objects").rglob(".everloop-*"))
        assert not list(home.glob("tmp*"))
        frame = pl.DataFrame({"id": range(3)})
        assert take_snapshot(frame, "flights", store).rows == 3
