"""The conformance suite for leases: never two holders, for any clocks and for processes that stop at any moment."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from everloop.errors import LeaseLostError, ReadOnlyError, UsageError
from everloop.records import Experiment
from everloop.stores.leases import TRUSTED_SHARE, Leases

if TYPE_CHECKING:
    from everloop.stores import Store
    from everloop.stores.leases import HeldLease

TTL_S = 9.0


class LeaseHost:
    """A machine with a clock of its own, which may run a little fast or slow, and starts at any number."""

    def __init__(self, store: Store, name: str, *, starts_at: float = 0.0, dead: set[str] | None = None) -> None:
        self.now = starts_at
        self.dead = set() if dead is None else dead
        self.leases = Leases(
            store, owner=f"{name}/scope/1/1", elapsed=lambda: self.now, is_gone=lambda owner: owner in self.dead
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds


def put_experiment(store: Store, name: str) -> None:
    """Write one record with the key `name`."""
    store.records.put(
        store.new(Experiment, number=abs(hash(name)) % 10**9, name=name, artifacts_at="x", updated_at=store.now())
    )


class LeaseSuite:
    """Derive from this class and define a fixture `store` that returns a new, writable `Store`."""

    def test_one_holder_at_a_time(self, store: Store) -> None:
        first, second = LeaseHost(store, "a"), LeaseHost(store, "b")
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        assert held.is_held
        assert second.leases.acquire("train", ttl_s=TTL_S) is None
        assert first.leases.acquire("train", ttl_s=TTL_S) is None
        assert second.leases.acquire("other", ttl_s=TTL_S) is not None

    def test_a_released_lease_is_free_at_once_and_its_number_grows(self, store: Store) -> None:
        first, second = LeaseHost(store, "a"), LeaseHost(store, "b")
        numbers = []
        for host in (first, second, first, second):
            held = host.leases.acquire("train", ttl_s=TTL_S)
            assert held is not None
            numbers.append(held.fence)
            held.release()
            assert not held.is_held
        assert numbers == [1, 2, 3, 4]
        assert first.leases.held() == []

    def test_heartbeats_keep_a_lease_for_ever(self, store: Store) -> None:
        first, second = LeaseHost(store, "a"), LeaseHost(store, "b")
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        for _ in range(20):
            for host in (first, second):
                host.wait(TTL_S / 3)
            held.renew()
            assert held.is_held
            assert second.leases.acquire("train", ttl_s=TTL_S) is None

    def test_a_silent_holder_is_replaced_after_its_time_to_live_never_before(self, store: Store) -> None:
        first, second = LeaseHost(store, "a"), LeaseHost(store, "b", starts_at=300.0)
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        assert second.leases.acquire("train", ttl_s=TTL_S) is None
        for host in (first, second):
            host.wait(TTL_S * TRUSTED_SHARE + 0.01)
        assert not held.is_held
        assert second.leases.acquire("train", ttl_s=TTL_S) is None
        second.wait(TTL_S)
        taken = second.leases.acquire("train", ttl_s=TTL_S)
        assert taken is not None
        assert taken.fence == held.fence + 1
        with pytest.raises(LeaseLostError, match="process 1 on b has taken it over"):
            held.renew()
        with pytest.raises(LeaseLostError):
            held.check()
        held.release()
        taken.check()

    @pytest.mark.parametrize("ahead", [-300.0, 300.0])
    def test_clocks_that_differ_by_minutes_do_no_harm(self, store: Store, ahead: float) -> None:
        first, second = LeaseHost(store, "a", starts_at=1000.0), LeaseHost(store, "b", starts_at=1000.0 + ahead)
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        assert second.leases.acquire("train", ttl_s=TTL_S) is None
        second.wait(TTL_S - 0.1)
        assert second.leases.acquire("train", ttl_s=TTL_S) is None
        second.wait(0.2)
        assert second.leases.acquire("train", ttl_s=TTL_S) is not None

    def test_a_late_heartbeat_revives_a_lease_that_no_one_has_taken(self, store: Store) -> None:
        host = LeaseHost(store, "a")
        held = host.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        host.wait(100 * TTL_S)
        assert not held.is_held
        held.renew()
        assert held.is_held

    def test_a_dead_process_of_this_machine_is_replaced_at_once(self, store: Store) -> None:
        dead: set[str] = set()
        first, second = LeaseHost(store, "a", dead=dead), LeaseHost(store, "b", dead=dead)
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        dead.add(first.leases.owner)
        assert second.leases.acquire("train", ttl_s=TTL_S) is not None

    def test_a_fenced_store_refuses_writes_after_a_takeover(self, store: Store) -> None:
        first, second = LeaseHost(store, "a"), LeaseHost(store, "b")
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        old = held.fenced(store)
        put_experiment(old, "before")
        second.leases.acquire("train", ttl_s=TTL_S)
        second.wait(TTL_S)
        taken = second.leases.acquire("train", ttl_s=TTL_S)
        assert taken is not None
        with pytest.raises(LeaseLostError):
            put_experiment(old, "after")
        with pytest.raises(LeaseLostError):
            put_experiment(old.as_actor("other").for_project("elsewhere"), "after")
        with pytest.raises(LeaseLostError), old.records.transaction():
            put_experiment(old, "after")
        put_experiment(taken.fenced(store), "new holder")
        assert [one.name for one in store.records.find(Experiment)] == ["before", "new holder"]

    def test_a_takeover_waits_for_a_write_of_the_holder_that_has_begun(self, store: Store) -> None:
        dead: set[str] = set()
        first, second = LeaseHost(store, "a", dead=dead), LeaseHost(store, "b", dead=dead)
        held = first.leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        dead.add(first.leases.owner)
        old = held.fenced(store)
        taken: list[HeldLease | None] = []
        thread = threading.Thread(target=lambda: taken.append(second.leases.acquire("train", ttl_s=TTL_S)))
        with old.records.transaction():
            put_experiment(old, "one")
            thread.start()
            thread.join(0.2)
            assert taken == []
            put_experiment(old, "two")
        thread.join(30)
        assert taken[0] is not None
        assert len(store.records.find(Experiment)) == 2

    def test_of_many_that_ask_at_once_one_succeeds(self, store: Store) -> None:
        hosts = [LeaseHost(store, f"h{number}") for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for round_ in range(5):
                held = list(pool.map(lambda host: host.leases.acquire("train", ttl_s=TTL_S), hosts))
                winners = [lease for lease in held if lease is not None]
                assert [lease.fence for lease in winners] == [round_ + 1]
                winners[0].release()

    def test_a_forgotten_lease_leaves_no_row_and_its_name_can_be_used_again(self, store: Store) -> None:
        here, there = LeaseHost(store, "a"), LeaseHost(store, "b")
        held = here.leases.acquire("step:1", ttl_s=TTL_S)
        assert held is not None
        assert there.leases.acquire("step:1", ttl_s=TTL_S) is None
        there.wait(TTL_S - 1)
        held.release(forget=True)
        assert there.leases.find("step:1") is None
        # The same number and count of heartbeats as before. It is another lease, so its time begins again.
        again = here.leases.acquire("step:1", ttl_s=TTL_S)
        assert again is not None
        assert (again.fence, again.lease.beats) == (held.fence, held.lease.beats)
        assert there.leases.acquire("step:1", ttl_s=TTL_S) is None
        there.wait(2)
        assert there.leases.acquire("step:1", ttl_s=TTL_S) is None
        there.wait(TTL_S)
        assert there.leases.acquire("step:1", ttl_s=TTL_S) is not None
        again.release(forget=True)
        assert there.leases.find("step:1") is not None, "it was lost, so it was not deleted"

    def test_heartbeats_add_no_events_and_no_revisions(self, store: Store) -> None:
        before = store.records.last_event()
        held = LeaseHost(store, "a").leases.acquire("train", ttl_s=TTL_S)
        assert held is not None
        for _ in range(50):
            held.renew()
        assert store.records.last_event() == before
        assert [(lease.name, lease.beats) for lease in Leases(store).held()] == [("train", 50)]

    def test_projects_have_leases_of_their_own(self, store: Store) -> None:
        other = store.for_project("elsewhere")
        assert LeaseHost(store, "a").leases.acquire("train") is not None
        assert LeaseHost(other, "b").leases.acquire("train") is not None

    def test_bad_requests_are_refused(self, store: Store) -> None:
        leases = Leases(store)
        for name, ttl_s in (("", 1.0), ("x" * 201, 1.0), ("train", 0.0), ("train", float("nan")), ("train", 1e9)):
            with pytest.raises(UsageError):
                leases.acquire(name, ttl_s=ttl_s)
        with pytest.raises(ReadOnlyError):
            Leases(store.as_of(store.now())).acquire("train")

    def test_a_thread_renews_the_lease_inside_the_block(self, store: Store) -> None:
        with Leases(store).hold("train", ttl_s=0.3) as held:
            assert held is not None
            done = threading.Event()
            done.wait(1.0)
            assert held.is_held
            held.check()
            with Leases(store).hold("train", ttl_s=0.3) as second:
                assert second is None
        assert Leases(store).held() == []

    def test_the_block_notices_that_its_lease_is_gone(self, store: Store) -> None:
        lost: list[HeldLease] = []
        with Leases(store).hold("train", ttl_s=0.3, on_lost=lost.append) as held:
            assert held is not None
            thief = Leases(store, owner="b/scope/2/2", is_gone=lambda owner: True)
            assert thief.acquire("train", ttl_s=60) is not None
            assert held.lost.wait(30)
            assert not held.is_held
        assert lost == [held]
        assert [lease.owner for lease in Leases(store).held()] == ["b/scope/2/2"]

    @pytest.mark.parametrize("seed", range(6))
    def test_random_lives_of_hosts_never_have_two_holders(self, store: Store, seed: int) -> None:
        draw = random.Random(seed)  # noqa: S311 - a test must be repeatable
        assert run_random_hosts(store, draw, steps=250) > 3


def run_random_hosts(store: Store, draw: random.Random, *, steps: int) -> int:
    """Let three hosts acquire, renew, stop, continue, release and write at random, and check after each step.

    Clocks start at different numbers and run up to 2 % fast or slow. A stopped host does not notice anything until it
    continues.

    Returns:
        How often the lease was acquired.

    Raises:
        AssertionError: two hosts relied on the lease at once, a number was used twice, or a holder of the past wrote.
    """
    hosts = [LeaseHost(store, f"h{number}", starts_at=draw.uniform(-300, 300)) for number in range(3)]
    rates = [draw.uniform(0.98, 1.02) for _ in hosts]
    holdings: list[HeldLease | None] = [None, None, None]
    fences: list[int] = []
    for step in range(steps):
        seconds = draw.choice((0.0, 0.1, 1.0, TTL_S / 3, TTL_S))
        for host, rate in zip(hosts, rates, strict=True):
            host.wait(seconds * rate)
        number = draw.randrange(3)
        held = holdings[number]
        action = draw.choice(("renew", "renew", "write", "write", "release", "idle"))
        if held is None:
            held = hosts[number].leases.acquire("work", ttl_s=TTL_S)
            if held is not None:
                fences.append(held.fence)
                holdings[number] = held
        elif action == "release":
            held.release()
            holdings[number] = None
        elif action != "idle":
            newest = held.fence == fences[-1]
            try:
                held.renew() if action == "renew" else put_experiment(held.fenced(store), f"{len(fences)}.{step}")
            except LeaseLostError:
                assert not newest
                holdings[number] = None
            else:
                assert newest, "a holder of the past could write"
        believing = [one for one in holdings if one is not None and one.is_held]
        assert len(believing) <= 1, "two hosts rely on the lease at once"
    assert fences == sorted(set(fences))
    return len(fences)
