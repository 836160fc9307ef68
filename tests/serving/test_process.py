"""The endpoint as a process: what it owes its clients when it is changed, stopped or killed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import ConflictError, CorruptionError, LeaseLostError, NotFoundError, UnavailableError, UsageError
from everloop.http.listening import bind
from everloop.prediction_log import fold_labels, fold_predictions, read_labelled, read_predictions
from everloop.records import EndpointRecord
from everloop.registry import load_model
from everloop.serving import EndpointProcess, is_served, serving_url
from everloop.stores.leases import Leases
from everloop.testing.models import sample_rows
from everloop.testing.serving import by_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from everloop.stores import Store

ROW = sample_rows()[0]
BODY = json.dumps({"rows": [ROW]}).encode()


@contextmanager
def connected(url: str) -> Iterator[http.client.HTTPConnection]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str, body: Any = None) -> tuple[int, Any]:
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.slow
def test_a_process_whose_lease_was_taken_over_cannot_write_the_state(release: Any, route: Any, store: Store) -> None:
    route(release(algorithm="lightgbm").key)
    held = Leases(store).acquire("endpoint:delays", ttl_s=60)
    assert held is not None
    process = EndpointProcess(store, "delays", lease=held.lease)
    process.start()
    assert store.records.get(EndpointRecord, "delays").state == "ready"
    assert Leases(store, owner="b/scope/2/2", is_gone=lambda owner: True).acquire("endpoint:delays") is not None
    with pytest.raises(LeaseLostError):
        process.stop()
    assert not process.alive
    assert store.records.get(EndpointRecord, "delays").state == "ready", "the record of the new holder"
    with pytest.raises(LeaseLostError):
        EndpointProcess(store, "delays", lease=held.lease).start()


@pytest.mark.slow
def test_start_answer_stop(release: Any, route: Any, store: Store) -> None:
    route(release(algorithm="lightgbm").key)
    began = monotonic()
    with EndpointProcess(store, "delays") as process:
        # About a second on a quiet machine; the bound only catches what has gone wrong.
        assert monotonic() - began < 15
        record = store.records.get(EndpointRecord, "delays")
        assert (record.state, record.url) == ("ready", process.url)
        assert serving_url(store, "delays") == process.url
        assert is_served(store, "delays")
        process.wait_for(record.revision)
        with connected(str(process.url)) as connection:
            status, body = ask(connection, "/predict", {"rows": sample_rows(2), "keys": ["a", "b"]})
            assert status == 200
            expected = load_model(store, "delays@1").predict(sample_rows(2)).tolist()
            assert [answer["score"] for answer in by_row(body)] == expected
            assert ask(connection, "/labels", {"labels": [{"key": "a", "value": True}]})[0] == 200
            status, ready = ask(connection, "/ready")
            assert status == 200
            assert ready["revision"] == record.revision
        assert process.start() == process.url
        with pytest.raises(ConflictError, match="already being served at http"):
            EndpointProcess(store, "delays").start()
        assert process.alive
    assert not is_served(store, "delays")
    record = store.records.get(EndpointRecord, "delays")
    assert (record.state, record.url) == ("stopped", None)
    with pytest.raises(UnavailableError):
        serving_url(store, "delays")
    assert fold_predictions(store, "delays") == 2
    assert fold_labels(store, "delays") == 1
    assert read_labelled(store, "delays").collect().height == 1
    assert list(store.journals.iterdir()) == []
    assert list((store.home / "run").iterdir()) == []


@pytest.mark.slow
def test_kill_right_behind_answers_loses_none(release: Any, route: Any, store: Store) -> None:
    route(release().key, shadow=release(seed=1).key)
    process = EndpointProcess(store, "delays")
    answered: list[str] = []
    url = process.start()

    def client() -> None:
        with connected(url) as connection:
            try:
                while True:
                    status, body = ask(connection, "/predict", {"rows": sample_rows(3)})
                    assert status == 200
                    answered.extend(answer["id"] for answer in by_row(body))
            except (OSError, http.client.HTTPException, ValueError):
                return

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answered) < 300:
        sleep(0.001)
    process.kill()
    for thread in threads:
        thread.join()
    assert store.records.get(EndpointRecord, "delays").state == "stopped"
    fold_predictions(store, "delays")
    kept = read_predictions(store, "delays", roles=["champion"]).collect()["id"]
    assert set(answered) <= set(kept)
    assert kept.n_unique() == len(kept)
    # What was scored but whose answer did not leave any more: at most one request per client.
    assert len(kept) - len(answered) <= 4 * 3
    assert list(store.journals.glob("predictions*")) == []


@pytest.mark.slow
def test_changes_under_load_lose_no_request(release: Any, route: Any, store: Store) -> None:
    one, two = release(), release(seed=1)
    expected = {version.key: load_model(store, version.key).predict([ROW])[0] for version in (one, two)}
    route(one.key)
    failures: list[Any] = []
    versions: list[str] = []
    done = threading.Event()

    def client(number: int) -> None:
        with connected(url) as connection:
            while not done.is_set():
                status, body = ask(connection, "/predict", {"rows": [ROW], "keys": [f"client-{number}"]})
                answer = by_row(body)[0] if status == 200 else {}
                if status != 200 or answer["score"] != expected[answer["version"]]:
                    failures.append(body)
                    return
                versions.append(answer["version"])

    with EndpointProcess(store, "delays") as process:
        url = str(process.url)
        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for change in (
            {"champion": two.key},
            {"champion": one.key, "canary": (two.key, 30.0)},
            {"champion": one.key, "shadow": two.key},
            {"champion": two.key, "canary": (one.key, 50.0)},
        ):
            process.wait_for(route(**change).revision)
            settled = len(versions)
            deadline = monotonic() + 20
            while len(versions) < settled + 20 and monotonic() < deadline and not failures:
                sleep(0.002)
            if change == {"champion": two.key}:
                # From the moment at which the endpoint says so, the old version is not met any more.
                assert set(versions[settled + 6 : settled + 20]) == {two.key}
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert set(versions) == {one.key, two.key}
    fold_predictions(store, "delays")
    assert read_predictions(store, "delays", roles=["champion", "canary"]).collect().height == len(versions)


@pytest.mark.slow
def test_a_version_that_is_not_there_is_refused_and_the_old_one_stays(release: Any, route: Any, store: Store) -> None:
    one = release()
    route(one.key)
    with EndpointProcess(store, "delays") as process:
        refused = route("delays@9")
        with pytest.raises(NotFoundError, match="delays@9"):
            process.wait_for(refused.revision)
        with connected(str(process.url)) as connection:
            assert by_row(ask(connection, "/predict", {"rows": [ROW]})[1])[0]["version"] == one.key
        process.wait_for(route(one.key).revision)


@pytest.mark.slow
def test_sigterm_finishes_what_has_begun(release: Any, route: Any, store: Store) -> None:
    route(release().key)
    process = EndpointProcess(store, "delays")
    host, _, port = process.start().removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
        client.sendall(head + BODY[:20])
        sleep(0.2)
        os.kill(process.pid or 0, signal.SIGTERM)
        sleep(0.5)
        assert process.alive
        client.sendall(BODY[20:])
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.stop() == 0
    assert fold_predictions(store, "delays") == 1
    assert store.records.get(EndpointRecord, "delays").state == "stopped"


@pytest.mark.slow
def test_garbage_on_the_wire(release: Any, route: Any, store: Store) -> None:
    route(release().key)
    pieces: list[bytes] = [
        b"\x00\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        b"GET /%ff%00%C0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /predict?x=%zz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HEAD /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBig: " + b"a" * 100_000 + b"\r\n\r\n",
    ]
    with EndpointProcess(store, "delays") as process:
        host, _, port = str(process.url).removeprefix("http://").rpartition(":")
        for piece in pieces:
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
                answer = b""
                try:
                    while got := client.recv(65536):
                        answer += got
                except ConnectionResetError:
                    pass
                assert not answer.startswith(b"HTTP/1.1 5"), (piece[:60], answer[:200])
        with connected(str(process.url)) as connection:
            assert ask(connection, "/predict", {"rows": [ROW]})[0] == 200


@pytest.mark.slow
def test_ports(release: Any, route: Any, store: Store) -> None:
    route(release().key)
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port}"):
            EndpointProcess(store, "delays", port=port).start()
    assert store.records.get(EndpointRecord, "delays").state == "stopped"
    with EndpointProcess(store, "delays", port=port) as process:
        assert process.url == f"http://127.0.0.1:{port}"
    for host, wrong in (
        ("nowhere.invalid", 0),
        ("127.0.0.1", 70_000),
        ("127.0.0.1", -1),
        ("a" * 300, 0),
        ("192.0.2.1", 0),
    ):
        with pytest.raises(UsageError):
            bind(host, wrong)


@pytest.mark.slow
def test_what_cannot_start_says_why(release: Any, route: Any, store: Store) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        EndpointProcess(store, "nobody").start()
    with pytest.raises(UsageError, match="is not a valid name"):
        EndpointProcess(store, "../x")
    version = release()
    route(version.key)
    for entry in store.objects.tree(version.package):
        path = store.home / "objects" / "sha256" / entry.holder[7:9] / entry.holder[9:]
        path.chmod(0o644)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        break
    with pytest.raises(CorruptionError):
        EndpointProcess(store, "delays").start()
    assert store.records.get(EndpointRecord, "delays").state == "stopped"


@pytest.mark.slow
def test_the_process_ends_with_its_parent(release: Any, route: Any, store: Store) -> None:
    route(release().key)
    code = """
