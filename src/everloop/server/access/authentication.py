"""From an `Authorization` header to a principal with roles.

A password costs a quarter of a second to check, so a header that was found good is remembered, by a keyed digest of
it, until the book of users changes; other processes' changes are seen within half a second. While the book cannot be
read, what is remembered holds for a few seconds, and then opens nothing. Nothing here works in the event loop: tokens
are looked up in threads of their own, and passwords wait for `HashQueue`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import ceil, inf
from time import monotonic
from typing import TypeVar

from everloop.server.access.password_queue import FIRST, HashQueue, HashQueueFullError
from everloop.server.access.passwords import TOKEN_MARK
from everloop.server.access.rate_limits import FailureLimit, network_of
from everloop.server.access.roles import Principal
from everloop.server.access.users import UserStore
from everloop.serving.access.access_reloader import check_same_file, store_file

REMEMBERED_S = 600.0
REMEMBERED_STALE_S = 10.0
"""How long what is remembered holds while the book cannot be read."""
LOOK_EVERY_S = 0.5
_READERS = 2
_BUSY_S = 5
_MOST_REMEMBERED = 10_000
_log = logging.getLogger("everloop.server")
_HARMLESS = frozenset({"used", "delivered", "given_up", "progress"})


_log = logging.getLogger("everloop.server")
T = TypeVar("T")


class CredentialsError(Exception):
    """Credentials that open nothing. `status` is 401, or 429 or 503 with the seconds to wait."""

    def __init__(self, status: int, message: str, wait_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class _Login:
    """What a header holds: a token, or a name and a password; neither where it is broken."""

    token: str | None = None
    user: str | None = None
    password: bytes = b""


class Authenticator:
    """Checks credentials against the book. Belongs to one event loop."""

    def __init__(
        self,
        book: UserStore,
        limit: FailureLimit | None = None,
        hashes: HashQueue | None = None,
        *,
        stale_s: float = REMEMBERED_STALE_S,
    ) -> None:
        self.book = book
        self._stale_s = stale_s
        self._confirmed = -inf
        self._file = store_file(book.store)
        self.limit = limit or FailureLimit()
        self.hashes = hashes or HashQueue()
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()
        """Marks of headers that were good at some time. They are checked like all others, but wait for nobody."""
        self._cleared = 0
        self._seq = -1
        self._looked = -inf
        self._looking: asyncio.Future[None] | None = None
        # Tokens and the list of events take a look into the store, which must not wait for passwords or searches.
        self._reads = ThreadPoolExecutor(_READERS, thread_name_prefix="everloop-access")

    async def identify(self, header: bytes | None, address: str) -> Principal | None:
        """Who sends this header; None where there is no header.

        Raises:
            CredentialsError: it opens nothing, it may not be checked now, or the book cannot be read.
        """
        if header is None:
            return None
        try:
            return await self._identify(header, address)
        except CredentialsError:
            raise
        except Exception as error:
            raise _unreadable(error) from error

    async def _identify(self, header: bytes, address: str) -> Principal:
        await self._look()
        mark = hashlib.blake2b(header, key=self._key, digest_size=32).digest()
        known = self._known.get(mark)
        if known is not None and known[1] > monotonic():
            return known[0]
        login, cleared = _read(header), self._cleared
        if login.token is not None:
            found = await self._read(partial(self._of_token, login.token))
            if found is not None and login.user is not None and found[0].user != login.user:
                found = None
        elif login.user is not None:
            found = await self._of_password(login, mark, address)
        else:
            found = None
        account = login.user or ""
        if found is None:
            self._good.pop(mark, None)
            wait_s = self.limit.wait_s(address, account)
            self.limit.failed(address, account)
            if wait_s > 0:
                raise CredentialsError(429, "These credentials open nothing, and there were many before.", ceil(wait_s))
            raise CredentialsError(401, "These credentials open nothing.")
        principal, until = found
        if cleared == self._cleared:
            # Otherwise they may have been revoked since they were looked up.
            self._known[mark] = (principal, monotonic() + min(REMEMBERED_S, until))
        self._good[mark] = None
        for kept in (self._known, self._good):
            if len(kept) > _MOST_REMEMBERED:
                kept.popitem(last=False)
        return principal

    async def _of_password(self, login: _Login, mark: bytes, address: str) -> tuple[Principal, float] | None:
        line = FIRST
        if mark not in self._good:
            line = network_of(address)
            turn_s = self.limit.turn_s(address, str(login.user))
            if turn_s is None:
                raise CredentialsError(429, "Too many failed logins for this account from this address.", _BUSY_S)
            if turn_s > 0:
                await asyncio.sleep(turn_s)
        try:
            principal = await self.hashes.run(
                line, partial(self.book.find_by_password, str(login.user), login.password)
            )
        except HashQueueFullError:
            raise CredentialsError(429, "Too many logins at once from this address.", _BUSY_S) from None
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

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, work)

    async def _look(self) -> None:
        now = monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._looking = asyncio.ensure_future(self._look_now())
        if now - self._confirmed > self._stale_s and self._looking is not None:
            # One look serves all who came meanwhile; one of them that leaves does not end it for the others.
            await asyncio.shield(self._looking)
            if monotonic() - self._confirmed > self._stale_s:
                raise _unreadable(None)
        elif self._looking is not None and self._looked == now:
            await asyncio.shield(self._looking)

    async def _look_now(self) -> None:
        try:
            last, changed = await self._read(partial(self._changes, self._seq))
        except Exception as error:
            # Whatever keeps the book from being read: what is remembered holds a little longer.
            _log.error("Changes of users and tokens cannot be read: %r", error)
            return
        if changed:
            self._known.clear()
            self._cleared += 1
        self._seq = max(last, self._seq)
        self._confirmed = monotonic()

    def _changes(self, since: int) -> tuple[int, bool]:
        """The number of the last event, and whether what happened since may change what credentials open."""
        check_same_file(self.book.store, self._file)
        last = self.book.records.last_event()
        if last == since:
            return last, False
        events = self.book.records.events_since(since, limit=100) if since >= 0 else []
        return last, len(events) == 100 or any(event.verb not in _HARMLESS for event in events)


def _unreadable(error: Exception | None) -> CredentialsError:
    if error is not None:
        _log.error("Users and tokens cannot be read: %r", error)
    return CredentialsError(503, "The store cannot be read, so no login can be checked.", _BUSY_S)


def _read(header: bytes) -> _Login:
    scheme, _, rest = header.decode("latin-1").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return _Login(token=rest)
    if scheme.lower() != "basic":
        return _Login()
    try:
        name, colon, password = base64.b64decode(rest, validate=True).partition(b":")
        user = name.decode("utf-8")
    except (binascii.Error, ValueError):
        return _Login()
    if not colon:
        return _Login()
    if password.startswith(TOKEN_MARK.encode()):
        # Clients that speak only Basic may bring a token as the password of its owner.
        return _Login(token=password.decode("utf-8", "replace"), user=user)
    return _Login(user=user, password=password)
