"""`python -m everloop.loop` reconciles the loops of a project, starts due runs and reports each error once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from everloop.errors import DataError, StepError
from everloop.loop import __main__ as worker
from everloop.loop.triggers.trigger_declarations import Due
from everloop.loop.worker.reconciler import Reconciliation
from everloop.records import Run
from everloop.stores import open_store


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


class NamedLoop:
    def __init__(self, name="shop"):
        self.name = name


@pytest.fixture
def ticks(monkeypatch):
    """What each tick finds: a `Reconciliation`, or an error that is raised. The runs that were started are recorded."""

    class Ticks:
        found = Reconciliation(0, [], None, None)
        run_error = None

        def __init__(self):
            self.ran = []

        def reconcile(self, loop, store):
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

        def run_loop(self, loop, store, *, trigger):
            self.ran.append((loop.name, str(trigger)))
            if self.run_error is not None:
                raise self.run_error

    made = Ticks()
    monkeypatch.setattr("everloop.loop.worker.reconciler.reconcile", made.reconcile)
    monkeypatch.setattr("everloop.loop.loop_run.run_loop", made.run_loop)
    return made


def events(store):
    found = store.records.events_since(0, kinds=("loop",))
    return [(event.verb, event.key, event.data["error"]) for event in found]


def due(reason="weekly"):
    return Reconciliation(0, [], None, Due("Every", reason))


def test_a_due_run_starts_with_its_reason(store, ticks):
    worker._tick(NamedLoop(), store, {})
    assert ticks.ran == []
    ticks.found = due()
    worker._tick(NamedLoop(), store, {})
    assert ticks.ran == [("shop", "Every: weekly")]
    assert events(store) == []


def test_an_error_that_persists_is_reported_once(store, ticks, capsys):
    ticks.found, seen = DataError("the table is gone"), {}
    for _ in range(3):
        worker._tick(NamedLoop(), store, seen)
    assert capsys.readouterr().err == "DataError: the table is gone\n"
    ticks.found = DataError("the disk is gone")
    worker._tick(NamedLoop(), store, seen)
    assert events(store) == [
        ("tick_failed", "shop", "the table is gone"), ("tick_failed", "shop", "the disk is gone"),
    ]  # fmt: skip


def test_an_error_that_comes_back_is_reported_again(store, ticks):
    seen = {}
    for found in (DataError("gone"), Reconciliation(0, [], None, None), DataError("gone")):
        ticks.found = found
        worker._tick(NamedLoop(), store, seen)
    assert [verb for verb, *_ in events(store)] == ["tick_failed", "tick_failed"]


def test_each_loop_reports_its_own_errors(store, ticks):
    ticks.found, seen = DataError("gone"), {}
    for name in ("shop", "store", "shop"):
        worker._tick(NamedLoop(name), store, seen)
    assert [name for _, name, _ in events(store)] == ["shop", "store"]


def test_a_run_that_fails_is_reported_as_such_and_the_worker_carries_on(store, ticks):
    ticks.found, ticks.run_error, seen = due(), StepError("step 'prepare' failed"), {}
    worker._tick(NamedLoop(), store, seen)
    worker._tick(NamedLoop(), store, seen)
    assert len(ticks.ran) == 2
    assert [(verb, error) for verb, _, error in events(store)] == [("turn_failed", "step 'prepare' failed")]


def test_a_watch_that_fails_does_not_stop_a_due_run(store, ticks):
    ticks.found, seen = Reconciliation(0, [], None, Due("Every", "weekly"), [DataError("no baseline")]), {}
    worker._tick(NamedLoop(), store, seen)
    worker._tick(NamedLoop(), store, seen)
    assert ticks.ran == [("shop", "Every: weekly")] * 2
    assert [(verb, error) for verb, _, error in events(store)] == [("tick_failed", "no baseline")]


# --- the process -------------------------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch):
    """Call `main` in this process, whose signal handler is kept, until the parent process is gone."""
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)

    def call(*arguments, ticks=1):
        parents = iter([7, *[7] * ticks, 1])
        monkeypatch.setattr(worker.os, "getppid", lambda: next(parents))
        return worker.main([*map(str, arguments), "--every", "0"])

    return call


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No loop.py in"), ("loop = (", "Syntax error in"), ("x = 1", "declares no loop")],
)
def test_a_project_that_cannot_be_loaded_ends_the_worker(shop, in_process, capsys, text, says):
    if text is None:
        (shop.folder / "loop.py").unlink()
    else:
        shop.write("loop.py", text)
    assert in_process(shop.folder, "--home", shop.folder / ".everloop") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("ProjectError: ")
    assert says in printed


def test_every_loop_of_the_project_is_reconciled_until_the_parent_is_gone(shop, in_process, monkeypatch):
    text = (shop.folder / "loop.py").read_text()
    shop.write("loop.py", text + '\nother = el.Loop("other", data=loop.data, train=loop.train)\n')
    seen = []
    monkeypatch.setattr(worker, "_tick", lambda loop, store, errors: seen.append((loop.name, store.project)))
    assert in_process(shop.folder, "--home", shop.folder / ".everloop", "--project", "shop", ticks=2) == 0
    assert seen == [("shop", "shop"), ("other", "shop")] * 2


def test_an_interrupted_worker_ends_as_if_it_had_been_asked_to(shop, in_process, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "_tick", interrupt)
    assert in_process(shop.folder, "--home", shop.folder / ".everloop") == 0


def test_a_signal_interrupts_a_run_and_the_worker_ends_well(shop):
    """The steps before the interruption are kept for the next worker."""
    shop.change("loop.py", "return keep(orders)", "import time; time.sleep(60); return keep(orders)")
    command = [sys.executable, "-m", "everloop.loop", str(shop.folder), "--home", str(shop.folder / ".everloop")]
    process = subprocess.Popen(
        [*command, "--project", "shop"], env=os.environ.copy(), stderr=subprocess.PIPE, text=True
    )
    try:
        with shop.open() as store:
            until = time.monotonic() + 60
            while not (runs := store.records.find(Run)) and time.monotonic() < until:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            (run,) = [store.records.get(Run, run.id) for run in runs]
        assert run.error is None, run.error
        assert (run.loop, run.state, run.trigger) == ("shop", "interrupted", "first: the loop has not run yet")
    finally:
        process.kill()
        process.communicate()
