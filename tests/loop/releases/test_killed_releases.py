"""A process that decides releases is killed at any moment: the traffic is always split as a decision says."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from time import sleep

import pytest

from everloop.errors import ConflictError
from everloop.loop.releases.promotion import promote, roll_back
from everloop.loop.releases.rollout import (
    abort_release,
    advance_release,
    champion_of,
    find_rolling,
    start_release,
)
from everloop.records import EndpointRecord, ModelVersion, Release
from everloop.stores import open_store

KILLS = 100

NURSERY = """
import os, random, sys
from everloop.errors import ConflictError
from everloop.loop.gates.gate_checks import GateOutcome
from everloop.loop.releases.promotion import promote, roll_back
from everloop.loop.releases.release_control import approve_release, pause_release, reject_release, resume_release
from everloop.loop.releases.rollout import (
    abort_release, advance_release, apply_evidence, champion_of, find_rolling, hold_release, start_release)
from everloop.records import ModelVersion
from everloop.stores import open_store

def decide(home, seed):
    rng = random.Random(seed)
    with open_store(home) as store:
        print("ready", os.getpid(), flush=True)
        while True:
            try:
                act(store, rng)
            except ConflictError:
                pass  # the other process was first

def act(store, rng):
    release = find_rolling(store, "e")
    others = [n for n in (1, 2, 3) if f"m@{n}" != champion_of(store, "m")]
    draw = rng.random()
    if release is None or draw < 0.05:
        version = store.records.get(ModelVersion, f"m@{rng.choice(others)}")
        if draw < 0.02:
            promote(store, "e", version, "a person says so")
        elif draw < 0.04:
            roll_back(store, "e", "a person says so")
        else:
            start_release(store, "e", version, steps=(0, 10, 50, 100))
    elif draw < 0.15:
        abort_release(store, release, "bad")
    elif draw < 0.2:
        apply_evidence(store, release, GateOutcome("fail", "worse", {}), impatient=False)
    elif draw < 0.25:
        reject_release(store, release, "no")
    elif draw < 0.3:
        approve_release(store.as_actor(f"user:{rng.random()}"), release, "yes")
    elif draw < 0.4:
        (resume_release if release.paused else pause_release)(store, release, "a person says so")
    elif draw < 0.5:
        hold_release(store, release, "not decided yet")
    elif not release.paused:
        advance_release(store, release, "good")

# Importing takes most of a process's time, so the processes that are killed are forks of this one.
for line in sys.stdin:
    if os.fork() == 0:
        decide(*line.split())
"""


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        for number in (1, 2, 3):
            opened.records.put(opened.new(ModelVersion, model="m", version=number, package=f"sha256:{number:064d}"))
        promote(opened, "e", opened.records.get(ModelVersion, "m@1"), "first")
        yield opened


def check_split(store):
    """The routes are those that the newest decision explains."""
    release = find_rolling(store, "e")
    champion = champion_of(store, "m")
    routes = {(route.version, route.role): route.percent for route in store.records.get(EndpointRecord, "e").routes}
    if release is None:
        assert routes == {(champion, "champion"): 100.0}
        completed = store.records.find(Release, ("state", "=", "completed"), order="-created_at")
        assert champion in {release.candidate for release in completed}
        assert all(release.decisions[-1].action == "complete" for release in completed)
        return
    assert release.decisions[-1].percent == release.percent
    assert release.previous == champion
    assert not any(end in {one.action for one in release.decisions} for end in ("complete", "roll_back", "reject"))
    expected = {(champion, "champion"): 100.0 - release.percent}
    if release.percent == 0:
        expected[release.candidate, "shadow"] = 100.0
    else:
        expected[release.candidate, "canary"] = release.percent
    assert routes == expected


@pytest.mark.slow
def test_kill_at_random_moments_of_releases(store):
    """Two processes decide about the same releases at once, and one of them is killed at a time."""
    rng = random.Random(11)
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        alive = []
        try:
            for number in range(KILLS):
                while len(alive) < 2:
                    nursery.stdin.write(f"{store.home} {number}-{len(alive)}\n")
                    word, pid = nursery.stdout.readline().split()
                    assert word == "ready"
                    alive.append(int(pid))
                sleep(rng.uniform(0.0, 0.1))
                os.kill(alive.pop(rng.randrange(2)), signal.SIGKILL)
                check_split_at_once(store)
        finally:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            nursery.stdin.close()
            nursery.kill()
    check_split(store)
    decisions = sum(len(release.decisions) for release in store.records.find(Release))
    assert decisions > KILLS, "the killed processes decided something"


def check_split_at_once(store):
    """`check_split` in one transaction, because the other process goes on."""
    with store.records.transaction():
        check_split(store)


def test_two_operators_at_once_never_split_the_traffic_in_two_ways(store):
    """One thread advances what the other rolls back: one of two decisions about the same state is refused."""
    refused = []

    def operate(seed):
        rng = random.Random(seed)
        with open_store(store.home) as own:
            for _ in range(12):
                try:
                    release = find_rolling(own, "e")
                    if release is None:
                        number = rng.choice([2, 3])
                        start_release(own, "e", own.records.get(ModelVersion, f"m@{number}"), steps=(10, 50, 100))
                    elif rng.random() < 0.4:
                        abort_release(own, release, "an operator says no")
                    elif rng.random() < 0.5:
                        roll_back(own, "e", "the other operator")
                    else:
                        advance_release(own, release, "an operator says yes")
                except ConflictError as error:
                    refused.append(error)

    threads = [threading.Thread(target=operate, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_split(store)
    for release in store.records.find(Release):
        ends = [one for one in release.decisions if one.action in ("complete", "roll_back")]
        assert len(ends) <= (2 if release.state == "rolled_back" else 1)
