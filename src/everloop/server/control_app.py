"""The control plane's ASGI app: all routes, error handlers and middleware.

    GET /status                   the web page; also at / unless MLflow's web page is served there
    GET /assets/NAME              files of the web page
    GET /api/v1/stream            events as they happen, for open pages: see `event_stream.py`
    GET /health                   200 while the process answers; needs no login
    GET /metrics                  incidents and drift of all endpoints, for Prometheus
    GET /api/openapi.json         the OpenAPI description of /api/v1
    /api/v1/...                   records, registry, users and tokens: see the modules of `api/`
    /endpoints/NAME/...           forwarded to the endpoint's process: see `gateway/`
    /api/2.0/mlflow/... and more  MLflow's REST API: see `integrations/mlflow/tracking_api/`
    POST /graphql                 queries of MLflow's web page: see `integrations/mlflow/tracking_api/graphql/`

Every route declares the role that it needs; `make_app` fails if one does not.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litestar import Litestar, MediaType, Response, get
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.router import Router

from everloop import plugins
from everloop.errors import EverloopError
from everloop.http.body_limits import BodyError
from everloop.server.access.roles import ANYONE, ROLES
from everloop.server.error_responses import error_content
from everloop.server.middleware import AccessMiddleware
from everloop.server.request_context import NEEDS, ApiRequest, guard
from everloop.server.server_options import ServerOptions
from everloop.server.storage_errors import no_space_error
from everloop.server.web_page import INDEX, UNBUILT_PAGE, UNBUILT_STYLE, PageFile, read_page, unbuilt_file
from everloop.version import VERSION

if TYPE_CHECKING:
    from litestar.types import ControllerRouterHandler

    from everloop.stores import Store

_log = logging.getLogger("everloop.server")
_FOREVER = "public, max-age=31536000, immutable"
"""The name of an asset contains a digest of its content."""


def make_app(store: Store, options: ServerOptions | None = None) -> AccessMiddleware:
    """Build the control plane of one store and project, as an ASGI app.

    Raises:
        UsageError: an option cannot be used, such as a folder without MLflow's web page.
    """
    from everloop.server.access import Authenticator, UserStore
    from everloop.server.api import (
        access_routes,
        contract_routes,
        incident_routes,
        journal_routes,
        loop_routes,
        monitoring_routes,
        record_routes,
        registry_routes,
        release_routes,
        replay_routes,
        view_routes,
        webhook_routes,
    )
    from everloop.server.event_stream import EventStream
    from everloop.server.gateway.endpoint_addresses import EndpointAddresses
    from everloop.server.gateway.forwarding import Gateway
    from everloop.server.replay_process import ReplayProcess

    options = options or ServerOptions()
    gateway = Gateway(EndpointAddresses(store, stale_s=options.access_stale_s), options)
    authenticator = Authenticator(UserStore(store), stale_s=options.access_stale_s) if options.auth else None
    events = EventStream(store)
    replays = ReplayProcess(store, options.project_folder)
    routes: list[ControllerRouterHandler] = [
        status,
        asset,
        static,
        *_front(options),
        health,
        *record_routes.routes(),
        *view_routes.routes(),
        *incident_routes.routes(),
        *release_routes.routes(),
        *contract_routes.routes(options),
        *replay_routes.routes(replays),
        *events.routes(),
        *registry_routes.routes(),
        *access_routes.routes(),
        *webhook_routes.routes(options),
        *monitoring_routes.routes(),
        *loop_routes.routes(),
        *gateway.routes(),
        *_integrations(store, options),
        *journal_routes.make_routes(store, options),
    ]
    app = Litestar(
        route_handlers=routes,
        guards=[guard],
        on_shutdown=[events.close, gateway.close, replays.close],
        exception_handlers={
            EverloopError: _refuse,
            BodyError: _refuse_body,
            HTTPException: _refuse_http,
            Exception: _fail,
        },
        openapi_config=OpenAPIConfig(
            title="everloop",
            version=VERSION,
            use_handler_docstrings=True,
            openapi_router=Router("/api", route_handlers=[], opt={NEEDS: "viewer"}),
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        ),
        # The middleware limits the size of bodies, by route.
        request_max_body_size=None,
        logging_config=None,
        debug=False,
    )
    return AccessMiddleware(app, store, options, authenticator, _open_paths(app), gateway.endpoints, events)


@get("/status", sync_to_thread=False, include_in_schema=False, opt={NEEDS: "viewer"})
def status(request: ApiRequest) -> Response[bytes]:
    return _index(request)


@get("/", sync_to_thread=False, include_in_schema=False, opt={NEEDS: "viewer"})
def page(request: ApiRequest) -> Response[bytes]:
    return _index(request)


@get("/assets/{name:str}", sync_to_thread=False, include_in_schema=False, opt={NEEDS: "viewer"})
def asset(request: ApiRequest) -> Response[bytes]:
    # The name is looked up in a table and never becomes part of a path.
    name = request.path_params["name"]
    found = read_page().get(f"assets/{name}")
    if found is None:
        raise HTTPException(status_code=404, detail=f"There is no file '{name[:100]}'.")
    return _file(request, found, {"cache-control": _FOREVER})


@get("/static/{name:str}", sync_to_thread=False, include_in_schema=False, opt={NEEDS: "viewer"})
def static(request: ApiRequest) -> Response[bytes]:
    name = request.path_params["name"]
    if name != UNBUILT_STYLE:
        raise HTTPException(status_code=404, detail=f"There is no file '{name[:100]}'.")
    return Response(unbuilt_file(UNBUILT_STYLE), media_type="text/css; charset=utf-8")


@get("/health", sync_to_thread=False, opt={NEEDS: ANYONE})
def health() -> dict[str, str]:
    """Whether the process answers."""
    return {"status": "ok"}


def _front(options: ServerOptions) -> list[Any]:
    """Return the routes of `/`: the web page, or MLflow's web page if it is configured."""
    if options.mlflow_page is None:
        return [page]
    return list(plugins.load("server_page", "mlflow")(Path(options.mlflow_page)))


