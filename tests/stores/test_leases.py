"""Leases against the conformance suite, in each database, and the identity of processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import UsageError
from everloop.stores import Store, open_store
from everloop.stores.home import StoreUrls, open_urls
from everloop.stores.leases import Leases
from everloop.stores.processes import host_of, pid_of, process_identity, process_is_gone
from everloop.testing.leases import LeaseSuite, run_random_hosts


class TestSqliteLeases(LeaseSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with open_store(tmp_path / "home", project="flights") as opened:
            yield opened


class TestPostgresLeases(LeaseSuite):
    @pytest.fixture
    def store(self, tmp_path: Path, postgres_url: str) -> Iterator[Store]:
        home = tmp_path / "home"
        urls = StoreUrls(home=home, records=postgres_url, objects=str(home / "objects"), tables=str(home / "tables"))
        with open_urls(urls, project="flights") as opened:
            yield opened


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_no_order_of_events_gives_two_holders(tmp_path_factory: pytest.TempPathFactory, draw: random.Random) -> None:
    with open_store(tmp_path_factory.mktemp("leases") / "home") as store:
        run_random_hosts(store, draw, steps=60)


def test_the_identity_of_a_process_shows_whether_it_has_ended() -> None:
    mine = process_identity()
    assert (host_of(mine), pid_of(mine)) == (os.uname().nodename, os.getpid())
    assert not process_is_gone(mine)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = process_identity(child.pid)
    assert not process_is_gone(identity)
    child.send_signal(signal.SIGSTOP)
    assert not process_is_gone(identity)
    child.kill()
    child.wait()
    assert process_is_gone(identity)


def test_a_process_that_has_ended_but_was_not_collected_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert child.stdin is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert process_is_gone(identity)
    finally:
        child.stdin.close()
        child.wait()


def test_another_process_with_the_same_number_is_not_the_same_process() -> None:
    host, scope, pid, start = process_identity().split("/")
    assert process_is_gone(f"{host}/{scope}/{pid}/{start}1")
    assert not process_is_gone(f"elsewhere/{scope}/{pid}/{start}1")
    assert not process_is_gone(f"{host}/another-boot/{pid}/{start}1")


@pytest.mark.parametrize("text", ["", "x", "a/b/c/d", "a/b/1", "a/b/1/2/3"])
def test_a_malformed_identity_is_never_gone(text: str) -> None:
    assert not process_is_gone(text)


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom everloop.stores import open_store\nfrom everloop.stores.leases import Leases\n"
        "store = open_store(sys.argv[1])\nassert Leases(store).acquire('train', ttl_s=3600)\n"
        "sys.stdout.write('held'); sys.stdout.flush()\nsys.stdin.read()"
    )
    with open_store(tmp_path / "home") as store:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "home")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.read(4) == b"held"
            leases = Leases(store)
            assert leases.acquire("train") is None
            holder.kill()
        taken = leases.acquire("train")
        assert taken is not None
        assert taken.fence == 2


def test_a_lease_needs_a_database(store: Store) -> None:
    class Elsewhere:
        records = object()

    with pytest.raises(UsageError, match="not in an SQL database"):
        Leases(Elsewhere())  # type: ignore[arg-type]
