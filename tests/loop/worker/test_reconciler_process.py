"""The reconciler's process: leases, requested runs, failures that are reported once, and changed code."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace

import msgspec
import pytest

from everloop.errors import DataError, LeaseLostError
from everloop.loop.project import load_project
from everloop.loop.triggers.trigger_declarations import Due
from everloop.loop.worker.failure_reports import LONGEST_WAIT_S, FailureReports
from everloop.loop.worker.reconciler import Reconciliation
from everloop.loop.worker.reconciler_process import ReconcilerProcess, reconcile_lease
from everloop.loop.worker.run_queue import active_runs
from everloop.prediction_log.prediction_log import Group, PredictionLog
from everloop.stores import open_store
from everloop.stores.home import StoreUrls, open_urls
from everloop.stores.leases import Leases

NOTHING = Reconciliation(0, [], None, None)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


@pytest.fixture
def found(monkeypatch):
    """What each tick finds: `found.next` is a `Reconciliation`, an exception, or a function of loop and store."""
    state = SimpleNamespace(next=NOTHING, ticks=[])

    def reconcile(loop, store):
        state.ticks.append(loop.name)
        if isinstance(state.next, Exception):
            raise state.next
        return state.next(loop, store) if callable(state.next) else state.next

    monkeypatch.setattr("everloop.loop.worker.reconciler.reconcile", reconcile)
    return state


@pytest.fixture
def process(store, tmp_path, monkeypatch):
    monkeypatch.setattr("everloop.loop.worker.reconciler_process.describe_project", lambda project, store: {})
    return make(store, tmp_path)


def make(store, tmp_path, *names, every_s=0.01):
    loops = {name: SimpleNamespace(name=name, timeout="2h", serve=None) for name in names or ("shop",)}
    return ReconcilerProcess(store, SimpleNamespace(folder=tmp_path, loops=loops), every_s=every_s)


def events(store, *verbs):
    return [
        (event.verb, event.key, event.data["error"])
        for event in store.records.events_since(0, kinds=("loop",))
        if event.verb in (verbs or ("tick_failed",))
    ]


def due(reason="weekly"):
    return Reconciliation(0, [], None, Due("Every", reason, {"days": 7}))


@pytest.mark.slow
def test_a_due_run_is_requested_and_not_run(store, process, found):
    loop = process.project.loops["shop"]
    process.tick(loop, store)
    assert active_runs(store) == []
    found.next = due()
    process.tick(loop, store)
    process.tick(loop, store)
    (queued,) = active_runs(store)
    assert (queued.loop, queued.trigger, queued.cause, queued.timeout_s) == (
        "shop",
        "Every: weekly",
        {"trigger": "Every", "reason": "weekly", "evidence": {"days": 7}},
        7200.0,
    )  # fmt: skip
    assert len(queued.code) == 64


@pytest.mark.slow
def test_an_error_that_persists_is_reported_once(store, process, found, capsys):
    loop = process.project.loops["shop"]
    found.next = DataError("the table is gone")
    for _ in range(3):
        process.tick(loop, store)
    assert capsys.readouterr().err == "DataError: the table is gone\n"
    found.next = NOTHING
    process.tick(loop, store)
    found.next = DataError("the table is gone")
    process.tick(loop, store)
    assert events(store) == [("tick_failed", "shop", "the table is gone")] * 2


@pytest.mark.slow
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyError("price"), RecursionError("deep")])
def test_an_error_of_the_projects_own_code_is_reported_and_does_not_end_the_process(
    store, process, found, capsys, error
):
    found.next = error
    process.tick(process.project.loops["shop"], store)
    assert events(store) == [("tick_failed", "shop", f"{type(error).__name__}: {error}")]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_a_watch_that_fails_does_not_stop_a_due_run_nor_slow_the_ticks(store, process, found):
    loop = process.project.loops["shop"]
    found.next = Reconciliation(0, [], None, Due("Every", "weekly"), [DataError("no baseline")])
    for _ in range(5):
        process.tick(loop, store)
    assert len(active_runs(store)) == 1
    assert events(store) == [("tick_failed", "shop", "no baseline")]
    assert process._reports.wait_s("loop", "shop", 10.0) == 10.0


def test_each_further_failure_doubles_the_wait_up_to_five_minutes(store):
    reports = FailureReports()
    waits = []
    for _ in range(8):
        reports.report(store, "loop", "shop", [("tick_failed", DataError("gone"))])
        waits.append(reports.wait_s("loop", "shop", 10.0))
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, LONGEST_WAIT_S, LONGEST_WAIT_S, LONGEST_WAIT_S]
    assert reports.wait_s("loop", "other", 10.0) == 10.0
    reports.report(store, "loop", "shop", [])
    assert reports.wait_s("loop", "shop", 10.0) == 10.0
    assert reports.wait_s("loop", "shop", 3600.0) == 3600.0


@pytest.mark.slow
def test_one_process_reconciles_a_loop_and_another_takes_over(store, tmp_path, found, monkeypatch):
    monkeypatch.setattr("everloop.loop.worker.reconciler_process.describe_project", lambda project, store: {})
    first, second = (make(store, tmp_path, "a", "b") for _ in range(2))
    for process in (first, second):
        for name, loop in process.project.loops.items():
            process._look_at(name, loop)
    assert found.ticks == ["a", "b"]
    first.stop.set()
    first.work()
    for name, loop in second.project.loops.items():
        second._look_at(name, loop)
    assert found.ticks == ["a", "b", "a", "b"]
    assert [lease.fence for lease in Leases(store).held()] == [2, 2]
    second.stop.set()
    second.work()
    assert Leases(store).held() == []


def test_a_process_that_was_replaced_in_the_middle_of_a_tick_writes_nothing(store, process, found, capsys):
    def stopped_meanwhile(loop, fenced):
        thief = Leases(store, owner="elsewhere/scope/1/1", is_gone=lambda owner: True)
        assert thief.acquire(reconcile_lease("shop"), ttl_s=60) is not None
        fenced.records.append_event("promoted", "alias", "x", "shop@champion")
        return NOTHING

    found.next = stopped_meanwhile
    process._look_at("shop", process.project.loops["shop"])
    assert store.records.events_since(0, kinds=("alias",)) == []
    assert "process 1 on elsewhere has taken it over" in capsys.readouterr().err
    found.next = NOTHING
    process._look_at("shop", process.project.loops["shop"])
    assert found.ticks == ["shop"]


def test_the_guard_is_called_around_ticks_and_its_failures_do_not_end_the_process(store, tmp_path, found, monkeypatch):
    monkeypatch.setattr("everloop.loop.worker.reconciler_process.describe_project", lambda project, store: {})
    process = make(store, tmp_path, every_s=60.0)
    calls = []

    def guard(loop, fenced):
        calls.append(loop.name)
        fenced.records.append_event("guarded", "release", "x")
        raise ZeroDivisionError("by zero")

    process._guard = guard
    for _ in range(4):
        process._look_at("shop", process.project.loops["shop"])
    assert (found.ticks, calls) == (["shop"], ["shop"] * 4)
    reported = store.records.events_since(0, kinds=("release_guard",))
    assert [event.data["error"] for event in reported] == ["ZeroDivisionError: by zero"]
    process.stop.set()
    process.work()


def answer_and_die(store, key):
    """Log one answer of an endpoint in a process that is killed before it can ship or fold anything."""
    child = os.fork()
    if not child:
        inputs = msgspec.Raw(msgspec.msgpack.encode({"x": "float"}))
        one = Group(f"{key:<36}", 0, 0.1, "shop@1", "champion", inputs, None, [key], None, [0.5], None, [(1.0,)])
        PredictionLog(store, "shop").append([one])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.slow
@pytest.mark.parametrize("shipped", [False, True])
def test_the_answers_on_a_host_that_reconciles_no_loop_reach_the_table_once(
    tmp_path, found, monkeypatch, capfd, shipped
):
    monkeypatch.setattr("everloop.loop.worker.reconciler_process.describe_project", lambda project, store: {})
    places = {part: str(tmp_path / "shared" / part) for part in ("records", "objects", "tables")}
    (tmp_path / "shared").mkdir()
    urls = [StoreUrls(home=tmp_path / name, log=str(tmp_path / "shared"), **places) for name in ("ann", "ben")]
    with open_urls(urls[0], project="p") as ann, open_urls(urls[1], project="p") as ben:
        first, second = make(ann, tmp_path), make(ben, tmp_path)
        for process in (first, second):
            process.project.loops["shop"].serve = SimpleNamespace(name="shop")
            process._look_at("shop", process.project.loops["shop"])
        assert (list(first._held), list(second._held)) == (["shop"], [])
        if shipped:
            monkeypatch.setenv("EVERLOOP_LOG", str(tmp_path / "shared"))
            monkeypatch.setenv("EVERLOOP_LOG_FOLDER", str(tmp_path / "spool"))
        for key in ("one", "two"):
            answer_and_die(ben, key)
        assert entities_in(ann) == []
        for _ in range(2):
            look_once(second)
            assert entities_in(ann) == ["one", "two"]
        assert list(tmp_path.rglob("*.journal")) == []
        # A damaged journal is reported once, and keeps nothing else waiting.
        answer_and_die(ben, "three")
        monkeypatch.delenv("EVERLOOP_LOG", raising=False)
        (ben.journals / "labels@p@shop.0123456789abcdef.journal").write_bytes(b"not a journal")
        for _ in range(2):
            look_once(second)
        assert capfd.readouterr().err.count("labels@p@shop.0123456789abcdef.journal") == 1
        assert [event.verb for event in ann.records.events_since(0, kinds=("endpoint",))] == ["fold_failed"]
        assert entities_in(ann) == (["one", "two"] if shipped else ["one", "three", "two"])


def look_once(process):
    process.stop.clear()
    process.stop.wait = lambda timeout_s: process.stop.set()
    process._fold_at = 0.0
    process.work()


def entities_in(store):
    if not store.tables.exists("predictions@p/shop"):
        return []
    return sorted(store.tables.scan("predictions@p/shop").collect()["entity"])


@pytest.mark.slow
def test_a_lost_lease_is_not_a_failure_of_the_loop(store, process, found):
    found.next = LeaseLostError("gone")
    with pytest.raises(LeaseLostError):
        process.tick(process.project.loops["shop"], store)
    assert events(store) == []


# --- changed code ---------------------------------------------------------------------------------------------


@pytest.fixture
def running(shop, found):
    """The reconciler of a project on disk, which works in a thread. It returns whether it wants to start again."""
    with shop.open() as store:
        process = ReconcilerProcess(store, load_project(shop.folder), every_s=0.1)
        ended = []
        thread = threading.Thread(target=lambda: ended.append(process.work()))
        thread.start()
        try:
            yield SimpleNamespace(process=process, store=store, thread=thread, ended=ended)
        finally:
            process.stop.set()
            thread.join(60)


def wait_for_event(store, verb, timeout_s=60):
    waiting = threading.Event()
    for _ in range(int(timeout_s / 0.1)):
        for event in store.records.events_since(0, kinds=("loop",)):
            if event.verb == verb:
                return event
        waiting.wait(0.1)
    raise AssertionError(f"no event {verb}")


@pytest.mark.slow
def test_changed_code_is_loaded_with_a_plan_of_what_changes(shop, running):
    shop.change("loop.py", 'el.AtLeast("roc_auc", 0.60)', 'el.AtLeast("roc_auc", 0.65)')
    shop.change("loop.py", 'el.Every("8w")', 'el.Every("4w"), el.OnNewData()')
    event = wait_for_event(running.store, "reloaded")
    running.thread.join(60)
    assert running.ended == [True]
    assert event.data["files"] == ["loop.py"]
    text = "\n".join(event.data["changes"])
    assert "gates: AtLeast(" in text
    assert "0.65" in text
    assert "Every(interval='4w')" in text
    assert "OnNewData(" in text
    assert len(event.data["changes"]) == 4
    assert {step["step"] if "step" in step else step["name"] for step in event.data["steps"]} >= {"orders", "prepare"}
    assert Leases(running.store).held() == []


@pytest.mark.slow
def test_a_changed_module_beside_the_loop_is_noticed(shop, running):
    shop.change("limits.py", "1.0", "2.0")
    assert wait_for_event(running.store, "reloaded").data["files"] == ["limits.py"]


@pytest.mark.slow
def test_broken_code_keeps_the_loop_running_and_is_shown_once(shop, running, found, capsys):
    good = (shop.folder / "loop.py").read_text()
    shop.write("loop.py", "import everloop as el\nloop = (")
    event = wait_for_event(running.store, "reload_failed")
    assert "Syntax error in" in event.data["error"]
    ticks = len(found.ticks)
    threading.Event().wait(2.5)
    assert len(found.ticks) > ticks
    assert running.ended == []
    assert [one.verb for one in running.store.records.events_since(0, kinds=("loop",))] == ["reload_failed"]
    shop.write("loop.py", good + "\n# a comment\n")
    assert wait_for_event(running.store, "reloaded").data["changes"] == []