def _integrations(store: Store, options: ServerOptions) -> list[Any]:
    """Return the routes of other systems' protocols, such as MLflow's tracking API."""
    return [
        route
        for name in plugins.names("server_routes")
        for route in plugins.load("server_routes", name)(store, options)
    ]


def _open_paths(app: Litestar) -> frozenset[str]:
    """Return the paths that need no login. Fails if a route does not declare a role."""
    open_paths = set()
    for route in app.routes:
        handlers = getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]
        for handler in handlers:
            methods = getattr(handler, "http_methods", ())
            if set(methods) == {"OPTIONS"}:
                continue
            needed = handler.opt.get(NEEDS) if handler is not None else None
            if needed != ANYONE and needed not in ROLES:
                raise RuntimeError(f"The route {route.path} does not declare the role that it needs.")
            if needed == ANYONE:
                if "{" in route.path:
                    raise RuntimeError(
                        f"The open route {route.path} has a path parameter, which open routes cannot have."
                    )
                open_paths.add(route.path)
    return frozenset(open_paths)


def _refuse(request: ApiRequest, error: EverloopError) -> Response[Any]:
    error = no_space_error(error) or error
    if error.http_status >= 500 and error.http_status != 507:
        _log.error("%s: %s", type(error).__name__, error, exc_info=error)
    content = error_content(_path(request), error.http_status, type(error).__name__, error.message, error.help)
    return Response(content, status_code=error.http_status, media_type=MediaType.JSON)


def _refuse_body(request: ApiRequest, error: BodyError) -> Response[Any]:
    """Refuse a body. The connection closes, so that the rest need not be read."""
    content = error_content(_path(request), error.status_code, "BodyError", error.detail)
    closing = {"connection": "close"}
    return Response(content, status_code=error.status_code, headers=closing, media_type=MediaType.JSON)


def _refuse_http(request: ApiRequest, error: HTTPException) -> Response[Any]:
    message = error.detail
    if isinstance(error.extra, list):
        # Litestar lists the invalid fields of the body here.
        message += " " + "; ".join(f"{one.get('key', 'body')}: {one.get('message', '')}" for one in error.extra)
    content = error_content(_path(request), error.status_code, type(error).__name__, message)
    return Response(content, status_code=error.status_code, headers=error.headers, media_type=MediaType.JSON)


def _fail(request: ApiRequest, error: Exception) -> Response[Any]:
    """Answer after a bug. Details go to the log, not to the client."""
    if isinstance(error, RecursionError):
        # Only the parser of a body recurses without a limit.
        content = error_content(_path(request), 400, "UsageError", "The body is nested too deeply.")
        return Response(content, status_code=400, media_type=MediaType.JSON)
    if (full := no_space_error(error)) is not None:
        return _refuse(request, full)
    _log.error("%s on %s failed", request.method, request.scope["path"], exc_info=error)
    content = error_content(
        _path(request), 500, "InternalError", "The server could not handle this request. Its log has the details."
    )
    return Response(content, status_code=500, media_type=MediaType.JSON)


def _path(request: ApiRequest) -> str:
    """Return the full path as it was sent; mounts cut their prefix off `scope["path"]`."""
    return request.scope["raw_path"].decode("latin-1")


def _index(request: ApiRequest) -> Response[bytes]:
    """Return the web page, or how to build it."""
    found = read_page().get(INDEX)
    if found is None:
        return Response(unbuilt_file(UNBUILT_PAGE), media_type="text/html; charset=utf-8")
    return _file(request, found, {})


def _file(request: ApiRequest, found: PageFile, headers: dict[str, str]) -> Response[bytes]:
    if found.gzipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers = {**headers, "content-encoding": "gzip", "vary": "accept-encoding"}
        return Response(found.gzipped, media_type=found.media_type, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
