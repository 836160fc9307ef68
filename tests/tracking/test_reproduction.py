"""Reproduction of a script's run, and the differences that it reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everloop.errors import NotFoundError, StepError, UsageError
from everloop.records import Run
from everloop.stores import Store
from everloop.tracking import start_run
from everloop.tracking.reproduction.environments import environment_for, other_packages
from everloop.tracking.reproduction.result_comparison import same
from everloop.tracking.reproduction.script_reproduction import reproduce_script

SCRIPT = """
import sys
from pathlib import Path
from everloop.tracking import start_run
import helper

with start_run("train", params={"rounds": int(sys.argv[1])}) as run:
    for step in range(int(sys.argv[1])):
        run.log(loss=helper.loss(step), step=step)
    run.log_text("note", Path("data.txt").read_text() if Path("data.txt").exists() else "none")
    run.log({"system/cpu_percent": float(__import__("time").time())})
"""


def git(folder: Path, *words: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("def loss(step):\n    return 1 / (step + 1)\n")
    return folder


def run_script(folder: Path, store: Store, *words: str) -> Run:
    environment = {**os.environ, "EVERLOOP_STORE": str(store.home)}
    command = [sys.executable, "train.py", *(words or ("3",))]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    (run,) = store.records.find(Run, order="-id", limit=1)
    return run


@pytest.mark.slow
def test_outside_of_git_the_folder_is_used_as_it_is(project: Path, store: Store, tmp_path: Path) -> None:
    run = run_script(project, store)
    done = reproduce_script(store, run, tmp_path / "scratch")
    assert done.identical
    assert done.compared == 2
    assert "was not in git" in done.remarks[0]
    # Of another length: Python tells compiled files apart by whole seconds and size.
    (project / "helper.py").write_text("def loss(step):\n    return 2.0 / (step + 1)\n")
    changed = reproduce_script(store, run, tmp_path / "again")
    assert [str(one) for one in changed.differences] == ["metric loss at step 0: 1.0 → 2.0"]
    assert reproduce_script(store, run, tmp_path / "third", tolerance=0.6).identical
    assert len(store.records.find(Run)) == 1  # all that happened elsewhere


@pytest.mark.slow
def test_in_git_the_code_of_then_runs_also_what_was_not_committed(project: Path, store: Store, tmp_path: Path) -> None:
    (project / "data.txt").write_text("rain")
    (project / ".gitignore").write_text("*.txt\n__pycache__/\n")
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    (project / "helper.py").write_text("from news import half\n\ndef loss(step):\n    return half / (step + 1)\n")
    (project / "news.py").write_text("half = 0.5\n")
    run = run_script(project, store)
    assert run.source.git_dirty
    assert run.source.changes is not None
    (project / "helper.py").write_text("raise SystemExit('broken since')\n")
    (project / "news.py").unlink()
    git(project, "commit", "-qam", "second")
    without = reproduce_script(store, run, tmp_path / "scratch")
    assert [one.subject for one in without.differences] == ["artifact note"]
    done = reproduce_script(store, run, tmp_path / "again", links=["data.txt"])
    assert done.identical
    assert "Linked in their present state: data.txt." in done.remarks
    assert run.metrics["loss"] == 0.5 / 3
    with pytest.raises(UsageError, match="is not in"):
        reproduce_script(store, run, tmp_path / "out", links=["../other"])
    git(project, "status")  # nothing of it is left in the repository
    assert not (project / ".git" / "worktrees").exists()


@pytest.mark.slow
def test_a_repository_that_has_moved_can_be_named(project: Path, store: Store, tmp_path: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    run = run_script(project, store)
    project.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError, match="--repository"):
        reproduce_script(store, run, tmp_path / "scratch")
    assert reproduce_script(store, run, tmp_path / "again", repository=tmp_path / "moved").identical


@pytest.mark.slow
def test_the_run_with_the_same_parameters_is_the_one(project: Path, store: Store, tmp_path: Path) -> None:
    twice = SCRIPT + "\nwith start_run('train', params={'rounds': 99}) as run:\n    run.log(other=1.0)\n"
    (project / "train.py").write_text(twice)
    run_script(project, store)
    for run in store.records.find(Run):
        assert reproduce_script(store, run, tmp_path / run.id).identical


@pytest.mark.slow
def test_a_command_that_fails_makes_no_run(project: Path, store: Store, tmp_path: Path) -> None:
    run = run_script(project, store)
    (project / "train.py").write_text("raise ValueError('gone wrong')")
    with pytest.raises(NotFoundError, match="gone wrong"):
        reproduce_script(store, run, tmp_path / "scratch")
    (project / "train.py").write_text("import time; time.sleep(60)")
    with pytest.raises(StepError, match="took longer than 0 s and was killed"):
        reproduce_script(store, run, tmp_path / "again", timeout_s=0.5)


def test_a_run_made_by_hand_cannot_be_made_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python"])
    with start_run("train", store=store) as run:
        pass
    with pytest.raises(UsageError, match="interactive interpreter"):
        reproduce_script(store, run.record, tmp_path / "scratch")


def test_packages_that_differ_are_named(store: Store, tmp_path: Path) -> None:
    from dataclasses import replace

    with start_run("train", store=store) as run:
        source = run.record.source
    assert other_packages(source.packages) == []
    other = replace(source, packages={**source.packages, "numpy": "1.0", "no-such-thing": "2"})
    assert [line.split(" (")[0] for line in other_packages(other.packages)] == ["numpy 1.0", "no-such-thing 2"]
    reused = environment_for(other, tmp_path / "venv", reuse=True)
    assert str(reused.python) == sys.executable
    assert "no-such-thing 2 (here none)" in reused.remarks[0]


def test_nan_is_itself() -> None:
    assert same(float("nan"), float("nan"))
    assert not same(1.0, 1.0 + 1e-15)
    assert same(1.0, 1.0 + 1e-15, 1e-12)
