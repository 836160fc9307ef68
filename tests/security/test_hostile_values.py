"""Hostile values in every text and number of every route of the control plane: refused or fast, never a 5xx.

The routes come from the app's own route table and MLflow's, and the fields from the types of the routes' bodies and
from the names that MLflow's handlers read, so that a new route and a new field are covered by themselves.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import json
import os
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import pytest

import everloop.integrations.mlflow.tracking_api as protocol
from everloop.integrations.mlflow.tracking_api import ROUTES
from everloop.integrations.mlflow.tracking_api.genai.otlp import PATH as OTLP
from everloop.integrations.mlflow.tracking_api.mlflow_app import FILES, GRAPHQL
from everloop.server import make_app
from everloop.server.server_options import ServerOptions
from everloop.stores import open_store

LONGEST_ANSWER = 20_000
FIELD_METHODS = {
    "text",
    "optional_text",
    "integer",
    "number",
    "flag",
    "rows",
    "texts",
    "objects",
    "pairs",
    "raw",
    "said",
}
SLOW = "a" + " " * 20_000 + "b"
DEEP = "[" * 10_000 + "]" * 10_000
# Each stands for the text of a JSON value, since not all of them can be made of a Python value.
VALUES: dict[str, str] = {
    "5,000 digits": "9" * 5_000,
    "minus 5,000 digits": "-" + "9" * 5_000,
    "5,000 digits as a text": json.dumps("9" * 5_000),
    "4,000 digits": "9" * 4_000,
    "400 digits": "9" * 400,
    "more than 64 bits": str(2**64),
    "a huge exponent": "1e999999",
    "a huge exponent as a text": '"1e999999"',
    "NaN": "NaN",
    "high surrogate": '"\\ud800"',
    "low surrogate": '"a\\udc00b"',
    "raw surrogate": '"\udcff"',
    "NUL": '"a\\u0000b"',
    "a long text": json.dumps("x" * 120_000),
    "spaces between": json.dumps(SLOW),
    "a list of spaces between": json.dumps([SLOW] * 50),
    "deep lists": DEEP,
    "less deep lists": "[" * 600 + "]" * 600,
    "deep objects": '{"a":' * 600 + "1" + "}" * 600,
    "brackets": json.dumps("(" * 10_000 + "a = 1" + ")" * 10_000),
    "clauses": json.dumps(" AND ".join(["metrics.a > 1"] * 10_000)),
    "digits in a filter": json.dumps("metrics.a > " + "1" * 10_000),
    "an exponent in a filter": json.dumps("metrics.a > 1e999999"),
    "a surrogate as a name": '{"\\ud800": "x"}',
    "NUL as a name": '{"a\\u0000": "x"}',
    "a list": "[]",
    "an object": "{}",
    "a text": '"a"',
    "empty": '""',
}
EVERYWHERE = (
    "5,000 digits", "more than 64 bits", "a huge exponent", "high surrogate", "NUL", "a long text", "less deep lists",
    "an object",
)  # fmt: skip
"""What each field of each route is tried with; the rest as whole bodies and in the fields of searches."""
SEARCHED = {"filter", "filter_string", "filter_string1", "base_filter", "order_by", "page_token", "filters"}
IN_ADDRESSES = {
    "5,000 digits": "9" * 5_000,
    "NUL": "a%00b",
    "surrogate": "%ED%A0%80",
    "not UTF-8": "%ff%fe",
    "NUL, encoded twice": "%2500",
    "long": "x" * 9_000,
    "spaces between": quote(SLOW[-3_000:]),
    "an exponent": "1e999999",
    "minus": "-1",
    "infinity": "inf",
    "brackets": quote("(" * 3_000),
    "a filter of digits": quote("name = " + "1" * 6_000),
}
IN_QUERIES = ("5,000 digits", "NUL", "surrogate", "long", "an exponent", "a filter of digits")
# MLflow's server says 501 where files are in a folder and their parts are asked for.
FINE = {501}


class Caller:
    """Asks the app as uvicorn would, without a socket."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.loop = asyncio.new_event_loop()
        self.real: dict[str, Any] = {}

    def post(self, path: str, **fields: Any) -> Any:
        status, body = self.ask("POST", path, json.dumps(fields).encode())
        assert status == 200, body
        return json.loads(body)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        raw, _, query = path.partition("?")
        named = {"host": "127.0.0.1", "content-type": "application/json", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(raw), "raw_path": raw.encode("latin-1"), "query_string": query.encode("latin-1"),
            "root_path": "", "client": ("127.0.0.1", 5000), "server": ("127.0.0.1", 8100),
            "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in named.items()],
        }  # fmt: skip
        return self.loop.run_until_complete(asyncio.wait_for(self._ask(scope, body), 30))

    async def _ask(self, scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
        sent = False
        status, parts = 0, []

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.sleep(3600)
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return status, b"".join(parts)


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        with open_store(folder / "home", project="p") as store:
            made = Caller(make_app(store, ServerOptions(webhook_networks=("127.0.0.0/8",))))
            made.real = what_there_is(made)
            yield made
            made.loop.run_until_complete(made.loop.shutdown_default_executor())
            made.loop.close()


@pytest.fixture(scope="module")
def postgres_caller(tmp_path_factory, postgres_server) -> Iterator[Caller]:
    folder = tmp_path_factory.mktemp("hostile-postgres")
    (folder / "everloop.toml").write_text(f'[store]\nrecords = "{postgres_server}"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERLOOP_KEYS", str(folder / "keys"))
        patch.chdir(folder)
        with open_store(project=f"hostile{os.getpid()}") as store:
            made = Caller(make_app(store, ServerOptions(webhook_networks=("127.0.0.0/8",))))
            made.real = what_there_is(made)
            yield made
            made.loop.run_until_complete(made.loop.shutdown_default_executor())
            made.loop.close()


def what_there_is(caller: Caller) -> dict[str, Any]:
    """Fields that name what is there: most of what could go wrong lies behind the first few checks."""
    api = "/api/2.0/mlflow/"
    run = caller.post(f"{api}runs/create", experiment_id="0", start_time=1)["run"]["info"]["run_id"]
    caller.post(f"{api}runs/log-metric", run_id=run, key="m", value=1, timestamp=1)
    caller.post(f"{api}registered-models/create", name="m")
    caller.post(f"{api}model-versions/create", name="m", source="s3://b/x")
    model = caller.post(f"{api}logged-models", experiment_id="0", name="l")["model"]["info"]["model_id"]
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}
    info = {"trace_id": TRACE, "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK"}
    caller.post("/api/3.0/mlflow/traces", trace={"trace_info": info})
    dataset = caller.post("/api/3.0/mlflow/datasets/create", name="d")["dataset"]["dataset_id"]
    return {
        "run_id": run, "run_ids": [run], "experiment_id": "0", "experiment_ids": ["0"], "name": "m", "version": "1",
        "key": "k", "value": "1", "timestamp": 1, "locations": [place], "trace_ids": [TRACE], "request_id": TRACE,
        "metric_name": "trace_count", "metric_key": "m", "view_type": "TRACES", "filter_string1": "tags.a = 'b'",
        "aggregations": [{"aggregation_type": "COUNT"}], "filter_string2": "trace.status = 'OK'", "model_id": model,
        "trace_id": TRACE, "dataset_id": dataset, "path": "x", "url": "http://127.0.0.1/", "assessment_name": "a",
        "request_ids": [TRACE], "stage": "Staging", "alias": "a", "new_name": "n", "source": "s3://b/x",
        "events": [{"entity": "REGISTERED_MODEL", "action": "CREATED"}],
    }  # fmt: skip


def native_routes() -> list[tuple[str, str, Any]]:
    """Method, path and handler of each route of the app itself."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder, open_store(Path(folder) / "home", project="p") as store:
        app = make_app(store).app
        found = []
        for route in app.routes:  # type: ignore[attr-defined]
            for handler in getattr(route, "route_handlers", ()):
                for method in handler.http_methods:
                    # Endpoints have tests of their own, and the stream of events has no end.
                    skipped = "/endpoints/" in route.path_format or route.path_format == "/api/v1/stream"
                    if method not in ("OPTIONS", "HEAD") and not skipped:
                        found.append((str(method), route.path_format, handler))
        # Litestar keeps some of them in sets, and every process of a test run must collect them in the same order.
        return sorted(found, key=lambda one: (one[1], one[0]))


NATIVE = native_routes()


def body_fields(handler: Any) -> dict[str, Any]:
    """The fields of a native route's body."""
    parameter = handler.parsed_fn_signature.parameters.get("data")
    if parameter is None:
        return {}
    kind = parameter.annotation
    while typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    return {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}


def mlflow_fields() -> dict[str, set[str]]:
    """The names that each module of MLflow's protocol reads, by the module's file."""
    found: dict[str, set[str]] = {}
    for path in sorted(Path(protocol.__file__).parent.rglob("*.py")):
        names = {
            call.args[0].value
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in FIELD_METHODS
            and call.args
            and isinstance(call.args[0], ast.Constant)
            and isinstance(call.args[0].value, str)
        }
        found[str(path)] = names
    return found


FIELDS = mlflow_fields()
COMMON = {"run_id", "experiment_id", "experiment_ids", "name", "key", "tags", "filter", "order_by", "max_results"}
TRACE = "tr-hostile"


def fine(method: str, path: str, what: str, answer: tuple[int, bytes]) -> None:
    status, body = answer
    assert 200 <= status < 500 or status in FINE, (method, path[:100], what, status, body[:500])
    assert status < 300 or len(body) < LONGEST_ANSWER, (method, path[:100], what, status, len(body))


def filled(path: str, value: str = "1") -> str:
    return re.sub(r"\{[^}]*\}", lambda _: value, path)


def named(path: str, real: dict[str, Any]) -> str:
    """The path to what there is."""
    return re.sub(r"\{(\w+)\}", lambda found: str(real.get(found[1], "1")), path)


@pytest.mark.parametrize(("method", "path", "handler"), NATIVE, ids=[f"{m} {p}" for m, p, _ in NATIVE])
def test_native_routes(caller, method, path, handler):
    for what, value in IN_ADDRESSES.items():
        if "{" in path:
            fine(method, path, what, caller.ask(method, filled(path, value)))
        for name in ("limit", "after", "since", "name", "at", "a", "b", "reason", "writer", "offset", "seq", value):
            fine(method, path, f"{name}: {what}", caller.ask(method, f"{filled(path)}?{name}={value}"))
    fields = body_fields(handler)
    for what, value in VALUES.items():
        sent = value.encode("utf-8", "surrogateescape")
        fine(method, path, what, caller.ask(method, filled(path), sent))
        for name in fields if what in EVERYWHERE else ():
            others = {other: "1" for other in fields if other != name}
            text = json.dumps(others)[:-1] + (", " if others else "") + f'"{name}": '
            body = text.encode() + sent + b"}"
            fine(method, path, f"{name}: {what}", caller.ask(method, filled(path), body))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_mlflow_routes(caller, route):
    address, real = f"/api/{route.path}", caller.real
    names = (FIELDS[str(inspect.getsourcefile(route.handler))] or COMMON) | {"name", "run_id"}
    for what, value in IN_ADDRESSES.items():
        if "{" in address:
            fine(route.method, address, what, caller.ask(route.method, filled(address, value), b"{}"))
        if (route.method == "GET" or route.streams) and what in IN_QUERIES:
            for name in names:
                others = urlencode({k: v for k, v in real.items() if k != name}, doseq=True)
                got = caller.ask(route.method, f"{named(address, real)}?{others}&{name}={value}")
                fine(route.method, address, f"{name}: {what}", got)
    if route.method == "GET" or route.streams:
        return
    for what, value in VALUES.items():
        sent = value.encode("utf-8", "surrogateescape")
        fine(route.method, address, what, caller.ask(route.method, named(address, real), sent))
        for name in names if what in EVERYWHERE else names & SEARCHED:
            others = json.dumps({k: v for k, v in real.items() if k != name and k in names})[:-1].encode()
            body = others + (b", " if len(others) > 1 else b"") + b'"' + name.encode() + b'": ' + sent + b"}"
            fine(route.method, address, f"{name}: {what}", caller.ask(route.method, named(address, real), body))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["NUL", "high surrogate", "NUL as a name", "a huge exponent", "more than 64 bits"])
