"""Reading runs first folds the journals of dead processes, and does not touch living ones."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from everloop.records import Run, Source
from everloop.stores import Journal, Store
from everloop.stores.verify import mark_lost
from everloop.tracking import (
    compare_runs,
    count_runs,
    read_metrics,
    recover_journals,
    search_runs,
    series_of,
    start_run,
)
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.ingest import ingest_frames
from everloop.tracking.lifecycle import find_run
from everloop.tracking.search.run_search import RunPage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)

_DIES = """
import os, signal, sys
from everloop.stores import open_store
from everloop.tracking import start_run
store = open_store(sys.argv[1], project=sys.argv[2])
run = start_run("train", store=store)
run.params["depth"] = 3
for step in range(200):
    run.log(loss=step / 2, step=step)
print(run.id, flush=True)
{end}
"""
ENDS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "os.abort()",
    "left without an end": "os._exit(0)",
    "never ended": "",
    "threw": "raise ValueError",
}


def die(store: Store, end: str = "killed") -> str:
    """The id of a run whose process is gone."""
    script = _DIES.format(end=ENDS[end])
    command = [sys.executable, "-c", script, str(store.home), store.project]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True
    ).stdout.strip()


def whole(page: RunPage) -> list[Run]:
    return page.rows  # type: ignore[return-value]


def as_dict(run: Run) -> dict[str, Any]:
    return {"state": run.state, "metrics": run.metrics, "params": run.params}


LOOKS: dict[str, Callable[[Store, str], dict[str, Any]]] = {
    "search": lambda store, run: as_dict(whole(search_runs(store, f'id = "{run}"'))[0]),
    "search for the lost": lambda store, _: as_dict(whole(search_runs(store, "state = 'lost'"))[0]),
    "find": lambda store, run: as_dict(find_run(store, run[:20])),
    "compare": lambda store, run: as_dict(compare_runs(store, [run, run]).runs[0]),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_killed_run_is_lost_with_its_points_at_the_next_look(store: Store, look: str) -> None:
    run = die(store)
    assert store.records.get(Run, run).state == "running"
    seen = LOOKS[look](store, run)
    assert (seen["state"], seen["metrics"], seen["params"]) == ("lost", {"loss": 99.5}, {"depth": 3})
    assert [point.step for point in store.records.read_points(series_of(run))] == list(range(200))
    assert list(store.journals.iterdir()) == []


@pytest.mark.parametrize("end", ENDS)
def test_however_a_process_ends_without_ending_its_run_the_run_is_lost(store: Store, end: str) -> None:
    run = die(store, end)
    (seen,) = whole(search_runs(store))
    assert (seen.id, seen.state, seen.metrics) == (run, "lost", {"loss": 99.5})
    assert count_runs(store, "state = 'lost'") == 1
    assert whole(search_runs(store)) == [seen]  # a second look changes nothing


def test_a_run_of_another_project_is_lost_where_it_is_looked_for(store: Store) -> None:
    other = store.for_project("other")
    run = die(other)
    assert whole(search_runs(store)) == []
    (seen,) = whole(search_runs(store, projects=["default", "other"]))
    assert (seen.id, seen.state, seen.metrics) == (run, "lost", {"loss": 99.5})


def test_a_run_that_had_ended_in_its_journal_is_not_lost(store: Store) -> None:
    run = orphan(store, ended=True)
    assert whole(search_runs(store))[0].state == "finished"
    assert store.records.get(Run, run.id).metrics == {"loss": 2.0}
    assert "lost" not in [event.verb for event in store.records.events_since(0)]


def orphan(store: Store, *, ended: bool = False, host: str | None = None) -> Run:
    """A run whose process has died, as its files and the store show it."""
    run = store.new(Run, name="train", started_at=NOW, source=Source(host=host or os.uname().nodename))
    with store.lock(f"run-{run.id}"):
        store.records.put(run, verb="started")
    with Journal.create(store.journals, f"run-{run.id}") as journal:
        journal.append(journal_frames.encode_start(run))
        for step in range(3):
            journal.append(journal_frames.encode_metrics(NOW, step, {"loss": float(step)}))
        if ended:
            journal.append(journal_frames.encode_end("finished", NOW, 1.0, None))
    return run


_LIVES = """
import sys
from everloop.stores import open_store
from everloop.tracking import start_run
with open_store(sys.argv[1]) as store, start_run("train", store=store, resume=sys.argv[2] or None) as run:
    run.log(loss=1.0, step=1000)
    print(run.id, flush=True)
    sys.stdin.readline()
