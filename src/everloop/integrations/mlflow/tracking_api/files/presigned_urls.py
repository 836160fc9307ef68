"""Addresses that carry their own right, for a while: whoever has one may do the one thing that it says, unasked.

An address says what it allows, until when, and ends with an HMAC-SHA256 over that. The key lives as long as the
process: addresses end with the server that gave them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlencode

import msgspec

from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError
from everloop.stores.clock import SystemClock, micros

PATH = "/signed-artifacts"
LONGEST_S = 604_800
What = Literal["get", "put", "part"]


@dataclass(frozen=True, slots=True)
class PresignedUrl:
    """What an address allows: to fetch or send the file `path` below the URI `where`, or to send part `path` of the
    upload `where`."""

    what: What
    where: str
    path: str


class PresignedUrls:
    """Gives addresses and opens them. Safe from any thread."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def address(self, origin: str, allowed: PresignedUrl, seconds: int) -> str:
        """The address at `origin`, `https://host`, that allows this for so many seconds."""
        until = micros(SystemClock().now()) // 1_000_000 + seconds
        query = {"what": allowed.what, "where": allowed.where, "path": allowed.path, "until": until}
        return f"{origin}{PATH}?{urlencode({**query, 'seal': self._seal(allowed, until)})}"

    def opened(self, fields: Fields) -> PresignedUrl:
        """What an address allows.

        Raises:
            MlflowError: it was not given by this process, was changed, or its time is over.
        """
        what, until = fields.text("what", required=False), fields.integer("until")
        allowed = PresignedUrl("get", fields.text("where", required=False), fields.text("path", required=False))
        for known in get_args(What):
            if known == what:
                allowed = PresignedUrl(known, allowed.where, allowed.path)
        seal = fields.text("seal", required=False)
        if not seal.isascii() or not hmac.compare_digest(seal, self._seal(allowed, until)):
            raise MlflowError("This address was not given by this server, or not for this.", "PERMISSION_DENIED")
        if until < micros(SystemClock().now()) // 1_000_000:
            raise MlflowError("The time of this address is over.", "PERMISSION_DENIED")
        return allowed

    def _seal(self, allowed: PresignedUrl, until: int) -> str:
        said = msgspec.json.encode([allowed.what, allowed.where, allowed.path, until])
        return hmac.new(self._key, said, hashlib.sha256).hexdigest()
