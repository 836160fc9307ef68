"""Facts about a request that its route can read: the user, the store in the user's name, and the role check."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.params import Body

from everloop.server.access.roles import ANYONE, Principal, is_enough
from everloop.server.request_values import check_json, check_parameters, check_text

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

    from everloop.http.body_limits import BodyWatch
    from everloop.stores import Store

T = TypeVar("T")
ApiRequest = Request[Any, Any, Any]
JsonBody = Annotated[T, Body()]
"""A route's `data`: the JSON body, checked against a record."""

PRINCIPAL = "everloop.principal"
STORE = "everloop_store"
"""In the scope's `state`: the store, which writes in the name of the request's user."""
BODY = "everloop.body"
AUTH = "everloop.auth"

NEEDS = "role"
"""The key in a route's `opt` of the role that it needs. A mounted app gives the lowest role that any of its routes
needs, and checks for higher ones with `demand`."""
CALLER = "everloop.caller"
"""In the scope: the name of the endpoint whose own token the request has instead of a login."""
CALLERS = "callers"
"""True in a route's `opt`: an endpoint's own token is enough. The route checks that it is used for that endpoint."""
BODY_KIND = "body"
"""`upload` in a route's `opt`: its body is streamed."""
LARGEST_BODY = 1 << 20
"""Bytes of a JSON body of a route below `/api/v1/`; it is parsed in the event loop."""
LONGEST_PART = 600
"""Characters of one part of a path."""
_NATIVE = "/api/v1/"


class Forbidden(HTTPException):
    """The user's role is too low."""

    status_code = 403


def store_of(request: Any) -> Store:
    """Return the store, which writes in the name of the request's user. Takes a request or its ASGI scope."""
    scope: Mapping[str, Any] = getattr(request, "scope", request)
    return cast("Store", scope["state"][STORE])


def principal_of(request: Any) -> Principal | None:
    """Return the user of a request or its ASGI scope; None if the server needs no login."""
    scope: Mapping[str, Any] = getattr(request, "scope", request)
    return cast("Principal | None", scope.get(PRINCIPAL))


def demand(request: Any, role: str) -> None:
    """Check that the user of a request, or of its ASGI scope, has at least `role` in the server's project.

    Raises:
        Forbidden: the user's role is lower.
    """
    scope: Mapping[str, Any] = getattr(request, "scope", request)
    if role == ANYONE or not scope.get(AUTH, True):
        return
    principal = principal_of(scope)
    if principal is None:
        # The middleware admits requests without credentials to open paths only, so this path should not be open.
        raise HTTPException(
            status_code=401, detail="This needs a login.", headers={"www-authenticate": 'Basic realm="everloop"'}
        )
    project = store_of(scope).project
    has = principal.role_in(project)
    if not is_enough(has, role):
        role_now = f"the role '{has}'" if has else "no role"
        raise Forbidden(detail=f"{principal.actor} has {role_now} in '{project}'; this needs the role '{role}'.")


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Check the role and the values of a request. Litestar calls this guard before every route.

    It is async only because Litestar would run a plain function in another thread, for each request.
    """
    needed = handler.opt.get(NEEDS)
    if needed is None:
        # A route that Litestar adds itself: it answers OPTIONS.
        needed = "viewer"
    scope = cast("MutableMapping[str, Any]", connection.scope)
    if not (handler.opt.get(CALLERS) and scope.get(CALLER)):
        demand(scope, str(needed))
    if handler.opt.get(BODY_KIND) == "upload":
        cast("BodyWatch", scope[BODY]).allow_upload()
    if str(scope["path"]).startswith(_NATIVE):
        await _check_values(connection, handler)


async def _check_values(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Check the path, query and JSON body of a request to a route below `/api/v1/`."""
    for name, part in connection.path_params.items():
        if isinstance(part, str):
            check_text(name, part, LONGEST_PART)
    check_parameters(connection.query_params.multi_items())
    if isinstance(connection, Request) and "data" in handler.parsed_fn_signature.parameters:
        if (watch := cast("MutableMapping[str, Any]", connection.scope).get(BODY)) is not None:
            watch.limit_to(LARGEST_BODY)
        body = await connection.body()
        if b"\\u0000" in body:
            # Other errors in the body are found where it is parsed.
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                check_json(msgspec.json.decode(body))
