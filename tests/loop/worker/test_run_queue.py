"""The queue of runs: one waiting request per loop, attempts, cancelling, and what a takeover does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from everloop.errors import ConflictError, LeaseLostError, NotFoundError
from everloop.loop.worker.run_queue import (
    QUEUED_TAG,
    active_runs,
    cancel_run,
    end_run,
    enqueue_run,
    find_waiting,
    put_back,
    run_lease,
    start_attempt,
)
from everloop.records import QueuedRun, Run
from everloop.stores import open_store
from everloop.stores.leases import Leases


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "home", project="p") as opened:
        yield opened


def request(store, loop="shop", trigger="Every: 1w", **more):
    return enqueue_run(store, loop, trigger, folder="/project", **more)


def begin(store, queued):
    held = Leases(store).acquire(run_lease(queued.loop))
    return start_attempt(held.fenced(store), queued, held.lease), held


def verbs(store):
    return [event.verb for event in store.records.events_since(0, kinds=("queued_run",))]


def test_a_second_trigger_joins_the_request_that_waits(store):
    first = request(store, trigger="Every: 1w", cause={"days": 7})
    second = request(store, trigger="OnDrift: price")
    third = request(store, trigger="OnDrift: price")
    assert (second.id, third.id) == (first.id, first.id)
    assert third.joined == ("OnDrift: price",)
    assert [queued.id for queued in active_runs(store)] == [first.id]
    assert verbs(store) == ["queued", "joined"]


def test_loops_wait_separately_in_the_order_of_their_requests(store):
    for loop in ("b", "a", "c"):
        request(store, loop)
    assert [queued.loop for queued in active_runs(store)] == ["b", "a", "c"]
    assert [queued.loop for queued in active_runs(store, "a")] == ["a"]


def test_of_requests_at_the_same_time_one_waits(store):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: request(store, trigger=f"t{n}"), range(16)))
    assert len({queued.id for queued in found}) == 1
    waiting = find_waiting(store, "shop")
    assert {waiting.trigger, *waiting.joined} == {f"t{n}" for n in range(16)}


def test_other_parameters_cannot_join(store):
    request(store, params={"train.budget_s": 5})
    with pytest.raises(ConflictError, match="everloop runs cancel shop"):
        request(store, params={"train.budget_s": 9})


def test_a_request_can_wait_while_another_runs(store):
    started, _ = begin(store, request(store))
    assert (started.state, started.attempts, started.fence) == ("running", 1, 1)
    waiting = request(store, trigger="OnNewData")
    assert waiting.id != started.id
    assert [queued.state for queued in active_runs(store)] == ["running", "waiting"]


def test_a_takeover_marks_the_earlier_run_lost_and_counts_the_attempt(store):
    started, held = begin(store, request(store))
    earlier = store.new(Run, name="shop", loop="shop", started_at=store.now(), tags={QUEUED_TAG: started.id})
    store.records.put(earlier)
    held.release()
    again, _ = begin(store, started)
    assert (again.attempts, again.fence) == (2, 2)
    assert store.records.get(Run, earlier.id).state == "lost"
    assert verbs(store) == ["queued", "started", "taken_over"]


def test_a_run_that_still_has_a_process_is_not_marked_lost(store):
    started, held = begin(store, request(store))
    earlier = store.new(Run, name="shop", loop="shop", started_at=store.now(), tags={QUEUED_TAG: started.id})
    store.records.put(earlier)
    held.release()
    with store.lock(f"run-{earlier.id}"):
        begin(store, started)
    assert store.records.get(Run, earlier.id).state == "running"


def test_after_the_last_attempt_the_request_fails_with_the_reason(store):
    queued = request(store, most_attempts=2)
    for _ in range(2):
        queued, held = begin(store, queued)
        queued = put_back(store, queued, attempt_counts=True, error="It ended with signal SIGSEGV.")
        held.release()
    ended, _ = begin(store, queued)
    assert (ended.state, ended.runner) == ("failed", "")
    assert "died 2 times" in ended.error
    assert "SIGSEGV" in ended.error
    assert active_runs(store) == []


def test_an_orderly_stop_does_not_count_as_an_attempt(store):
    started, held = begin(store, request(store))
    left = put_back(store, started, attempt_counts=False)
    held.release()
    assert (left.state, left.attempts, left.runner) == ("running", 0, "")
    assert begin(store, left)[0].attempts == 1


def test_a_request_ends_once(store):
    started, _ = begin(store, request(store))
    assert end_run(store, started, "done").state == "done"
    assert end_run(store, started, "failed", "late").error is None
    assert put_back(store, started, attempt_counts=True).state == "done"
    assert verbs(store) == ["queued", "started", "done"]


@pytest.mark.parametrize("ref", ["shop", "id", "prefix"])
def test_a_waiting_request_is_cancelled_at_once(store, ref):
    queued = request(store)
    cancelled = cancel_run(store, {"id": queued.id, "prefix": queued.id[:20]}.get(ref, ref))
    assert (cancelled.id, cancelled.state) == (queued.id, "cancelled")
    assert store.actor in cancelled.error
    assert active_runs(store) == []
    assert request(store).id != queued.id


def test_a_running_request_is_marked_for_its_runner(store):
    started, _ = begin(store, request(store))
    marked = cancel_run(store, started.id)
    assert (marked.state, marked.cancel_requested_by) == ("running", store.actor)


def test_an_unknown_request_cannot_be_cancelled(store):
    request(store)
    with pytest.raises(NotFoundError, match=r"'store' is not .* There are: shop \(waiting\)"):
        cancel_run(store, "store")
    ended = end_run(store, find_waiting(store, "shop"), "done")
    with pytest.raises(NotFoundError, match="There are: none"):
        cancel_run(store, ended.id)


def test_a_request_that_changed_meanwhile_is_not_started(store):
    queued = request(store)
    cancel_run(store, queued.id)
    with pytest.raises(ConflictError):
        begin(store, queued)
    assert store.records.get(QueuedRun, queued.id).state == "cancelled"


def test_a_request_from_the_store_is_equal(store):
    queued = request(store, cause={"steps": ["a"]}, params={"x": 1}, code="c", timeout_s=3.5)
    assert store.records.get(QueuedRun, queued.id) == replace(queued)


@pytest.mark.parametrize("end", [lambda s, q: end_run(s, q, "done"), lambda s, q: put_back(s, q, attempt_counts=True)])
def test_a_runner_that_was_taken_over_learns_it_at_once(store, end):
    queued = request(store)
    _, held = begin(store, queued)
    fenced = held.fenced(store)
    taken = Leases(store, owner="other/scope/1/1", is_gone=lambda _: True).acquire(run_lease("shop"))
    start_attempt(taken.fenced(store), store.records.get(QueuedRun, queued.id), taken.lease)
    with pytest.raises(LeaseLostError):
        end(fenced, queued)
    assert store.records.get(QueuedRun, queued.id).runner == "other/scope/1/1"
