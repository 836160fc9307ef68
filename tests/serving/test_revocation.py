"""A token that is taken back opens nothing a moment later, whatever else fails; what cannot be read opens nothing."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import UnavailableError
from everloop.records import EndpointRecord, Route
from everloop.serving import reloader
from everloop.serving.access.endpoint_tokens import OPEN_PATHS, access_of, add_token, remove_token
from everloop.serving.endpoint_settings import EndpointSettings
from everloop.serving.multi_endpoint import MultiEndpointApp
from everloop.serving.protocols.protocol import Request
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

BODY = json.dumps({"rows": sample_rows()}).encode()


def status(app: Any, token: str | None, path: str = "/predict", method: str = "POST", **headers: str) -> int:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if token is not None:
        given.append((b"authorization", f"Bearer {token}".encode()))
    found: int = app.respond(Request(method, path, BODY, perf_counter(), given)).status
    return found


def change(store: Store, **fields: Any) -> None:
    endpoint = store.records.get(EndpointRecord, "delays")
    options = {**endpoint.options, **fields.pop("options", {})}
    store.records.update(replace(endpoint, options=options, **fields), verb="changed")


def until(wanted: Any, seconds: float = 20.0) -> None:
    end = monotonic() + seconds
    while not wanted():
        assert monotonic() < end
        sleep(0.02)


def test_while_the_routes_cannot_be_loaded(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    kept, taken = add_token(store, "delays", "kept"), add_token(store, "delays", "taken")
    app.reloader.reload()
    assert (status(app.app, kept), status(app.app, taken)) == (200, 200)
    for broken in (
        {"routes": (Route(version="delays@9", percent=100.0),)},
        {"routes": (Route(version="delays@1", percent=10.0),)},
        {"options": {"max_body_bytes": "nonsense"}},
        {"options": {"log_drop": ["no such input"]}},
    ):
        new = add_token(store, "delays", "new")
        change(store, **broken)
        remove_token(store, "delays", "new")
        app.reloader.reload()
        assert status(app.app, new) == 401, broken
        # The last that could be loaded answers those who may ask.
        assert status(app.app, kept) == 200, broken
    remove_token(store, "delays", "taken")
    app.reloader.reload()
    assert app.app.service.refused is not None
    assert (status(app.app, kept), status(app.app, taken)) == (200, 401)


@pytest.mark.slow
def test_while_a_version_is_being_loaded(
    store: Store, release: Any, route: Any, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(release().key)
    app = local()
    token = add_token(store, "delays", "team")
    app.reloader.reload()
    loading, go_on = threading.Event(), threading.Event()
    real = reloader.load_versions

    def slowly(*given: Any) -> Any:
        loading.set()
        assert go_on.wait(30)
        return real(*given)

    monkeypatch.setattr(reloader, "load_versions", slowly)
    app.reloader.start()
    try:
        route(release(seed=1).key)
        assert loading.wait(20)
        assert status(app.app, token) == 200
        remove_token(store, "delays", "team")
        until(lambda: status(app.app, token) == 401)
        assert app.app.service.revision != store.records.get(EndpointRecord, "delays").revision
    finally:
        go_on.set()
        app.reloader.stop()


@pytest.mark.slow
def test_testers_and_who_may_choose(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key, canary=(release(seed=1).key, 10.0))
    app = local()
    token = add_token(store, "delays", "team", tester=True)
    app.reloader.reload()
    pinned = {"x_everloop_version": "2"}
    assert status(app.app, token, **pinned) == 200
    change(store, routes=(Route(version="delays@9", percent=100.0),), options={"testers": []})
    app.reloader.reload()
    assert status(app.app, token, **pinned) == 403
    change(store, options={"override": "anyone"})
    app.reloader.reload()
    assert status(app.app, token, **pinned) == 200
    change(store, options={"override": "testers", "max_in_flight": -1})
    app.reloader.reload()
    assert status(app.app, token, **pinned) == 403


@pytest.mark.parametrize("tokens", ["x", [], {"team": 1}, 7, True])
def test_options_that_cannot_be_understood_open_nothing(
    store: Store, release: Any, route: Any, local: Any, tokens: Any
) -> None:
    route(release().key)
    app = local()
    token = add_token(store, "delays", "team")
    app.reloader.reload()
    change(store, options={"tokens": tokens, "testers": tokens})
    app.reloader.reload()
    assert (status(app.app, token), status(app.app, None)) == (401, 401)
    assert access_of({"tokens": tokens}) == ({}, frozenset())


def test_tokens_end_with_their_endpoint(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    token = add_token(store, "delays", "team")
    app.reloader.reload()
    store.records.delete(EndpointRecord, "delays")
    app.reloader.reload()
    assert status(app.app, token) == 401


@pytest.mark.slow
def test_a_store_that_cannot_be_read_closes_after_a_while(
    store: Store, release: Any, route: Any, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(release().key)
    app = local()
    token = add_token(store, "delays", "team")
    change(store, options={"access_stale_s": 0.5})
    app.reloader.reload()
    gone = threading.Event()
    real = store.records.last_event

    def last_event(*given: Any) -> int:
        if gone.is_set():
            raise UnavailableError("The store does not answer.")
        return real(*given)

    monkeypatch.setattr(store.records, "last_event", last_event)
    app.reloader.start()
    try:
        assert status(app.app, token) == 200
        gone.set()
        until(lambda: status(app.app, token) == 503)
        assert status(app.app, "evl_wrong") == 503
        for path in OPEN_PATHS - {"/ready", "/ping", "/v2/health/ready"}:
            assert status(app.app, None, path, "GET") == 200
        ready = app.app.respond(Request("GET", "/ready", b"", perf_counter(), []))
        assert (ready.status, "access" in json.loads(ready.body)) == (503, True)
        gone.clear()
        until(lambda: status(app.app, token) == 200)
    finally:
        app.reloader.stop()


def test_a_file_that_was_replaced_is_not_believed(store: Store, release: Any, route: Any, local: Any) -> None:
    """SQLite reads on in a file that is gone, and says for ever what it said."""
    route(release().key)
    app = local()
    add_token(store, "delays", "team")
    app.reloader.reload()
    path = store.home / "everloop.db"
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    with pytest.raises(UnavailableError, match="replaced"):
        app.reloader.access.reload()


def test_an_endpoint_that_asks_for_no_token_answers_on(store: Store, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    app.app.service.configure(EndpointSettings(access_stale_s=0.01))
    app.app.service.authorization.confirm()
    sleep(0.05)
    assert status(app.app, None) == 200


@pytest.mark.slow
def test_behind_one_port_loading_one_endpoint_holds_no_revocation_up(
    store: Store, release: Any, route: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    route(release().key)
    token = add_token(store, "delays", "team")
    served = MultiEndpointApp(store)
    served.start()
    loading, go_on = threading.Event(), threading.Event()
    real = reloader.load_versions
    try:
        loaded_app = served._load("delays")
        assert status(loaded_app.app, token) == 200

        def slowly(*given: Any) -> Any:
            loading.set()
            assert go_on.wait(30)
            return real(*given)

        monkeypatch.setattr(reloader, "load_versions", slowly)
        route(release(seed=1).key)
        assert loading.wait(20)
        remove_token(store, "delays", "team")
        until(lambda: status(loaded_app.app, token) == 401)
    finally:
        go_on.set()
        served.close()
