"""Access control: users, tokens, roles, and authentication of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.server.access.authentication import (
        Authenticator as Authenticator,
        CredentialsError as CredentialsError,
    )
    from everloop.server.access.roles import Principal as Principal, is_enough as is_enough
    from everloop.server.access.users import UserStore as UserStore

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "authentication": ["Authenticator", "CredentialsError"],
        "roles": ["Principal", "is_enough"],
        "users": ["UserStore"],
    },
)