def test_postgresql_is_not_asked_to_keep_what_it_cannot(postgres_caller, what):
    caller, real = postgres_caller, postgres_caller.real
    for route in ROUTES:
        if route.method == "GET" or route.streams:
            continue
        names = (FIELDS[str(inspect.getsourcefile(route.handler))] or COMMON) | {"name", "run_id"}
        address = named(f"/api/{route.path}", real)
        for name in names:
            others = json.dumps({k: v for k, v in real.items() if k != name and k in names})[:-1]
            body = others + (", " if len(others) > 1 else "") + f'"{name}": {VALUES[what]}}}'
            fine(route.method, address, f"{name}: {what}", caller.ask(route.method, address, body.encode()))


@pytest.mark.parametrize("path", [*FILES, "/version", "/api/2.0/mlflow-artifacts/signed"])
def test_files(caller, path):
    for what, value in IN_ADDRESSES.items():
        for name in ("run_id", "path", "name", "version", "what", "where", "until", "seal"):
            fine("GET", path, f"{name}: {what}", caller.ask("GET", f"{path}?{name}={value}"))


def test_every_field_of_a_batch(caller):
    run = caller.real["run_id"]
    good = {
        "metrics": {"key": "k", "value": 1, "timestamp": 1, "step": 1, "model_id": "m", "dataset_name": "d"},
        "params": {"key": "k", "value": "v"},
        "tags": {"key": "k", "value": "v"},
    }
    for kind, fields in good.items():
        for name in fields:
            for what, value in VALUES.items():
                others = json.dumps({k: v for k, v in fields.items() if k != name})[:-1]
                sent = f'{{"run_id": "{run}", "{kind}": [{others}, "{name}": '.encode()
                sent += value.encode("utf-8", "surrogateescape") + b"}]}"
                got = caller.ask("POST", "/api/2.0/mlflow/runs/log-batch", sent)
                fine("POST", "log-batch", f"{kind}.{name}: {what}", got)


