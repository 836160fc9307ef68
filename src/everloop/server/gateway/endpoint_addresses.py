"""Which endpoints there are and where each answers now: read from the store, never from what a client sends."""

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
LOOK_EVERY_S = 0.2
"""How old what is known of the endpoints may be."""
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_log = logging.getLogger("everloop.server")


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """One endpoint. `address`: where its process says that it answers; None: nowhere."""

    name: str
    address: tuple[str, int] | None
    state: str
    has_routes: bool
    max_body_bytes: int
    digests: Mapping[str, str] | None
    """The endpoint's own tokens; None: it asks for none."""


def split_path(scope: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """The endpoint's name and the path below it, out of a request for `/endpoints/NAME/…`; None: it is not one.

    The path is read as it came, still encoded, so that whoever checks it and whoever passes it on see the same bytes.
    """
    raw: bytes = scope.get("raw_path") or b""
    if not raw.startswith(PREFIX + b"/"):
        return None
    segment, slash, rest = raw[len(PREFIX) + 1 :].partition(b"/")
    name = unquote_to_bytes(segment)
    # A name holds no slash, no dot in front and nothing encoded twice, so it is one segment however it was written.
    return (name.decode("ascii"), slash + rest) if _NAME.fullmatch(name) else None


class EndpointAddresses:
    """The endpoints of the store's project, at most `LOOK_EVERY_S` old. Belongs to one event loop."""

    def __init__(self, store: Store, *, stale_s: float = REMEMBERED_STALE_S) -> None:
        self._store = store
        self._stale_s = stale_s
        self._confirmed = float("-inf")
        self._file = store_file(store)
        self._known: dict[str, EndpointAddress] = {}
        self._seen = -1
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        self._unserved: dict[str, float] = {}

    async def find(self, name: str) -> EndpointAddress | None:
        await self._look()
        return self._known.get(name)

    async def names(self) -> list[str]:
        await self._look()
        return sorted(self._known)

    async def all(self) -> list[EndpointAddress]:
        await self._look()
        return [self._known[name] for name in sorted(self._known)]

    def addresses(self) -> set[tuple[str, int]]:
        return {target.address for target in self._known.values() if target.address is not None}

    def forget(self) -> None:
        """Read the records again at the next request: an address did not answer."""
        self._looked = float("-inf")
        self._seen = -1

    async def is_served(self, name: str) -> bool:
        """Whether a living process of this machine serves the endpoint.

        An address in a record may be left over from a process that was killed, and another program may have its port
        by now: nothing is sent there unless the endpoint's lock is held.
        """
        if monotonic() < self._unserved.get(name, 0.0):
            return False
        served = await asyncio.to_thread(is_served, self._store, name)
        if not served:
            self._unserved[name] = monotonic() + LOOK_EVERY_S
        return served

    async def caller(self, scope: Mapping[str, Any], header: bytes | None) -> str | None:
        """The endpoint that a request is for, if its `Authorization` holds one of that endpoint's own tokens.

        Raises:
            CredentialsError: the endpoints could not be read for too long, so no token of theirs opens anything.
        """
        asked = split_path(scope)
        if asked is None or header is None:
            return None
        target = await self.find(asked[0])
        if target is None or target.digests is None or admitted(target.digests, header) is None:
            return None
        if monotonic() - self._confirmed > self._stale_s:
            raise CredentialsError(503, "The store cannot be read, so no token can be checked.", 1)
        return target.name

    async def _look(self) -> None:
        if monotonic() - self._looked < LOOK_EVERY_S:
            return
        async with self._looking:
            if monotonic() - self._looked < LOOK_EVERY_S:
                return
            try:
                began = monotonic()
                self._seen, found = await asyncio.to_thread(self._read, self._seen)
                self._confirmed = began
            except Exception as error:
                # A store that does not answer now does not cut off the endpoints that are known. Their tokens grow
                # stale, though.
                _log.warning("The endpoints cannot be read: %s", error)
                found = None
            if found is not None:
                self._known = found
            self._looked = monotonic()

    def _read(self, seen: int) -> tuple[int, dict[str, EndpointAddress] | None]:
        check_same_file(self._store, self._file)
        last = self._store.records.last_event()
        if last == seen:
            return seen, None
        return last, {record.name: _target(record) for record in self._store.records.find(EndpointRecord)}


def _target(record: EndpointRecord) -> EndpointAddress:
    digests, _ = access_of(record.options)
    try:
        settings = settings_of(record.options)
    except EverloopError as error:
        _log.warning("The options of the endpoint '%s' cannot be read: %s", record.name, error)
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
