"""Presigned URLs: each allows one upload or download without a login, for a limited time.

A URL names what it allows and until when, and has an HMAC-SHA256 over both. The key lives as long as the process, so
URLs stop working when the server stops.
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
    """What a URL allows: GET or PUT of the file `path` below the URI `where`, or PUT of part `path` of the upload
    `where`."""

    what: What
    where: str
    path: str


class PresignedUrls:
    """Creates and verifies presigned URLs. Thread-safe."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def create(self, origin: str, allowed: PresignedUrl, seconds: int) -> str:
        """Return a URL at `origin` (`https://host`) that allows this for `seconds`."""
        until = micros(SystemClock().now()) // 1_000_000 + seconds
        query = {"what": allowed.what, "where": allowed.where, "path": allowed.path, "until": until}
        return f"{origin}{PATH}?{urlencode({**query, 'seal': self._signature(allowed, until)})}"

    def verified(self, fields: Fields) -> PresignedUrl:
        """Return what a URL allows.

        Raises:
            MlflowError: the URL was not created by this process, was changed, or has expired.
        """
        what, until = fields.text("what", required=False), fields.integer("until")
        allowed = PresignedUrl("get", fields.text("where", required=False), fields.text("path", required=False))
        for known in get_args(What):
            if known == what:
                allowed = PresignedUrl(known, allowed.where, allowed.path)
        signature = fields.text("seal", required=False)
        if not signature.isascii() or not hmac.compare_digest(signature, self._signature(allowed, until)):
            raise MlflowError("The signature of this presigned URL is not valid.", "PERMISSION_DENIED")
        if until < micros(SystemClock().now()) // 1_000_000:
            raise MlflowError("This presigned URL has expired. Request a new one.", "PERMISSION_DENIED")
        return allowed

    def _signature(self, allowed: PresignedUrl, until: int) -> str:
        signed = msgspec.json.encode([allowed.what, allowed.where, allowed.path, until])
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()
