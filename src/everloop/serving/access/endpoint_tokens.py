"""An endpoint's bearer tokens. Only their digests are stored, in the endpoint's options.

A token is 256 random bits, so a plain SHA-256 of it reveals nothing. Health checks need no token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json
    from everloop.stores import Store

OPEN_PATHS = frozenset(("/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"))
"""Health checks, which need no token."""


def digest_of(token: str | bytes) -> str:
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def token_digests(options: Mapping[str, Json]) -> dict[str, str] | None:
    """The digests of an endpoint's tokens by name; None: it needs no token.

    Raises:
        UsageError: the option is not an object of names and digests.
    """
    tokens = options.get("tokens")
    if tokens is None:
        return None
    if not isinstance(tokens, dict) or not all(isinstance(value, str) for value in tokens.values()):
        raise UsageError("The endpoint's option 'tokens' is not an object of names and digests.")
    return dict(tokens)


def access_of(options: Mapping[str, Json]) -> tuple[dict[str, str] | None, frozenset[str]]:
    """The digests of an endpoint's tokens by name (None if it needs none), and the names of its testers.

    Never raises. With invalid options, no token is valid.
    """
    try:
        digests = token_digests(options)
    except UsageError:
        digests = {}
    names = options.get("testers", ())
    good = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return digests, frozenset(names) if good else frozenset()


def testers(options: Mapping[str, Json]) -> frozenset[str]:
    """The names of the tokens that may choose the version that answers."""
    return frozenset(options.get("testers", ()))


def admitted(digests: Mapping[str, str], header: bytes | None) -> str | None:
    """The name of the token in an Authorization header; None if it has no valid one. Takes constant time."""
    scheme, _, token = (header or b"").partition(b" ")
    sent = digest_of(token.strip())
    # Comparing every digest keeps the time from revealing which one matched.
    found = [name for name, digest in digests.items() if hmac.compare_digest(sent, digest)]
    return found[0] if found and scheme.lower() == b"bearer" else None


def add_token(store: Store, endpoint: str, name: str, *, tester: bool = False) -> str:
    """Create a token and return it. It cannot be shown again. An existing token of this name is replaced.

    Args:
        tester: it may choose the version that answers, with the header `X-Everloop-Version`.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    token = f"evl_{secrets.token_urlsafe(32)}"
    _change(store, endpoint, name, digest_of(token), tester)
    return token


def remove_token(store: Store, endpoint: str, name: str) -> None:
    """Revoke a token. A running endpoint refuses it within a fraction of a second.

    Raises:
        NotFoundError: the endpoint does not exist, or it has no such token.
    """
    _change(store, endpoint, name, None)


def _change(store: Store, endpoint: str, name: str, digest: str | None, tester: bool = False) -> None:
    while True:
        record = store.records.get(EndpointRecord, endpoint)
        tokens = dict(record.options.get("tokens", {}))
        if digest is not None:
            tokens[name] = digest
        elif tokens.pop(name, None) is None:
            raise NotFoundError(
                f"The endpoint '{endpoint}' has no token '{name}'.", help=f"Tokens: {', '.join(tokens) or 'none'}"
            )
        # An empty object stays: an endpoint does not become open when its last token is revoked.
        chosen = sorted((testers(record.options) - {name}) | ({name} if tester else set()))
        options = {**record.options, "tokens": tokens, "testers": chosen}
        try:
            store.records.update(replace(record, options=options), verb="tokens")
        except ConflictError:
            continue
        return
