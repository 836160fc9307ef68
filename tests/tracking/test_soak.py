"""Many processes that log at once, into one home, for a while: nothing is lost and nobody is locked out.

A few for a second here; CI asks for 64 and for longer by EVERLOOP_SOAK=PROCESSES,SECONDS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from everloop.records import Run
from everloop.stores import Store
from everloop.stores.verify import verify
from everloop.tracking import fold, read_metrics

pytestmark = pytest.mark.slow

PROCESSES, SECONDS = (int(part) for part in os.environ.get("EVERLOOP_SOAK", "8,1").split(","))

_LOGGERS = """
import json, logging, os, sys, time, traceback
from everloop.stores import open_store
from everloop.tracking import fold, start_run

home, processes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
for number in range(processes):
    if os.fork() == 0:
        try:
            logging.basicConfig(level=logging.WARNING)
            store = open_store(home)
            until = time.monotonic() + seconds
            logged = []
            while time.monotonic() < until:
                # Every process ends and starts runs all the time: that is where stores are written.
                with start_run(f"logger {number}", store=store, params={"number": number}) as run:
                    for step in range(500):
                        run.log(loss=step / 7, step=step)
                logged.append(run.id)
                if number % 8 == 0:
                    fold(store)
            sys.stdout.write(json.dumps(logged) + "\\n")
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def test_many_processes_log_at_once(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOGGERS, str(store.home), str(PROCESSES), str(SECONDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == PROCESSES
    fold(store)
    runs = store.records.find(Run)
    assert {run.id for run in runs} == {run for logged in said for run in logged}
    assert {run.state for run in runs} == {"finished"}
    for run in runs:
        assert [(point.step, point.value) for point in read_metrics(store, run.id)] == [(s, s / 7) for s in range(500)]
    assert verify(store).problems == ()
