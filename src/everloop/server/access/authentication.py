"""Authentication: turns an `Authorization` header into a principal with roles.

Checking a password takes a quarter of a second. So a valid header is cached, by a keyed digest of it, until users or
tokens change; changes by other processes are seen within half a second. If the user store cannot be read, cached
headers stay valid for a few seconds, and then every request with credentials is refused. Nothing here blocks the event
loop: tokens are looked up in separate threads, and passwords go through `HashQueue`.
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
"""How long cached headers stay valid while the user store cannot be read."""
REFRESH_EVERY_S = 0.5
_READERS = 2
_BUSY_S = 5
_MOST_REMEMBERED = 10_000
_HARMLESS = frozenset({"used", "delivered", "given_up", "progress"})
"""Verbs of events that do not change which credentials are valid."""


_log = logging.getLogger("everloop.server")
T = TypeVar("T")


class CredentialsError(Exception):
    """The credentials are not accepted. `status` is 401, or 429 or 503 with the seconds to wait."""

    def __init__(self, status: int, message: str, wait_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class _Login:
    """The content of a header: a token, or a name and a password; neither if the header is malformed."""

    token: str | None = None
    user: str | None = None
    password: bytes = b""


class Authenticator:
    """Checks credentials against the user store. Belongs to one event loop."""

    def __init__(
        self,
        users: UserStore,
        limit: FailureLimit | None = None,
        hashes: HashQueue | None = None,
        *,
        stale_s: float = REMEMBERED_STALE_S,
    ) -> None:
        self.users = users
        self._stale_s = stale_s
        self._confirmed = -inf
        self._file = store_file(users.store)
        self.limit = limit or FailureLimit()
        self.hashes = hashes or HashQueue()
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()
        """Digests of headers that were valid before. They are checked like all others, but need not wait in a queue."""
        self._cleared = 0
        self._seq = -1
        self._refreshed_at = -inf
        self._refreshing: asyncio.Future[None] | None = None
        # Separate threads, so that lookups of tokens and events never wait for passwords or searches.
        self._reads = ThreadPoolExecutor(_READERS, thread_name_prefix="everloop-access")

    async def identify(self, header: bytes | None, address: str) -> Principal | None:
        """Return the principal of this header; None without a header.

        Args:
            address: the client's address, for the limit of failed logins.

        Raises:
            CredentialsError: the credentials are wrong, there were too many failures, or the user store cannot be read.
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
        await self._refresh()
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
                raise CredentialsError(
                    429,
                    "These credentials are not valid, and there were too many failed attempts before.",
                    ceil(wait_s),
                )
            raise CredentialsError(401, "These credentials are not valid.")
        principal, until = found
        if cleared == self._cleared:
            # Otherwise the credentials may have been revoked since the lookup.
            self._known[mark] = (principal, monotonic() + min(REMEMBERED_S, until))
        self._good[mark] = None
        for cache in (self._known, self._good):
            if len(cache) > _MOST_REMEMBERED:
                cache.popitem(last=False)
        return principal

    async def _of_password(self, login: _Login, mark: bytes, address: str) -> tuple[Principal, float] | None:
        queue = FIRST
        if mark not in self._good:
            queue = network_of(address)
            delay_s = self.limit.next_delay_s(address, str(login.user))
            if delay_s is None:
                raise CredentialsError(429, "Too many failed logins for this account from this address.", _BUSY_S)
            if delay_s > 0:
                await asyncio.sleep(delay_s)
        try:
            principal = await self.hashes.run(
                queue, partial(self.users.find_by_password, str(login.user), login.password)
            )
        except HashQueueFullError:
            raise CredentialsError(429, "Too many logins at once from this address.", _BUSY_S) from None
        return (principal, inf) if principal else None

    def _of_token(self, secret: str) -> tuple[Principal, float] | None:
        if not secret.startswith(TOKEN_MARK) or len(secret) > 200:
            return None
        found = self.users.find_by_token(secret)
        if found is None:
            return None
        principal, expires_at = found
        return principal, self._seconds_until(expires_at)

    def _seconds_until(self, moment: datetime | None) -> float:
        return inf if moment is None else (moment - self.users.store.now()).total_seconds()

    async def _read(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reads, work)

    async def _refresh(self) -> None:
        now = monotonic()
        if now - self._refreshed_at >= REFRESH_EVERY_S:
            self._refreshed_at = now
            self._refreshing = asyncio.ensure_future(self._read_changes())
        if now - self._confirmed > self._stale_s and self._refreshing is not None:
            # All waiting requests share one refresh; shielded, so that cancelling one request does not cancel it.
            await asyncio.shield(self._refreshing)
            if monotonic() - self._confirmed > self._stale_s:
                raise _unreadable(None)
        elif self._refreshing is not None and self._refreshed_at == now:
            await asyncio.shield(self._refreshing)

    async def _read_changes(self) -> None:
        try:
            last, changed = await self._read(partial(self._changes, self._seq))
        except Exception as error:
            # Whatever the reason: cached headers stay valid a little longer.
            _log.error("Cannot read changes of users and tokens: %r", error)
            return
        if changed:
            self._known.clear()
            self._cleared += 1
        self._seq = max(last, self._seq)
        self._confirmed = monotonic()

    def _changes(self, since: int) -> tuple[int, bool]:
        """Return the number of the last event, and whether newer events may change which credentials are valid."""
        check_same_file(self.users.store, self._file)
        last = self.users.records.last_event()
        if last == since:
            return last, False
        events = self.users.records.events_since(since, limit=100) if since >= 0 else []
        return last, len(events) == 100 or any(event.verb not in _HARMLESS for event in events)


def _unreadable(error: Exception | None) -> CredentialsError:
    if error is not None:
        _log.error("Cannot read users and tokens: %r", error)
    return CredentialsError(
        503, "The server cannot read its store, so it cannot check logins. Try again in a few seconds.", _BUSY_S
    )


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
        # Clients that only support Basic may send a token as its owner's password.
        return _Login(token=password.decode("utf-8", "replace"), user=user)
    return _Login(user=user, password=password)
