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
from everloop.records import EndpointRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json
    from everloop.stores import Store

OPEN_PATHS = frozenset(("/health", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"))
"""What whoever watches the process may ask without a token."""


def digest_of(token: str | bytes) -> str:
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).hexdigest()


def token_digests(options: Mapping[str, Json]) -> dict[str, str] | None:
    """The names of an endpoint's tokens and their digests; None: it asks for none.

    Raises:
        UsageError: the options hold something else.
    """
    tokens = options.get("tokens")
    if tokens is None:
        return None
    if not isinstance(tokens, dict) or not all(isinstance(value, str) for value in tokens.values()):
        raise UsageError("An endpoint's option 'tokens' is an object of names and digests.")
    return dict(tokens)


def access_of(options: Mapping[str, Json]) -> tuple[dict[str, str] | None, frozenset[str]]:
    """The digests of an endpoint's tokens by name, None where it asks for none, and the names of its testers.

    Never raises: options that cannot be understood open nothing.
    """
    try:
        digests = token_digests(options)
    except UsageError:
        digests = {}
    names = options.get("testers", ())
    good = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return digests, frozenset(names) if good else frozenset()


def testers(options: Mapping[str, Json]) -> frozenset[str]:
    """The names of the tokens whose holders may choose the version that answers them."""
    return frozenset(options.get("testers", ()))


def admitted(digests: Mapping[str, str], header: bytes | None) -> str | None:
    """The name of the token that an Authorization header holds; None: of none. Takes equally long for all."""
    scheme, _, token = (header or b"").partition(b" ")
    given = digest_of(token.strip())
    # Every digest is compared, so that the time tells nothing.
    found = [name for name, digest in digests.items() if hmac.compare_digest(given, digest)]
    return found[0] if found and scheme.lower() == b"bearer" else None


def add_token(store: Store, endpoint: str, name: str, *, tester: bool = False) -> str:
    """Make a token and return it; it cannot be seen again. A token of this name is replaced.

    Args:
        tester: its holder may choose the version that answers, by `X-Everloop-Version`.

    Raises:
        NotFoundError: there is no such endpoint.
    """
    token = f"evl_{secrets.token_urlsafe(32)}"
    _change(store, endpoint, name, digest_of(token), tester)
    return token


def remove_token(store: Store, endpoint: str, name: str) -> None:
    """Take a token back; a running endpoint refuses it within a fraction of a second.

    Raises:
        NotFoundError: there is no such endpoint, or it has no such token.
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
        # An empty object is kept: an endpoint that had tokens does not fall open when the last is taken back.
        chosen = sorted((testers(record.options) - {name}) | ({name} if tester else set()))
        options = {**record.options, "tokens": tokens, "testers": chosen}
        try:
            store.records.update(replace(record, options=options), verb="tokens")
        except ConflictError:
            continue
        return
