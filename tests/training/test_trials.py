"""Trials of a search on a cluster: the same model as here, whatever the cluster loses, within the budget."""

import pickle
import sys
import types
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from time import perf_counter

import cloudpickle
import numpy as np
import polars as pl
import pytest

from everloop import plugins
from everloop.pipeline.cluster_calls import CallLostError, lend_cluster, lent_cluster
from everloop.training import AutoTrain, automl, trials
from everloop.training.algorithms.linear import Linear


def table(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=400), rng.normal(size=400)
    return pl.DataFrame({"a": a, "b": b, "late": a * b + rng.normal(0, 0.5, 400) > 0.2})


TRAIN, VALID = table(0), table(1)
pytestmark = pytest.mark.slow


class Cluster:
    """Threads that run calls like other machines: all that they get and return is pickled.

    Args:
        lost: the calls that are lost, by number.
        stuck: whether no call ever ends.
    """

    def __init__(self, slots=3, lost=(), stuck=False):
        self.cpus = slots
        self.lost = lost
        self.stuck = stuck
        self.sent = []
        self.most = 0
        self.cancelled = 0
        self.running = {}
        self.pool = ThreadPoolExecutor(slots)

    def slots(self, cpus):
        return self.cpus // cpus

    def share(self, value):
        return sent(value)

    def submit(self, key, function, *arguments, cpus):
        self.sent.append(key)
        if self.stuck:
            future = Future()
        elif len(self.sent) - 1 in self.lost:
            future = Future()
            future.set_exception(CallLostError("its node is gone"))
        else:
            future = self.pool.submit(lambda: sent(sent(function)(*sent(arguments))))
        self.running[future] = key
        self.most = max(self.most, len(self.running))

    def wait(self, timeout_s):
        ended, _ = wait(self.running, timeout=max(0.0, timeout_s), return_when=FIRST_COMPLETED)
        found = []
        for one in ended:
            error = one.exception()
            found.append((self.running.pop(one), error if error is not None else one.result()))
        return found

    def cancel(self):
        self.cancelled += 1
        self.running.clear()


def sent(value):
    return pickle.loads(cloudpickle.dumps(value))  # noqa: S301


def search(cluster=None, **declared):
    settings = AutoTrain(**{"budget_s": 300, "trials": 7, "threads": 1} | declared)
    if cluster is None:
        return settings.fit(TRAIN, VALID, target="late")
    with lend_cluster(cluster):
        found = settings.fit(TRAIN, VALID, target="late")
        assert not cluster.running
        assert cluster.cancelled or not cluster.sent
    assert lent_cluster() is None
    return found


def without_times(leaderboard):
    return [{k: v for k, v in entry.items() if k not in ("seconds", "latency_ms")} for entry in leaderboard]


@pytest.fixture(scope="module")
def here():
    return search()


def assert_equal(found, here):
    assert without_times(found.leaderboard) == without_times(here.leaderboard)
    assert found.recipe == here.recipe
    assert found.model.to_files() == here.model.to_files()


def test_a_search_on_a_cluster_finds_the_model_of_a_search_here(here):
    cluster = Cluster()
    assert_equal(search(cluster), here)
    assert len(here.leaderboard) == 7
    # No trial ran here, and as many at a time there as there is room for.
    used = Counter(entry["candidate"] for entry in here.leaderboard)
    assert {(name, number) for name, trials in used.items() for number in range(trials)} <= set(cluster.sent)
    assert len(cluster.sent) == len(set(cluster.sent))
    assert cluster.most == 3


@pytest.mark.parametrize("lost", [(0,), (1, 2, 5), range(100)])
def test_a_lost_trial_is_repeated_and_changes_nothing(here, lost, caplog):
    assert_equal(search(Cluster(lost=lost)), here)
    assert "because the cluster could not run it: its node is gone" in caplog.text


def test_models_that_are_needed_come_from_the_nodes():
    assert_equal(search(Cluster(), refit=None, trials=4), search(refit=None, trials=4))
    assert_equal(search(Cluster(), latency_ms=10_000, trials=4), search(latency_ms=10_000, trials=4))


def test_a_cluster_with_room_for_one_trial_is_not_used(here):
    cluster = Cluster(slots=1)
    assert_equal(search(cluster), here)
    assert not cluster.sent


def test_a_cluster_that_runs_nothing_costs_only_a_part_of_the_budget(monkeypatch, caplog):
    skipped = [0.0]

    def clock():
        return perf_counter() + skipped[0]

    class Full(Cluster):
        def wait(self, timeout_s):
            skipped[0] += max(0.0, timeout_s)
            return []

    monkeypatch.setattr(automl, "perf_counter", clock)
    monkeypatch.setattr(trials, "perf_counter", clock)
    found = search(Full(stuck=True), budget_s=600, trials=6)
    assert "because the cluster did not run one of linear in its time" in caplog.text
    assert_equal(found, search(trials=6))
    assert 0.5 * 600 < skipped[0] < 0.65 * 600


def test_the_search_ends_with_its_budget_although_trials_run(monkeypatch):
    skipped = [0.0]

    class Slow(Cluster):
        """After the first trials, none ends."""

        def submit(self, key, function, *arguments, cpus):
            self.stuck = key[1] > 0
            super().submit(key, function, *arguments, cpus=cpus)

        def wait(self, timeout_s):
            ready = [one for one, key in self.running.items() if key[1] == 0]
            if ready:
                wait(ready)
                return super().wait(0)
            # In smaller steps than asked for, so that no trial is given up before the budget ends.
            skipped[0] += min(1.0, max(0.0, timeout_s))
            return []

    monkeypatch.setattr(automl, "perf_counter", lambda: perf_counter() + skipped[0])
    found = search(Slow(), budget_s=600)
    assert {entry["candidate"] for entry in found.leaderboard} == {"linear", "lightgbm"}
    assert len(found.leaderboard) == 2
    assert 0.9 * 600 < skipped[0] < 1.1 * 600


def test_an_error_of_an_algorithm_is_that_of_a_search_here(monkeypatch):
    class Broken(Linear):
        name = "broken"

        def fit(self, params, *, rounds=None, deadline=None):
            if params["l2"] == 100.0:
                raise ZeroDivisionError("in the third trial")
            return super().fit(params, rounds=rounds, deadline=deadline)

    module = types.ModuleType("broken_algorithm")
    module.Broken = Broken
    monkeypatch.setitem(sys.modules, "broken_algorithm", module)
    monkeypatch.setitem(plugins.TABLE, "algorithm", plugins.TABLE["algorithm"] | {"broken": "broken_algorithm:Broken"})
    for cluster in (None, Cluster()):
        with pytest.raises(ZeroDivisionError, match="in the third trial"):
            search(cluster, candidates=("broken",))
        # What runs ahead of time and is not needed does no harm.
        assert len(search(cluster, candidates=("broken",), trials=2).leaderboard) == 2


def test_a_node_without_the_algorithm_does_not_end_the_search(here, monkeypatch, caplog):
    class Bare(Cluster):
        def submit(self, key, function, problem, name, *arguments, cpus):
            super().submit(key, function, problem, f"{name}-2", *arguments, cpus=cpus)

    assert_equal(search(Bare()), here)
    assert "There is no algorithm plugin called 'lightgbm-2'" in caplog.text

    class Older(Cluster):
        def submit(self, key, function, *arguments, cpus):
            super().submit(key, function, *arguments[:-1], "0.0.1", cpus=cpus)

    assert_equal(search(Older()), here)
    assert "but the search uses 0.0.1" in caplog.text
