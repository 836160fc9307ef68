from __future__ import annotations

import json
import math
import sqlite3
import threading
import zipfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptionError,
    NotFoundError,
    SourceError,
    UnavailableError,
    UsageError,
)
from everloop.integrations.mlflow.run_import import import_mlflow
from everloop.records import Artifact, Experiment, Run, StepRun
from everloop.stores import Store, open_store
from everloop.stores.gc import gc
from everloop.tracking import read_metrics, start_run
from everloop.tracking.lifecycle import (
    archive_run,
    copy_run,
    delete_run,
    deleted_runs,
    family_of,
    find_run,
    move_run,
    restore_run,
    unarchive_run,
)
from everloop.tracking.run_archive import export_runs, import_runs
from everloop.tracking.search.run_search import count_runs, search_runs

if TYPE_CHECKING:
    from pathlib import Path


def _family(store: Store, folder: Path) -> Run:
    """A run with a child, points, a step and two artifacts, one of them a folder."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "weights").write_bytes(b"w" * 1000)
    with start_run("parent", store=store, params={"lr": 0.1}) as run:
        run.log_artifact("notes", b"bytes")
        run.log_artifact("model", folder / "model")
        step = store.new(StepRun, run=run.id, name="s", status="ran", reason="first", fingerprint="f", code="c")
        store.records.put(step)
        with start_run("child", store=store) as child:
            child.log(loss=math.nan)
            child.log(loss=0.5)
    return run.record


def test_a_run_that_is_put_away_is_out_of_searches_until_it_is_shown_again(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    archive_run(store, run.id)
    assert archive_run(store, run.id).archived_at is not None
    assert [found.name for found in search_runs(store).rows] == ["child"]  # type: ignore[union-attr]
    assert count_runs(store, include_archived=True) == 2
    assert count_runs(store, "archived") == 1
    assert unarchive_run(store, run.id).archived_at is None
    assert count_runs(store) == 2


def test_a_deleted_run_comes_back_with_all_that_went_along(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    before = family_of(store, run.id)
    assert len(before.records) == 5
    delete_run(store, run.id)
    assert count_runs(store, include_archived=True) == 0
    assert store.records.find(Artifact) == []
    assert [gone.id for gone in deleted_runs(store)] == [run.id]
    restore_run(store, run.id)
    assert family_of(store, run.id) == before
    assert deleted_runs(store) == []
    with pytest.raises(NotFoundError):
        restore_run(store, run.id)


def test_what_was_deleted_before_stays_deleted_when_its_parent_comes_back(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    (child,) = family_of(store, run.id).children
    delete_run(store, child.id)
    delete_run(store, run.id)
    restore_run(store, run.id)
    assert family_of(store, run.id).children == ()
    restore_run(store, child.id)
    assert [one.id for one in family_of(store, run.id).children] == [child.id]


def test_gc_sweeps_a_deleted_run_with_its_objects_and_points(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    digests = {artifact.digest for artifact in family_of(store, run.id).artifacts}
    (child,) = family_of(store, run.id).children
    delete_run(store, run.id)
    gc(store, grace_s=0)
    assert not any(store.objects.has(digest) for digest in digests)
    assert store.records.read_points(f"run:{child.id}") == []
    assert deleted_runs(store) == []
    with pytest.raises(NotFoundError):
        restore_run(store, run.id)


def test_a_run_that_goes_on_is_not_deleted(store: Store) -> None:
    with start_run("going", store=store) as run:
        with pytest.raises(ConflictError, match="still running"):
            delete_run(store, run.id)
        with pytest.raises(ConflictError, match="still running"):
            move_run(store, run.id, "other")
    assert count_runs(store) == 1


def test_a_run_moves_with_its_family_and_its_past(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    there = store.for_project("other")
    moved = move_run(store, run.id, "other")
    assert {record.project for record in moved.records} == {"other"}
    assert [one.id for one in moved.children] == [one.id for one in family_of(there, run.id).children]
    assert count_runs(store, include_archived=True) == 0
    assert count_runs(there) == 2
    assert [point.value for point in read_metrics(there, moved.children[0].id, "loss")][1:] == [0.5]
    assert len(there.records.history(Run, run.id)) > 1
    child = moved.children[0]
    assert move_run(there, child.id, "third").run.parent is None
    assert count_runs(store, projects=["other", "third"]) == 2
    assert there.records.events_since(0, subject=child.id)[-1].verb == "moved"


def test_a_copy_has_the_same_content_and_ids_of_its_own(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    before = family_of(store, run.id)
    copied = copy_run(store, run.id, "other")
    assert family_of(store, run.id) == before
    assert not {one.id for one in copied.records} & {one.id for one in before.records}
    assert copied.run.params == {"lr": 0.1}
    assert copied.run.tags["everloop.copied_from"] == run.id
    assert copied.children[0].parent == copied.run.id
    assert {one.digest for one in copied.artifacts} == {one.digest for one in before.artifacts}
    there = store.for_project("other")
    assert [point.value for point in read_metrics(there, copied.children[0].id)][1:] == [0.5]


def test_a_run_is_found_by_the_beginning_of_its_id(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    assert find_run(store, run.id) == run
    (child,) = family_of(store, run.id).children
    assert find_run(store, child.id[:-1]).id == child.id
    with pytest.raises(UsageError, match="Several"):
        find_run(store, run.id[:2])
    with pytest.raises(NotFoundError):
        find_run(store, "zzz")


def test_an_export_brings_everything_to_another_home_once(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    whole = family_of(store, run.id)
    done = export_runs(store, None, tmp_path / "runs.zip")
    assert done.runs == 2
    with open_store(tmp_path / "elsewhere", project="mine") as there:
        first = import_runs(there, done.path)
        assert set(first.added) == {one.id for one in whole.runs}
        assert import_runs(there, done.path).added == ()
        assert set(import_runs(there, done.path).known) == set(first.added)
        back = family_of(there, run.id)
        assert [replace(one, project=run.project, revision=0) for one in back.runs] == [
            replace(one, revision=0) for one in whole.runs
        ]
        assert len(back.records) == len(whole.records)
        values = [point.value for point in read_metrics(there, back.children[0].id, "loss")]
        assert math.isnan(values[0])
        assert values[1:] == [0.5]
        tree = next(one for one in back.artifacts if one.name == "model")
        restored = there.objects.restore_tree(tree.digest, tmp_path / "restored")
        assert (restored / "weights").read_bytes() == b"w" * 1000
        assert count_runs(there, "params.lr = 0.1") == 1
    with pytest.raises(AlreadyExistsError):
        export_runs(store, [run], done.path)
    with pytest.raises(UsageError, match="zip"):
        export_runs(store, [run], tmp_path / "runs.tar")


def test_a_damaged_or_wicked_file_brings_in_nothing(store: Store, tmp_path: Path) -> None:
    run = _family(store, tmp_path)
    good = export_runs(store, [run], tmp_path / "good.zip").path
    with zipfile.ZipFile(good) as file:
        members = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(members["manifest.json"])

    def written(changes: dict[str, bytes], names: dict[str, str] | None = None, form: int = 1) -> Path:
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name, content in {**members, **changes}.items():
                if name != "manifest.json":
                    file.writestr(name, content)
            listed = {**manifest["members"], **(names or {})}
            file.writestr("manifest.json", json.dumps({**manifest, "members": listed, "format": form}))
        return path

    target = next(name for name in members if name.startswith("objects/"))
    with open_store(tmp_path / "elsewhere") as there:
        for path in (
            written({target: b"other bytes"}),
            written({"runs/0.json": b"{}"}),
            written({}, {"../../evil": "0" * 64}),
            written({}, {f"objects/{'0' * 64}": "1" * 64}),
            written({}, {f"objects/{'0' * 64}": "0" * 64}),
        ):
            with pytest.raises(CorruptionError):
                import_runs(there, path)
        (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-200])
        with pytest.raises(CorruptionError):
            import_runs(there, tmp_path / "cut.zip")
        with pytest.raises(NotFoundError):
            import_runs(there, tmp_path / "none.zip")
        assert count_runs(there, include_archived=True) == 0
        assert import_runs(there, written({"extra": b""})).added == (run.id,)


def _mlflow_file(path: Path) -> None:
    """As MLflow 3 lays it out, in the columns that matter."""
    root = path.parent / "mlruns" / "1" / "aa" / "artifacts"
    root.mkdir(parents=True)
    (root / "model.txt").write_text("m")
    with closing(sqlite3.connect(path)) as base:
        base.executescript("""
            CREATE TABLE experiments (experiment_id INTEGER, name TEXT, artifact_location TEXT, lifecycle_stage TEXT);
            CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time BIGINT, end_time BIGINT, user_id TEXT,
                lifecycle_stage TEXT, experiment_id INTEGER, artifact_uri TEXT);
            CREATE TABLE metrics (key TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN);
            CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
            CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);
        """)
        base.executemany(
            "INSERT INTO experiments VALUES (?, ?, ?, 'active')", [(0, "Default", ""), (1, "flights", str(root.parent))]
        )
        base.executemany(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, 'ann', ?, ?, ?)",
            [
                ("aa", "first", "FINISHED", 1000, 3000, "active", 1, root.as_uri()),
                ("bb", "second", "RUNNING", 2000, None, "active", 1, "s3://bucket/bb"),
                ("cc", "third", "FAILED", 2500, 2600, "deleted", 0, "/etc"),
            ],
        )
        base.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
            [
                ("auc", 0.5, 1000, "aa", 0, False),
                ("auc", 0.7, 1500, "aa", 1, False),
                ("odd", 0.0, 1500, "aa", 0, True),
                ("big", 1.7976931348623157e308, 1500, "aa", 0, False),
                ("auc", 0.1, 2000, "bb", 0, False),
            ],
        )
        base.execute("INSERT INTO params VALUES ('lr', '0.01', 'aa')")
        base.executemany("INSERT INTO tags VALUES (?, ?, ?)", [("mlflow.parentRunId", "aa", "bb"), ("team", "a", "aa")])
        base.commit()


def test_mlflow_runs_come_in_once_and_grow(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    _mlflow_file(path)
    done = import_mlflow(store, path)
    assert len(done.added) == 3
    first, second, third = search_runs(store, order_by=["started_at"], include_archived=True).rows
    assert isinstance(first, Run)
    assert isinstance(second, Run)
    assert isinstance(third, Run)
    assert (first.name, first.state, first.seconds, first.user) == ("first", "finished", 2.0, "ann")
    assert first.started_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1)
    assert first.params == {"lr": "0.01"}
    assert first.tags["mlflow.run_id"] == "aa"
    assert first.metrics["auc"] == 0.7
    assert first.metrics["big"] == math.inf
    assert math.isnan(first.metrics["odd"])
    assert [(point.step, point.value) for point in read_metrics(store, first.id, "auc")] == [(0, 0.5), (1, 0.7)]
    assert second.parent == first.id
    assert third.archived_at is not None
    assert [experiment.name for experiment in store.records.find(Experiment)] == ["flights"]
    (artifact,) = store.records.find(Artifact)
    assert (artifact.name, artifact.run, store.objects.read(artifact.digest)) == ("model.txt", first.id, b"m")

    assert set(import_mlflow(store, f"sqlite:///{path}").known) == set(done.added)
    with closing(sqlite3.connect(path)) as base:
        base.execute("UPDATE runs SET status = 'FINISHED', end_time = 9000 WHERE run_uuid = 'bb'")
        base.execute("INSERT INTO metrics VALUES ('auc', 0.2, 2100, 'bb', 1, FALSE)")
        base.commit()
    assert import_mlflow(store, path).updated == (second.id,)
    assert store.records.get(Run, second.id).state == "finished"
    assert [point.value for point in read_metrics(store, second.id, "auc")] == [0.1, 0.2]
    assert set(import_mlflow(store, path).known) == set(done.added)


def test_what_is_no_mlflow_file_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        import_mlflow(store, tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(SourceError):
        import_mlflow(store, tmp_path / "text.db")
    with pytest.raises(SourceError, match="no table"):
        import_mlflow(store, store.home / "everloop.db")


class _Protocol(BaseHTTPRequestHandler):
    """Answers as MLflow's tracking server does, two pages of everything."""

    answers: ClassVar[dict[str, list[dict[str, Any]]]] = {
        "experiments/search": [
            {"experiments": [{"experiment_id": "0", "name": "Default"}], "next_page_token": "2"},
            {"experiments": [{"experiment_id": "7", "name": "flights"}]},
        ],
        "runs/search": [
            {
                "runs": [
                    {
                        "info": {
                            "run_id": "aa",
                            "run_name": "first",
                            "status": "FINISHED",
                            "start_time": 1000,
                            "end_time": 2000,
                            "lifecycle_stage": "active",
                            "artifact_uri": "file:///etc",
                        },
                        "data": {
                            "metrics": [{"key": "auc", "value": 0.9}],
                            "params": [{"key": "lr", "value": "0.1"}],
                            "tags": [{"key": "team", "value": "a"}],
                        },
                    }
                ]
            }
        ],
        "metrics/get-history": [
            {"metrics": [{"key": "auc", "value": 0.5, "timestamp": 1, "step": 0}], "next_page_token": "2"},
            {"metrics": [{"key": "auc", "value": 0.9, "timestamp": 2, "step": 1}]},
        ],
    }

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(asked.get("page_token"), asked.get("experiment_ids", ["7"]))

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        self._answer(asked.get("page_token", [None])[0], ["7"])

    def _answer(self, token: str | None, experiments: list[str]) -> None:
        pages = self.answers[urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")]
        body = json.dumps({} if experiments == ["0"] else pages[1 if token else 0]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_mlflow_runs_come_in_from_a_server(store: Store) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Protocol)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        (added,) = import_mlflow(store, url).added
        assert import_mlflow(store, url).known == (added,)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    run = store.records.get(Run, added)
    assert (run.name, run.params, run.tags["team"], run.metrics) == ("first", {"lr": "0.1"}, "a", {"auc": 0.9})
    assert [point.value for point in read_metrics(store, added)] == [0.5, 0.9]
    assert store.records.find(Artifact) == [], "a server cannot make this machine read its own files"
    with pytest.raises(UnavailableError):
        import_mlflow(store, url)
