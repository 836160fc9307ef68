"""Who asks, and for what: what routes use of the door's findings."""

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
Sent = Annotated[T, Body()]
"""A route's `data`: what the client sent, as JSON, checked against a record."""

PRINCIPAL = "everloop.principal"
STORE = "everloop_store"
"""In the scope's `state`: the store, bound to whoever asks."""
BODY = "everloop.body"
AUTH = "everloop.auth"

NEEDS = "role"
"""The name in a route's `opt` of the role that it needs; of a mounted app the least that any of its routes needs,
which asks for more by `demand`."""
CALLER = "everloop.caller"
"""In the scope: the endpoint whose own token the request brought instead of a login."""
CALLERS = "callers"
"""True in a route's `opt`: an endpoint's own token opens it; the route holds it to that endpoint."""
BODY_KIND = "body"
"""`upload` in a route's `opt`: its body is streamed."""
LARGEST_BODY = 1 << 20
"""Bytes of a JSON body of a route of ours: it is read in the event loop."""
LONGEST_PART = 600
"""Characters of one part of a path."""
_NATIVE = "/api/v1/"


class Forbidden(HTTPException):
    """Somebody who is known has too little rights."""

    status_code = 403


def store_of(asked: Any) -> Store:
    """The store, written to in the name of whoever asks. Takes a request or its ASGI scope."""
    scope: Mapping[str, Any] = getattr(asked, "scope", asked)
    return cast("Store", scope["state"][STORE])


def principal_of(asked: Any) -> Principal | None:
    """Who asks; None where the server needs no login."""
    scope: Mapping[str, Any] = getattr(asked, "scope", asked)
    return cast("Principal | None", scope.get(PRINCIPAL))


def demand(asked: Any, role: str) -> None:
    """Refuse whoever has less than `role` in the server's project.

    Raises:
        Forbidden: they have.
    """
    scope: Mapping[str, Any] = getattr(asked, "scope", asked)
    if role == ANYONE or not scope.get(AUTH, True):
        return
    principal = principal_of(scope)
    if principal is None:
        # The door lets nobody through without credentials but to open paths: this is one that should not be open.
        raise HTTPException(
            status_code=401, detail="This needs a login.", headers={"www-authenticate": 'Basic realm="everloop"'}
        )
    project = store_of(scope).project
    has = principal.role_in(project)
    if not is_enough(has, role):
        raise Forbidden(detail=f"{principal.actor} is {has or 'nobody'} in '{project}'; this needs the role '{role}'.")


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request through to its route if it may. Every route passes here.

    Asynchronous only because Litestar would call anything else in another thread, for each request.
    """
    needed = handler.opt.get(NEEDS)
    if needed is None:
        # What Litestar adds by itself: the answer to OPTIONS.
        needed = "viewer"
    scope = cast("MutableMapping[str, Any]", connection.scope)
    if not (handler.opt.get(CALLERS) and scope.get(CALLER)):
        demand(scope, str(needed))
    if handler.opt.get(BODY_KIND) == "upload":
        cast("BodyWatch", scope[BODY]).allow_upload()
    if str(scope["path"]).startswith(_NATIVE):
        await _check_values(connection, handler)


async def _check_values(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Refuse what no route of ours can use in a path, a query or a JSON body."""
    for name, part in connection.path_params.items():
        if isinstance(part, str):
            check_text(name, part, LONGEST_PART)
    check_parameters(connection.query_params.multi_items())
    if isinstance(connection, Request) and "data" in handler.parsed_fn_signature.parameters:
        if (watch := cast("MutableMapping[str, Any]", connection.scope).get(BODY)) is not None:
            watch.limit_to(LARGEST_BODY)
        body = await connection.body()
        if b"\\u0000" in body:
            # Anything else that is wrong with the body is found where it is read.
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                check_json(msgspec.json.decode(body))
