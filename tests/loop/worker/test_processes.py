"""Real processes: runners that are killed, runs that hang, crash or are cancelled, and hosts that stop and continue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from everloop.loop.worker.run_queue import cancel_run, enqueue_run, last_attempt
from everloop.records import Alias, ModelVersion, QueuedRun, Run, StepRun
from everloop.stores.leases import Leases
from everloop.stores.processes import pid_of

pytestmark = pytest.mark.slow


@pytest.fixture
def start(shop):
    """Start `python -m everloop.loop` for the project, as often as needed. Everything is killed in the end."""
    started = []

    def begin(command, *options):
        words = [sys.executable, "-m", "everloop.loop", command, str(shop.folder)]
        words += ["--home", str(shop.folder / ".everloop"), "--project", "shop", *options]
        with (shop.folder / f"{command}.log").open("ab") as log:
            started.append(subprocess.Popen(words, stdout=log, stderr=log, cwd=shop.folder))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
    for log in shop.folder.glob("*.log"):
        sys.stderr.write(f"--- {log.name}\n{log.read_text()}")


def until(check, timeout_s=90.0):
    """The first true value of `check`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.05)
    raise AssertionError("not in time")


def ended(store, queued):
    def check():
        now = store.records.get(QueuedRun, queued.id)
        return now if now.state not in ("waiting", "running") else None

    return until(check)


def running(store, queued):
    def check():
        now = store.records.get(QueuedRun, queued.id)
        run = last_attempt(store, queued.id)
        return run if now.state == "running" and run is not None and run.state == "running" else None

    return until(check)


def request(store, shop, **more):
    return enqueue_run(store, "shop", "Every: 8w", folder=str(shop.folder), **more)


def slow_step(shop, seconds=60):
    """Make a step sleep as long as the file `slow` exists."""
    shop.change(
        "loop.py",
        "    return keep(orders)",
        "    import os, time\n    from pathlib import Path\n"
        f"    if Path({str(shop.folder / 'slow')!r}).exists():\n        time.sleep({seconds})\n    return keep(orders)",
    )
    (shop.folder / "slow").touch()


def test_a_runner_runs_what_is_queued_and_stays(shop, start):
    with shop.open() as store:
        queued = request(store, shop)
        runner = start("run", "--parent", str(os.getpid()))
        done = ended(store, queued)
        assert (done.state, done.attempts, done.error) == ("done", 1, None)
        run = store.records.get(Run, done.run)
        assert (run.state, run.loop, run.trigger) == ("finished", "shop", "Every: 8w")
        assert runner.poll() is None
        until(lambda: [lease.name.split(":")[0] for lease in Leases(store).held()] == ["runner"])
        runner.terminate()
        assert runner.wait(30) == 0
        assert Leases(store).held() == []


def test_a_killed_runner_is_replaced_and_finished_steps_are_kept(shop, start):
    slow_step(shop)
    with shop.open() as store:
        queued = request(store, shop)
        first = start("run")
        before = running(store, queued)
        until(lambda: store.records.find(StepRun, ("run", "=", before.id), ("name", "=", "orders")))
        first.kill()
        first.wait()
        (shop.folder / "slow").unlink()
        start("run")
        done = ended(store, queued)
        assert (done.state, done.attempts) == ("done", 2)
        assert done.run != before.id
        assert store.records.get(Run, before.id).state in ("lost", "interrupted")
        steps = {step.name: step.status for step in store.records.find(StepRun, ("run", "=", done.run))}
        assert steps["orders"] == "cached"
        assert len(store.records.find(ModelVersion)) == 1
        assert len(store.records.find(Alias, ("name", "=", "champion"))) == 1


def test_a_run_that_hangs_is_stopped_after_its_timeout(shop, start):
    slow_step(shop)
    with shop.open() as store:
        queued = request(store, shop, timeout_s=4.0)
        start("run")
        failed = ended(store, queued)
        assert failed.state == "failed"
        assert "longer than its timeout of 4 s" in failed.error
        assert store.records.find(Run, ("state", "=", "running")) == []


