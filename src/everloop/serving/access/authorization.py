"""Decides for each request whether it is let in: tokens, rate limits, and who may choose a version.

Tokens stay valid for `access_stale_s` after they were last confirmed by the store. After that, every request that needs
a token is refused.
"""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import TYPE_CHECKING

from everloop.serving.access.endpoint_tokens import OPEN_PATHS, admitted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.serving.endpoint_settings import EndpointSettings

BURST_S = 1.0
"""A client that was idle may send as many requests at once as this time allows."""


class Authorization:
    """The checks of one process. Thread-safe.

    Args:
        digests: the tokens' digests by name; None: no token is needed.
        testers: the names of the tokens that may choose a version.
        workers: the number of processes that share the traffic, and thus the rate limit.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        digests: Mapping[str, str] | None = None,
        testers: frozenset[str] = frozenset(),
        workers: int = 1,
    ) -> None:
        self._digests = digests
        self._testers = testers
        self._stale_s = settings.access_stale_s
        self.confirmed = math.inf
        """When the store last confirmed the tokens; infinite if they never grow stale."""
        self._anyone = settings.override == "anyone"
        self._rate = settings.rate_limit / workers
        self._burst = max(1.0, self._rate * BURST_S)
        self._left: dict[str | None, tuple[float, float]] = {}
        self._guard = threading.Lock()
        self.open = digests is None and not self._rate
        """Whether every request is let in, so there is nothing to check."""

    def check(self, path: str, authorization: bytes | None) -> tuple[int, str | None]:
        """200, 401 (no such token), 429 (rate limit) or 503 (tokens are stale), and the name of the token."""
        if path in OPEN_PATHS:
            return 200, None
        client = None
        if self._digests is not None:
            if self.stale:
                return 503, None
            client = admitted(self._digests, authorization)
            if client is None:
                return 401, None
        return (200 if not self._rate or self._take(client) else 429), client

    @property
    def asks_token(self) -> bool:
        return self._digests is not None

    @property
    def stale(self) -> bool:
        """Whether the store confirmed the tokens too long ago."""
        return self._digests is not None and monotonic() - self.confirmed > self._stale_s

    def confirm(self) -> None:
        """The tokens and testers equal the store's at this moment. From now on they grow stale."""
        self.confirmed = monotonic()

    @property
    def grows_stale(self) -> bool:
        """Whether `confirm` was ever called."""
        return self.confirmed != math.inf

    def knows(self, path: str, authorization: bytes | None) -> bool:
        """Whether a request's body may be read. Does not count against the rate limit."""
        if self._digests is None or path in OPEN_PATHS:
            return True
        return not self.stale and admitted(self._digests, authorization) is not None

    def may_choose(self, client: str | None) -> bool:
        """Whether this client may choose the version that answers."""
        return self._anyone or client in self._testers

    def wait_s(self) -> int:
        """The time until one more request is allowed, in whole seconds."""
        return max(1, math.ceil(1.0 / self._rate)) if self._rate else 1

    def _take(self, client: str | None) -> bool:
        now = monotonic()
        with self._guard:
            left, since = self._left.get(client, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            granted = left >= 1.0
            self._left[client] = (left - 1.0 if granted else left, now)
        return granted


__all__ = ["Authorization"]
