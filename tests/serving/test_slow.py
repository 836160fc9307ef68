"""A slow prediction holds nothing up, ends at its deadline, and is logged or given up, never both."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

import everloop as el
from everloop.prediction_log import read_predictions
from everloop.records import EndpointRecord, Route
from everloop.serving import EndpointProcess
from everloop.serving.endpoint_state import set_options, set_routes
from everloop.serving.throughput import INSTANT_S, MOST_ROWS, Throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from everloop.stores import Store


def waiting_model(store: Store, name: str = "slow", value: float = 1.0) -> str:
    """A model in Python that answers a row once the file exists that the row names; returns the version's key."""

    def predict(rows: Any) -> Any:
        import pathlib
        import time

        for gate in rows["gate"]:
            # Saving tries other texts, too.
            while str(gate).startswith("/") and not pathlib.Path(gate).exists():
                time.sleep(0.005)
        return [value] * len(rows)

    example = pd.DataFrame({"gate": ["", ""]})
    return el.save_model(predict, name, example=example, task="regression", store=store).key


@pytest.fixture
def served(store: Store) -> Iterator[EndpointProcess]:
    """An endpoint with that model."""
    key = waiting_model(store)
    store.records.put(store.new(EndpointRecord, name="slow", model="slow", routes=(Route(version=key, percent=100.0),)))
    with EndpointProcess(store, "slow") as process:
        yield process