def test_graphql(caller):
    query = "query q($i: MlflowSearchRunsInput) { mlflowSearchRuns(input: $i) { runs { info { runId } } } }"
    for what, value in VALUES.items():
        sent = value.encode("utf-8", "surrogateescape")
        for name in ("query", "variables", "operationName"):
            others = {"query": query, "variables": {}, "operationName": "q"}
            del others[name]
            body = json.dumps(others)[:-1].encode() + f', "{name}": '.encode() + sent + b"}"
            fine("POST", GRAPHQL, f"{name}: {what}", caller.ask("POST", GRAPHQL, body))
        for name in ("filter", "maxResults", "orderBy", "experimentIds", "pageToken", "runViewType"):
            body = f'{{"query": "{query}", "variables": {{"i": {{"{name}": '.encode() + sent + b"}}}"
            fine("POST", GRAPHQL, f"i.{name}: {what}", caller.ask("POST", GRAPHQL, body))
    for literal in ("9" * 5_000, '"\\ud800"', '"\\u0000"', "1e999999", "[" * 3_000, '"""' + "x" * 9_000 + '"""'):
        text = json.dumps(
            {"query": f"{{ mlflowGetRun(input: {{runId: {literal}}}) {{ run {{ info {{ runId }} }} }} }}"}
        )
        fine("POST", GRAPHQL, literal[:20], caller.ask("POST", GRAPHQL, text.encode()))