"""


def live(store: Store, resume: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _LIVES, str(store.home), resume]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_run_that_another_process_keeps_is_left_alone(store: Store) -> None:
    with live(store) as other:
        assert other.stdout is not None
        run = other.stdout.readline().strip()
        for look in ("search", "find", "compare"):
            assert LOOKS[look](store, run)["state"] == "running", look
        assert mark_lost(store) == []
        other.communicate("\n", timeout=30)
    assert LOOKS["search"](store, run)["state"] == "finished"


def test_a_run_is_alive_while_one_of_those_who_resumed_it_is(store: Store) -> None:
    with live(store) as first:
        assert first.stdout is not None
        run = first.stdout.readline().strip()
        with live(store, run) as second:
            assert second.stdout is not None
            assert second.stdout.readline().strip() == run
            first.kill()
            first.wait(timeout=30)
            assert LOOKS["search"](store, run)["state"] == "running"
            second.kill()
            second.wait(timeout=30)
        assert LOOKS["search"](store, run)["state"] == "lost"


@pytest.mark.slow
def test_a_killed_run_that_is_resumed_is_running(store: Store) -> None:
    run = die(store)
    with start_run(store=store, resume=run) as again:
        assert LOOKS["search"](store, run)["state"] == "running"
        again.log(loss=7.0)
    assert LOOKS["search"](store, run) == {"state": "finished", "metrics": {"loss": 7.0}, "params": {"depth": 3}}
    assert read_metrics(store, run)[-1].step == 200


def test_a_run_of_another_machine_is_left_alone_and_its_points_are_shown(store: Store) -> None:
    run = orphan(store, host="elsewhere")
    for _ in range(2):
        (seen,) = whole(search_runs(store))
        assert (seen.state, seen.metrics) == ("running", {"loss": 2.0})
    # A lock that looks free here may be held there, so the file stays.
    (path,) = store.journals.iterdir()
    with path.open("ab") as file, Journal.create(store.home / "scratch", "s") as scratch:
        scratch.append(journal_frames.encode_metrics(NOW, 9, {"loss": 9.0}))
        file.write(scratch.path.read_bytes()[8:])
    assert whole(search_runs(store))[0].metrics == {"loss": 9.0}
    assert len(store.records.read_points(series_of(run.id))) == 4
    assert store.records.get(Run, run.id).state == "running"


def test_a_run_of_another_machine_that_ended_there_is_brought_in_whole(store: Store) -> None:
    orphan(store, host="elsewhere", ended=True)
    assert whole(search_runs(store))[0].state == "finished"
    assert list(store.journals.iterdir()) == []


def test_a_run_resumed_on_this_machine_is_this_machines(store: Store) -> None:
    run = store.new(Run, name="train", started_at=NOW, state="lost", source=Source(host="elsewhere", python="3.12"))
    store.records.put(run)
    with live(store, run.id) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert store.records.get(Run, run.id).source == replace(run.source, host=os.uname().nodename)
        other.kill()
        other.wait(timeout=30)
    assert LOOKS["search"](store, run.id)["state"] == "lost"


def test_a_run_that_is_shipped_here_lives_elsewhere(store: Store, tmp_path: Path) -> None:
    from everloop.stores import open_store

    with open_store(tmp_path / "other") as other, start_run("train", store=other) as run:
        run.log(loss=1.0)
        (path,) = other.journals.iterdir()
        ingest_frames(store, path.stem, 0, path.read_bytes()[8:])
        assert LOOKS["search"](store, run.id)["state"] == "running"
        assert mark_lost(store) == []


def test_a_run_that_a_client_keeps_over_http_is_left_alone(store: Store) -> None:
    kept = store.new(Run, name="mlflow", started_at=NOW, artifacts_at="mlflow-artifacts:/0/x/artifacts")
    store.records.put(kept, verb="started")
    with start_run("ours", store=store) as ours:
        pass
    # A client has set a run going again that this home had started and ended.
    store.records.update(replace(ours.record, state="running"), verb="running")
    assert {run.state for run in whole(search_runs(store))} == {"running"}
    assert mark_lost(store) == []


def test_a_look_takes_bounded_time_and_the_rest_comes_at_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.tracking.journal.run_folding._BATCH", 2)
    run = orphan(store)
    recover_journals(store, within_s=0.0)
    assert store.records.get(Run, run.id).state == "running"  # its journal may yet say how it ended
    recover_journals(store)
    assert store.records.get(Run, run.id).state == "lost"
    assert len(store.records.read_points(series_of(run.id))) == 3


def test_a_journal_that_another_process_folds_is_not_waited_for(store: Store) -> None:
    run = orphan(store)
    (path,) = store.journals.iterdir()
    import zlib

    with store.lock(f"fold-{zlib.crc32(path.name.encode()) % 16}"):
        recover_journals(store, within_s=0.05)
        assert store.records.get(Run, run.id).state == "running"
    recover_journals(store)
    assert store.records.get(Run, run.id).state == "lost"


def test_a_damaged_journal_does_not_keep_others_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    damaged, sound = orphan(store), orphan(store)
    (path,) = store.journals.glob(f"run-{damaged.id}.*")
    content = bytearray(path.read_bytes())
    content[-60] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR, "everloop.tracking"):
        seen = {run.id: run for run in whole(search_runs(store))}
    assert path.name in caplog.text
    assert (seen[sound.id].state, seen[sound.id].metrics) == ("lost", {"loss": 2.0})
    assert seen[damaged.id].state == "lost"


def test_a_view_of_the_past_changes_nothing(store: Store) -> None:
    run = orphan(store)
    assert [one.state for one in whole(search_runs(store.as_of(store.now())))] == ["running"]
    assert store.records.get(Run, run.id).state == "running"


def test_a_home_that_cannot_be_written_is_still_looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = orphan(store)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(Store, "lock", refused)
    with caplog.at_level(logging.WARNING, "everloop.tracking"):
        assert [one.id for one in whole(search_runs(store))] == [run.id]
    assert "read only" in caplog.text


def test_a_forked_child_does_not_keep_a_killed_run_alive(store: Store) -> None:
    script = """
import os, signal, sys, time
from everloop.stores import open_store
from everloop.tracking import start_run
run = start_run("train", store=open_store(sys.argv[1]))
run.log(loss=1.0)
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(run.id, child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    said = subprocess.run(
        [sys.executable, "-c", script, str(store.home)], stdout=subprocess.PIPE, text=True, check=False
    )
    run, child = said.stdout.split()
    try:
        assert LOOKS["search"](store, run)["state"] == "lost"
    finally:
        os.kill(int(child), 9)
