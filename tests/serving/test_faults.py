"""What an endpoint loses when something dies or runs full under it: nothing, or it says so."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log import fold_predictions, read_predictions
from everloop.records import EndpointRecord
from everloop.registry import load_model
from everloop.serving import EndpointProcess
from everloop.serving.endpoint_state import set_options
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from everloop.stores import Store

ROW = sample_rows()[0]
BODY = json.dumps({"rows": [ROW]})
CHANGES = 200 if "EVERLOOP_KILLS" in os.environ else 12
KILLS = min(20, int(os.environ.get("EVERLOOP_KILLS", "3")))


def wait_for(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `look` returns, once that is true."""
    until = monotonic() + seconds
    while not (found := look()):
        assert monotonic() < until, "it did not come"
        sleep(0.01)
    return found


@contextmanager
def served(store: Store, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """An endpoint's own process, and what it says once it answers."""
    said = folder / "port.json"
    command = [sys.executable, "-m", "everloop.serving", "delays", "--home", str(store.home), "--port-file", str(said)]
    with subprocess.Popen([*command, "--project", store.project, *options]) as process:
        try:
            wait_for(lambda: said.exists() or process.poll() is not None)
            yield process, json.loads(said.read_text())
        finally:
            process.terminate()
        assert process.wait(20) == 0


def children(process: int) -> set[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return {int(child) for path in threads for child in path.read_text().split()}


class Client(threading.Thread):
    """Asks until it is told to stop, and keeps what it got. A connection that breaks is opened again."""

    def __init__(self, port: int, stop: threading.Event, key: str = "a") -> None:
        super().__init__()
        self.port, self.stop, self.key = port, stop, key
        self.answers: list[tuple[str, dict[str, Any]]] = []
        self.failures: list[str] = []
        self.broken = 0

    def run(self) -> None:
        body = json.dumps({"rows": [ROW], "keys": [self.key]})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self.stop.is_set():
            try:
                connection.request("POST", "/predict", body)
                response = connection.getresponse()
                got = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                self.broken += 1
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                continue
            if response.status != 200:
                self.failures.append(str(got))
                break
            self.answers.append((str(response.headers["x-everloop-version"]), by_row(got)[0]))
        connection.close()


def ids_of(clients: list[Client]) -> list[str]:
    return [answer["id"] for client in clients for _, answer in client.answers]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_worker_killed_under_load(store: Store, release: Any, route: Any, tmp_path: Path) -> None:
    route(release().key)
    stop = threading.Event()
    with served(store, tmp_path, "--workers", "2") as (parent, said):
        clients = [Client(said["port"], stop, f"k{number}") for number in range(4)]
        for client in clients:
            client.start()
        try:
            for _ in range(2):
                workers = children(parent.pid)
                assert len(workers) == 2
                before = len(ids_of(clients))
                wait_for(lambda before=before: len(ids_of(clients)) > before + 100)
                victim = workers.pop()
                os.kill(victim, signal.SIGKILL)
                # The other goes on at once, and the dead one is replaced.
                after = len(ids_of(clients))
                wait_for(lambda after=after: len(ids_of(clients)) > after + 100)
                wait_for(lambda victim=victim: len(children(parent.pid) - {victim}) == 2)
            with closing(http.client.HTTPConnection("127.0.0.1", said["port"], timeout=20)) as connection:
                wait_for(lambda: metric(connection, "everloop_workers") == 2)
        finally:
            stop.set()
            for client in clients:
                client.join()
        # The counters of the killed workers still count. One answer of each may have left before it was counted.
        with closing(http.client.HTTPConnection("127.0.0.1", said["port"], timeout=20)) as connection:
            assert metric(connection, "everloop_predictions_total") >= len(ids_of(clients)) - 2
    assert all(not client.failures for client in clients)
    assert sum(client.broken for client in clients) <= 2 * len(clients)
    fold_predictions(store, "delays")
    kept = read_predictions(store, "delays").collect()["id"]
    assert set(ids_of(clients)) <= set(kept)
    assert kept.n_unique() == len(kept)
    assert store.records.get(EndpointRecord, "delays").state == "stopped"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_more_and_fewer_workers_without_a_restart(store: Store, release: Any, route: Any, tmp_path: Path) -> None:
    route(release().key)
    set_options(store, "delays", {"workers": "2"})
    stop = threading.Event()
    with served(store, tmp_path) as (parent, said):
        client = Client(said["port"], stop)
        client.start()
        try:
            assert len(children(parent.pid)) == 2
            for count in (3, 1):
                set_options(store, "delays", {"workers": str(count)})
                wait_for(lambda count=count: len(children(parent.pid)) == count)
                before = len(client.answers)
                wait_for(lambda before=before: len(client.answers) > before + 50)
        finally:
            stop.set()
            client.join()
    assert client.failures == []
    # A worker that goes answers what it has taken; its idle connections are closed.
    assert client.broken <= 2
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays").collect().height == len(client.answers)


def metric(connection: http.client.HTTPConnection, name: str) -> float:
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


@pytest.mark.slow
def test_changes_under_load(store: Store, release: Any, route: Any) -> None:
    """Swap, canary, rollback, one after the other: no request fails, each answer is its version's own."""
    one, two = release(), release(seed=1)
    expected = {version.key: load_model(store, version.key).predict([ROW])[0] for version in (one, two)}
    route(one.key)
    plans = (
        {"champion": two.key},
        {"champion": two.key, "canary": (one.key, 30.0)},
        {"champion": one.key},
        {"champion": one.key, "canary": (two.key, 50.0), "shadow": two.key},
    )
    stop = threading.Event()
    with EndpointProcess(store, "delays") as process:
        clients = [Client(int(str(process.url).rpartition(":")[2]), stop, f"k{number}") for number in range(4)]
        for client in clients:
            client.start()
        try:
            for number in range(CHANGES):
                process.wait_for(route(**plans[number % 4]).revision)
        finally:
            stop.set()
            for client in clients:
                client.join()
    assert [client.failures for client in clients] == [[], [], [], []]
    assert sum(client.broken for client in clients) == 0
    answers = [answer for client in clients for answer in client.answers]
    assert {version for version, _ in answers} == {one.key, two.key}
    for version, answer in answers:
        assert (answer["version"], answer["score"]) == (version, expected[version])
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays", roles=["champion", "canary"]).collect().height == len(answers)


FOLDING = """
import sys
from everloop.prediction_log import fold_predictions
from everloop.stores import open_store
with open_store(sys.argv[1], create=False) as store:
    print("go", flush=True)
    while True:
        fold_predictions(store, "delays")
"""


@pytest.mark.slow
def test_the_compactor_killed_again_and_again(store: Store, release: Any, route: Any) -> None:
    route(release().key)
    chance = random.Random(7)
    stop = threading.Event()
    with EndpointProcess(store, "delays") as process:
        client = Client(int(str(process.url).rpartition(":")[2]), stop)
        client.start()
        try:
            for _ in range(KILLS):
                with subprocess.Popen(
                    [sys.executable, "-c", FOLDING, str(store.home)], stdout=subprocess.PIPE
                ) as folding:
                    assert folding.stdout is not None
                    assert folding.stdout.readline() == b"go\n"
                    sleep(chance.uniform(0.05, 0.5))
                    # Readable while it is written, and never a row twice.
                    seen = read_predictions(store, "delays").collect()["id"]
                    assert seen.n_unique() == len(seen)
                    folding.kill()
        finally:
            stop.set()
            client.join()
    assert client.failures == []
    fold_predictions(store, "delays")
    kept = read_predictions(store, "delays").collect()["id"]
    assert sorted(kept) == sorted(ids_of([client]))


FULL = """
import json, os, sys
from pathlib import Path
from time import perf_counter
from everloop.serving import EndpointApp
from everloop.serving.protocols.protocol import Request
from everloop.serving.reloader import EndpointReloader
from everloop.stores import open_store

home, small, policy = sys.argv[1:4]
body = sys.stdin.buffer.read()
with open_store(home, create=False) as store:
    store.journals.rmdir()
    store.journals.symlink_to(small)
    app = EndpointApp(store, "delays")
    EndpointReloader(store, app).load()
    def ask():
        response = app.respond(Request("POST", "/predict", body, perf_counter()))
        if response.result is not None:
            app.sent(Request("POST", "/predict", b"", 0.0), response)
        return response.status
    assert ask() == 200
    filler = Path(small) / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    statuses = {ask() for _ in range(200)}
    last = {ask() for _ in range(5)}
    unlogged = app.metrics.unlogged.value
    filler.unlink()
    again = ask()
    told = "everloop_unlogged_total" in app.metrics.text().decode()
    print(json.dumps([sorted(statuses), sorted(last), unlogged, again, told]))
    app.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["answer", "refuse"])
def test_a_full_disk(
    store: Store,
    release: Any,
    route: Any,
    tmp_path: Path,
    policy: str,
    small_device: Callable[[Path, str], list[str]],
) -> None:
    route(release().key)
    set_options(store, "delays", {"log_full": policy})
    store.journals.mkdir(exist_ok=True)
    small = tmp_path / "small"
    small.mkdir()
    program = [sys.executable, "-W", "error", "-c", FULL, str(store.home), str(small), policy]
    done = subprocess.run(
        [*small_device(small, "1m"), *program],
        input=BODY.encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    _, last, unlogged, again, told = json.loads(done.stdout)
    assert again == 200
    assert told
    if policy == "answer":
        assert last == [200]
        assert unlogged > 0
    else:
        assert last == [507]
        assert unlogged == 0
