"""Password hashes and random secrets.

Hashes use scrypt (RFC 7914) with N = 2^14, r = 8, p = 5: 16 MiB and about a quarter of a second each. OWASP's password
storage cheat sheet gives these as the minimum for this amount of memory. A stored hash contains its parameters, so that
they can be raised later.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from everloop.errors import UsageError

LEAST_CHARACTERS = 10
MOST_BYTES = 1024
TOKEN_MARK = "evl_"  # noqa: S105 - the prefix by which people and secret scanners recognise a token

_N, _R, _P = 2**14, 8, 5
_MOST_MEMORY = 64 * 2**20


def hash_password(password: str) -> str:
    """Return `scrypt$N$r$p$salt$hash` of a new password.

    Raises:
        UsageError: it has fewer than 10 characters or more than a kilobyte.
    """
    data = password.encode("utf-8", "surrogatepass")
    if len(password) < LEAST_CHARACTERS or len(data) > MOST_BYTES:
        raise UsageError(
            f"The password has {len(password)} characters, which is not allowed.",
            help=f"Use {LEAST_CHARACTERS} to {MOST_BYTES} characters, or leave it out to get a random one.",
        )
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${_text(salt)}${_text(_derive(data, salt, _N, _R, _P))}"


def verify_password(password: bytes, stored: str | None) -> bool:
    """Whether the password matches the stored hash. Takes as long without a stored hash."""
    if len(password) > MOST_BYTES:
        return False
    _, n, r, p, salt, digest = (stored or _DUMMY_HASH).split("$")
    derived = _derive(password, base64.b64decode(salt), int(n), int(r), int(p))
    return hmac.compare_digest(derived, base64.b64decode(digest)) and stored is not None


def new_password() -> str:
    """A random password of 120 bits."""
    return secrets.token_urlsafe(15)


def new_token() -> str:
    """A random secret of 256 bits."""
    return TOKEN_MARK + secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """Return the digest that is stored of a token. A token is random, so one round of a fast hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _derive(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=_MOST_MEMORY, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_DUMMY_HASH = f"scrypt${_N}${_R}${_P}${_text(bytes(16))}${_text(bytes(32))}"
