"""Roles, and the principal: an authenticated user with roles.

| role | may |
|---|---|
| viewer | read everything in the project |
| editor | also log runs, register versions, move aliases without a policy |
| approver | also approve moves of aliases with a policy, archive, delete |
| admin | also manage users, tokens, webhooks and policies |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from everloop.errors import UsageError
from everloop.records import Role

ROLES: tuple[Role, ...] = ("viewer", "editor", "approver", "admin")
ANYONE = "anyone"
"""Declared by routes that need no login at all, such as `/health`."""
EVERY_PROJECT = "*"
MOST_ROLES = 1000

_RANK: dict[str | None, int] = {name: rank for rank, name in enumerate(ROLES)}


def is_enough(has: str | None, needed: str) -> bool:
    """Whether a role includes the needed one. An unknown needed role is never met."""
    if needed == ANYONE:
        return True
    return has is not None and needed in _RANK and _RANK.get(has, -1) >= _RANK[needed]


def read_roles(texts: Mapping[str, str]) -> dict[str, Role]:
    """Check roles by project.

    Raises:
        UsageError: a role does not exist, or a project name is empty or too long.
    """
    if len(texts) > MOST_ROLES:
        raise UsageError(
            f"{len(texts)} roles are too many.", help=f"Give at most {MOST_ROLES}; '*' means every project."
        )
    for project, role in texts.items():
        if role not in _RANK or not project or len(project) > 100:
            raise UsageError(
                f"'{project}={role}' is not a project and a role.",
                help=f"Roles: {', '.join(ROLES)}; '*' means every project.",
            )
    return cast("dict[str, Role]", dict(texts))


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user. `cap`: the roles to which a token is limited; None for a password."""

    actor: str
    """The actor in events: `user:ada`, or `user:ada/ci` for the token `ci`. Neither name can contain a slash."""
    user: str
    roles: Mapping[str, Role]
    cap: Mapping[str, Role] | None = None

    def role_in(self, project: str) -> Role | None:
        """Return the role in a project: the user's role, limited by the token's."""
        role = _highest(self.roles, project)
        if self.cap is None or role is None:
            return role
        limit = _highest(self.cap, project)
        return None if limit is None else min(role, limit, key=_RANK.__getitem__)


def _highest(roles: Mapping[str, Role], project: str) -> Role | None:
    found = [role for name in (project, EVERY_PROJECT) if (role := roles.get(name)) is not None]
    return max(found, key=_RANK.__getitem__) if found else None
