"""Resumed and joined runs, unusual input, dying processes: logged data is never lost, and logging never fails."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from everloop.errors import InsufficientStorageError, NotFoundError, UsageError
from everloop.records import Run
from everloop.stores import Journal, Store, open_store
from everloop.tracking import current_run, fold, join_run, read_metrics, start_run
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.journal_writer import RunWriter

KILLS = int(os.environ.get("EVERLOOP_KILLS", "5"))


def values(store: Store, run: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read_metrics(store, run, key)]


def test_a_run_is_gone_on_with(store: Store) -> None:
    with start_run("train", store=store, params={"lr": 0.1}) as run:
        run.log(loss=3.0)
        run.log(loss=2.0)
    with start_run(resume=run.id, store=store, params={"more": 1}, tags={"part": "two"}) as again:
        assert again.id == run.id
        assert again.record.state == "running"
        assert dict(again.params) == {"lr": 0.1, "more": 1}
        again.log(loss=1.0)
    assert values(store, run.id) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    record = run.record
    assert (record.state, record.params, record.tags) == ("finished", {"lr": 0.1, "more": 1}, {"part": "two"})
    assert record.metrics == {"loss": 1.0}


def test_a_failed_run_can_still_finish(store: Store) -> None:
    with pytest.raises(ValueError, match="oops"), start_run("train", store=store) as run:
        raise ValueError("oops")
    with start_run(resume=run.id, store=store):
        pass
    assert (run.record.state, run.record.error) == ("finished", None)


def test_there_has_to_be_a_run_to_resume(store: Store) -> None:
    with pytest.raises(NotFoundError):
        start_run(resume="nobody", store=store)
    with pytest.raises(UsageError, match="None is not a valid name of a run"):
        start_run(store=store)


_RESUMES = """
import sys
from everloop.stores import open_store
from everloop.tracking import start_run
with open_store(sys.argv[1]) as store, start_run(resume=sys.argv[2], store=store) as run:
    for step in range(200):
        run.log({f"loss_{sys.argv[3]}": step}, step=step)
    print("logged", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_that_resume_one_run_are_both_kept(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0)
    resumed = [
        subprocess.Popen(
            [sys.executable, "-c", _RESUMES, str(store.home), run.id, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for process in resumed:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
    assert len(list(store.journals.iterdir())) == 2
    for process in resumed:
        process.communicate("end\n", timeout=30)
        assert process.returncode == 0
    for name in "ab":
        assert [step for step, _ in values(store, run.id, f"loss_{name}")] == list(range(200))
    record = run.record
    assert (record.state, record.metrics) == ("finished", {"loss": 1.0, "loss_a": 199.0, "loss_b": 199.0})


def test_a_run_is_joined_and_not_ended(store: Store) -> None:
    with start_run("train", store=store) as run:
        journals = len(list(store.journals.iterdir()))
        with join_run(store, run.id) as joined:
            assert current_run() is joined
            assert len(list(store.journals.iterdir())) == journals  # none before it is needed
            joined.log(loss=1.0)
            with start_run("inner", store=store) as inner:
                pass
        assert current_run() is run
        assert run.record.state == "running"
        assert run.record.metrics == {"loss": 1.0}
        assert inner.record.parent == run.id
    assert run.record.state == "finished"


def test_tasks_have_runs_of_their_own(store: Store) -> None:
    async def train(name: str) -> str:
        with start_run(name, store=store) as run:
            for step in range(5):
                await asyncio.sleep(0)
                assert current_run() is run
                run.log(loss=step)
        return run.id

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(train(f"run-{number}") for number in range(4)))

    for run in asyncio.run(all_of_them()):
        assert [step for step, _ in values(store, run)] == list(range(5))


def test_unicode_and_many_names(store: Store) -> None:
    names = {f"schicht/{number}/größe 漢字 🦊": float(number) for number in range(5000)}
    with start_run("train", store=store) as run:
        run.log(names, step=0)
    assert run.record.metrics == names
    assert len(read_metrics(store, run.id)) == 5000


def test_a_huge_parameter_is_refused_by_name_and_size(store: Store) -> None:
    with start_run("train", store=store) as run:
        with pytest.raises(UsageError, match=r"'text' takes 10\.0 MB"):
            run.log_params(small=1, text="x" * 10_000_000)
        run.log_params(text="x" * 500_000)
        assert "small" not in run.params
    assert len(run.record.params["text"]) == 500_000
    with pytest.raises(UsageError, match="the limit is 1 MB"):
        start_run("train", store=store, params={"text": "x" * 10_000_000})


class Backwards:
    """A clock that goes back an hour at each look, as one that is being set right."""

    simulated = True

    def __init__(self) -> None:
        self.moment = datetime(2030, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        self.moment -= timedelta(hours=1)
        return self.moment


def test_a_clock_that_goes_backwards_loses_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "home", clock=Backwards()) as store, start_run("train", store=store) as run:
        for step in range(5):
            run.log(loss=step, step=step)
        # The store shows what its clock says has been written; another clock shows all.
    with open_store(tmp_path / "home") as store:
        assert values(store, run.id) == [(step, float(step)) for step in range(5)]
        assert store.records.get(Run, run.id).state == "finished"


@pytest.mark.parametrize(
    "content",
    [
        random.Random(1).randbytes(5000),
        b"EVJL" + struct.pack("<HH", 99, 0) + b"of a later version",
        b"EVJL" + struct.pack("<HH", 1, 0) + random.Random(2).randbytes(3000),
        b"",
    ],
    ids=["garbage", "later version", "garbage inside", "empty"],
)
def test_journals_that_are_none_stop_nobody(store: Store, content: bytes) -> None:
    store.journals.mkdir(parents=True, exist_ok=True)
    (store.journals / "run-odd.0123456789abcdef.journal").write_bytes(content)
    with start_run("train", store=store) as run:
        run.log(loss=1.0)
    fold(store)
    assert values(store, run.id) == [(0, 1.0)]


@pytest.mark.parametrize(
    "payload",
    [
        journal_frames._encoder.encode([1, "yesterday", 0, {"a": 1.0}]),
        journal_frames._encoder.encode([1, datetime(2026, 1, 1, tzinfo=UTC), "zero", {"a": 1.0}]),
        journal_frames._encoder.encode([1, datetime(2026, 1, 1, tzinfo=UTC), 0, {"a": "b"}]),
        journal_frames._encoder.encode([5, "sleeping", datetime(2026, 1, 1, tzinfo=UTC), 1.0, None]),
        journal_frames._encoder.encode({"kind": 1}),
        b"\xc1",
        b"",
    ],
)
def test_frames_that_make_no_sense_are_named_as_damage(payload: bytes) -> None:
    from everloop.errors import CorruptionError

    with pytest.raises(CorruptionError):
        journal_frames.decode(payload)


def test_frames_that_say_more_than_we_know_are_read(store: Store) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    read = journal_frames.decode(journal_frames._encoder.encode([1, now, 3, {"a": 1.0}, "of a later version"]))
    assert read == journal_frames.PointsFrame(now, 3, {"a": 1.0})
    assert journal_frames.decode(journal_frames._encoder.encode([17, "what?"])) is None


def test_a_full_disk_warns_once_and_counts_what_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(journal: Journal, payload: bytes) -> int:
        raise InsufficientStorageError("No space left.")

    monkeypatch.setattr("everloop.tracking.journal.journal_writer._MOST_HELD", 10)
    monkeypatch.setattr(Journal, "append", full)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = start_run("train", store=store)
        for step in range(50):
            run.log(loss=step, step=step)
        assert run.lost == 50
        run.finish()
    assert len([one for one in said if "is held in memory" in str(one.message)]) == 1
    assert fold(store) == 0


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "gone" / "journals", "run-a", "train", lambda: b"start")
    writer.append(b"one")
    writer.close()
    assert writer.lost == 0
    assert writer.path is not None
    assert writer.path.exists()


def test_a_run_shows_itself(store: Store) -> None:
    from rich.console import Console

    with start_run("<b>train</b>", store=store, params={"x": "<script>"}) as run:
        html = run._repr_html_()
        assert "&lt;b&gt;train&lt;/b&gt;" in html
        assert "<script>" not in html
        console = Console(file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
        console.print(run)
        assert "<script>" in console.export_text()
        console.file.close()
    assert "ended" in run._repr_html_()


_LOGS = """
import sys
from everloop.stores import open_store
from everloop.tracking import start_run
store = open_store(sys.argv[1])
run = start_run(resume=sys.argv[2], store=store)
first = int(sys.argv[3])
for step in range(first, first + 1_000_000):
    run.log(loss=step, step=step)
    sys.stdout.write(f"{step}\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
def test_what_was_said_to_be_logged_survives_kills(store: Store) -> None:
    """One run, resumed and killed at any moment: each point that was acknowledged is there, once."""
    with start_run("train", store=store) as run:
        run.log(loss=-1, step=-1)
    chance = random.Random(7)
    acknowledged, first = [-1], 0
    for _ in range(KILLS):
        process: Any = subprocess.Popen(
            [sys.executable, "-c", _LOGS, str(store.home), run.id, str(first)], stdout=subprocess.PIPE, text=True
        )
        said = [int(process.stdout.readline())]
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        said += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged += said
        first = said[-1] + 1000
        if chance.random() < 0.5:
            fold(store)
    fold(store)
    found = [step for step, _ in values(store, run.id)]
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    assert len(found) - len(acknowledged) <= KILLS  # written, and killed before it could say so