def test_spans(caller):
    pytest.importorskip("opentelemetry.proto")
    for number in IN_HEADERS:
        fine("POST", OTLP, number[:20], caller.ask("POST", OTLP, b"{}", x_mlflow_experiment_id=number))
    for kind in ("application/x-protobuf", "application/json", "x" * 5_000):
        for what, value in VALUES.items():
            sent = value.encode("utf-8", "surrogateescape")
            for body in (sent, b'{"resourceSpans": ' + sent + b"}", span(sent, b'"n"'), span(b"1", sent)):
                got = caller.ask("POST", OTLP, body, content_type=kind, x_mlflow_experiment_id="0")
                fine("POST", OTLP, f"{kind[:30]}: {what}", got)


IN_HEADERS = ["9" * 5_000, "-1", "1e999999", "\xff\xfe", "inf", "²"]


def span(nanoseconds: bytes, name: bytes) -> bytes:
    ids = b'"traceId": "' + b"ab" * 16 + b'", "spanId": "' + b"cd" * 8 + b'"'
    attributes = b'"attributes": [{"key": "session.id", "value": {"stringValue": ' + name + b"}}]"
    one = b"{" + ids + b', "name": ' + name + b', "startTimeUnixNano": ' + nanoseconds + b", " + attributes + b"}"
    return b'{"resourceSpans": [{"scopeSpans": [{"spans": [' + one + b"]}]}]}"


