"""Active runs: what they record, and what happens on errors."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from everloop.errors import InsufficientStorageError, NotFoundError, UnavailableError, UsageError
from everloop.records import Artifact, Run
from everloop.stores import Journal, Store, open_store
from everloop.stores.verify import mark_lost
from everloop.tracking import ActiveRun, current_run, fold, read_metrics, start_run


def test_a_run_keeps_what_was_logged(store: Store) -> None:
    with start_run(
        "train", store=store, params={"lr": 0.1}, tags={"team": "x"}, loop="delays", trigger="manual"
    ) as run:
        assert store.records.get(Run, run.id).state == "running"
        for step, loss in enumerate((3.0, 2.0, 1.0)):
            run.log(loss=loss, step=step)
        run.log({"val": {"auc": 0.9, "by_class": [0.8, 0.7]}}, step=2)
        run.params.update({"depth": 4}, seed=0)
        run.params["layers"] = (1, 2)
        run.set_tag("stage", "final")
        assert dict(run.params) == {"lr": 0.1, "depth": 4, "seed": 0, "layers": [1, 2]}
    record = run.record
    assert record.state == "finished"
    assert record.params == {"lr": 0.1, "depth": 4, "seed": 0, "layers": [1, 2]}
    assert record.tags == {"team": "x", "stage": "final"}
    assert record.metrics == {"loss": 1.0, "val/auc": 0.9, "val/by_class/0": 0.8, "val/by_class/1": 0.7}
    assert (record.loop, record.trigger) == ("delays", "manual")
    assert record.ended_at is not None
    assert record.ended_at >= record.started_at
    assert record.seconds is not None
    assert record.seconds > 0
    assert [(point.step, point.value) for point in read_metrics(store, run.id, "loss")] == [
        (0, 3.0),
        (1, 2.0),
        (2, 1.0),
    ]
    assert list(store.journals.iterdir()) == []


def test_without_steps_each_metric_counts_its_own(store: Store) -> None:
    with start_run("train", store=store) as run:
        for value in range(3):
            run.log(loss=value)
            run.log(loss_2=value, accuracy=value)
        run.log(loss=9, accuracy=9)
    for key, steps in {"loss": 4, "accuracy": 4, "loss_2": 3}.items():
        assert [point.step for point in read_metrics(store, run.id, key)] == list(range(steps))


def test_numbers_of_any_library_are_taken(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(
            a=np.float32(0.5), b=np.int64(3), c=True, d=np.array([1.0, 2.0]), e=math.nan, f=-math.inf, step=np.int8(7)
        )
    metrics = run.record.metrics
    assert math.isnan(metrics.pop("e"))
    assert metrics == {"a": 0.5, "b": 3.0, "c": 1.0, "d/0": 1.0, "d/1": 2.0, "f": -math.inf}
    assert {point.step for point in read_metrics(store, run.id)} == {7}


@pytest.mark.parametrize("value", ["0.5", None, b"1", object(), np.zeros((2, 2)), 10**400, 1j])
def test_what_is_no_number_is_refused_by_name(store: Store, value: object) -> None:
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="metric 'val/auc'"):
        run.log({"val": {"auc": value}}, step=0)


@pytest.mark.parametrize("step", [1.5, "3", 2**63, -(2**63) - 1])
def test_a_step_is_a_whole_number_of_64_bits(store: Store, step: object) -> None:
    with start_run("train", store=store) as run, pytest.raises(UsageError, match="step="):
        run.log(loss=1, step=step)  # type: ignore[arg-type]


def test_parameters_are_kept_as_json_can_hold_them(store: Store) -> None:
    with start_run("train", store=store, params={"path": Path("a/b"), "big": 2**80}) as run:
        run.params.update({"n": np.int64(3), "nul": "a\0b", "nested": {1: (np.float64(0.5), None)}})
    assert run.record.params == {
        "path": "a/b",
        "big": str(2**80),
        "n": 3,
        "nul": "a␀b",
        "nested": {"1": [0.5, None]},
    }


def test_a_failure_says_what_and_where(store: Store) -> None:
    run = start_run("train", store=store)
    run.log(loss=1)
    with pytest.raises(ValueError, match="no rows"), run:
        raise ValueError("no rows")
    record = run.record
    assert record.state == "failed"
    assert record.error is not None
    assert record.error.startswith("ValueError: no rows (test_runs.py:")
    assert record.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(0), "finished", None),
        (SystemExit(), "finished", None),
        (SystemExit(False), "finished", None),
        (SystemExit(1), "failed", "SystemExit: 1 (test_runs.py:"),
        (SystemExit(3), "failed", "SystemExit: 3 (test_runs.py:"),
        (SystemExit("no rows"), "failed", "SystemExit: no rows (test_runs.py:"),
        (SystemExit(""), "failed", "SystemExit"),
        (SystemExit(0.0), "failed", "SystemExit: 0.0 (test_runs.py:"),
    ],
)
def test_how_a_run_ends(store: Store, error: BaseException, state: str, text: str | None) -> None:
    """As the process ends: `sys.exit` with 0 or nothing succeeds, with anything else it fails."""
    with pytest.raises(type(error)), start_run("train", store=store) as run:
        raise error
    record = run.record
    assert record.state == state
    if text is None:
        assert record.error is None
    else:
        assert record.error is not None
        assert record.error.startswith(text)


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (1, "failed")])
def test_a_script_that_leaves_inside_its_run(store: Store, code: int, state: str) -> None:
    script = f"import sys, everloop as el\nwith el.start_run('train'):\n    sys.exit({code})\n"
    environment = {**os.environ, "EVERLOOP_STORE": str(store.home)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert done.returncode == code
    (record,) = store.records.find(Run)
    assert record.state == state
    assert record.error == (None if code == 0 else "SystemExit: 1 (<string>:3 in <module>)")


def test_runs_nest(store: Store) -> None:
    assert current_run() is None
    with start_run("outer", store=store) as outer:
        assert current_run() is outer
        with start_run("inner", store=store) as inner:
            assert current_run() is inner
        with start_run("other", store=store, parent="elsewhere") as other:
            pass
        assert current_run() is outer
    assert current_run() is None
    assert inner.record.parent == outer.id
    assert other.record.parent == "elsewhere"
    assert outer.record.parent is None


def test_a_run_that_has_ended_takes_nothing_more(store: Store) -> None:
    with start_run("train", store=store) as run:
        pass
    with pytest.raises(UsageError, match="has ended"):
        run.log(loss=1)
    with pytest.raises(UsageError, match="has ended"):
        run.set_tag("a", "b")
    run.finish("failed")
    assert run.record.state == "finished"


@pytest.mark.parametrize("name", ["", "  "])
def test_a_run_needs_a_name(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name of a run"):
        start_run(name, store=store)
    assert store.records.find(Run) == []


def test_artifacts_are_kept_by_digest(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("hello")
    with start_run("train", store=store) as run:
        raw = run.log_artifact("raw", b"123")
        table = run.log_artifact("table", {"b": [1, 2], "a": None}, meta={"rows": 2})
        file = run.log_artifact("file", folder / "deep" / "a.txt")
        tree = run.log_artifact("tree", folder)
        with pytest.raises(NotFoundError, match="missing"):
            run.log_artifact("missing", tmp_path / "missing")
        with pytest.raises(UsageError, match="JSON cannot hold 'odd'"):
            run.log_artifact("odd", object())
    assert store.objects.read(raw.digest) == b"123"
    assert json.loads(store.objects.read(table.digest)) == {"a": None, "b": [1, 2]}
    assert table.meta == {"rows": 2}
    assert (file.size_bytes, file.meta) == (5, {"file": "a.txt"})
    store.objects.restore_tree(tree.digest, tmp_path / "again")
    assert (tmp_path / "again" / "deep" / "a.txt").read_text() == "hello"
    assert tree.size_bytes == 5
    kept = store.records.find(Artifact, ("run", "=", run.id))
    assert [(item.name, item.type) for item in kept] == [
        ("raw", "bytes"),
        ("table", "json"),
        ("file", "file"),
        ("tree", "tree"),
    ]


def test_without_a_store_the_nearest_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "near"))
    with start_run("train") as run:
        run.log(loss=1)
    with open_store(tmp_path / "near") as store:
        assert store.records.get(Run, run.id).metrics == {"loss": 1.0}


def log_many(run: ActiveRun) -> None:
    for value in range(200):
        run.log(loss=value)


def test_threads_log_to_one_run(store: Store) -> None:
    with start_run("train", store=store) as run:
        threads = [threading.Thread(target=log_many, args=(run,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    points = read_metrics(store, run.id, "loss")
    assert [point.step for point in points] == list(range(800))


def test_a_forked_child_logs_but_does_not_end_the_run(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0, step=0)
        child = os.fork()
        if child == 0:
            try:
                with run:
                    run.log(loss=2.0, step=1)
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        run.log(loss=3.0, step=2)
        assert len(list(store.journals.iterdir())) == 2
    fold(store)
    assert [point.value for point in read_metrics(store, run.id, "loss")] == [1.0, 2.0, 3.0]
    assert run.record.state == "finished"


def test_a_full_disk_is_never_raised_and_nothing_is_lost_when_it_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = Journal.append
    full = True

    def maybe_full(journal: Journal, payload: bytes) -> int:
        if full:
            raise InsufficientStorageError("No space left.")
        return append(journal, payload)

    with start_run("train", store=store) as run:
        monkeypatch.setattr(Journal, "append", maybe_full)
        with caplog.at_level(logging.WARNING, "everloop.tracking"):
            for step in range(50):
                run.log(loss=step, step=step)
        assert sum("is held in memory" in message for message in caplog.messages) == 1
        full = False
    assert [point.step for point in read_metrics(store, run.id, "loss")] == list(range(50))


def test_a_store_that_does_not_answer_delays_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine without a network: the journal holds the whole run, and the next fold brings it in."""

    def down(*_: object, **__: object) -> None:
        raise UnavailableError("The store does not answer.")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "everloop.tracking"):
        for verb in ("put", "append_points", "append_rows", "read_points", "get", "update"):
            patch.setattr(type(store.records), verb, down)
        with start_run("train", store=store, params={"lr": 0.1}) as run:
            run.log(loss=1.0)
    assert len(caplog.messages) == 2
    assert store.records.find(Run) == []
    assert fold(store) == 1
    record = store.records.get(Run, run.id)
    assert (record.state, record.params, record.metrics) == ("finished", {"lr": 0.1}, {"loss": 1.0})