def ask(process: EndpointProcess, gate: str = "", path: str = "/predict", **headers: str) -> tuple[int, Any]:
    body = {"rows": [{"gate": gate}]} if path == "/predict" else {"instances": [{"gate": gate}]}
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(f"{process.url}{path}", json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(process: EndpointProcess, path: str) -> bytes:
    with urllib.request.urlopen(f"{process.url}{path}", timeout=60) as response:
        return bytes(response.read())


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@contextmanager
def asking(process: EndpointProcess, gate: Path, *paths: str) -> Iterator[list[Future[tuple[int, Any]]]]:
    """Requests that wait for the gate, on their way; whatever happens, it is open in the end."""
    with ThreadPoolExecutor(len(paths)) as threads:
        try:
            asked = [threads.submit(ask, process, str(gate), path) for path in paths]
            wanted = f'everloop_in_flight{{endpoint="slow"}} {len(paths)}'.encode()
            while wanted not in get(process, "/metrics"):
                assert not any(one.done() for one in asked), [one.result() for one in asked if one.done()]
            yield asked
        finally:
            gate.touch()


@pytest.mark.slow
def test_everything_else_is_answered_meanwhile(served: EndpointProcess, gate: Path, store: Store) -> None:
    with asking(served, gate, "/predict", "/v1/models/slow:predict") as slow:
        assert get(served, "/health") == b'{"status":"alive"}'
        assert ask(served)[0] == 200
        assert ask(served, path="/invocations")[0] == 200
        assert not any(one.done() for one in slow)
        gate.touch()
        assert [one.result()[0] for one in slow] == [200, 200]
    assert read_predictions(store, "slow").collect().height == 4


@pytest.mark.slow
def test_deadline_ends_a_prediction_that_is_being_scored(served: EndpointProcess, gate: Path, store: Store) -> None:
    status, told = ask(served, str(gate), X_Request_Timeout_Ms="150")
    assert (status, told["error"]["type"]) == (408, "DeadlineError")
    # It was given up while the model still waited, and what the model says later goes nowhere.
    assert not gate.exists()
    gate.touch()
    assert ask(served, X_Request_Timeout_Ms="60000")[0] == 200
    served.stop()
    assert read_predictions(store, "slow").collect()["input_gate"].to_list() == [""]


@pytest.mark.slow
def test_the_endpoint_s_own_limit_caps_what_clients_ask(served: EndpointProcess, gate: Path, store: Store) -> None:
    set_options(store, "slow", {"request_timeout_s": "0.2"})
    served.wait_for(store.records.get(EndpointRecord, "slow").revision)
    assert ask(served, str(gate), X_Request_Timeout_Ms="60000")[0] == 504
    assert ask(served, str(gate))[0] == 504
    assert ask(served, "", X_Request_Timeout_Ms="soon")[0] == 422
    assert get(served, "/health")
    gate.touch()


@pytest.mark.slow
def test_a_hot_swap_in_the_middle_loses_nothing(served: EndpointProcess, gate: Path, store: Store) -> None:
    with asking(served, gate, "/predict") as (slow,):
        record = set_routes(store, "slow", [Route(version=waiting_model(store, value=2.0), percent=100.0)])
        served.wait_for(record.revision)
        assert ask(served)[1]["predictions"] == [2.0]
        assert not slow.done()
        gate.touch()
        status, told = slow.result()
    assert (status, told["version"], told["predictions"]) == (200, 1, [1.0])
    assert sorted(read_predictions(store, "slow").collect()["version"]) == ["slow@1", "slow@2"]


@pytest.mark.slow
def test_stopping_waits_for_what_is_being_scored(served: EndpointProcess, gate: Path, store: Store) -> None:
    with asking(served, gate, "/predict") as (slow,), ThreadPoolExecutor(1) as threads:
        stopping = threads.submit(served.stop)
        gate.touch()
        assert slow.result()[0] == 200
        stopping.result()
    assert read_predictions(store, "slow").collect().height == 1


@pytest.mark.slow
def test_answers_on_one_connection_keep_their_order(served: EndpointProcess, gate: Path) -> None:
    body = json.dumps({"rows": [{"gate": str(gate)}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    port = int(str(served.url).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head + body + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        get(served, "/health")
        gate.touch()
        received = b""
        while more := client.recv(65536):
            received += more
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'"predictions"') < received.index(b'"alive"')


SLOW_S, QUICK_S = 2 * INSTANT_S, INSTANT_S / 3


def prove(throughput: Throughput, rows: int) -> int:
    """How many quick scorings in a row it takes until so many rows are scored in the event loop."""
    for count in range(1, 5000):
        throughput.learn(rows, QUICK_S)
        if throughput.rows >= rows:
            return count
    raise AssertionError("never")


def test_pace_is_learned_from_what_scoring_takes() -> None:
    throughput = Throughput()
    # Nothing is known: nothing is scored in the event loop.
    assert throughput.rows == 0
    throughput.measured(1, INSTANT_S / 100)
    assert throughput.rows in (99, 100)
    throughput.measured(1, 1.0)
    assert throughput.rows == 0
    throughput.measured(1, 0.0)
    assert throughput.rows == MOST_ROWS


def test_what_was_slow_has_to_prove_itself_longer_each_time() -> None:
    throughput = Throughput()
    throughput.measured(1, INSTANT_S / 10)
    throughput.learn(7, SLOW_S)
    assert throughput.rows == 6
    first = prove(throughput, 7)
    throughput.learn(7, SLOW_S)
    assert throughput.rows == 6
    second = prove(throughput, 7)
    assert 1 < first < second
    # One slow scoring among the proof begins it again.
    throughput.learn(20, QUICK_S)
    throughput.learn(20, SLOW_S)
    assert prove(throughput, 20) >= second


def test_code_of_the_user_s_is_never_scored_in_the_event_loop() -> None:
    throughput = Throughput(steady=False)
    throughput.measured(1, 0.0)
    for _ in range(2000):
        throughput.learn(1, 0.0)
    assert throughput.rows == 0


def test_a_model_that_is_quick_is_answered_without_a_thread(
    release: Callable[..., Any], route: Any, local: Any
) -> None:
    route(release().key)
    app = local().app
    from time import perf_counter

    from everloop.serving.protocols.protocol import Request
    from everloop.testing.models import sample_rows

    row = sample_rows()[0]
    one = Request("POST", "/predict", json.dumps({"rows": [row]}).encode(), perf_counter())
    assert app.attempt(one).status == 200
    explained = Request("POST", "/predict", json.dumps({"rows": [row], "explain": True}).encode(), perf_counter())
    labels = Request("POST", "/labels", json.dumps({"labels": [{"key": "a", "value": 1}]}).encode(), perf_counter())
    app.service.loaded_endpoint().champion.throughput.rows = 3
    many = Request("POST", "/predict", json.dumps({"rows": [row] * 4}).encode(), perf_counter())
    for request in (explained, labels, many):
        assert app.attempt(request) is None
        assert app.respond(request).status == 200