def test_a_running_run_is_cancelled(shop, start):
    slow_step(shop)
    with shop.open() as store:
        queued = request(store, shop)
        start("run")
        run = running(store, queued)
        cancel_run(store, "shop")
        assert ended(store, queued).state == "cancelled"
        assert store.records.get(Run, run.id).state == "interrupted"


def test_code_that_crashes_its_process_fails_after_its_attempts_and_the_runner_stays(shop, start):
    shop.change("loop.py", "return keep(orders)", "import os; os.kill(os.getpid(), 9)")
    with shop.open() as store:
        queued = request(store, shop, most_attempts=2)
        runner = start("run")
        failed = ended(store, queued)
        assert (failed.state, failed.attempts) == ("failed", 2)
        assert "signal SIGKILL" in failed.error
        assert runner.poll() is None


def test_a_step_that_fails_is_not_repeated(shop, start):
    shop.change("loop.py", "return keep(orders)", "raise ValueError('no such shop')")
    with shop.open() as store:
        queued = request(store, shop)
        start("run")
        failed = ended(store, queued)
        assert (failed.state, failed.attempts) == ("failed", 1)
        assert "no such shop" in failed.error
        assert store.records.get(Run, failed.run).state == "failed"


def test_a_host_that_stops_and_continues_is_fenced(shop, start):
    """The runner and its run are stopped for longer than the lease, as a laptop that sleeps. Another one takes over."""
    slow_step(shop, seconds=4)
    with shop.open() as store:
        queued = request(store, shop)
        first = start("run", "--ttl", "2")
        run = running(store, queued)
        child = int(subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, check=True, text=True).stdout)
        for pid in (first.pid, child):
            os.kill(pid, signal.SIGSTOP)
        (shop.folder / "slow").unlink()
        start("run", "--ttl", "2")
        until(lambda: store.records.get(QueuedRun, queued.id).attempts == 2)
        second = pid_of(store.records.get(QueuedRun, queued.id).runner)
        assert second != first.pid
        for pid in (child, first.pid):
            os.kill(pid, signal.SIGCONT)
        done = ended(store, queued)
        assert (done.state, done.attempts) == ("done", 2)
        until(lambda: not _alive(child))
        assert done.run != run.id
        assert first.poll() is None
        assert len(store.records.find(ModelVersion)) == 1
        assert len(store.records.find(Run, ("state", "=", "finished"))) == 1


def test_an_orderly_stop_leaves_the_run_for_the_next_runner(shop, start):
    slow_step(shop)
    with shop.open() as store:
        queued = request(store, shop)
        first = start("run")
        run = running(store, queued)
        first.terminate()
        assert first.wait(30) == 0
        left = store.records.get(QueuedRun, queued.id)
        assert (left.state, left.attempts, left.runner) == ("running", 0, "")
        assert store.records.get(Run, run.id).state == "interrupted"
        (shop.folder / "slow").unlink()
        start("run")
        assert ended(store, queued).state == "done"


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_reconciler_requests_the_first_run_and_a_second_one_takes_over(shop, start):
    with shop.open() as store:
        first = start("reconcile", "--every", "0.2")
        (queued,) = until(lambda: store.records.find(QueuedRun))
        assert (queued.trigger, queued.state) == ("first: the loop has not run yet", "waiting")
        start("reconcile", "--every", "0.2")
        first.kill()
        first.wait()
        lease = until(lambda: [one for one in Leases(store).held() if pid_of(one.owner) != first.pid])[0]
        assert lease.fence == 2
        assert len(store.records.find(QueuedRun)) == 1
        assert not store.records.find(Run)


def test_changed_code_replaces_the_process_without_a_new_id(shop, start):
    with shop.open() as store:
        reconciler = start("reconcile", "--every", "0.2")
        until(lambda: store.records.find(QueuedRun))
        shop.change("loop.py", 'el.Every("8w")', 'el.Every("4w")')
        event = until(
            lambda: [one for one in store.records.events_since(0, kinds=("loop",)) if one.verb == "reloaded"]
        )[0]
        assert event.data["changes"] == ["Loop 'shop', retrain: Every(interval='8w') becomes Every(interval='4w')"]
        lease = until(lambda: [one for one in Leases(store).held() if one.fence == 2])[0]
        assert pid_of(lease.owner) == reconciler.pid