_KILLED = """
import os, signal, sys
from everloop.stores import open_store
from everloop.tracking import start_run
run = start_run("train", store=open_store(sys.argv[1]))
run.params["depth"] = 3
for step in range(1000):
    run.log(loss=step / 2, step=step)
print(run.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_logged_survives_the_process(store: Store) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(store.home)], capture_output=True, text=True, check=False
    )
    run = killed.stdout.strip()
    assert killed.returncode < 0
    assert store.records.get(Run, run).state == "running"
    assert fold(store) == 1000
    assert fold(store) == 0
    mark_lost(store)
    record = store.records.get(Run, run)
    assert (record.state, record.params, record.metrics) == ("lost", {"depth": 3}, {"loss": 499.5})


def test_the_record_is_there_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "near"))
    with start_run("kept", params={"lr": 0.1}) as run:
        run.log(loss=1.0)
    assert (run.record.state, run.record.metrics, run.record.params) == ("finished", {"loss": 1.0}, {"lr": 0.1})
    with open_store(tmp_path / "other", project="p") as store, start_run("given", store=store) as given:
        given.log(loss=2.0)
    assert store.closed
    assert (given.record.project, given.record.metrics) == ("p", {"loss": 2.0})
    with pytest.raises(ValueError, match="x"), start_run("failed") as failed:
        raise ValueError("x")
    assert failed.record.state == "failed"
    run = start_run("by hand")
    assert run.record.state == "running"
    run.finish()
    assert run.record.state == "finished"


def test_the_record_has_what_the_store_did_not_take_at_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise UnavailableError("The store does not answer.")

    with monkeypatch.context() as patch:
        for verb in ("put", "append_points", "append_rows", "read_points", "get", "update"):
            patch.setattr(type(store.records), verb, down)
        with start_run("train", store=store) as run:
            run.log(loss=1.0)
    assert (run.record.state, run.record.metrics) == ("finished", {"loss": 1.0})


def test_nothing_is_taken_after_the_end_and_the_error_says_how_to_go_on(store: Store, tmp_path: Path) -> None:
    with start_run("train", store=store) as run:
        pass
    for call in (
        lambda: run.log(loss=1.0),
        lambda: run.log(loss=1.0, step=3),
        lambda: run.log_params(lr=1),
        lambda: run.params.update(lr=1),
        lambda: run.set_tag("a", "b"),
        lambda: run.set_tags(a="b"),
        lambda: run.log_text("note", "x"),
        lambda: run.log_artifact("raw", b"123"),
        lambda: run.log_table("t", {"a": [1]}),
        lambda: run.log_model({"a": 1}),
    ):
        with pytest.raises(UsageError, match="has ended") as caught:
            call()
        assert f"resume='{run.id}'" in str(caught.value.help)
    assert store.records.find(Artifact) == []
    with start_run(store=store, resume=run.id) as again:
        again.log_text("note", "x")
        again.set_tag("a", "b")
    assert again.record.tags == {"a": "b"}


def test_runs_of_one_script_share_one_open_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / "near"))
    with start_run("first") as first, start_run("second") as second:
        second.log(loss=1.0)
        first.store.close()  # others use it too
        first.log(loss=2.0)
    with open_store(tmp_path / "near") as store:
        assert {run.name: run.metrics for run in store.records.find(Run)} == {
            "first": {"loss": 2.0},
            "second": {"loss": 1.0},
        }
