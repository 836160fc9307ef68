from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from everloop.errors import AlreadyExistsError, CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.records import Artifact, Run
from everloop.stores import ContentStore, Journal, ObstoreBytes, Store, open_store, read_journal
from everloop.stores.backup import backup, restore
from everloop.stores.verify import verify
from everloop.testing.stores import START


def fill(store: Store) -> tuple[Run, str]:
    digest = store.objects.add(b"x" * 100_000)
    run = store.new(Run, name="r", started_at=store.now(), state="finished", params={"digest": digest})
    store.records.put(run)
    store.for_project("trains").records.append_event("x", "y", "z")
    for number in range(12):
        store.tables.append("predictions/delays", pl.DataFrame({"event_at": [START], "x": [number]}))
    with Journal.create(store.journals, "s") as journal:
        journal.append(b"logged")
    return run, digest


@pytest.mark.parametrize("name", ["kept.tar", "deep/kept.tar.zst"])
def test_a_home_is_restored_completely(store: Store, tmp_path: Path, name: str) -> None:
    run, digest = fill(store)
    path = backup(store, tmp_path / name)
    assert path.stat().st_mode & 0o777 == 0o600
    home = restore(path, tmp_path / "again")
    with open_store(home, create=False, project="flights") as again:
        assert again.records.find(Run) == [run]
        assert len(again.for_project("trains").records.events_since(0)) == 1
        assert again.objects.read(digest) == b"x" * 100_000
        assert again.objects.path(digest).stat().st_mode & 0o777 == 0o400
        assert sorted(again.tables.scan("predictions/delays").collect()["x"]) == list(range(12))
        (journal,) = again.journals.iterdir()
        assert [payload for payload, _ in read_journal(journal)] == [b"logged"]
        assert verify(again).ok
        again.tables.append("predictions/delays", pl.DataFrame({"event_at": [START], "x": [12]}))
        again.objects.add(b"more")
    assert [path.name for path in path.parent.iterdir() if path.name.startswith(".")] == []


def test_a_simulated_clock_is_restored(store: Store, tmp_path: Path) -> None:
    store.simulate(START)
    with open_store(restore(backup(store, tmp_path / "b.tar"), tmp_path / "again")) as again:
        assert again.now() == START


def test_an_empty_home_is_restored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    with open_store(restore(backup(store, tmp_path / "b.tar.zst"), tmp_path / "again")) as again:
        assert verify(again).ok


def test_a_backup_during_writes_is_consistent(store: Store, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            digest = store.objects.add(b"%d" % number * 1000)
            artifact = store.new(Artifact, run="r", name="a", type="json", digest=digest, size_bytes=1)
            store.records.put(artifact)
            with Journal.create(store.journals, f"s{number}") as journal:
                journal.append(b"x")
            journal.path.unlink()
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(3):
            restored = restore(backup(store, tmp_path / f"{number}.tar"), tmp_path / f"home{number}")
            with open_store(restored) as again:
                assert verify(again).problems == ()
    finally:
        stop.set()
        thread.join()


def test_existing_files_are_not_overwritten(store: Store, tmp_path: Path) -> None:
    path = backup(store, tmp_path / "b.tar")
    with pytest.raises(AlreadyExistsError):
        backup(store, path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    for taken in (tmp_path / "taken", tmp_path / "taken" / "file"):
        with pytest.raises(UsageError, match="not empty"):
            restore(path, taken)
    assert (tmp_path / "taken" / "file").read_text() == "x"


def test_other_names_and_missing_files(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.tar"):
        backup(store, tmp_path / "b.zip")
    with pytest.raises(NotFoundError):
        restore(tmp_path / "none.tar", tmp_path / "again")


def test_a_store_with_remote_parts_says_what_to_use(store: Store, tmp_path: Path) -> None:
    store.__dict__["objects"] = ContentStore(ObstoreBytes("memory://"))
    with pytest.raises(UsageError, match="bucket"):
        backup(store, tmp_path / "b.tar")


@pytest.mark.slow
def test_a_server_has_its_own_tool(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "everloop.toml").write_text(f'[store]\nrecords = "{postgres_url}"\n')
    with open_store() as store, pytest.raises(UsageError, match="pg_dump"):
        backup(store, tmp_path / "b.tar")


def head(version: int = 1) -> tuple[str, bytes]:
    return "everloop-backup.json", json.dumps({"format": version}).encode()


def make_tar(path: Path, *members: tuple[str, bytes], edit: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if edit is not None and name != "everloop-backup.json":
                edit(info)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "objects/../../evil", "objects/../everloop.db", "other", "locks/x", "objects", "./clock"],
)
def test_a_backup_cannot_lead_out_of_its_home(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "b.tar", head(), (name, b"evil"))
    with pytest.raises(CorruptionError, match="The backup is refused"):
        restore(path, tmp_path / "inside" / "home")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["b.tar", "inside"]


def test_backups_with_links_or_duplicates_are_refused(tmp_path: Path) -> None:
    def link(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0

    def folder(info: tarfile.TarInfo) -> None:
        info.type, info.size = tarfile.DIRTYPE, 0

    for number, edit in enumerate((link, folder)):
        path = make_tar(tmp_path / f"{number}.tar", head(), ("objects/x", b""), edit=edit)
        with pytest.raises(CorruptionError, match="The backup is refused"):
            restore(path, tmp_path / "home")
    path = make_tar(tmp_path / "double.tar", head(), ("objects/x", b"1"), ("objects/x", b"2"))
    with pytest.raises(CorruptionError, match="The backup is refused"):
        restore(path, tmp_path / "home")


def test_files_that_are_not_backups(store: Store, tmp_path: Path) -> None:
    fill(store)
    whole = backup(store, tmp_path / "whole.tar").read_bytes()
    packed = backup(store, tmp_path / "whole.tar.zst").read_bytes()
    halves = [data[: len(data) * part // 16] for data in (whole, packed) for part in range(1, 16)]
    for data in (b"", b"hello", whole[:700], packed[:100], whole[:-11_000], *halves):
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(CorruptionError):
            restore(tmp_path / "b", tmp_path / "again")
    for members in ([("x", b"")], [head()], [("everloop-backup.json", b"[]")], [head(), ("everloop.db", b"x" * 5000)]):
        with pytest.raises(CorruptionError):
            restore(make_tar(tmp_path / "c.tar", *members), tmp_path / "again")
    with pytest.raises(StoreVersionError, match="format 2"):
        restore(make_tar(tmp_path / "d.tar", head(2)), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
