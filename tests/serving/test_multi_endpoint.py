"""Many endpoints behind one port: loaded when asked, within a memory limit, each with its own settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log import fold_predictions, read_predictions
from everloop.records import EndpointRecord
from everloop.registry import load_model
from everloop.serving.access.endpoint_tokens import add_token
from everloop.serving.endpoint_state import set_options
from everloop.serving.multi_endpoint import MultiEndpointApp
from everloop.testing.models import sample_rows

if TYPE_CHECKING:
    from everloop.stores import Store

ROW = sample_rows()[0]
BODY = json.dumps({"rows": [ROW]}).encode()


def ask(served: MultiEndpointApp, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": named, "query_string": b""}
    asyncio.run(served(scope, receive, send))
    told = sent[1]["body"].decode()
    kind = dict(sent[0]["headers"])[b"content-type"]
    return sent[0]["status"], json.loads(told) if kind == b"application/json" else told


@pytest.fixture
def three(store: Store, release: Any, route: Any) -> list[str]:
    names = ["a", "b", "c"]
    for place, name in enumerate(names):
        route(release(seed=place).key, name=name)
    return names


@pytest.fixture
def served(store: Store, three: list[str]) -> Iterator[MultiEndpointApp]:
    opened = MultiEndpointApp(store)
    opened.start()
    yield opened
    opened.close()


@pytest.mark.slow
def test_each_is_loaded_when_it_is_first_asked(served: MultiEndpointApp, store: Store, three: list[str]) -> None:
    assert served.loaded() == []
    assert ask(served, "GET", "/")[1] == {"endpoints": three, "loaded": []}
    for place, name in enumerate(three, start=1):
        expected = load_model(store, f"delays@{place}").predict([ROW]).tolist()
        for path, body in (
            (f"/endpoints/{name}/predict", {"rows": [ROW]}),
            (f"/endpoints/{name}/invocations", {"instances": [ROW]}),
            (f"/v1/models/{name}:predict", {"instances": [ROW]}),
        ):
            status, told = ask(served, "POST", path, json.dumps(body).encode())
            assert (status, told["probabilities"]) == (200, expected)
        assert ask(served, "GET", f"/v2/models/{name}")[1]["name"] == name
    assert served.loaded() == three
    assert served.loads == 3
    assert [entry["state"] for entry in ask(served, "POST", "/v2/repository/index")[1]] == ["READY"] * 3
    assert ask(served, "POST", "/v2/repository/models/b/unload")[0] == 200
    assert served.loaded() == ["a", "c"]
    assert ask(served, "POST", "/v2/repository/models/b/load")[0] == 200
    assert sorted(served.loaded()) == three
    for name in three:
        assert fold_predictions(store, name) == 3
        assert read_predictions(store, name).collect().height == 3
    metrics = ask(served, "GET", "/metrics")[1]
    families = [line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))
    assert 'everloop_predictions_total{endpoint="c",version="delays@3",role="champion"} 3' in metrics


@pytest.mark.slow
def test_what_does_not_fit_leaves(store: Store, three: list[str]) -> None:
    served = MultiEndpointApp(store, memory_bytes=1)
    try:
        for name in [*three, "a", "a"]:
            assert ask(served, "POST", f"/endpoints/{name}/predict", BODY)[0] == 200
            # The one that is asked stays, whatever it takes.
            assert served.loaded() == [name]
        assert (served.loads, served.evictions) == (4, 3)
        for name in three:
            fold_predictions(store, name)
        assert read_predictions(store, "a").collect().height == 3
    finally:
        served.close()


def test_changes_are_followed(served: MultiEndpointApp, release: Any, route: Any, store: Store) -> None:
    assert ask(served, "POST", "/endpoints/a/predict", BODY)[1]["version"] == 1
    newest = release(seed=7)
    route(newest.key, name="a")
    for loaded_app in served._apps.values():
        loaded_app.reloader.reload()
    assert ask(served, "POST", "/endpoints/a/predict", BODY)[1]["version"] == newest.version


def test_who_has_no_token_loads_nothing(served: MultiEndpointApp, store: Store) -> None:
    token = add_token(store, "b", "team")
    assert ask(served, "POST", "/endpoints/b/predict", BODY)[0] == 401
    assert ask(served, "POST", "/v2/repository/models/b/load")[0] == 401
    assert ask(served, "POST", "/endpoints/nope/predict", BODY)[0] == 404
    assert ask(served, "POST", "/elsewhere", BODY)[0] == 404
    assert served.loaded() == []
    assert ask(served, "POST", "/endpoints/b/predict", BODY, authorization=f"Bearer {token}")[0] == 200
    assert ask(served, "POST", "/endpoints/b/predict", BODY)[0] == 401
    assert ask(served, "POST", "/v2/repository/models/b/unload")[0] == 401
    far = MultiEndpointApp(store, open_to_all=False)
    assert ask(far, "POST", "/endpoints/a/predict", BODY)[0] == 403
    assert ask(far, "GET", "/")[0] == 404
    assert ask(far, "POST", "/endpoints/b/predict", BODY, authorization=f"Bearer {token}")[0] == 200
    far.close()


def test_one_that_cannot_be_loaded_does_not_harm_the_others(served: MultiEndpointApp, store: Store, route: Any) -> None:
    route("delays@9", name="broken")
    assert ask(served, "POST", "/endpoints/broken/predict", BODY)[0] == 404
    store.records.put(store.new(EndpointRecord, name="empty", model="delays"))
    assert ask(served, "POST", "/endpoints/empty/predict", BODY)[0] == 503
    assert ask(served, "POST", "/endpoints/a/predict", BODY)[0] == 200
    set_options(store, "a", {"max_body_bytes": "10"})
    for loaded_app in served._apps.values():
        loaded_app.reloader.reload()
    assert ask(served, "POST", "/endpoints/a/predict", BODY)[0] == 413
