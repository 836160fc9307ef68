"""The event loop never waits for the store: other requests are served while one reads, searches or waits for a lock."""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from everloop.integrations.mlflow.tracking_api import ROUTES
from everloop.stores.records import sqlite
from everloop.stores.records.sqlite import SqliteDatabase

API = "/api/2.0/mlflow/"
QUERY = '{ mlflowGetRun(input: {runId: "%s"}) { run { info { runId } } } }'


def in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.fixture
def loop_calls(monkeypatch) -> list[str]:
    """Places in the code where the event loop itself has queried the database."""
    found: list[str] = []

    for name in ("read", "write", "write_many", "transaction"):
        real = getattr(SqliteDatabase, name)

        def watched(self: Any, *args: Any, real: Any = real) -> Any:
            if in_loop():
                found.append("".join(traceback.format_stack(limit=12)))
            return real(self, *args)

        monkeypatch.setattr(SqliteDatabase, name, watched)
    return found


@contextmanager
def asking(work: Any) -> Iterator[list[Any]]:
    """Run a function in another thread meanwhile; afterwards the list has its result."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    try:
        yield result
    finally:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.slow
def test_no_route_asks_the_store_in_the_event_loop(store, serve, loop_calls):
    with serve(store) as control:
        run = control.request("POST", f"{API}runs/create", {"experiment_id": "0"}).json["run"]["info"]["run_id"]
        control.request("POST", f"{API}registered-models/create", {"name": "m"})
        control.request("POST", f"{API}model-versions/create", {"name": "m", "source": "s3://b/x"})
        real = {
            "run_id": run, "experiment_id": "0", "experiment_ids": ["0"], "name": "m", "version": "1", "key": "k",
            "value": "v", "timestamp": 1, "path": "x", "metrics": [{"key": "k", "value": 1, "timestamp": 1}],
        }  # fmt: skip
        for route in ROUTES:
            path = "/api/" + route.path.replace("{path}", f"0/{run}/artifacts/x").replace("{", "").replace("}", "")
            if route.method == "GET":
                control.request(
                    "GET", f"{path}?run_id={run}&name=m&version=1&experiment_id=0&path=x&experiment_ids=0&key=k"
                )
            elif route.streams:
                control.request(route.method, f"{path}?run_id={run}&path=x", b"content")
            else:
                control.request(route.method, path, real)
        for method, path, body in (
            ("GET", f"/get-artifact?run_id={run}&path=x", None), ("GET", "/api/v1/runs", None), ("GET", "/", None),
            ("GET", f"/api/v1/runs/{run}", None), ("GET", "/api/v1/events", None), ("GET", "/api/v1/status", None),
            ("GET", "/api/v1/access/me", None), ("GET", "/api/v1/webhooks", None), ("GET", "/status", None),
            ("GET", "/health", None), ("POST", "/api/v1/access/users", {"name": "u", "roles": {}}),
            ("POST", "/graphql", {"query": QUERY % run}),
        ):  # fmt: skip
            control.request(method, path, body)
    assert not loop_calls, loop_calls[0]


@pytest.mark.slow
def test_credentials_are_not_looked_up_in_the_event_loop(store, serve, loop_calls):
    from everloop.server.access import UserStore

    user_store = UserStore(store)
    user_store.add_user("ada", {"*": "admin"}, "a long password")
    _, secret = user_store.create_token("ci", "ada")
    with serve(store, auth=True) as control:
        for header in (f"Bearer {secret}", "Bearer evl_wrong", "Basic YTpi"):
            control.request("GET", "/api/v1/runs", authorization=header)
    assert not loop_calls, loop_calls[0]


def test_others_are_answered_while_a_search_runs(store, serve, monkeypatch):
    searching, go = threading.Event(), threading.Event()
    real = SqliteDatabase.read

    def slow(self: Any, statement: str, values: Any = ()) -> Any:
        if threading.current_thread().name.startswith("everloop-search"):
            searching.set()
            assert go.wait(30)
        return real(self, statement, values)

    with serve(store) as control:
        run = control.request("POST", f"{API}runs/create", {"experiment_id": "0"}).json["run"]["info"]["run_id"]
        monkeypatch.setattr(SqliteDatabase, "read", slow)
        search = {"experiment_ids": ["0"], "filter": "metrics.m > 0"}
        with asking(lambda: control.request("POST", f"{API}runs/search", search)) as found:
            try:
                assert searching.wait(20)
                assert control.request("GET", "/health").status == 200
                assert control.request("GET", "/api/v1/runs").status == 200
                metric = {"run_id": run, "key": "m", "value": 1, "timestamp": 1}
                assert control.request("POST", f"{API}runs/log-metric", metric).status == 200
                assert control.request("GET", f"{API}runs/get?run_id={run}").status == 200
                assert (
                    control.request("PUT", f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/x", b"x").status
                    == 200
                )
                assert not found
            finally:
                go.set()
        assert found[0].status == 200


def test_others_are_answered_while_another_program_holds_the_store(store, serve):
    """A long transaction of another process makes only writers wait."""
    import sqlite3

    with serve(store) as control:
        run = control.request("POST", f"{API}runs/create", {"experiment_id": "0"}).json["run"]["info"]["run_id"]
        other = sqlite3.connect(store.home / "everloop.db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        tag = {"run_id": run, "key": "k", "value": "v"}
        with asking(lambda: control.request("POST", f"{API}runs/set-tag", tag)) as written:
            try:
                for path in ("/health", "/api/v1/events", "/status"):
                    assert control.request("GET", path).status == 200
                assert not written
            finally:
                other.execute("ROLLBACK")
                other.close()
        assert written[0].status == 200


def test_a_large_body_is_not_read_in_the_event_loop(store, serve, monkeypatch):
    from everloop.integrations.mlflow.tracking_api.codec import Fields

    read: list[tuple[int, bool]] = []
    real = Fields.of_body.__func__

    def watched(cls: Any, body: bytes, **more: Any) -> Any:
        read.append((len(body), in_loop()))
        return real(cls, body, **more)

    monkeypatch.setattr(Fields, "of_body", classmethod(watched))
    with serve(store) as control:
        large = json.dumps({"experiment_ids": ["0"], "filter": "x" * 90_000}).encode()
        assert control.request("POST", f"{API}runs/search", large, content_type="application/json").status == 400
    assert [looped for size, looped in read if size > 1 << 16] == [False]


def test_the_store_has_the_methods_that_are_watched():
    assert sqlite.SqliteDatabase is SqliteDatabase
    for name in ("read", "write", "write_many", "transaction"):
        assert callable(getattr(SqliteDatabase, name))
