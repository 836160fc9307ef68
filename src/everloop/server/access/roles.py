"""Roles, and somebody whose credentials were checked.

| role | may |
|---|---|
| viewer | read everything of the project |
| editor | and log runs, register versions, move aliases that no policy guards |
| approver | and agree to guarded moves, archive, delete |
| admin | and manage users, tokens, webhooks and policies |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from everloop.errors import UsageError
from everloop.records import Role

ROLES: tuple[Role, ...] = ("viewer", "editor", "approver", "admin")
ANYONE = "anyone"
"""What a route declares that needs no login at all, such as `/health`."""
EVERY_PROJECT = "*"
MOST_ROLES = 1000

_RANK: dict[str | None, int] = {name: rank for rank, name in enumerate(ROLES)}


def is_enough(has: str | None, needed: str) -> bool:
    """Whether a role covers what is needed. An unknown need is never met."""
    if needed == ANYONE:
        return True
    return has is not None and needed in _RANK and _RANK.get(has, -1) >= _RANK[needed]


def read_roles(texts: Mapping[str, str]) -> dict[str, Role]:
    """Roles by project, checked.

    Raises:
        UsageError: no such role, or a project without a name.
    """
    if len(texts) > MOST_ROLES:
        raise UsageError(f"{len(texts)} roles are too many.", help=f"At most {MOST_ROLES}; '*' is every project.")
    for project, role in texts.items():
        if role not in _RANK or not project or len(project) > 100:
            raise UsageError(
                f"'{project}={role}' is no role.", help=f"Roles: {', '.join(ROLES)}; '*' is every project."
            )
    return cast("dict[str, Role]", dict(texts))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. `cap` is what a token allows at most; None for a password."""

    actor: str
    """As events name it: `user:ada`, or `user:ada/ci` where it is her token `ci`. Neither name may hold a slash."""
    user: str
    roles: Mapping[str, Role]
    cap: Mapping[str, Role] | None = None

    def role_in(self, project: str) -> Role | None:
        """The role in a project: the owner's, but no more than the token's."""
        own = _highest(self.roles, project)
        if self.cap is None or own is None:
            return own
        most = _highest(self.cap, project)
        return None if most is None else min(own, most, key=_RANK.__getitem__)


def _highest(roles: Mapping[str, Role], project: str) -> Role | None:
    found = [role for name in (project, EVERY_PROJECT) if (role := roles.get(name)) is not None]
    return max(found, key=_RANK.__getitem__) if found else None
