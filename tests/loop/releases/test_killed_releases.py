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

DECIDE = """
import random, sys
from everloop.errors import ConflictError
from everloop.loop.releases.promotion import promote, roll_back
from everloop.loop.releases.rollout import abort_release, advance_release, champion_of, find_rolling, start_release
from everloop.records import ModelVersion
from everloop.stores import open_store

rng = random.Random(int(sys.argv[2]))
with open_store(sys.argv[1]) as store:
    print("ready", flush=True)
    while True:
        release = find_rolling(store, "e")
        if release is None:
            number = rng.choice([n for n in (1, 2, 3) if f"m@{n}" != champion_of(store, "m")])
            start_release(store, "e", store.records.get(ModelVersion, f"m@{number}"), steps=(0, 10, 50, 100))
        elif rng.random() < 0.2:
            abort_release(store, release, "bad")
        else:
            advance_release(store, release, "good")
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
    expected = {(champion, "champion"): 100.0 - release.percent}
    if release.percent == 0:
        expected[release.candidate, "shadow"] = 100.0
    else:
        expected[release.candidate, "canary"] = release.percent
    assert routes == expected


@pytest.mark.slow
def test_kill_at_random_moments_of_releases(store):
    rng = random.Random(11)
    for seed in range(6):
        command = [sys.executable, "-c", DECIDE, str(store.home), str(seed)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            sleep(rng.uniform(0.0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
        check_split(store)
    decisions = sum(len(release.decisions) for release in store.records.find(Release))
    assert decisions > 6, "the killed processes decided something"


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
