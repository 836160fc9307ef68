from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from everloop.errors import NotFoundError, ReadOnlyError, UsageError
from everloop.records import Artifact, Package, Run, Snapshot
from everloop.stores import ContentStore, Journal, ObstoreBytes, Store
from everloop.stores.gc import LOCK, gc
from everloop.stores.verify import verify
from everloop.testing.stores import START, ManualClock


def put_artifact(store: Store, digest: str) -> Artifact:
    artifact = store.new(Artifact, run="r", name="a", type="json", digest=digest, size_bytes=1)
    store.records.put(artifact)
    return artifact


def kept(store: Store) -> set[str]:
    return {digest for digest, _ in store.objects.digests()}


def age(store: Store, seconds: float) -> None:
    """Make all objects look as if they had been put this many seconds ago."""
    for digest, _ in store.objects.digests():
        path = store.objects.path(digest)
        before = path.stat().st_mtime - seconds
        os.utime(path, (before, before))


def test_unreferenced_objects_are_removed_and_the_others_stay(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / f"f{number}").write_bytes(os.urandom(70_000 if number else 10))
    tree = store.objects.add_tree(tmp_path / "package")
    part = store.objects.add(b"parquet")
    manifest = store.objects.add(json.dumps({"files": [part]}).encode())
    live, old, logged, loose = (store.objects.add(name) for name in (b"live", b"old", b"logged", b"loose"))
    store.records.put(store.new(Package, digest=tree, format="x", signature={"deep": [{"er": live}]}, size_bytes=1))
    store.records.put(
        store.new(Snapshot, dataset="d", version=1, digest=manifest, rows=1, size_bytes=1, columns={"x": "int64"})
    )
    store.records.update(replace(put_artifact(store, old), digest=live))
    with Journal.create(store.journals, "s") as journal:
        journal.append(b'\x93\x01{"digest":"' + logged.encode() + b'"}')
    before = kept(store)
    swept = gc(store, grace_s=0)
    assert before - kept(store) == {loose}
    assert (swept.objects, swept.size_bytes, swept.records) == (1, 5, 0)
    assert verify(store).ok
    assert gc(store, grace_s=0).objects == 0


def test_deleted_records_are_purged_and_free_their_objects(store: Store) -> None:
    gone, stays = (store.objects.add(name) for name in (b"gone", b"stays"))
    artifact = put_artifact(store, gone)
    put_artifact(store, stays)
    trains = store.for_project("trains")
    run = trains.new(Run, name="r", started_at=START, params={"digest": gone})
    trains.records.put(run)
    store.records.delete(Artifact, artifact.id)
    assert gc(store, grace_s=0).records == 1
    assert kept(store) == {gone, stays}, "another project still names it"
    trains.records.delete(Run, run.id)
    assert gc(store, grace_s=0).records == 1
    assert kept(store) == {stays}
    with pytest.raises(NotFoundError):
        store.records.restore(Artifact, artifact.id)


def test_a_dry_run_reports_the_same_and_removes_nothing(store: Store) -> None:
    loose, gone = store.objects.add(b"loose"), store.objects.add(b"gone!")
    artifact = put_artifact(store, gone)
    store.records.update(replace(artifact, name="b"))
    store.records.delete(Artifact, artifact.id)
    told = gc(store, dry_run=True, grace_s=0)
    assert told.dry_run
    assert kept(store) == {loose, gone}
    done = gc(store, grace_s=0)
    assert (told.records, told.objects, told.size_bytes) == (done.records, done.objects, done.size_bytes) == (1, 2, 10)


def test_nothing_is_removed_within_the_grace_period(store: Store, clock: ManualClock) -> None:
    digest = store.objects.add(b"young")
    artifact = put_artifact(store, store.objects.add(b"named"))
    store.records.delete(Artifact, artifact.id)
    clock.advance(60)
    for dry_run in (True, False):
        swept = gc(store, dry_run=dry_run, grace_s=3600)
        assert (swept.objects, swept.records) == (0, 0)
    store.records.restore(Artifact, artifact.id)
    age(store, 7200)
    assert gc(store, dry_run=True, grace_s=3600).objects == 1
    assert gc(store, grace_s=3600).objects == 1
    assert not store.objects.has(digest)


def test_what_is_added_again_is_young_again(store: Store, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(100_000))
    digests = {store.objects.add(b"again"), store.objects.add_file(large)}
    age(store, 7200)
    assert {store.objects.add(b"again"), store.objects.add_file(large)} == digests
    assert gc(store, grace_s=3600).objects == 0
    assert kept(store) == digests


def test_adding_while_sweeping_loses_nothing(store: Store) -> None:
    """An added object exists afterwards: either gc does not remove it, or it is written again."""
    stop = threading.Event()
    failures: list[str] = []

    def sweep() -> None:
        while not stop.is_set():
            gc(store, grace_s=600)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        for _ in range(150):
            age_one = store.objects.add(b"shared")
            path = store.home / "objects" / "sha256" / age_one[7:9] / age_one[9:]
            try:
                os.utime(path, (1, 1))
            except FileNotFoundError:
                continue
            digest = store.objects.add(b"shared")
            if store.objects.size(digest) is None and not _comes_back(store, digest):
                failures.append(digest)
    finally:
        stop.set()
        thread.join()
    assert failures == []


def _comes_back(store: Store, digest: str) -> bool:
    """gc renames an object for a moment before it sees that the object is new."""
    import time

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if store.objects.has(digest):
            return True
    return False


def test_drafts_of_dead_processes_are_removed(store: Store) -> None:
    store.objects.add(b"x")
    folder = store.home / "objects" / ".tmp"
    (folder / "1-1-00").write_bytes(b"half")
    (folder / "2-2-00").write_bytes(b"half, and young")
    os.utime(folder / "1-1-00", (1, 1))
    assert gc(store, dry_run=True, grace_s=3600).drafts == 1
    assert gc(store, grace_s=3600).drafts == 1
    assert [path.name for path in folder.iterdir()] == ["2-2-00"]


def test_a_remote_store_is_swept_as_well(store: Store, tmp_path: Path) -> None:
    store.__dict__["objects"] = ContentStore(ObstoreBytes(tmp_path / "bucket"))
    stays, goes = store.objects.add(b"stays"), store.objects.add(b"goes")
    put_artifact(store, stays)
    assert gc(store, grace_s=3600).objects == 0
    assert gc(store, dry_run=True, grace_s=0).objects == 1
    assert gc(store, grace_s=0).objects == 1
    assert kept(store) == {stays}
    assert not store.objects.has(goes)


def test_tables_keep_their_rows(store: Store) -> None:
    for number in range(3):
        store.tables.append("t", pl.DataFrame({"event_at": [START], "x": [number]}))
    store.tables.compact("t")
    gc(store, grace_s=0)
    assert store.tables.scan("t").collect().height == 3


def test_gc_waits_for_another_gc(store: Store) -> None:
    done = threading.Event()

    def sweep() -> None:
        gc(store)
        done.set()

    with store.lock(LOCK):
        thread = threading.Thread(target=sweep)
        thread.start()
        assert not done.wait(0.05)
    assert done.wait(10)
    thread.join()


def test_views_of_the_past_cannot_be_collected(store: Store) -> None:
    with pytest.raises(ReadOnlyError):
        gc(store.as_of(START))
    with pytest.raises(UsageError, match="grace"):
        gc(store, grace_s=-1)
