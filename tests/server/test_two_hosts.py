"""Two `everloop up` on two machines with one store: stopped, parted, killed, and with wrong clocks.

The store is PostgreSQL and a bucket. The machines are network namespaces with process ids and host names of their own.
The tests share the two machines: each fault hits the one that serves the endpoint at that time.
"""

from __future__ import annotations

import json
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
from everloop.stores.records.postgres_connections import IDLE_TRANSACTION_S
from everloop.stores.verify import verify

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def team(network, database, bucket, tmp_path_factory):
    """A project on a new store, and two machines with a copy of it and clocks five minutes apart."""
    import boto3
    import psycopg

    tmp_path = tmp_path_factory.mktemp("team")
    folder = tmp_path / "wine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.delenv("EVERLOOP_PROJECT", raising=False)
        patch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", bucket),
            ("AWS_ALLOW_HTTP", "true"),
        ):
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=bucket).create_bucket(Bucket="team")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(b"CREATE SCHEMA team")
        subprocess.run([*EVERLOOP, "init", str(folder)], check=True, capture_output=True)
        loop = folder / "loop.py"
        loop.write_text(loop.read_text().replace("budget_s=5", "budget_s=5, trials=1, candidates=('linear',)"))
        (folder / "everloop.toml").write_text(
            f'[project]\nname = "wine"\n\n[store]\nrecords = "{database}?options=-csearch_path%3Dteam"\n'
            'objects = "s3://team/objects"\ntables = "s3://team/tables"\n'
        )
        shutil.rmtree(folder / ".everloop", ignore_errors=True)
        hosts = [network.add("ann", clock_offset_s=150), network.add("ben", clock_offset_s=-150)]
        for host in hosts:
            shutil.copytree(folder, host.folder / "wine")
        with pytest.MonkeyPatch.context() as inside:
            inside.chdir(folder)
            store = open_store()
        with store, shown_logs(*hosts):
            assert store.urls.records.startswith("postgresql")
            ann, ben = hosts
            up(ann)
            enqueue(store, ann, "first")
            wait_for(lambda: served_by(store) == ann.name)
            up(ben)
            wait_for(lambda: Leases(store).find(f"runner:{ben.name}:1"))
            yield store, hosts, Passengers(store)


@pytest.mark.parametrize("fault", ["stopped", "parted", "killed"])
def test_the_other_host_takes_over_and_every_answer_is_logged(team, fault):
    store, hosts, passengers = team
    lost, other = sorted(hosts, key=lambda host: host.name != served_by(store))
    with shown_logs(*hosts):
        # Both share the runs: each request is run once, by one of them.
        last = enqueue(store, lost, "last")
        # The fault follows at once, so that this host has not moved its last answers into the table.
        assert wait_for(lambda: passengers.ask(lost))
        began = time.monotonic()
        if fault == "stopped":
            lost.stop()
        elif fault == "killed":
            lost.kill()
        else:
            lost.part()
            # Its process still answers, from what it has loaded.
            passengers.ask(lost)
        wait_for(lambda: served_by(store) == other.name)
        sys.stdout.write(f"{fault}: taken over after {time.monotonic() - began:.1f} s\n")
        assert wait_for(lambda: passengers.ask(other))
        assert end_of(store, last).state == "done"
        assert_one_of_each(store)
        if fault == "stopped":
            # By then the server has ended what this host had begun.
            time.sleep(max(0.0, began + IDLE_TRANSACTION_S + 5 - time.monotonic()))
        # The answers of the lost host are on its disk, and arrive once it is back.
        lost.join()
        lost.resume()
        if fault == "killed":
            up(lost)
        # It notices that it has lost its work, and stops its process of the endpoint. The record stays as it is.
        wait_for(lambda: not [pid for pid in lost.pids() if b"everloop.serving" in command_of(pid)])
        wait_for(lambda: passengers.logged() == sorted(passengers.answered))
        assert end_of(store, enqueue(store, lost, "afterwards")).state == "done"
        assert served_by(store) == other.name
        assert_one_of_each(store)
        assert not store.records.find(Run, ("state", "=", "running"))


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
