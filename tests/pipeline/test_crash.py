"""A run that is killed at any moment is resumed where it stopped; two runs at the same time do the work once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from everloop.records import Artifact, StepRun as StepRecord
from everloop.stores import open_store

if TYPE_CHECKING:
    from pathlib import Path

LOOP = """
import os, sys, time
from pathlib import Path
import numpy as np
from everloop.pipeline import Graph, Step, run_graph, step
from everloop.stores import open_store

LOG = Path(os.environ["CRASH_LOG"])

def work(name, number, value):
    time.sleep(PAUSE)
    with LOG.open("a") as log:
        log.write(f"{name}\\n")
    return np.full(5000, value + number)

PAUSE = 0.02

@step
def s0():
    return work("s0", 0, 0)
"""
LOOP += "".join(
    f"""
@step
def s{number}(s{number - 1}):
    return work("s{number}", {number}, s{number - 1}[0])
"""
    for number in range(1, 8)
)
LOOP += """
if __name__ == "__main__":
    with open_store(sys.argv[1]) as store:
        print("ready", flush=True)
        result = run_graph(Graph.wire([s7]), store)
        print(int(result.value("s7")[0]), flush=True)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "loop.py"
    path.write_text(LOOP)
    monkeypatch.setenv("CRASH_LOG", str(tmp_path / "log"))
    return path


def start(script: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.split()[-1]


@pytest.mark.slow
def test_a_killed_run_is_taken_up_where_it_stood(script: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    log = tmp_path / "log"
    chance = random.Random(7)
    killed = 0
    for _ in range(12):
        process = start(script, home)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.12))
        if process.poll() is None:
            killed += 1
        process.kill()
        process.communicate()
        with open_store(home) as store:
            recorded = store.records.find(StepRecord, ("status", "=", "ran"))
            made = [record.name for record in recorded]
            assert len(set(made)) == len(made), "a finished step was repeated"
            for record in recorded:
                # What is visible is whole.
                artifact = store.records.get(Artifact, record.outputs["result"])
                assert len(store.objects.read(artifact.digest)) == artifact.size_bytes
    assert killed >= 6
    assert finish(start(script, home)) == "28"
    # A step that had finished its work but was killed before its record may have run again; no other has.
    assert len(log.read_text().split()) <= 8 + killed
    with open_store(home) as store:
        made = [record.name for record in store.records.find(StepRecord, ("status", "=", "ran"))]
    assert sorted(made) == [f"s{number}" for number in range(8)]


@pytest.mark.slow
def test_two_runs_at_once_do_the_work_once(script: Path, tmp_path: Path) -> None:
    processes = [start(script, tmp_path / "home") for _ in range(3)]
    assert [finish(process) for process in processes] == ["28", "28", "28"]
    assert sorted((tmp_path / "log").read_text().split()) == [f"s{number}" for number in range(8)]
    with open_store(tmp_path / "home") as store:
        statuses = [record.status for record in store.records.find(StepRecord)]
    assert (statuses.count("ran"), statuses.count("cached")) == (8, 16)
