"""Who may do what: users, tokens, roles, and the check of credentials at the door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.server.access.book import AccessBook
    from everloop.server.access.checking import Authenticator, CredentialsError
    from everloop.server.access.roles import Principal, is_enough

_HOME = {
    "AccessBook": "book",
    "Authenticator": "checking",
    "CredentialsError": "checking",
    "Principal": "roles",
    "is_enough": "roles",
}

__all__ = ["AccessBook", "Authenticator", "CredentialsError", "Principal", "is_enough"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
