"""A first request that is wrong is shown one that is right, for this model and in the route's own form."""

from __future__ import annotations

import json
import shlex
from time import perf_counter
from typing import Any

import pytest

from everloop.serving.endpoint_state import set_options
from everloop.serving.protocols.protocol import Request

ROUTES = ("/predict", "/invocations", "/v1/models/delays:predict", "/v2/models/delays/infer", "/score", "/labels")
BODIES = (
    b"",
    b"[]",
    b"null",
    b'{"flag": true}',
    b'[{"distance": 3}]',
    b'{"rows": [{"distance": NaN}], "instances": [NaN], "inputs": NaN}',
    b"a,b\n1,2",
    b'{"rows": [{"distnce": 1}]}',
    b'{"dataframe_records": [{"distnce": 1}]}',
    b'{"instances": [{"distnce": 1}]}',
)


def shown(app: Any, request: Request) -> tuple[int, dict[str, Any], str]:
    """Status, answer and the command in it."""
    response = app.app.respond(request)
    told = json.loads(response.body)
    error = told.get("error")
    text = error["curl"] if isinstance(error, dict) else (error or told["message"])
    return response.status, told, text[text.index("curl -X POST") :]


def send_as(app: Any, command: str) -> int:
    words = shlex.split(command)
    path = "/" + words[3].split("/", 3)[3]
    return int(app.app.respond(Request("POST", path, words[-1].encode(), perf_counter())).status)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("path", ROUTES)
def test_every_refusal_shows_a_body_that_works(release: Any, route: Any, local: Any, path: str, task: str) -> None:
    route(release(task=task).key)
    app = local()
    for body in BODIES:
        request = Request("POST", path, body, perf_counter(), [(b"host", b"here:1")])
        if app.app.respond(request).status == 200:
            assert path == "/labels", (path, body)
            continue
        status, told, command = shown(app, Request("POST", path, body, perf_counter(), [(b"host", b"here:1")]))
        assert 400 <= status < 500, (body, told)
        assert command.startswith(f"curl -X POST http://here:1{path} "), command
        assert send_as(app, command) == 200, (body, command)


@pytest.mark.parametrize("path", ROUTES)
def test_asking_by_get_shows_it_too(release: Any, route: Any, local: Any, path: str) -> None:
    route(release().key)
    app = local()
    status, _, command = shown(app, Request("GET", path, b"", perf_counter()))
    assert status == 405
    assert send_as(app, command) == 200


def test_csv_with_an_unnamed_column_and_a_wrong_content_type(release: Any, route: Any, local: Any) -> None:
    route(release().key)
    app = local()
    for kind, body in ((b"text/csv", b",distance\n0,3"), (b"application/xml", b"<rows/>")):
        request = Request("POST", "/invocations", body, perf_counter(), [(b"content-type", kind)])
        status, told, command = shown(app, request)
        assert status in (400, 415)
        assert set(told) == {"error_code", "message"}
        assert send_as(app, command) == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "The body is empty."),
        (b'{"rows": [{"distance": NaN}]}', "send null"),
        (b"[{}]", "under 'rows'"),
        (b'{"instances": [{}]}', "/v1/models/NAME:predict"),
    ],
)
def test_what_is_wrong_is_said_in_words(release: Any, route: Any, local: Any, body: bytes, said: str) -> None:
    route(release().key)
    told = shown(local(), Request("POST", "/predict", body, perf_counter()))[1]
    assert said in told["error"]["help"]


def test_example_of_an_endpoint_with_hidden_inputs_is_made_up(store: Any, release: Any, route: Any, local: Any) -> None:
    route(release().key)
    set_options(store, "delays", {"log_hash": "carrier"})
    app = local()
    status, told, command = shown(app, Request("POST", "/predict", b"{}", perf_counter()))
    assert status == 422
    assert told["error"]["example"]["rows"][0] != app.app.service.loaded_endpoint().champion.predictor.example
    assert send_as(app, command) == 200
