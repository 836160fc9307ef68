"""Who may ask an endpoint: bearer tokens, of which only the digests are kept, in the endpoint's options.

A token is 256 random bits, so a plain SHA-256 of it tells nobody anything. Health checks need none.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from everloop.errors import ConflictError, NotFoundError, UsageError
from everloop.records import Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json
    from everloop.stores import Store

OPEN_PATHS = frozenset(("/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"))
"""What whoever watches the process may ask without a token."""


def digest_of(token: str | bytes) -> str:
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def token_digests(options: Mapping[str, Json]) -> tuple[str, ...] | None:
    """The digests of an endpoint's tokens; None: it asks for none.

    Raises:
        UsageError: the options hold something else.
    """
    tokens = options.get("tokens")
    if tokens is None:
        return None
    if not isinstance(tokens, dict) or not all(isinstance(value, str) for value in tokens.values()):
        raise UsageError("An endpoint's option 'tokens' is an object of names and digests.")
    return tuple(tokens.values())


def admits(digests: tuple[str, ...], header: bytes | None) -> bool:
    """Whether an Authorization header holds one of the tokens. Takes as long for a wrong one as for a right one."""
    scheme, _, token = (header or b"").partition(b" ")
    given = digest_of(token.strip())
    # Every digest is compared, so that the time tells nothing.
    return sum(hmac.compare_digest(given, digest) for digest in digests) > 0 and scheme.lower() == b"bearer"


def add_token(store: Store, endpoint: str, name: str) -> str:
    """Make a token and return it; it cannot be seen again. A token of this name is replaced.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    token = f"evl_{secrets.token_urlsafe(32)}"
    _change(store, endpoint, name, digest_of(token))
    return token


def remove_token(store: Store, endpoint: str, name: str) -> None:
    """Take a token back; a running endpoint refuses it within a fraction of a second.

    Raises:
        NotFoundError: there is no such endpoint, or it has no such token.
    """
    _change(store, endpoint, name, None)


def _change(store: Store, endpoint: str, name: str, digest: str | None) -> None:
    while True:
        record = store.records.get(Endpoint, endpoint)
        tokens = dict(record.options.get("tokens", {}))
        if digest is not None:
            tokens[name] = digest
        elif tokens.pop(name, None) is None:
            raise NotFoundError(
                f"The endpoint '{endpoint}' has no token '{name}'.", help=f"Tokens: {', '.join(tokens) or 'none'}"
            )
        # An empty object is kept: an endpoint that had tokens does not fall open when the last is taken back.
        try:
            store.records.update(replace(record, options={**record.options, "tokens": tokens}), verb="tokens")
        except ConflictError:
            continue
        return
