"""MLflow's REST API as one ASGI app: finds the route, parses the request, runs the handler, and sends the response.

It is plain ASGI because clients log one metric per request. Between the socket and the handler there is only a table
look-up, the parsing of JSON and the switch to a thread. The event loop never waits for the store: another process may
lock it, its disk may be slow, and a search may read a lot. See `worker_threads`.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote_to_bytes

import msgspec

from everloop.errors import EverloopError, StoreError
from everloop.integrations.mlflow.tracking_api import (
    artifact_routes,
    experiment_routes,
    logged_model_routes,
    metric_history_routes,
    model_version_routes,
    registered_model_routes,
    run_logging_routes,
    run_routes,
    run_search_routes,
    server_info_routes,
    transfer_routes,
    webhook_handlers,
)
from everloop.integrations.mlflow.tracking_api.approved_files import check_changeable
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, as_mlflow_error, error_body
from everloop.integrations.mlflow.tracking_api.field_limits import LONGEST_ID
from everloop.integrations.mlflow.tracking_api.files import presigned_urls
from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations
from everloop.integrations.mlflow.tracking_api.files.artifact_location import LONGEST_PATH
from everloop.integrations.mlflow.tracking_api.files.artifact_proxy import (
    Receive,
    Scope,
    Send,
    download,
    send_file,
    send_json,
    send_response,
    upload,
)
from everloop.integrations.mlflow.tracking_api.files.presigned_urls import PresignedUrls
from everloop.integrations.mlflow.tracking_api.genai import (
    assessments,
    dataset_rows,
    datasets,
    otlp,
    scorers,
    trace_correlation,
    trace_files,
    trace_metrics,
    trace_search,
    traces,
    traces_v2,
)
from everloop.integrations.mlflow.tracking_api.handler_context import (
    LARGE_BODY,
    Attachment,
    Finder,
    Handler,
    HandlerContext,
    HandlerRoute,
)
from everloop.integrations.mlflow.tracking_api.metric_buffer import MetricBuffer
from everloop.integrations.mlflow.tracking_api.web_page import ai_gateway, dataset_summaries, promptlab
from everloop.integrations.mlflow.tracking_api.worker_threads import WorkerThreads
from everloop.server.request_context import AUTH, STORE, demand
from everloop.server.request_values import check_text
from everloop.server.server_options import ServerOptions
from everloop.server.storage_errors import no_space_error

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation
    from everloop.stores import Store

ROUTES: tuple[HandlerRoute, ...] = (
    *experiment_routes.ROUTES,
    *dataset_summaries.ROUTES,
    *run_routes.ROUTES,
    *run_logging_routes.ROUTES,
    *run_search_routes.ROUTES,
    *metric_history_routes.ROUTES,
    *artifact_routes.ROUTES,
    *transfer_routes.ROUTES,
    *logged_model_routes.ROUTES,
    *registered_model_routes.ROUTES,
    *model_version_routes.ROUTES,
    *traces.ROUTES,
    *trace_search.ROUTES,
    *trace_metrics.ROUTES,
    *trace_correlation.ROUTES,
    *trace_files.ROUTES,
    *traces_v2.ROUTES,
    *scorers.ROUTES,
    *assessments.ROUTES,
    *datasets.ROUTES,
    *dataset_rows.ROUTES,
    *webhook_handlers.ROUTES,
    *promptlab.ROUTES,
    *ai_gateway.ROUTES,
    *server_info_routes.ROUTES,
)
MOUNTS = ("/api/2.0/mlflow", "/api/2.0mlflow", "/api/2.0/mlflow-artifacts", "/api/3.0/mlflow")
GRAPHQL = "/graphql"
FILES = {"/get-artifact": artifact_routes.run_file, "/model-versions/get-artifact": artifact_routes.version_file}
STALE_S = 7 * 86_400.0
"""Age in seconds after which the files of an unfinished upload are removed."""
_SHORT = 1 << 16
"""Bytes of a JSON body that is parsed in less than a millisecond, and so in the event loop."""
_PREFIXES = ("/ajax-api/", "/api/")
_log = logging.getLogger("everloop.server")

_ROLES = {"read": "viewer", "write": "editor", "delete": "approver", "admin": "admin"}


class RouteTable:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[HandlerRoute, ...]) -> None:
        self._plain = {(route.method, route.path): route for route in routes if "{" not in route.path}
        self._others = [(re.compile(_pattern(route.path)), route) for route in routes if "{" in route.path]
        self._paths = {route.path for route in routes}

    def find(self, method: str, path: str) -> tuple[HandlerRoute, Mapping[str, str]] | None:
        """Return the route and the path parameters, which are still percent-encoded."""
        if route := self._plain.get((method, path)):
            return route, {}
        for pattern, route in self._others:
            if route.method == method and (found := pattern.fullmatch(path)):
                return route, found.groupdict()
        return None

    def knows(self, path: str) -> bool:
        """Whether there is a route with this path, for any method."""
        return path in self._paths or any(pattern.fullmatch(path) for pattern, _ in self._others)


def access_of(method: str, path: str) -> str | None:
    """Return the access that a route needs: `read`, `write`, `delete` or `admin`; None if there is no such route."""
    if path in (*FILES, *(f"/ajax-api{name}" for name in FILES)) and method == "GET":
        return "read"
    if path == otlp.PATH:
        return "write" if method == "POST" else None
    if path == GRAPHQL:
        return "read" if method == "POST" else None
    inner = _inner(path)
    found = _TABLE.find(method, inner) if inner is not None else None
    return found[0].access if found else None


class MlflowApp:
    """MLflow's REST API over one store.

    In the control plane it writes in the name of the request's user, and checks the role that the matched route needs.
    """

    def __init__(self, store: Store, artifacts: ArtifactLocations, options: ServerOptions | None = None) -> None:
        self.store = store
        self.options = options or ServerOptions()
        self.artifacts = artifacts
        self.threads = WorkerThreads()
        self.metric_buffer = MetricBuffer(self.threads.later)
        self.presigned_urls = PresignedUrls()
        self._prepared_projects: set[str] = set()
        artifacts.sweep(STALE_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._serve(scope, receive, send)
        except EverloopError as error:
            mlflow_error = as_mlflow_error(no_space_error(error) or error)
            if mlflow_error.status >= 500 and mlflow_error.code not in ("NOT_IMPLEMENTED", "RESOURCE_EXHAUSTED"):
                _log.error("%s %s: %s", scope["method"], _raw_path(scope), mlflow_error.message)
            await send_response(send, mlflow_error.status, error_body(mlflow_error))
        except (
            OSError,
            sqlite3.Error,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            if (full := no_space_error(error)) is not None:
                mlflow_error = as_mlflow_error(full)
                await send_response(send, mlflow_error.status, error_body(mlflow_error))
                return
            # The last resort. Details of a bug go to the log, not to the client.
            _log.exception("%s %s failed", scope["method"], _raw_path(scope))
            await send_response(
                send,
                500,
                error_body(
                    MlflowError("The server could not handle this request. Its log has the details.", "INTERNAL_ERROR")
                ),
            )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A client whose tracking URI ends in a slash requests `//get-artifact`.
        raw, method = "/" + _raw_path(scope).lstrip("/"), scope["method"]
        head = method == "HEAD"
        if file := FILES.get(raw.removeprefix("/ajax-api")):
            if method != "GET":
                raise _not_allowed(method)
            fields = Fields.of_query(scope["query_string"])
            folder, within = await self.threads.short(lambda: file(self._context(scope, "read", fields)))
            await download(folder, within, scope, send)
            return
        if raw == otlp.PATH:
            await self._spans(scope, receive, send)
            return
        if raw == presigned_urls.PATH:
            # Not `_context`, which checks the login: a valid presigned URL needs none.
            fields = Fields.of_query(scope["query_string"])
            context = HandlerContext(
                self.store, fields, self.artifacts, self.metric_buffer, presigned_urls=self.presigned_urls
            )
            await transfer_routes.use_presigned_url(context, scope, receive, send, self.threads)
            return
        if raw == GRAPHQL:
            await self._graphql(scope, receive, send)
            return
        inner = _inner(raw)
        found = _TABLE.find("GET" if head else method, inner) if inner is not None else None
        if found is None:
            if inner is not None and _TABLE.knows(inner):
                raise _not_allowed(method)
            raise MlflowError(f"There is no route {method} {raw[:200]}.", "ENDPOINT_NOT_FOUND")
        route, encoded_path = found
        path = {name: _decoded(part) for name, part in encoded_path.items()}
        for name, part in path.items():
            check_text(name, part, LONGEST_PATH if name == "path" else LONGEST_ID)
        if route.streams:
            await self._stream(route, path, scope, receive, send)
            return
        if AUTH in scope:
            # The role is checked before the body is read.
            demand(scope, _ROLES[route.access])
        if method == "GET":
            fields, size = Fields.of_query(scope["query_string"]), 0
        else:
            body = await _body(receive, route.body_bytes)
            _check_content_type(scope, body)
            size = len(body)
            fields = Fields.of_body(body) if size <= _SHORT else await self.threads.long(lambda: Fields.of_body(body))
        handler = cast("Handler", route.handler)

        def respond() -> bytes:
            return msgspec.json.encode(handler(self._context(scope, route.access, fields, path, size)))

        if route.slow:
            await self.threads.short(self.metric_buffer.fold_all)
        await send_response(send, 200, await (self.threads.long if route.slow else self.threads.short)(respond))

    def _context(
        self, scope: Scope, access: str, fields: Fields, path: Mapping[str, str] | None = None, size: int = 0
    ) -> HandlerContext:
        if AUTH in scope:
            demand(scope, _ROLES[access])
        store = (scope.get("state") or {}).get(STORE, self.store)
        if store.project not in self._prepared_projects:
            # Reading must work even if the disk is full.
            with suppress(StoreError):
                experiment_routes.default_experiment(store, self.artifacts.of_experiment(0))
                self._prepared_projects.add(store.project)
        return HandlerContext(
            store,
            fields,
            self.artifacts,
            self.metric_buffer,
            path or {},
            size,
            self.options,
            self.presigned_urls,
            self.options.public_url or _origin(scope),
        )

    async def _spans(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise _not_allowed(scope["method"])
        body = await _body(receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        await self.threads.long(
            lambda: otlp.store_spans(self._context(scope, "write", Fields({}), size=len(body)).store, headers, body)
        )
        # An empty protobuf message means that all spans were accepted.
        await send_response(send, 200, b"", otlp.PROTOBUF.encode())

    async def _stream(
        self, route: HandlerRoute, path: Mapping[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        size = _length(scope)
        fields, find = Fields.of_query(scope["query_string"]), cast("Finder", route.handler)

        def find_file() -> tuple[ArtifactLocation, str] | Attachment:
            context = self._context(scope, route.access, fields, path, size)
            found = find(context)
            if route.method != "GET" and not isinstance(found, Attachment):
                check_changeable(context.store, context.artifacts, *found)
            return found

        found = await (self.threads.long if route.slow else self.threads.short)(find_file)
        if isinstance(found, Attachment):
            await send_file(send, found.name, found.body)
            return
        folder, within = found
        if route.method == "GET":
            await download(folder, within, scope, send)
        else:
            await upload(folder, within, receive)
            await send_json(send, {})

    async def _graphql(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise _not_allowed(scope["method"])
        if AUTH in scope:
            demand(scope, _ROLES["read"])
        # Imported at the first query, since most servers never get one.
        from everloop.integrations.mlflow.tracking_api import graphql

        body = await _body(receive, graphql.LARGEST_BODY)
        _check_content_type(scope, body)
        # Errors in variables are reported among the errors of the response.
        fields = await self.threads.long(lambda: Fields.of_body(body, nul=True, depth=graphql.MOST_DEPTH))

        def call_route(route: HandlerRoute, arguments: Fields) -> Mapping[str, Any]:
            handler, context = cast("Handler", route.handler), self._context(scope, route.access, arguments)
            # A short handler may read the metric buffer, which belongs to the thread of short handlers.
            return handler(context) if route.slow else self.threads.short_now(lambda: handler(context))

        def respond() -> bytes:
            return msgspec.json.encode(graphql.answer_query(fields, call_route))

        await self.threads.short(self.metric_buffer.fold_all)
        await send_response(send, 200, await self.threads.long(respond))


def _pattern(template: str) -> str:
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        re.escape(part) if index % 2 == 0 else f"(?P<{part}>{'.+' if part == 'path' else '[^/]+'})"
        for index, part in enumerate(parts)
    )


_TABLE = RouteTable(ROUTES)


def _not_allowed(method: str) -> MlflowError:
    return MlflowError(f"The method {method[:40]} is not allowed for this route.", "METHOD_NOT_ALLOWED")


def _raw_path(scope: Scope) -> str:
    """Return the path as it was sent, not decoded, as attacks rely on paths that are decoded twice."""
    raw: bytes | None = scope.get("raw_path")
    return raw.partition(b"?")[0].decode("latin-1") if raw else str(scope["path"])


def _inner(raw: str) -> str | None:
    """Return the path below `/api/` or `/ajax-api/`; None for any other path."""
    for prefix in _PREFIXES:
        if raw.startswith(prefix):
            return raw.removeprefix(prefix)
    return None


def _decoded(part: str) -> str:
    try:
        return unquote_to_bytes(part).decode("utf-8")
    except UnicodeDecodeError:
        raise MlflowError("Invalid path") from None


def _origin(scope: Scope) -> str:
    """Return the server's URL from the request's `Host` header, which the middleware has checked."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return f"{scope.get('scheme', 'http')}://{host}"


def _length(scope: Scope) -> int:
    """Return the declared length of a body; 0 if it is not declared."""
    declared = dict(scope["headers"]).get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


async def _body(receive: Receive, largest: int = LARGE_BODY) -> bytes:
    message = await receive()
    first: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(first) <= largest:
        return first
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise MlflowError("The client disconnected before it had sent the whole request.", "BAD_REQUEST")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > largest:
            raise MlflowError(f"The request is too large: at most {largest} bytes are allowed.", "BAD_REQUEST")
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def _check_content_type(scope: Scope, body: bytes) -> None:
    # A web page of another origin can send a form or plain text without a CORS preflight, but not JSON.
    if not body:
        return
    kind = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MlflowError("Bad Request. Content-Type must be one of ['application/json'].", "BAD_REQUEST")
