"""Addresses of the endpoints' processes, read from the store and never from a request."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

from everloop.errors import EverloopError
from everloop.records import EndpointRecord
from everloop.server.access.authentication import REMEMBERED_STALE_S, CredentialsError
from everloop.serving.access.access_reloader import check_same_file, store_file
from everloop.serving.access.endpoint_tokens import access_of, admitted
from everloop.serving.endpoint_settings import EndpointSettings, settings_of
from everloop.serving.endpoint_state import is_served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.stores import Store

PREFIX = b"/endpoints"
REFRESH_EVERY_S = 0.2
"""How old the cached endpoints may be."""
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_log = logging.getLogger("everloop.server")


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """One endpoint. `address`: host and port of its process; None: it has none."""

    name: str
    address: tuple[str, int] | None
    state: str
    has_routes: bool
    max_body_bytes: int
    digests: Mapping[str, str] | None
    """Digests of the endpoint's own tokens; None: it needs no token."""


def split_path(scope: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Split the path `/endpoints/NAME/…` of a request into the name and the path below it; None for any other path.

    The path is read as it was sent, still encoded, so that the check and the forwarding see the same bytes.
    """
    raw: bytes = scope.get("raw_path") or b""
    if not raw.startswith(PREFIX + b"/"):
        return None
    segment, slash, rest = raw[len(PREFIX) + 1 :].partition(b"/")
    name = unquote_to_bytes(segment)
    # A name has no slash, no leading dot and nothing encoded twice, so it is always a single segment.
    return (name.decode("ascii"), slash + rest) if _NAME.fullmatch(name) else None


class EndpointAddresses:
    """The endpoints of the store's project, at most `REFRESH_EVERY_S` old. Belongs to one event loop."""

    def __init__(self, store: Store, *, stale_s: float = REMEMBERED_STALE_S) -> None:
        self._store = store
        self._stale_s = stale_s
        self._confirmed = float("-inf")
        self._file = store_file(store)
        self._known: dict[str, EndpointAddress] = {}
        self._last_event = -1
        self._refreshed_at = float("-inf")
        self._refreshing = asyncio.Lock()
        self._unserved: dict[str, float] = {}

    async def find(self, name: str) -> EndpointAddress | None:
        await self._refresh()
        return self._known.get(name)

    async def names(self) -> list[str]:
        await self._refresh()
        return sorted(self._known)

    async def all(self) -> list[EndpointAddress]:
        await self._refresh()
        return [self._known[name] for name in sorted(self._known)]

    def addresses(self) -> set[tuple[str, int]]:
        return {endpoint.address for endpoint in self._known.values() if endpoint.address is not None}

    def forget(self) -> None:
        """Read the records again at the next request, after an address did not respond."""
        self._refreshed_at = float("-inf")
        self._last_event = -1

    async def is_served(self, name: str) -> bool:
        """Whether a running process of this machine serves the endpoint.

        The address in a record may be left over from a process that was killed, and another program may use that port
        now. So nothing is sent there unless a process holds the endpoint's lock.
        """
        if monotonic() < self._unserved.get(name, 0.0):
            return False
        served = await asyncio.to_thread(is_served, self._store, name)
        if not served:
            self._unserved[name] = monotonic() + REFRESH_EVERY_S
        return served

    async def caller(self, scope: Mapping[str, Any], header: bytes | None) -> str | None:
        """Return the name of a request's endpoint, if its `Authorization` has one of that endpoint's own tokens.

        Raises:
            CredentialsError: the endpoints could not be read for too long, so their tokens cannot be checked.
        """
        parts = split_path(scope)
        if parts is None or header is None:
            return None
        endpoint = await self.find(parts[0])
        if endpoint is None or endpoint.digests is None or admitted(endpoint.digests, header) is None:
            return None
        if monotonic() - self._confirmed > self._stale_s:
            raise CredentialsError(
                503, "The server cannot read its store, so it cannot check tokens. Try again in a second.", 1
            )
        return endpoint.name

    async def _refresh(self) -> None:
        if monotonic() - self._refreshed_at < REFRESH_EVERY_S:
            return
        async with self._refreshing:
            if monotonic() - self._refreshed_at < REFRESH_EVERY_S:
                return
            try:
                started = monotonic()
                self._last_event, found = await asyncio.to_thread(self._read, self._last_event)
                self._confirmed = started
            except Exception as error:
                # The cached endpoints stay reachable while the store does not respond. Only their tokens expire.
                _log.warning("Cannot read the endpoints: %s", error)
                found = None
            if found is not None:
                self._known = found
            self._refreshed_at = monotonic()

    def _read(self, last_event: int) -> tuple[int, dict[str, EndpointAddress] | None]:
        check_same_file(self._store, self._file)
        last = self._store.records.last_event()
        if last == last_event:
            return last, None
        return last, {record.name: _endpoint_address(record) for record in self._store.records.find(EndpointRecord)}


def _endpoint_address(record: EndpointRecord) -> EndpointAddress:
    digests, _ = access_of(record.options)
    try:
        settings = settings_of(record.options)
    except EverloopError as error:
        _log.warning("Cannot read the options of the endpoint '%s': %s", record.name, error)
        settings = EndpointSettings()
    address = None
    if record.url is not None:
        parts = urlsplit(record.url)
        if parts.hostname and parts.port:
            address = (parts.hostname, parts.port)
    return EndpointAddress(
        name=record.name,
        address=address,
        state=record.state,
        has_routes=bool(record.routes),
        max_body_bytes=settings.max_body_bytes,
        digests=digests,
    )


__all__ = ["PREFIX", "EndpointAddress", "EndpointAddresses", "split_path"]
