"""HTTP routes for users and tokens.

Users belong to no project, so only an admin of every project may manage them. Every user manages their own tokens.

    GET    /api/v1/access/me                     the current user and role
    GET    /api/v1/access/users                  list; POST adds one {name, roles, password?}
    PUT    /api/v1/access/users/NAME/roles       {roles}
    PUT    /api/v1/access/users/NAME/password    {password?}
    DELETE /api/v1/access/users/NAME
    GET    /api/v1/access/tokens                 list; POST creates one for the current user {name, roles?, lifetime_s?}
    DELETE /api/v1/access/tokens/NAME            revoke
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from litestar import delete, get, post, put

from everloop.errors import NotFoundError, UsageError
from everloop.records import Token, User
from everloop.server.access import UserStore, is_enough
from everloop.server.access.roles import EVERY_PROJECT
from everloop.server.request_context import NEEDS, ApiRequest, Forbidden, JsonBody, principal_of, store_of
from everloop.server.request_values import Name, Secret

Roles = dict[Name, Name]
"""Project to role. `UserStore` checks how many there are."""

_ADMIN = {NEEDS: "admin"}
_ANY_ROLE = {NEEDS: "viewer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """The current user. Without a login, everyone is the operator."""

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
    """Only in the response to the request that generated it."""


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
    """Only in the response to the request that generated it."""


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


@get("/api/v1/access/me", sync_to_thread=False, opt=_ANY_ROLE)
def me(request: ApiRequest) -> Me:
    """Return the current user and role."""
    store, principal = store_of(request), principal_of(request)
    role = "admin" if principal is None else principal.role_in(store.project)
    return Me(actor=store.actor, project=store.project, role=str(role), login=principal is not None)


@get("/api/v1/access/users", sync_to_thread=True, opt=_ADMIN)
def users(request: ApiRequest) -> list[ShownUser]:
    """List all users."""
    return [_shown(user) for user in _store_for_admin(request).users()]


@post("/api/v1/access/users", sync_to_thread=True, opt=_ADMIN)
def add_user(request: ApiRequest, data: JsonBody[NewUser]) -> ShownUser:
    """Add a user. Without a password, one is generated and returned this once."""
    user, generated = _store_for_admin(request).add_user(data.name, data.roles, data.password)
    return _shown(user, generated)


@put("/api/v1/access/users/{name:str}/roles", sync_to_thread=True, opt=_ADMIN)
def set_roles(request: ApiRequest, data: JsonBody[NewRoles]) -> ShownUser:
    """Replace a user's roles."""
    return _shown(_store_for_admin(request).set_roles(request.path_params["name"], data.roles))


@put("/api/v1/access/users/{name:str}/password", sync_to_thread=True, opt=_ADMIN)
def set_password(request: ApiRequest, data: JsonBody[NewPassword]) -> ShownUser:
    """Replace a user's password. Without a new one, it is generated and returned this once."""
    store, name = _store_for_admin(request), request.path_params["name"]
    generated = store.set_password(name, data.password)
    return _shown(store.get_user(name), generated)


@delete("/api/v1/access/users/{name:str}", sync_to_thread=True, opt=_ADMIN)
def remove_user(request: ApiRequest) -> None:
    """Remove a user. Their tokens stop working."""
    _store_for_admin(request).remove_user(request.path_params["name"])


@get("/api/v1/access/tokens", sync_to_thread=True, opt=_ANY_ROLE)
def tokens(request: ApiRequest) -> list[ShownToken]:
    """List your own tokens, or all tokens if you are an admin of every project."""
    return [_shown_token(token) for token in _user_store(request).tokens() if _may_manage(request, token)]


@post("/api/v1/access/tokens", sync_to_thread=True, opt=_ANY_ROLE)
def create_token(request: ApiRequest, data: JsonBody[NewToken]) -> ShownToken:
    """Create a token for yourself. A token that is created with another token can do no more than that one."""
    principal = principal_of(request)
    if principal is None:
        raise UsageError(
            "This server needs no login, so the request has no user to create a token for.",
            help="Create it on the server: everloop tokens create NAME --user USER",
        )
    lifetime = None
    if data.lifetime_s is not None:
        if not 0 < data.lifetime_s <= 1e10:
            raise UsageError(
                f"lifetime_s={data.lifetime_s} is out of range.",
                help="Give a positive number of seconds, such as 86400.",
            )
        lifetime = timedelta(seconds=data.lifetime_s)
    roles = data.roles
    if principal.cap is not None:
        for project, role in (roles or {"*": "admin"}).items():
            if not is_enough(principal.role_in(project), role):
                raise UsageError(
                    f"{principal.actor} cannot create a token with the role '{role}' in '{project}', above its own.",
                    help="Give lower 'roles', or use the password to log in.",
                )
    token, secret = _user_store(request).create_token(data.name, principal.user, roles, lifetime)
    return _shown_token(token, secret)


@delete("/api/v1/access/tokens/{name:str}", sync_to_thread=True, opt=_ANY_ROLE)
def revoke_token(request: ApiRequest) -> None:
    """Revoke a token."""
    store, name = _user_store(request), request.path_params["name"]
    if not _may_manage(request, store.get_token(name)):
        # The same message as for a missing token, so that the names of other users' tokens stay secret.
        raise NotFoundError(f"There is no token '{name}'.", help="See: everloop tokens ls")
    store.revoke_token(name)


def _user_store(request: ApiRequest) -> UserStore:
    return UserStore(store_of(request))


def _store_for_admin(request: ApiRequest) -> UserStore:
    """Return the user store to an admin of every project. An admin of one project could give themselves other roles."""
    principal = principal_of(request)
    if principal is not None and principal.role_in(EVERY_PROJECT) != "admin":
        raise Forbidden(detail=f"{principal.actor} is not an admin of every project; this needs the role '*=admin'.")
    return _user_store(request)


def _may_manage(request: ApiRequest, token: Token) -> bool:
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
