"""Users and tokens over HTTP. Users are for those who are admin of every project, as they belong to none; tokens
are everybody's own.

    GET    /api/v1/access/me                 who asks, with which role
    GET    /api/v1/access/users              POST: add one {name, roles, password?}
    PUT    /api/v1/access/users/NAME/roles   {roles}
    PUT    /api/v1/access/users/NAME/password
    DELETE /api/v1/access/users/NAME
    GET    /api/v1/access/tokens             POST: make one for oneself {name, roles?, lifetime_s?}
    DELETE /api/v1/access/tokens/NAME        revoke
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from litestar import Request, delete, get, post, put

from everloop.errors import NotFoundError, UsageError
from everloop.records import Token, User
from everloop.server.access import UserStore, is_enough
from everloop.server.access.roles import EVERY_PROJECT
from everloop.server.request_context import NEEDS, Forbidden, Sent, principal_of, store_of
from everloop.server.request_values import Name, Secret

Asked = Request[Any, Any, Any]
Roles = dict[Name, Name]
"""Project to role; how many there may be is checked with the book."""

_ADMIN = {NEEDS: "admin"}
_OWN = {NEEDS: "viewer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Who asks. Without a login everybody is the operator."""

    actor: str
    project: str
    role: str
    login: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownUser:
    name: str
    roles: dict[str, str]
    created_at: datetime
    password: str | None = None
    """Only in the answer to the request that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    name: str
    owner: str
    prefix: str
    roles: dict[str, str]
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None
    secret: str | None = None
    """Only in the answer to the request that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    name: Name
    roles: Roles
    password: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRoles:
    roles: Roles


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPassword:
    password: Secret | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    name: Name
    roles: Roles | None = field(default=None)
    lifetime_s: float | None = None


def routes() -> list[Any]:
    return [me, users, add_user, set_roles, set_password, remove_user, tokens, create_token, revoke_token]


@get("/api/v1/access/me", sync_to_thread=False, opt=_OWN)
def me(request: Asked) -> Me:
    """Who asks, with which role."""
    store, principal = store_of(request), principal_of(request)
    role = "admin" if principal is None else principal.role_in(store.project)
    return Me(actor=store.actor, project=store.project, role=str(role), login=principal is not None)


@get("/api/v1/access/users", sync_to_thread=True, opt=_ADMIN)
def users(request: Asked) -> list[ShownUser]:
    """Every user."""
    return [_shown(user) for user in _all_of(request).users()]


@post("/api/v1/access/users", sync_to_thread=True, opt=_ADMIN)
def add_user(request: Asked, data: Sent[NewUser]) -> ShownUser:
    """Add a user; without a password one is made and given back this once."""
    user, made = _all_of(request).add_user(data.name, data.roles, data.password)
    return _shown(user, made)


@put("/api/v1/access/users/{name:str}/roles", sync_to_thread=True, opt=_ADMIN)
def set_roles(request: Asked, data: Sent[NewRoles]) -> ShownUser:
    """Replace a user's roles."""
    return _shown(_all_of(request).set_roles(request.path_params["name"], data.roles))


@put("/api/v1/access/users/{name:str}/password", sync_to_thread=True, opt=_ADMIN)
def set_password(request: Asked, data: Sent[NewPassword]) -> ShownUser:
    """Replace a user's password; without one it is made and given back this once."""
    book, name = _all_of(request), request.path_params["name"]
    made = book.set_password(name, data.password)
    return _shown(book.get_user(name), made)


@delete("/api/v1/access/users/{name:str}", sync_to_thread=True, opt=_ADMIN)
def remove_user(request: Asked) -> None:
    """Remove a user, and with him what his tokens open."""
    _all_of(request).remove_user(request.path_params["name"])


@get("/api/v1/access/tokens", sync_to_thread=True, opt=_OWN)
def tokens(request: Asked) -> list[ShownToken]:
    """One's own tokens; to an admin, everybody's."""
    return [_shown_token(token) for token in _book(request).tokens() if _is_theirs(request, token)]


@post("/api/v1/access/tokens", sync_to_thread=True, opt=_OWN)
def create_token(request: Asked, data: Sent[NewToken]) -> ShownToken:
    """Make a token for oneself. One made with a token can do no more than that."""
    principal = principal_of(request)
    if principal is None:
        raise UsageError(
            "Without a login there is nobody to make a token for.", help="Use: everloop tokens create NAME --user USER"
        )
    lifetime = None
    if data.lifetime_s is not None:
        if not 0 < data.lifetime_s <= 1e10:
            raise UsageError(f"lifetime_s={data.lifetime_s} is out of range.", help="Give seconds, such as 86400.")
        lifetime = timedelta(seconds=data.lifetime_s)
    roles = data.roles
    if principal.cap is not None:
        for project, role in (roles or {"*": "admin"}).items():
            if not is_enough(principal.role_in(project), role):
                raise UsageError(f"{principal.actor} cannot give '{project}={role}'.", help="Name lesser roles.")
    token, secret = _book(request).create_token(data.name, principal.user, roles, lifetime)
    return _shown_token(token, secret)


@delete("/api/v1/access/tokens/{name:str}", sync_to_thread=True, opt=_OWN)
def revoke_token(request: Asked) -> None:
    """Make a token open nothing from now on."""
    book, name = _book(request), request.path_params["name"]
    if not _is_theirs(request, book.get_token(name)):
        # Said as if there were none: names of others' tokens are nobody's business.
        raise NotFoundError(f"There is no token '{name}'.", help="See: everloop tokens ls")
    book.revoke_token(name)


def _book(request: Asked) -> UserStore:
    return UserStore(store_of(request))


def _all_of(request: Asked) -> UserStore:
    """The book, for somebody who may change every page: an admin of one project could else name himself another's."""
    principal = principal_of(request)
    if principal is not None and principal.role_in(EVERY_PROJECT) != "admin":
        raise Forbidden(detail=f"{principal.actor} is no admin of every project ('*=admin').")
    return _book(request)


def _is_theirs(request: Asked, token: Token) -> bool:
    principal = principal_of(request)
    if principal is None or token.owner == principal.user:
        return True
    return principal.role_in(EVERY_PROJECT) == "admin"


def _shown(user: User, password: str | None = None) -> ShownUser:
    return ShownUser(name=user.name, roles=dict(user.roles), created_at=user.created_at, password=password)


def _shown_token(token: Token, secret: str | None = None) -> ShownToken:
    return ShownToken(
        name=token.name,
        owner=token.owner,
        prefix=token.prefix,
        roles=dict(token.roles),
        created_at=token.created_at,
        expires_at=token.expires_at,
        used_at=token.used_at,
        revoked_at=token.revoked_at,
        secret=secret,
    )
