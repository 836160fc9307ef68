"""From an `Authorization` header to somebody with roles.

A password costs a quarter of a second to check, so a header that was found good is remembered, by a keyed digest
of it, until the book of users changes; other processes' changes are seen within half a second.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import secrets
from collections import OrderedDict
from datetime import datetime
from math import ceil, inf
from time import monotonic

from everloop.server.access.book import AccessBook
from everloop.server.access.limiting import FailureLimit
from everloop.server.access.passwords import TOKEN_MARK
from everloop.server.access.roles import Principal

REMEMBERED_S = 600.0
LOOK_EVERY_S = 0.5
AT_ONCE = 2
_MOST_REMEMBERED = 10_000
_HARMLESS = frozenset({"used", "delivered", "given_up", "progress"})


class CredentialsError(Exception):
    """Credentials that open nothing. `status` is 401, or 429 with the seconds to wait."""

    def __init__(self, status: int, message: str, wait_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.wait_s = wait_s


class Authenticator:
    """Checks credentials against the book. Belongs to one event loop."""

    def __init__(self, book: AccessBook, limit: FailureLimit | None = None) -> None:
        self.book = book
        self.limit = limit or FailureLimit()
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._seq = -1
        self._looked = -inf
        # Each check of a password takes 16 MiB: a flood of them waits instead of filling the memory.
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def identify(self, header: bytes | None, address: str) -> Principal | None:
        """Who sends this header; None where there is no header.

        Raises:
            CredentialsError: it opens nothing, or too many before it did not.
        """
        if header is None:
            return None
        self._look()
        mark = hashlib.blake2b(header, key=self._key, digest_size=32).digest()
        known = self._known.get(mark)
        if known is not None and known[1] > monotonic():
            return known[0]
        async with self._turns:
            # Whoever waited here may have failed too often meanwhile.
            wait_s = self.limit.wait_s(address)
            if wait_s > 0:
                raise CredentialsError(429, "Too many failed logins from this address.", ceil(wait_s))
            found = await asyncio.to_thread(self._verify, header)
        if found is None:
            self.limit.failed(address)
            raise CredentialsError(401, "These credentials open nothing.")
        principal, until = found
        self._known[mark] = (principal, monotonic() + min(REMEMBERED_S, until))
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return principal

    def _verify(self, header: bytes) -> tuple[Principal, float] | None:
        scheme, _, rest = header.decode("latin-1").partition(" ")
        rest = rest.strip()
        if scheme.lower() == "bearer":
            return self._of_token(rest)
        if scheme.lower() != "basic":
            return None
        try:
            name, colon, password = base64.b64decode(rest, validate=True).partition(b":")
            user = name.decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        if not colon:
            return None
        if password.startswith(TOKEN_MARK.encode()):
            # Clients that speak only Basic may bring a token as the password of its owner.
            found = self._of_token(password.decode("utf-8", "replace"))
            return found if found is not None and found[0].user == user else None
        principal = self.book.find_by_password(user, password)
        return (principal, inf) if principal else None

    def _of_token(self, secret: str) -> tuple[Principal, float] | None:
        if not secret.startswith(TOKEN_MARK) or len(secret) > 200:
            return None
        found = self.book.find_by_token(secret)
        if found is None:
            return None
        principal, expires_at = found
        return principal, self._seconds_until(expires_at)

    def _seconds_until(self, moment: datetime | None) -> float:
        return inf if moment is None else (moment - self.book.store.now()).total_seconds()

    def _look(self) -> None:
        now = monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        last = self.book.records.last_event()
        if last == self._seq:
            return
        events = self.book.records.events_since(self._seq, limit=100) if self._seq >= 0 else []
        if len(events) == 100 or any(event.verb not in _HARMLESS for event in events):
            self._known.clear()
        self._seq = last