import os, sys
from everloop.serving import EndpointProcess
from everloop.stores import open_store
process = EndpointProcess(open_store(sys.argv[1]), "delays")
process.start()
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run(
        [sys.executable, "-c", code, str(store.home)], stdout=subprocess.PIPE, check=False, timeout=60
    )
    assert int(parent.stdout) > 0
    deadline = monotonic() + 20
    while is_served(store, "delays") and monotonic() < deadline:
        sleep(0.05)
    assert not is_served(store, "delays")
    assert store.records.get(EndpointRecord, "delays").state == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_whose_parent_died_before_it_could_look_ends(
    release: Any, route: Any, store: Store, workers: int
) -> None:
    route(release().key)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [
        sys.executable,
        "-m",
        "everloop.serving",
        "delays",
        "--home",
        str(store.home),
        "--project",
        store.project,
    ]
    command += ["--workers", str(workers), "--parent", str(gone.pid)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0
    assert not is_served(store, "delays")


@pytest.mark.slow
def test_simulated_time_is_the_endpoints_time(release: Any, route: Any, store: Store) -> None:
    from datetime import UTC, datetime, timedelta

    moment = datetime(2013, 5, 1, tzinfo=UTC)
    clock = store.simulate(moment)
    route(release().key)
    with EndpointProcess(store, "delays") as process, connected(str(process.url)) as connection:
        ask(connection, "/predict", {"rows": [ROW], "keys": ["a"]})
        clock.set(moment + timedelta(days=30))
        ask(connection, "/predict", {"rows": [ROW], "keys": ["b"], "event_at": ["2013-05-20T00:00:00Z"]})
        ask(connection, "/labels", {"labels": [{"key": "a", "value": 1}]})
    fold_predictions(store, "delays")
    fold_labels(store, "delays")
    found = read_predictions(store, "delays").sort("arrived_at").collect()
    assert found["arrived_at"].to_list() == [moment, moment + timedelta(days=30)]
    assert found["event_at"].to_list() == [moment, datetime(2013, 5, 20, tzinfo=UTC)]
    assert read_labelled(store, "delays").collect()["label_arrived_at"].to_list() == [moment + timedelta(days=30)]


@pytest.mark.slow
def test_endpoint_waits_for_its_first_version(release: Any, route: Callable[..., EndpointRecord], store: Store) -> None:
    route()
    with EndpointProcess(store, "delays") as process:
        with connected(str(process.url)) as connection:
            assert ask(connection, "/predict", {"rows": [ROW]})[0] == 503
        process.wait_for(route(release().key).revision)
        with connected(str(process.url)) as connection:
            assert ask(connection, "/predict", {"rows": [ROW]})[0] == 200


def wait_for(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `look` returns, once that is true."""
    until = monotonic() + seconds
    while not (found := look()):
        assert monotonic() < until, "it did not come"
        sleep(0.01)
    return found