def test_journals(caller):
    writer = "run-00000000-0000-0000-0000-000000000000.0123456789abcdef"
    for what, value in VALUES.items():
        body = value.encode("utf-8", "surrogateescape")
        fine("POST", "/api/v1/journals", what, caller.ask("POST", f"/api/v1/journals?writer={writer}&offset=0", body))


@pytest.mark.parametrize(
    "header", ["content_type", "content_encoding", "x_mlflow_run_id", "range", "authorization", "origin"]
)
def test_headers(caller, header):
    for value in IN_HEADERS:
        for method, path in (("POST", OTLP), ("POST", "/api/2.0/mlflow/runs/search"), ("GET", "/api/v1/runs"),
                             ("POST", "/api/v1/webhooks"), ("GET", "/get-artifact?run_id=1&path=x")):  # fmt: skip
            fine(method, path, f"{header}: {value[:20]}", caller.ask(method, path, b"{}", **{header: value}))


def texts_of(handler: Any) -> list[str]:
    """The names of a native body's fields that are texts."""
    return [name for name, field in body_fields(handler).items() if str(field.type).split()[0] in TEXT_TYPES]


TEXT_TYPES = {"Name", "Text", "Url", "Secret", "Why", "str"}
WITH_TEXTS = [(method, path, handler) for method, path, handler in NATIVE if texts_of(handler)]


@pytest.mark.parametrize(("method", "path", "handler"), WITH_TEXTS, ids=[f"{m} {p}" for m, p, _ in WITH_TEXTS])
def test_a_native_field_that_is_too_long_is_named_with_its_limit(caller, method, path, handler):
    for name in texts_of(handler):
        fields = {
            other: {} if "Roles" in str(field.type) else "1"
            for other, field in body_fields(handler).items()
            if field.default is dataclasses.MISSING
        }
        status, body = caller.ask(method, filled(path), json.dumps({**fields, name: "x" * 300_000}).encode())
        assert status == 400, body
        assert re.search(rf"{name}: .*length <= \d+", json.loads(body)["error"]["message"]), body


def test_there_are_fields_to_try():
    assert len(WITH_TEXTS) > 8
    assert sum(len(names) for names in FIELDS.values()) > 150
    assert len(NATIVE) > 30
