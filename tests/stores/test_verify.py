from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from everloop.records import Alias, Artifact, ModelVersion, Package, Run, Source, StepRun
from everloop.stores import Journal, Store
from everloop.stores.verify import StoreProblem, digests_in, mark_lost, projects_with_runs, verify
from everloop.testing.stores import START


def found(store: Store) -> list[tuple[str, str]]:
    return sorted((problem.kind, problem.subject) for problem in verify(store).problems)


def put_model(store: Store, tmp_path: Path) -> tuple[ModelVersion, str]:
    """Put a version whose package is a tree of a small and a large file, with all related records."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "everloop.json").write_text("{}")
    (folder / "model.txt").write_bytes(b"m" * 100_000)
    digest = store.objects.add_tree(folder)
    run = store.new(Run, name="r", started_at=store.now(), state="finished")
    artifact = store.new(
        Artifact, run=run.id, name="model", type="package", digest=store.objects.add(b"a"), size_bytes=1
    )
    step = store.new(
        StepRun, run=run.id, name="train", status="ran", reason="new", fingerprint="fp:1", code="code:1",
        outputs={"model": artifact.id},
    )  # fmt: skip
    package = store.new(Package, digest=digest, format="lightgbm", signature={}, size_bytes=2)
    version = store.new(ModelVersion, model="delays", version=1, package=digest, run=run.id)
    alias = store.new(Alias, model="delays", name="champion", version="delays@1")
    store.records.put(run, artifact, step, package, version, alias)
    return version, digest


def lose(store: Store, digest: str) -> None:
    assert store.objects.remove(digest)


def test_an_intact_home_has_no_problems(store: Store, tmp_path: Path) -> None:
    put_model(store, tmp_path)
    store.tables.append("t", pl.DataFrame({"event_at": [START], "x": [1]}))
    with Journal.create(store.journals, "s") as journal:
        journal.append(b"x")
        report = verify(store)
    assert report.ok
    assert report.problems == ()
    assert report.counts == {"records": 6, "objects": 4, "journals": 1, "tables": 1}


def test_an_empty_home_has_no_problems(store: Store) -> None:
    assert verify(store).counts == {"records": 0, "objects": 0, "journals": 0, "tables": 0}
    assert verify(store).ok


def test_missing_objects_are_reported_with_their_referrers(store: Store, tmp_path: Path) -> None:
    version, digest = put_model(store, tmp_path)
    (package,) = store.records.find(Package)
    lose(store, digest)
    assert found(store) == sorted([("reference", version.id), ("reference", package.id)])
    assert any("delays@1" in problem.message and digest in problem.message for problem in verify(store).problems)


def test_missing_parts_of_a_tree_are_reported(store: Store, tmp_path: Path) -> None:
    _, digest = put_model(store, tmp_path)
    small, large = store.objects.tree(digest)
    lose(store, small.holder)
    assert found(store) == [("tree", digest)]
    lose(store, large.holder)
    messages = [problem.message for problem in verify(store).problems]
    assert any("everloop.json" in message for message in messages)
    assert any("model.txt" in message for message in messages)


def test_flipped_bits_are_reported(store: Store, tmp_path: Path) -> None:
    _, digest = put_model(store, tmp_path)
    (artifact,) = store.records.find(Artifact)
    (_, large) = store.objects.tree(digest)
    for one in (artifact.digest, large.digest):
        path = store.objects.path(one)
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
    assert found(store) == sorted([("object", artifact.digest), ("object", large.digest)])


def test_missing_relations_are_reported(store: Store, tmp_path: Path) -> None:
    put_model(store, tmp_path)
    (artifact,), (alias,), (step,) = (store.records.find(kind) for kind in (Artifact, Alias, StepRun))
    store.records.delete(Artifact, artifact.id)
    store.records.delete(ModelVersion, "delays@1")
    assert found(store) == sorted([("reference", alias.id), ("reference", step.id)])


def test_records_of_every_project_are_checked(store: Store) -> None:
    trains = store.for_project("trains")
    trains.records.put(trains.new(Alias, model="m", name="champion", version="m@1"))
    assert [kind for kind, _ in found(store)] == ["reference"]


def test_unreadable_records_are_reported(store: Store) -> None:
    runs = [store.new(Run, name="r", started_at=store.now(), state="finished") for _ in range(3)]
    store.records.put(*runs)
    connection = sqlite3.connect(store.home / "everloop.db")
    connection.execute("UPDATE records SET body = '{}' WHERE id = ?", (runs[0].id,))
    connection.execute("UPDATE records SET kind = 'dream' WHERE id = ?", (runs[1].id,))
    connection.commit()
    connection.close()
    assert found(store) == sorted([("record", runs[0].id), ("record", runs[1].id)])


def test_damaged_journals_and_tables_are_reported(store: Store) -> None:
    with Journal.create(store.journals, "s") as journal:
        for _ in range(3):
            journal.append(b"x" * 50)
    data = bytearray(journal.path.read_bytes())
    data[20] ^= 1
    journal.path.write_bytes(data)
    for name in ("a", "b", "c"):
        store.tables.append(name, pl.DataFrame({"event_at": [START]}))
    (file,) = (store.home / "tables" / "a").glob("*.parquet")
    file.unlink()
    shutil.rmtree(store.home / "tables" / "b" / "_delta_log")
    (store.home / "tables" / "b" / "_delta_log").mkdir()
    assert found(store) == sorted([("journal", journal.path.name), ("table", "a"), ("table", "b")])


def test_a_run_whose_process_is_gone_is_reported_and_marked(store: Store) -> None:
    gone, alive, done, away = (
        store.new(Run, name=name, started_at=store.now(), **fields)  # type: ignore[arg-type]
        for name, fields in {
            "gone": {},
            "alive": {},
            "done": {"state": "finished"},
            "away": {"source": Source(host="another-machine")},
        }.items()
    )
    store.records.put(gone, alive, done, away)
    with store.lock(f"run-{alive.id}"):
        (problem,) = verify(store).problems
        assert (problem.kind, problem.subject) == ("run", gone.id)
        assert problem.repair is not None
        (lost,) = mark_lost(store)
    assert lost == replace(gone, state="lost", ended_at=store.now(), revision=1)
    assert store.records.get(Run, gone.id) == lost
    assert store.records.events_since(0)[-1].verb == "lost"
    assert [run.name for run in mark_lost(store)] == ["alive"]
    assert mark_lost(store) == []
    assert store.records.get(Run, away.id) == away


def test_lost_runs_of_all_projects_are_found(store: Store) -> None:
    others = store.for_project("other")
    others.records.put(others.new(Run, name="gone", state="running", started_at=store.now()), verb="started")
    assert [problem.kind for problem in verify(store).problems] == ["run"]
    assert projects_with_runs(store) == ["other"]
    assert [run.name for project in projects_with_runs(store) for run in mark_lost(store.for_project(project))] == [
        "gone"
    ]
    assert not verify(store).problems
    assert projects_with_runs(store) == []


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (f"sha256:{1:064x}", 1),
        ({"a": [f"sha256:{1:064x}", {"b": (f"sha256:{2:064x}",)}]}, 2),
        (f"see sha256:{1:064x}", 0),
        ("sha256:short", 0),
        (f"code:{1:064x}", 0),
        ([None, 1, 2.0, True], 0),
    ],
)
def test_digests_anywhere_in_a_value(value: object, count: int) -> None:
    assert len(list(digests_in(value))) == count


def test_problems_are_dataclasses() -> None:
    first, second = (StoreProblem(kind="run", subject="x", message="y", **more) for more in ({}, {"repair": None}))
    assert first == second


def test_a_text_of_a_user_that_looks_like_a_digest_refers_to_nothing(store: Store) -> None:
    digest = f"sha256:{'a' * 64}"
    run = store.new(
        Run, name=digest, started_at=store.now(), state="finished", params={"image": [digest]}, tags={"image": digest}
    )
    store.records.put(run)
    assert found(store) == []
    artifact = store.new(Artifact, run=run.id, name="x", type="raw", digest=digest, size_bytes=1)
    store.records.put(artifact)
    assert found(store) == [("reference", artifact.id)]
