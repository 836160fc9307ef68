"""Two `everloop up` on two machines with one store: killed, parted, stopped, and with wrong clocks.

The store is PostgreSQL and a bucket. The machines are network namespaces with process ids and host names of their own.
They take minutes, so they run only with `EVERLOOP_NETWORKS=1`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fixtures.network_hosts import HostNetwork, require_network_namespaces

from everloop.loop.worker.run_queue import enqueue_run
from everloop.prediction_log import read_predictions
from everloop.records import Alias, EndpointRecord, ModelVersion, QueuedRun, Run
from everloop.stores import open_store
from everloop.stores.leases import Leases
from everloop.stores.processes import host_of
from everloop.stores.verify import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("EVERLOOP_NETWORKS") != "1", reason="takes six minutes and networks; set EVERLOOP_NETWORKS=1"
    ),
]

EVERLOOP = [sys.executable, "-c", "from everloop.cli import main; main()"]
PORT = 8123
ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], data=sys.argv[2].encode(), headers={"content-type": "application/json"})
print(json.dumps([json.load(urllib.request.urlopen(request, timeout=10))]))
"""


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    require_network_namespaces()
    with HostNetwork(tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture(scope="module")
def database(network, own_postgres):
    """URL of a server that the hosts reach."""
    with own_postgres.started(f"-c max_connections=200 -c fsync=off -c port={PORT + 1}") as server:
        with (server.folder / "data" / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.203.0.0/16 trust\n")
        server.stop()
        server.options += f" -c listen_addresses={network.gateway}"
        server.start()
        yield f"postgresql://{server.user}@{network.gateway}:{PORT + 1}/postgres"


@pytest.fixture(scope="module")
def bucket(network):
    """URL of a stand-in for S3 that the hosts reach."""
    pytest.importorskip("moto")
    port = PORT + 2
    command = [sys.executable, "-m", "moto.server", "-H", network.gateway, "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: _listens(network.gateway, port))
            yield f"http://{network.gateway}:{port}"
        finally:
            server.terminate()


def _listens(host, port):
    with socket.socket() as asked:
        return asked.connect_ex((host, port)) == 0


@pytest.fixture
def team(network, database, bucket, tmp_path, monkeypatch):
    """A new project on a new store, and a function that adds a machine with a copy of the project."""
    import boto3
    import psycopg

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("EVERLOOP_PROJECT", raising=False)
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", bucket),
        ("AWS_ALLOW_HTTP", "true"),
    ):
        monkeypatch.setenv(name, value)
    name = f"team{time.monotonic_ns()}"
    boto3.client("s3", endpoint_url=bucket).create_bucket(Bucket=name)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}".encode())
    folder = tmp_path / "wine"
    subprocess.run([*EVERLOOP, "init", str(folder)], check=True, capture_output=True)
    loop = folder / "loop.py"
    loop.write_text(loop.read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)"))
    (folder / "everloop.toml").write_text(
        f'[project]\nname = "wine"\n\n[store]\nrecords = "{database}?options=-csearch_path%3D{name}"\n'
        f'objects = "s3://{name}/objects"\ntables = "s3://{name}/tables"\n'
    )
    shutil.rmtree(folder / ".everloop", ignore_errors=True)
    hosts = []
    monkeypatch.chdir(folder)

    def add(called, **options):
        host = network.add(f"{called}{len(network.hosts)}", **options)
        shutil.copytree(folder, host.folder / "wine")
        hosts.append(host)
        return host

    with open_store() as store:
        assert store.urls.records.startswith("postgresql")
        yield store, add
    for host in hosts:
        host.join()
        host.resume()
        host.kill()


def up(host):
    folder = host.folder / "wine"
    command = [*EVERLOOP, "up", "--dir", str(folder), "--port", str(PORT), "--every", "1"]
    host.start(*command, log=host.folder / "up.log")


def served_by(store):
    """The host whose process answers for the endpoint, if it is ready."""
    found = store.records.find(EndpointRecord)
    if not found or found[0].state != "ready":
        return None
    lease = Leases(store).find(f"endpoint:{found[0].name}")
    return host_of(lease.owner) if lease is not None and lease.owner else None


class Passengers:
    """Sends requests, and remembers which were answered: each of these must be in the log once."""

    def __init__(self, store):
        self.store = store
        self.answered = []
        self._sent = 0

    def ask(self, host):
        """Ask through the gateway of this host. Returns whether there was an answer, and prints the reason if not."""
        endpoint = self.store.records.find(EndpointRecord)[0]
        version = self.store.records.find(ModelVersion)[0]
        columns = [field["name"] for field in version.signature["inputs"]]
        self._sent += 1
        key = f"request-{self._sent}"
        body = json.dumps({"rows": [dict.fromkeys(columns, 1.0)], "keys": [key]})
        url = f"http://127.0.0.1:{PORT}/endpoints/{endpoint.name}/predict"
        done = host.run(sys.executable, "-c", ASK, url, body)
        if done.returncode == 0:
            self.answered.append(key)
        else:
            sys.stdout.write(f"{host.name}: {done.stderr.splitlines()[-1:]}\n")
        return done.returncode == 0

    def logged(self):
        endpoint = self.store.records.find(EndpointRecord)[0]
        return sorted(read_predictions(self.store, endpoint.name).collect()["entity"].to_list())


def assert_one_of_each(store):
    """Nothing was lost, nothing was done twice."""
    champions = store.records.find(Alias, ("name", "=", "champion"))
    assert len(champions) == 1
    endpoints = store.records.find(EndpointRecord)
    assert [len(one.routes) for one in endpoints] == [1]
    assert endpoints[0].routes[0].version == champions[0].version
    versions = store.records.find(ModelVersion)
    assert len({version.version for version in versions}) == len(versions)
    assert verify(store).problems == ()


@contextmanager
def shown_logs(*hosts):
    """If the block fails, show what the hosts have printed."""
    try:
        yield
    except BaseException:
        for host in hosts:
            for path in (host.folder / "up.log", *sorted((host.folder / "wine" / ".everloop" / "logs").glob("*.log"))):
                if path.exists():
                    sys.stdout.write(f"--- {host.name} {path.name}\n{path.read_text()[-3000:]}\n")
        raise


def enqueue(store, host, trigger):
    return enqueue_run(store, "wine", trigger, folder=str(host.folder / "wine")).id


def end_of(store, queued):
    wait_for(lambda: store.records.get(QueuedRun, queued).state in ("done", "failed", "cancelled"))
    return store.records.get(QueuedRun, queued)


def test_the_other_host_takes_over_when_one_is_killed(team):
    store, add = team
    first, second = add("ann", clock_offset_s=150), add("ben", clock_offset_s=-150)
    passengers = Passengers(store)
    with shown_logs(first, second):
        up(first)
        enqueue(store, first, "first")
        wait_for(lambda: served_by(store) == first.name)
        up(second)
        wait_for(lambda: Leases(store).find(f"runner:{second.name}:1"))
        assert wait_for(lambda: passengers.ask(first))
        # Both share the runs: each request is run once, by one of them.
        assert end_of(store, enqueue(store, second, "second")).state == "done"
        third = enqueue(store, second, "third")
        first.kill()
        began = time.monotonic()
        wait_for(lambda: served_by(store) == second.name)
        sys.stdout.write(f"taken over after {time.monotonic() - began:.1f} s\n")
        assert wait_for(lambda: passengers.ask(second))
        assert end_of(store, third).state == "done"
        assert_one_of_each(store)
        # The answers of the dead host are on its disk, and arrive once it is back.
        up(first)
        wait_for(lambda: passengers.logged() == sorted(passengers.answered), 120)
        assert served_by(store) == second.name
        assert_one_of_each(store)


@pytest.mark.parametrize("fault", ["parted", "stopped"])
def test_a_host_that_was_away_for_a_minute_is_fenced(team, fault):
    store, add = team
    first, second = add("cem", clock_offset_s=-150), add("dan", clock_offset_s=150)
    passengers = Passengers(store)
    with shown_logs(first, second):
        up(first)
        enqueue(store, first, "first")
        wait_for(lambda: served_by(store) == first.name)
        up(second)
        wait_for(lambda: Leases(store).find(f"runner:{second.name}:1"))
        assert wait_for(lambda: passengers.ask(first))
        last = enqueue(store, first, "last")
        away = time.monotonic()
        if fault == "parted":
            first.part()
            # Its process still answers, from what it has loaded.
            passengers.ask(first)
        else:
            first.stop()
        wait_for(lambda: served_by(store) == second.name)
        sys.stdout.write(f"{fault}: taken over after {time.monotonic() - away:.1f} s\n")
        assert wait_for(lambda: passengers.ask(second))
        assert end_of(store, last).state == "done"
        time.sleep(max(0.0, 60 - (time.monotonic() - away)))
        first.join()
        first.resume()
        # It notices that it has lost its work, and stops its process of the endpoint. The record stays as it is.
        wait_for(lambda: not [pid for pid in first.pids() if b"everloop.serving" in command_of(pid)])
        assert served_by(store) == second.name
        wait_for(lambda: passengers.logged() == sorted(passengers.answered), 120)
        assert end_of(store, enqueue(store, first, "afterwards")).state == "done"
        assert served_by(store) == second.name
        assert_one_of_each(store)
        assert not store.records.find(Run, ("state", "=", "running"))


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
