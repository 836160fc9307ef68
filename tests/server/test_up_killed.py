"""`everloop up` whose processes are killed at random moments: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from everloop.loop.worker.run_queue import enqueue_run
from everloop.records import Alias, EndpointRecord, ModelVersion, QueuedRun
from everloop.stores import open_store
from everloop.stores.verify import verify

pytestmark = pytest.mark.slow

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]


@pytest.fixture
def wine(tmp_path, monkeypatch):
    """A new project whose training takes a second."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    folder = tmp_path / "wine"
    subprocess.run([*EVERLOOP, "init", str(folder)], check=True, capture_output=True)
    loop = folder / "loop.py"
    loop.write_text(loop.read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)"))
    return folder


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [one for child in map(int, found) for one in (child, *children(child))]


def test_any_process_may_be_killed_at_any_moment(wine):
    draw = random.Random(7)

    def up():
        command = [*EVERLOOP, "up", "--dir", str(wine), "--port", "0", "--every", "0.5"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    process = up()
    try:
        with open_store(wine / ".everloop", project="wine") as store:
            for _ in range(8):
                time.sleep(draw.uniform(0.5, 4.0))
                victims = [process.pid, *children(process.pid)]
                victim = draw.choice(victims)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                if victim == process.pid:
                    process.wait()
                    process = up()
            enqueue_run(store, "wine", "after the storm", folder=str(wine))
            deadline = time.monotonic() + 150
            while time.monotonic() < deadline:
                requests = store.records.find(QueuedRun)
                endpoints = store.records.find(EndpointRecord)
                if all(one.state in ("done", "failed") for one in requests) and [one.state for one in endpoints] == [
                    "ready"
                ]:
                    break
                time.sleep(0.2)
            assert {one.state for one in requests} <= {"done", "failed"}
            assert requests[-1].state == "done", requests[-1].error
            assert len(store.records.find(ModelVersion)) == 1
            assert len(store.records.find(Alias, ("name", "=", "champion"))) == 1
            assert [len(one.routes) for one in store.records.find(EndpointRecord)] == [1]
            process.send_signal(signal.SIGINT)
            # 130 if the interrupt came before the server was ready.
            assert process.wait(60) in (0, 130)
            left = subprocess.run(["pgrep", "-f", str(wine)], capture_output=True, text=True, check=False).stdout
            assert left == ""
            assert verify(store).problems == ()
    finally:
        for pid in (*children(process.pid), process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
